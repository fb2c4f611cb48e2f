"""The citable table: built from records alone, exported as CSV, Markdown, LaTeX, BibTeX and for the terminal."""
