"""From an open study to documents: records, then tables, then text. Pure functions that import neither torch nor our other packages."""
