"""A study of a network of the user's own: named under [model], remembered by its code, refused when that changed."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hpo_model.errors
import hpo_model.training.conformance
from hpo.cli import app
from hpo.errors import HpoError, StudyError, StudyFileError
from hpo.executors.resources import ResourceRequest
from hpo.home import Home
from hpo.long_run.request import TrialRequest, prepare_trial_run
from hpo.search.launch import Launch
from hpo.search.prepare import join, prepare
from hpo.search.request import Request
from hpo.study.toml import parse_study
from hpo.worker.messages import Event
from hpo.worker.worker import work
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_MACHINE, TRIAL_OUTCOME, TRIAL_RUN
from tests.support.paths import REPOSITORY
from tests.support.texts import TOPICS, write_text

DOCUMENT = (REPOSITORY / "docs" / "architectures.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"```python\n(.*?)```", DOCUMENT, flags=re.DOTALL)
STUDY_EXAMPLE = re.search(r"```toml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
STUDY = """
name = "own"
trials = 1
[text]
vocabulary = 300
[model]
network = "mine:GatedConvolutions"
[run]
preset = "nano"
iit = false
width = 32
heads = 2
sequence_length = 32
batch_size = 4
budget_tokens = 2000
evaluations = 2
evaluation_tokens = 512
[search]
dropout = { low = 0.0, high = 0.4 }
"""


class Silent:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def send(self, event: Event) -> None:
        self.events.append(event)

    def stop_wanted(self) -> bool:
        return False


class Place:
    def __init__(self, root: Path) -> None:
        self.root, self.home, self.url = root, Home(root / "runs"), f"sqlite:///{root}/studies.db"
        text = "\n".join(TOPICS)
        write_text(root / "text", {"train": [text[:60_000]], "valid": [text[60_000:64_000]]})
        assert EXAMPLE is not None
        self.code = root / "mine.py"
        self.code.write_text(EXAMPLE.group(1), encoding="utf-8")
        self.study = root / "own.toml"
        self.study.write_text(STUDY, encoding="utf-8")

    def prepare(self) -> Launch:
        request = Request(study=str(self.study), data=self.root / "text", resources=ResourceRequest(workers=1))
        return prepare(request, self.url, self.home)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """One thread: the machine is shared, and threads that wait for each other on it take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)  # where the user's file lies
    monkeypatch.setattr(sys, "path", list(sys.path))
    sys.modules.pop("mine", None)
    yield Place(tmp_path)
    sys.modules.pop("mine", None)


def test_a_study_trains_it_and_goes_on_with_the_same_code_alone(place: Place) -> None:
    launch = place.prepare()
    made_with = dataclasses.asdict(launch.sweep.record.network)  # type: ignore[arg-type]
    assert made_with == {"network": "mine:GatedConvolutions", "digest": digest_of(place)}
    spec = dataclasses.replace(launch.workers[0][0], threads=1)
    work(spec, Silent())
    (trial,) = launch.sweep.study.get_trials()
    assert trial.user_attrs[TRIAL_OUTCOME] == "complete"
    assert trial.user_attrs[TRIAL_RUN]["network"] == "mine:GatedConvolutions"
    assert trial.user_attrs[TRIAL_HISTORY][-1]["phi"] is None
    assert trial.user_attrs[TRIAL_MACHINE]["predicted_peak_bytes"] is None
    assert place.prepare().workers == ()  # nothing left to do, and nothing against it

    place.code.write_text(place.code.read_text() + "raise SystemExit  # is not even run\n", encoding="utf-8")
    for ask in (
        place.prepare,
        lambda: join(Request(study="own"), place.url, place.home),
        lambda: prepare_trial_run(place.url, place.home, TrialRequest(study="own", epochs=1)),
        lambda: work(spec, Silent()),
    ):
        with pytest.raises(StudyError, match=r"was made with other code of mine:GatedConvolutions \(digest"):
            ask()
    place.code.unlink()
    with pytest.raises((HpoError, hpo_model.errors.ModelError), match="there is no module mine"):
        place.prepare()


