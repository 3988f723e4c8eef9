"""Short digests, by which texts, tokenizers, runs and studies are known again."""

from __future__ import annotations

import hashlib


def short_digest(content: str | bytes) -> str:
    """Sixteen hexadecimal digits of the SHA-256 of a content; a text's is that of its UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:16]
