"""What makes a number honest: splits without leaks, intervals, paired comparison, the audit."""
