"""What one looks at: `view` works everything out once; `table`, `plots` and `html` show it."""
