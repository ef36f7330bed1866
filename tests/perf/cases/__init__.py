"""One module for each group of results; each has run(bench)."""
