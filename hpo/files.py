"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hpo.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write beside the target, then move into place; what is no file (a terminal, /dev/null) is written as it is.

    Raises:
        UsageError: the path cannot be written; what was there is untouched.
    """
    target = path.resolve()
    draft = target.parent / f".{target.name}.{os.getpid()}"
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
            return
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
