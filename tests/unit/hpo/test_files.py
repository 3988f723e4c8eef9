"""Files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.errors import UsageError
from hpo.files import write_text


def test_a_file_is_written_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.md"
    write_text(path, "Φ = 0.7\n")
    write_text(path, "short")
    assert path.read_bytes() == b"short"
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "report.md", "λΦ")
    assert (tmp_path / "report.md").read_bytes() == "λΦ".encode()


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none/report\.md: cannot be written \(No such file or directory\)$"):
        write_text(tmp_path / "none" / "report.md", "text")


def test_a_folder_is_not_overwritten_and_no_draft_stays(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(UsageError, match=r"folder: cannot be written \(Is a directory\)$"):
        write_text(target, "text")
    assert list(tmp_path.iterdir()) == [target]


def test_what_was_there_stays_when_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.md"
    write_text(path, "old")

    def full(self: Path, content: bytes) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UsageError, match=r"report\.md: cannot be written \(No space left on device\)$"):
        write_text(path, "new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("path", [".", "/"])
def test_a_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        write_text(Path(path), "text")


def test_a_link_s_target_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.md", tmp_path / "link.md"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
