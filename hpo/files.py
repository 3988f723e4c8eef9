"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from hpo.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write beside the target, then move into place.

    Raises:
        UsageError: the path cannot be written; what was there is untouched.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
