"""One set of tests over both databases."""
