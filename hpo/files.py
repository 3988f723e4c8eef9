"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hpo.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write a file that a user named; what is no regular file (a terminal, /dev/null) is written to directly.

    Raises:
        UsageError: the path cannot be written; what was there is untouched.
    """
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():
            target.write_text(text, encoding="utf-8")
        else:
            replace_text(target, text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def replace_text(path: Path, text: str) -> None:
    """Write a text beside its target, then move it into place.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """The same with bytes.

    Raises:
        OSError: they cannot be written; what was there is untouched.
    """
    with replacing(path) as tmp:
        tmp.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path for a new file, which takes its target's place when the block ends without an error."""
    tmp = path.parent / f".{path.name}.{os.getpid()}"
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        with contextlib.suppress(OSError):
            tmp.unlink(missing_ok=True)


def replace_with_link(path: Path, source: Path) -> None:
    """Make a path another name of a file, in the place of what was there; a copy where the file system has no links.

    Raises:
        OSError: it cannot be made; what was there is untouched.
    """
    with replacing(path) as tmp:
        tmp.unlink(missing_ok=True)
        try:
            os.link(source, tmp)
        except OSError:
            shutil.copy2(source, tmp)
