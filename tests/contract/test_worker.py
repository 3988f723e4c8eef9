"""One worker in this process, with its trials stubbed: how it ends where it cannot go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo.worker.worker
from hpo.errors import StudyError, WorkerError
from hpo.executors.supervisor import note_end
from hpo.home import Home
from hpo.sweep.slots import Lease, Slots
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event, WorkerSpec
from hpo.worker.worker import work
from hpo_model.data.tokens import TokenizedCorpus
from tests.support.sweeps import make_sweep, opened


class Deaf:
    """The line to nobody."""

    def send(self, event: Event) -> None:
        pass

    def stop_wanted(self) -> bool:
        return False


def spec_for(sweep: Sweep, url: str, corpus: TokenizedCorpus, root: Path) -> WorkerSpec:
    return WorkerSpec(
        storage_url=url,
        study_name=sweep.spec.name,
        total=None,
        home=Home(root),
        tokens=corpus.folder,
        device="cpu",
        threads=1,
        name="worker-0",
        owner="worker-0@here",
    )


def test_a_worker_without_memory_to_take_a_trial_up_leaves_it_to_others(
    sqlite_url: str, small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*positional: object) -> None:
        raise MemoryError("checkpoint-1.pt: no memory to read it")

    monkeypatch.setattr(hpo.worker.worker, "run_trial", fail)
    with opened(sqlite_url) as database:
        sweep = make_sweep(database)
        with pytest.raises(
            WorkerError, match=r"\Aworker-0: checkpoint-1\.pt: no memory to read it; run again to go on"
        ):
            work(spec_for(sweep, sqlite_url, small_corpus, tmp_path), Deaf())
        counts = sweep.slots.counts(None)
        assert (counts.begun, counts.done) == (1, 0)
        assert [trial.state.name for trial in sweep.study.get_trials()] == ["RUNNING"]
        lease = sweep.slots.claim("another", None)
        assert lease is not None
        assert (lease.trial_number, lease.crash_count) == (0, 0)


@pytest.mark.parametrize("deleted_at", ["report", "claim"])
def test_a_worker_whose_study_was_deleted_says_so_in_one_line(
    deleted_at: str,
    sqlite_url: str,
    small_corpus: TokenizedCorpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with opened(sqlite_url) as database:
        sweep = make_sweep(database)

        def delete_and_report(trial: optuna.Trial, *rest: object) -> None:
            optuna.delete_study(study_name=sweep.spec.name, storage=database.storage)
            trial.report(4.0, 1)

        def delete_and_claim(slots: Slots, *positional: Any, **named: Any) -> Lease | None:
            optuna.delete_study(study_name=sweep.spec.name, storage=database.storage)
            return claim(slots, *positional, **named)

        claim = Slots.claim
        if deleted_at == "report":
            monkeypatch.setattr(hpo.worker.worker, "run_trial", delete_and_report)
        else:
            monkeypatch.setattr(Slots, "claim", delete_and_claim)
        with pytest.raises(
            StudyError, match=r"\Astudy '.*' was deleted meanwhile: nothing is left to work on\Z"
        ) as end:
            work(spec_for(sweep, sqlite_url, small_corpus, tmp_path), Deaf())
    note_end(end.value)
    assert capfd.readouterr().err == f"{end.value}\n"


def test_a_worker_s_log_keeps_what_lies_beneath_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as cause:
            raise WorkerError("worker-0: no space") from cause
    except WorkerError as error:
        note_end(error)
    assert "OSError: [Errno 28]" in capfd.readouterr().err
