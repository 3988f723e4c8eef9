"""Every shipped study runs: its plan and what the sampler adds, on networks that are as small as can be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hpo.database.connection import open_database
from hpo.home import Home
from hpo.study.spec import StudySpec
from hpo.study.toml import load_study_file, parse_study, shipped_studies
from hpo.sweep.sweep import create_sweep, load_study, open_sweep
from hpo.worker.messages import Event, WorkerSpec
from hpo.worker.worker import work
from hpo_model.data.tokens import TokenizedCorpus
from hpo_reports.records.names import TRIAL_CONTINUED
from hpo_reports.records.study import read_study
from hpo_reports.render import render
from tests.support.sweeps import make_record

TRIALS = 3
SMALL = {  # stands over what presets say, so that searched presets are small too
    "width": 16,
    "layers": 2,
    "heads": 2,
    "sequence_length": 16,
    "budget_tokens": 2048,  # two updates of the largest batch
    "evaluations": 2,
    "evaluation_tokens": 64,
}


class Listener:
    """A worker's link that asks it to leave after so many evaluations."""

    def __init__(self, evaluations: int | None = None) -> None:
        self.evaluations = evaluations
        self.heard: list[Event] = []

    def send(self, event: Event) -> None:
        self.heard.append(event)

    def stop_wanted(self) -> bool:
        heard = sum(event.kind == "evaluated" for event in self.heard)
        return self.evaluations is not None and heard >= self.evaluations


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def shrunk(name: str) -> StudySpec:
    content = load_study_file(name, "cpu").model_dump()
    return StudySpec.model_validate({**content, "run": {**content["run"], **SMALL}, "trials": TRIALS})


def worker_spec(url: str, spec: StudySpec, corpus: TokenizedCorpus, root: Path) -> WorkerSpec:
    facts = {"device": "cpu", "threads": 1, "name": "worker-0", "owner": "worker-0", "tokens": corpus.folder}
    return WorkerSpec(storage_url=url, study_name=spec.name, total=TRIALS, home=Home(root), **facts)  # type: ignore[arg-type]


@pytest.mark.usefixtures("threads_as_before")
@pytest.mark.parametrize("name", shipped_studies())
def test_a_shipped_study_runs(name: str, sqlite_url: str, small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    spec = shrunk(name)
    database = open_database(sqlite_url, create=True)
    create_sweep(database, make_record(spec)).slots.ensure(TRIALS)
    work(
        worker_spec(sqlite_url, spec, small_corpus, tmp_path), Listener(evaluations=1)
    )  # and leave amid the first trial
    assert [trial.state.name for trial in load_study(database, name).trials] == ["RUNNING"]
    work(worker_spec(sqlite_url, spec, small_corpus, tmp_path), Listener())
    trials = load_study(database, name).trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * TRIALS
    assert [trial.user_attrs[TRIAL_CONTINUED] for trial in trials] == [1, 0, 0]
    assert all(len(trial.values) == len(spec.objectives) for trial in trials)
    best = open_sweep(database, name).best()
    assert best is not None
    assert best.values[0] == min(trial.values[0] for trial in trials)
    report = render(read_study(load_study(database, name)), "markdown")
    assert (
        ("## Pareto front" in report)
        == (len(spec.objectives) == 2)
        == (re.search(r"^## .*Winner", report, re.MULTILINE) is None)
    )
    for block in re.findall(r"```toml\n(.*?)```", report, re.DOTALL):  # what it offers to copy is a study's [run]
        pasted = f'name = "pasted"\n[search]\ndropout = {{ low = 0.0, high = 0.4 }}\n[run]\n{block}'
        parse_study(pasted, "pasted", "cpu")
    database.engine.dispose()