def digest_of(place: Place) -> str:
    import hashlib

    return hashlib.sha256(place.code.read_bytes()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (("mine:GatedConvolutions", "mine:Nobody"), "mine has no class of this name"),
        (("mine:GatedConvolutions", "yours:Network"), "there is no module yours"),
        (("iit = false", "iit = true"), r"has no Φ: put iit = false under \[run\]"),
        (("[run]", '[run]\noptimizer = "muon"'), 'optimizer = "muon": mine:GatedConvolutions has no matrices'),
        (("[search]", '[search]\noptimizer = { choices = ["adamw", "muon"] }'), 'optimizer = "muon": mine:'),
        (("mine:GatedConvolutions", "mine.py"), 'model.network: network must be "module:Class"'),
        (('preset = "nano"', 'preset = "nano"\nnetwork = "mine:X"'), "run.network: all trials share it; put"),
        (("[search]", '[search]\nnetwork = { choices = ["a:B"] }'), "search.network: all trials share it"),
        (("[model]", "[model]\nlayers = 3"), "model.layers: unknown key"),
    ],
)  # fmt: skip
def test_what_cannot_be_studied_is_refused_before_there_is_a_study(
    place: Place, change: tuple[str, str], rule: str
) -> None:
    place.study.write_text(STUDY.replace(*change), encoding="utf-8")
    with pytest.raises(StudyFileError, match=rule) as caught:
        place.prepare()
    assert "\n" not in str(caught.value)
    assert not Path(place.url.removeprefix("sqlite:///")).exists()


def test_no_phi_is_no_objective(place: Place) -> None:
    two = 'objectives = ["val_loss", "phi"]\n[pruner]\nkind = "none"\n[text]'
    place.study.write_text(STUDY.replace("[text]", two), encoding="utf-8")
    with pytest.raises(StudyFileError, match="mine:GatedConvolutions has no Φ objective"):
        place.prepare()


def test_another_network_is_another_study(place: Place) -> None:
    place.prepare()
    place.study.write_text(STUDY.replace("GatedConvolutions", "Peeking"), encoding="utf-8")
    with pytest.raises(StudyError, match=r"model\.network was 'mine:GatedConvolutions', is 'mine:Peeking'"):
        place.prepare()


# ---------------------------------------------------------------------------------------------- the document


def test_the_study_of_the_document_is_one() -> None:
    assert STUDY_EXAMPLE is not None
    spec = parse_study(STUDY_EXAMPLE.group(1), "docs", "cpu")
    assert spec.run_with({}).architecture.network == "mine:GatedConvolutions"


def validate(place: Place, name: str) -> Any:
    environment = {"HPO_HOME": str(place.home.root), "KINETO_LOG_LEVEL": "6"}
    arguments = ["validate-architecture", name, "--data", str(place.root / "text")]
    return CliRunner(env=environment).invoke(app, arguments)


def test_the_first_network_of_the_document_passes_all_checks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo_model.training.conformance, "BENCHMARK_S", 0.1)
    # A shared machine's clock decides nothing here
    monkeypatch.setattr(hpo_model.training.conformance, "MIN_SPEED", 0.0)
    monkeypatch.setitem(hpo_model.training.conformance.RUN, "budget_tokens", 16_000)
    monkeypatch.setitem(hpo_model.training.conformance.RUN, "learning_rate", 1e-2)
    result = validate(place, "mine:GatedConvolutions")
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert [line[:17].strip() for line in lines[:-1]] == list(hpo_model.training.conformance.CHECKS)
    assert lines[-1] == "mine:GatedConvolutions passes all checks; it may be studied"
    for line in lines:  # the document shows the same, with its own figures
        assert re.sub(r"[\d.,]+", "#", line) in re.sub(r"[\d.,]+", "#", DOCUMENT)


def test_the_second_one_is_refused(place: Place) -> None:
    result = validate(place, "mine:Peeking")
    assert result.exit_code == 1
    assert "causality         failed     the network is not causal" in result.stdout
    assert result.stdout.splitlines()[-1] == "mine:Peeking fails: causality"


def test_what_is_not_there_is_one_line(place: Place) -> None:
    assert "there is no module nothing" in str(validate(place, "nothing:X").exception)
    assert 'network must be "module:Class"' in str(validate(place, "mine.py").exception)
