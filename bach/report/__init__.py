"""What a run found, for people: a table of mistakes with sheets, and a page for a browser."""
