"""Which checkpoint files of a trial are deleted, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from hpo.sweep.checkpoints import checkpoint_path, delete_after_end, delete_after_lost_lease, kept_after_end
from hpo.sweep.result import TrialResult


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "trial"
    folder.mkdir()
    return folder


def write(folder: Path, *tokens: int) -> None:
    for token in tokens:
        checkpoint_path(folder, token).touch()


@pytest.mark.parametrize(
    ("there", "left"),
    [
        ([1, 2], [1, 2]),  # nobody has written since
        ([1, 2, 3], [1, 3]),
        ([1], [1]),
        ([2], [2]),
        ([3], [3]),
        ([], []),
        ([2, 10], [10]),  # tenth, not first
    ],
)
def test_a_worker_that_lost_its_lease_deletes_its_checkpoint_once_a_later_one_is_there(
    there: list[int], left: list[int], folder: Path
) -> None:
    write(folder, *there)
    delete_after_lost_lease(folder, fencing_token=2, ended=False)
    assert sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob("*")) == left


def test_a_worker_that_lost_its_lease_leaves_nothing_of_a_trial_that_has_ended(folder: Path) -> None:
    delete_after_lost_lease(folder.with_name("missing"), fencing_token=1, ended=True)
    write(folder, 1)
    delete_after_lost_lease(folder, fencing_token=1, ended=True)
    assert not folder.exists()


def test_a_complete_trial_keeps_its_last_checkpoint(folder: Path) -> None:
    write(folder, 2, 10)
    (folder / ".checkpoint-10.pt.77").touch()
    result = TrialResult(state="COMPLETE")
    assert kept_after_end(folder, result) == [folder / "checkpoint-10.pt"]
    delete_after_end(folder, result)
    assert list(folder.iterdir()) == [folder / "checkpoint-10.pt"]


@pytest.mark.parametrize("state", ["PRUNED", "FAIL"])
def test_any_other_trial_keeps_none(state: Literal["PRUNED", "FAIL"], folder: Path) -> None:
    write(folder, 1)
    assert kept_after_end(folder, TrialResult(state=state)) == []
    delete_after_end(folder, TrialResult(state=state))
    assert not folder.exists()
