"""From an open study to documents: records, then tables, then text. Pure functions; no torch, nothing of ours."""
