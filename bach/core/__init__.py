"""What everything else stands on: errors, files, tables, options, run folders, pictures."""
