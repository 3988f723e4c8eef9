"""Text to train on: help topics of Python, which every installation has."""

from __future__ import annotations

import pydoc_data.topics
from pathlib import Path

TOPICS = [topic for _, topic in sorted(pydoc_data.topics.topics.items())]
PARTS = {"train": TOPICS[:16], "valid": TOPICS[30:33], "test": TOPICS[33:36]}


def write_text(folder: Path, parts: dict[str, list[str]] = PARTS) -> Path:
    """Fill a folder with one text file per split, its topics one after the other."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, topics in parts.items():
        (folder / f"{split}.txt").write_text("\n".join(topics), encoding="utf-8")
    return folder
