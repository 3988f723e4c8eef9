"""Documents and their parts: Markdown, HTML, tables, messages."""
