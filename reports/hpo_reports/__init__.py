"""From an open study to documents: records, then tables, then text. Imports neither torch nor our other packages."""
