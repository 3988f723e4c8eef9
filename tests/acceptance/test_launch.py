"""What is checked before a worker starts. Nothing here trains; the runs themselves are in test_run.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

import hpo.executors.allocation
import hpo.search.prepare
from hpo.database.connection import open_database
from hpo.errors import HpoError, StorageError, StudyError, StudyFileError, UsageError
from hpo.executors.resources import ResourceRequest
from hpo.home import Home
from hpo.search.launch import Launch
from hpo.search.prepare import join, prepare
from hpo.search.request import Request
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import SlotCounts
from hpo.sweep.sweep import find_sweep, last_run, study_names
from hpo.worker.messages import Event
from hpo.worker.worker import work
from hpo_model.config import SEMANTICS_VERSION
from hpo_model.errors import CorpusError
from hpo_model.training.loop import Throughput
from hpo_reports.records.names import STUDY_LAST_RUN, TRIAL_MACHINE
from tests.support.sweeps import COMPLETE, complete, contents, rewrite_record, run_slot
from tests.support.texts import TOPICS, write_text

STUDY = """
name = "small"
trials = 6
[text]
vocabulary = 300
[run]
preset = "nano"
[search]
dropout = { low = 0.0, high = 0.4 }
[profile.cuda.run]
batch_size = 64
"""
PASSWORD = "s3cr3t-w0rd"


def parts_from(first: int) -> dict[str, list[str]]:
    """A corpus of documentation, from one of its topics on."""
    return {"train": TOPICS[first : first + 6], "valid": TOPICS[first + 6 : first + 9]}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("texts")
    return write_text(root / "pages", parts_from(0)), write_text(root / "others", parts_from(20))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


class Place:
    """A study file, a corpus, a database: what `prepare` is asked with."""

    def __init__(self, folder: Path, texts: tuple[Path, Path], home: Home, log: list[str]) -> None:
        self.folder, self.home = folder, home
        self.text, self.other_text = texts
        self.url = f"sqlite:///{folder}/studies.db"
        self.file = folder / "small.toml"
        self.write(STUDY)
        self.launches: list[Launch] = []
        self.said = log

    def write(self, text: str) -> None:
        self.file.write_text(text, encoding="utf-8")

    def prepare(self, **request: Any) -> Launch:
        wanted = self.request(**{"study": str(self.file), "data": self.text, **request})
        self.launches.append(prepare(wanted, self.url, self.home))
        return self.launches[-1]

    def join(self, study: str = "small", **request: Any) -> Launch:
        self.launches.append(join(self.request(study=study, **request), self.url, self.home))
        return self.launches[-1]

    def request(self, **request: Any) -> Request:
        resources = {name: request.pop(name) for name in ("workers", "gpus", "trials_per_gpu") if name in request}
        return Request(**request, resources=ResourceRequest(**resources))

    def refusal(self, kind: type[Exception], ask: Callable[..., Launch] | None = None, **request: Any) -> str:
        """What is said of a request that cannot be met; always one line."""
        with pytest.raises(kind, match=r"\A[^\n]+\Z") as caught:
            (ask or self.prepare)(**request)
        return str(caught.value)

    def stored(self) -> tuple[Any, ...]:
        """All that a refusal must not change."""
        database = open_database(self.url, create=False)
        sweep = find_sweep(database, "small")
        assert sweep is not None
        stamp = sweep.study.user_attrs[STUDY_LAST_RUN]
        content = (study_names(database), sweep.record, stamp, sweep.slots.total(), sweep.study.get_trials())
        database.engine.dispose()
        return content


@pytest.fixture
def place(tmp_path: Path, texts: tuple[Path, Path], home: Home, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> Any:
    monkeypatch.setattr(hpo.search.prepare, "default_device", lambda: "cpu")
    monkeypatch.setattr(hpo.executors.allocation, "cpu_cores", lambda: 8)
    monkeypatch.setattr(hpo.executors.allocation, "_benchmark", each_worker_brings_as_much)
    made = Place(tmp_path, texts, home, log)
    yield made
    for launch in made.launches:
        launch.sweep.slots.database.engine.dispose()


def each_worker_brings_as_much(demand: object, devices: list[tuple[str, int]]) -> list[Throughput]:
    return [Throughput(tokens_per_s=1000.0, peak_memory_bytes=2**30)] * len(devices)


def use_cuda(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    monkeypatch.setattr(hpo.search.prepare, "default_device", lambda: "cuda")
    monkeypatch.setattr(hpo.search.prepare, "describe", lambda device: "a GPU")
    for room in (hpo.search.prepare, hpo.executors.allocation):
        monkeypatch.setattr(room, "gpu_count", lambda: gpus)
    monkeypatch.setattr(hpo.executors.allocation, "gpu_memory", lambda gpu: 80 * 2**30)


# ---------------------------------------------------------------------------------------------- what is made ready


def test_a_new_study_is_made_with_its_slots_and_its_record(place: Place) -> None:
    launch = place.prepare()
    assert launch.total == 6
    assert launch.sweep.slots.counts(6) == SlotCounts(open=6)
    record = launch.sweep.record.to_dict()
    assert record["profile"] == "cpu"
    assert record["corpus"]["name"] == "pages"
    assert record["corpus"]["source"] == str(place.text)
    assert record["corpus"]["digest"] == launch.corpus.corpus_digest
    assert record["corpus"]["tokens"]["train"] == launch.corpus.tokens("train") > 1000
    assert record["tokenizer"]["vocabulary"] == 300
    assert record["versions"]["optuna"] == optuna.__version__
    assert len(launch.sweep.uid) == 8


def test_the_command_s_total_comes_before_the_file_s(place: Place) -> None:
    assert place.prepare(trials=3).sweep.slots.total() == 3


def test_asking_again_finds_the_study_as_it_is(place: Place) -> None:
    first = place.prepare()
    run_slot(first.sweep, COMPLETE)
    again = place.prepare()
    assert again.sweep.record == first.sweep.record
    assert again.sweep.slots.counts(6) == SlotCounts(done=1, open=5)
    assert len(again.sweep.study.get_trials()) == 1


def test_a_greater_total_adds_slots_and_a_smaller_one_removes_none(place: Place) -> None:
    place.prepare()
    assert place.prepare(trials=9).sweep.slots.total() == 9
    smaller = place.prepare(trials=2)
    assert smaller.total == 2
    assert smaller.sweep.slots.total() == 9


def test_a_study_remembers_its_text(place: Place) -> None:
    first = place.prepare()
    again = place.prepare(data=None)
    assert again.corpus.corpus_digest == first.corpus.corpus_digest
    assert again.corpus.corpus_source == str(place.text)


def test_what_is_not_science_may_change_between_two_runs(place: Place) -> None:
    first = place.prepare()
    changed = STUDY.replace("trials = 6", 'trials = 7\ndescription = "why"\nstopping.trials_without_improvement = 5')
    place.write(changed.replace("[text]", "[text]\ncorpus = 'python-docs'"))
    again = place.prepare()
    assert again.sweep.uid == first.sweep.uid
    assert again.total == 7


def test_the_study_that_was_prepared_last_is_the_one_that_was_run_last(place: Place) -> None:
    place.prepare()
    place.write(STUDY.replace("small", "another"))
    launch = place.prepare()
    database = open_database(place.url, create=False)
    assert last_run(database) == "another" == launch.sweep.spec.name
    database.engine.dispose()


def test_a_description_names_study_text_workers_and_database(place: Place) -> None:
    launch = place.prepare(workers=2)
    assert launch.describe(SlotCounts(done=3, open=3)) == (
        "study small: 3 of 6 trials finished · profile cpu · pages, bpe with 300 tokens · 2 workers · " + place.url
    )
    assert "1 worker ·" in place.prepare(workers=1).describe(SlotCounts())


def test_a_description_hides_the_password(place: Place) -> None:
    launch = place.prepare(workers=1)
    ((spec, log),) = launch.workers
    url = f"postgresql://user:{PASSWORD}@host/name"
    object.__setattr__(spec, "storage_url", url)
    object.__setattr__(launch.study, "url", url)
    assert "postgresql://user:***@host/name" in launch.describe(SlotCounts())
    for text in (launch.describe(SlotCounts()), repr(spec), repr(launch), str(log)):
        assert PASSWORD not in text


# ---------------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize(
    ("request_", "count", "threads"),
    [
        ({}, 1, 8),  # six trials: one worker, so that its sampler learns from each
        ({"trials": 19}, 1, 8),
        ({"trials": 20}, 2, 4),
        ({"trials": 500}, 8, 1),
        ({"workers": 3}, 3, 2),
        ({"workers": 100}, 6, 1),  # never more than trials
        ({"workers": 2, "trials": 1}, 1, 8),
    ],
)
def test_workers_share_the_cores(request_: dict[str, Any], count: int, threads: int, place: Place) -> None:
    specs = [spec for spec, _ in place.prepare(**request_).workers]
    assert len(specs) == count
    assert {spec.threads for spec in specs} == {threads}
    assert {spec.device for spec in specs} == {"cpu"}


def test_more_workers_than_cores_have_one_thread_each(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.executors.allocation, "cpu_cores", lambda: 2)
    assert [spec.threads for spec, _ in place.prepare(workers=5).workers] == [1] * 5


def test_workers_take_the_gpus_in_turn(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cuda(monkeypatch, gpus=2)
    assert [spec.device for spec, _ in place.prepare().workers] == ["cuda:0", "cuda:1"]
    assert [spec.device for spec, _ in place.prepare(workers=3).workers] == ["cuda:0", "cuda:1", "cuda:0"]


def test_a_worker_gets_its_share_of_a_gpu(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cuda(monkeypatch, gpus=2)
    specs = [spec for spec, _ in place.prepare(trials_per_gpu=2, gpus=(1, 0)).workers]
    assert [(spec.device, spec.threads) for spec in specs] == [("cuda:1", 2), ("cuda:0", 2)] * 2
    assert {spec.memory_fraction for spec in specs} == {0.5}


def test_memory_that_a_trial_was_seen_to_hold_needs_no_benchmark(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cuda(monkeypatch, gpus=1)
    sweep = place.prepare().sweep
    for device, peak in (("cuda:0", 10 * 2**30), ("cuda:0", 30 * 2**30), ("cpu", 70 * 2**30), ("cuda:0", None)):
        machine = {"device": device, "peak_memory_bytes": peak}
        run_slot(sweep, TrialResult(state="COMPLETE", values=(4.0,), attributes={TRIAL_MACHINE: machine}))
    monkeypatch.setattr(hpo.executors.allocation, "_benchmark", lambda *_: pytest.fail("it was measured again"))
    assert len(place.prepare(trials=20, trials_per_gpu=5).workers) == 2
    assert place.said == ["2 instead of 5 trials per GPU: one holds 30.0 GiB at its peak, and a GPU here has 80.0 GiB"]


def test_where_nothing_is_left_to_do_nothing_is_measured(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = place.prepare(trials=20, workers=1).sweep
    for _ in range(20):
        run_slot(sweep, COMPLETE)
    monkeypatch.setattr(hpo.executors.allocation, "_benchmark", lambda *_: pytest.fail("it was measured"))
    assert place.prepare(trials=20).workers == ()


def test_workers_know_how_many_stops_were_requested_before(place: Place) -> None:
    launch = place.prepare(workers=2)
    assert [spec.stop_requests for spec, _ in launch.workers] == [0, 0]
    launch.sweep.row.request_stop()
    assert [spec.stop_requests for spec, _ in place.prepare(workers=2).workers] == [1, 1]
    assert [spec.stop_requests for spec, _ in place.join(workers=1).workers] == [1]


def test_every_worker_has_a_name_and_a_log_of_its_own(place: Place) -> None:
    launch = place.prepare(workers=3)
    assert [spec.name for spec, _ in launch.workers] == ["worker-0", "worker-1", "worker-2"]
    assert len({log for _, log in launch.workers}) == 3
    for spec, log in launch.workers:
        assert log.is_relative_to(place.home.study("small", launch.sweep.uid))
        assert (spec.storage_url, spec.study_name, spec.total) == (place.url, "small", 6)
        assert spec.tokens == launch.corpus.folder


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize("trials", [0, -1])
def test_a_total_below_one_is_refused(trials: int, place: Place) -> None:
    message = place.refusal(UsageError, trials=trials)
    assert message == f"--trials is the total that the study ends with and must be at least 1, got {trials}"


def test_fewer_workers_than_none_are_refused(place: Place) -> None:
    assert place.refusal(UsageError, workers=-1) == "--workers must be at least 0, got -1"


def test_no_workers_make_the_study_ready_for_others(place: Place) -> None:
    launch = place.prepare(workers=0)
    assert launch.workers == ()
    assert launch.sweep.slots.counts(None) == SlotCounts(open=6)


def test_more_trials_than_a_grid_has_points_are_refused(place: Place) -> None:
    place.write(
        'name = "g"\ntrials = 3\n[run]\n[search]\ndropout = { choices = [0.1, 0.2, 0.3] }\n[sampler]\nkind = "grid"'
    )
    message = place.refusal(UsageError, trials=4)
    assert message == "--trials 4: the grid of g has 3 points, baseline included"


@pytest.mark.parametrize(
    ("kind", "request_", "words"),
    [
        (StudyFileError, {"study": "nothing"}, "unknown study 'nothing'"),
        (StudyFileError, {"study": "none.toml"}, "none.toml: cannot be read"),
        (UsageError, {"trials": 0}, "--trials"),
        (UsageError, {"workers": -1}, "--workers"),
        (UsageError, {"gpus": (0,)}, "--gpus"),
        (UsageError, {"workers": 2, "trials_per_gpu": 2}, "--trials-per-gpu"),
    ],
)
def test_a_bad_argument_is_found_before_the_database_is_made(
    kind: type[HpoError], request_: dict[str, Any], words: str, place: Place
) -> None:
    assert words in place.refusal(kind, **request_)
    assert [path.name for path in place.folder.iterdir()] == ["small.toml"]


def test_a_database_of_another_program_is_refused_before_the_text_is_read(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.search.prepare, "load_text", lambda *_: pytest.fail("the text was read"))
    (place.folder / "studies.db").write_text("not a database\n" * 100)
    assert "file is not a database" in place.refusal(StorageError)


Change = Callable[[str], str]
OTHER_FILES: dict[str, tuple[Change, str]] = {
    "a value": (lambda text: text.replace("high = 0.4", "high = 0.5"), "search.dropout.high was 0.4, is 0.5"),
    "a run's value": (lambda text: text.replace("[run]", "[run]\nwarmup = 0.2"), "run.warmup was None, is 0.2"),
    "the tokenizer": (lambda text: text.replace("300", "400"), "text.vocabulary was 300, is 400"),
    "the sampler": (lambda text: f"{text}\n[sampler]\nseed = 7", "sampler.seed was 1, is 7"),
    "the baseline": (lambda text: f"{text}\n[baseline]\ndropout = 0.2", "baseline.dropout was None, is 0.2"),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_another_study_file_of_the_same_name_is_refused_and_nothing_is_changed(what: str, place: Place) -> None:
    place.prepare()
    before = place.stored()
    change, difference = OTHER_FILES[what]
    place.write(change(STUDY))
    message = place.refusal(StudyError, trials=20)
    assert message == (
        f"study 'small' was made from another study file: {difference}; restore the file, or give it another name"
    )
    assert place.stored() == before


def test_many_differences_are_named_in_part(place: Place) -> None:
    place.prepare()
    text = STUDY
    for change, _ in OTHER_FILES.values():
        text = change(text)
    place.write(text)
    message = place.refusal(StudyError)
    assert sum(difference in message for _, difference in OTHER_FILES.values()) == 3


def test_another_profile_s_values_are_explained_by_the_profile(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.prepare()
    use_cuda(monkeypatch, gpus=1)
    message = place.refusal(StudyError)
    assert "run.batch_size was None, is 64" in message
    assert "(it was made with profile cpu, this machine takes cuda)" in message


def test_another_profile_of_the_same_values_is_the_same_study(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(STUDY.partition("[profile.cuda.run]")[0])
    made = place.prepare()
    use_cuda(monkeypatch, gpus=1)
    assert place.prepare().sweep.uid == made.sweep.uid


def as_made_when(place: Place, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Let the study's record be as of another version of the program."""
    rewrite_record(place.prepare().sweep, changed)


def without_meaning(record: dict[str, Any]) -> dict[str, Any]:
    del record["meaning"]
    return record


def with_runs_of_version_1(record: dict[str, Any]) -> dict[str, Any]:
    record["meaning"]["runs_version"] = 1
    return record


def with_another_learning_rate(record: dict[str, Any]) -> dict[str, Any]:
    record["meaning"]["presets"]["nano"]["learning_rate"] = 0.001
    return record


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (without_meaning, f"runs were of version 1, are of {SEMANTICS_VERSION}"),
        (with_runs_of_version_1, f"runs were of version 1, are of {SEMANTICS_VERSION}"),
    ],
)
def test_a_study_whose_values_meant_something_else_is_refused_and_nothing_is_changed(
    changed: Callable[[dict[str, Any]], dict[str, Any]], difference: str, place: Place
) -> None:
    as_made_when(place, changed)
    before = place.stored()
    for ask, request in ((place.prepare, {"trials": 20}), (place.join, {})):
        assert place.refusal(StudyError, ask, **request) == (
            f"study 'small' was made by a version that trained these values differently ({difference}); new trials "
            "would not compare: give the new study another name, or use the version that made it"
        )
    assert place.stored() == before


def test_a_study_keeps_the_values_that_its_presets_had_and_says_so(place: Place) -> None:
    as_made_when(place, with_another_learning_rate)
    launch = place.prepare(trials=20)
    assert launch.sweep.spec.run_with({}).training.learning_rate == 0.001
    assert "study small keeps the values that its presets had: learning_rate 0.001 (now 0.004)" in place.said
    assert place.join().sweep.spec.run_with({}).training.learning_rate == 0.001


class Deaf:
    """The line to nobody."""

    def send(self, event: Event) -> None:
        pass

    def stop_wanted(self) -> bool:
        return False


def test_a_worker_of_another_version_does_not_fill_the_study_s_slots(place: Place) -> None:
    spec, _ = place.prepare(workers=1).workers[0]
    as_made_when(place, with_runs_of_version_1)
    with pytest.raises(StudyError, match="runs were of version 1"):
        work(spec, Deaf())


def test_a_value_that_runs_did_not_have_when_a_study_was_made_is_no_difference(place: Place) -> None:
    def without_noise(record: dict[str, Any]) -> dict[str, Any]:
        del record["meaning"]["presets"]["nano"]["noise"]
        return record

    as_made_when(place, without_noise)
    place.prepare()
    place.join()


def test_another_text_is_refused_and_nothing_is_changed(place: Place) -> None:
    launch = place.prepare()
    before = place.stored()
    message = place.refusal(StudyError, data=place.other_text, trials=20)
    assert message.startswith("study 'small' was made with another corpus (of pages, digest ")
    assert launch.corpus.corpus_digest in message
    assert place.stored() == before


def test_the_same_text_in_another_folder_is_the_same_text(place: Place) -> None:
    first = place.prepare()
    moved = place.folder / "moved"
    moved.mkdir()
    for path in place.text.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert place.prepare(data=moved).sweep.uid == first.sweep.uid


def test_a_study_that_another_process_makes_meanwhile_must_be_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hpo.search.prepare.load_text

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(hpo.search.prepare, "load_text", real)
        place.prepare()
        return real(*args)

    monkeypatch.setattr(hpo.search.prepare, "load_text", meanwhile)
    other = place.folder / "other.toml"
    other.write_text(STUDY.replace("high = 0.4", "high = 0.5"), encoding="utf-8")
    message = place.refusal(StudyError, study=str(other))
    assert "search.dropout.high was 0.4, is 0.5" in message


def test_another_program_s_study_of_the_name_is_refused(place: Place) -> None:
    database = open_database(place.url, create=True)
    optuna.create_study(storage=database.storage, study_name="small").optimize(lambda trial: 1.0, n_trials=1)
    database.engine.dispose()
    assert "study 'small' was made by another program" in place.refusal(StudyError)


def test_a_missing_corpus_is_refused(place: Place) -> None:
    assert "no corpus" in place.refusal(CorpusError, data=place.folder / "none")


def test_a_text_shorter_than_one_sequence_is_refused(place: Place) -> None:
    short = place.folder / "short"
    short.mkdir()
    (short / "train.txt").write_text("a few words\n" * 500)
    (short / "valid.txt").write_text("a few words\n")
    message = place.refusal(CorpusError, data=short)
    assert "the valid split has" in message
    assert "fewer than one sequence of 128" in message


def test_a_missing_corpus_is_found_before_the_database_is_made(place: Place) -> None:
    place.refusal(CorpusError, data=place.folder / "none")
    assert [path.name for path in place.folder.iterdir()] == ["small.toml"]


def test_a_grid_without_a_total_runs_every_point_once(place: Place) -> None:
    place.write('name = "g"\n[run]\n[search]\ndropout = { choices = [0.1, 0.2] }\n[sampler]\nkind = "grid"')
    assert place.prepare(trials=None).total == 2


# ---------------------------------------------------------------------------------------------- joining


def test_who_joins_works_on_what_the_database_has(place: Place) -> None:
    made = place.prepare(workers=2)
    place.file.unlink()
    before = contents(made.sweep.slots.database)
    joined = place.join(workers=2)
    assert contents(made.sweep.slots.database) == before
    assert joined.sweep.record == made.sweep.record
    assert joined.corpus.corpus_digest == made.corpus.corpus_digest
    assert joined.total is None
    assert [spec.total for spec, _ in joined.workers] == [None, None]
    assert len({log for _, log in (*made.workers, *joined.workers)}) == 4
    assert place.said == []


def test_who_joins_a_study_that_is_done_has_nothing_to_do(place: Place) -> None:
    sweep = place.prepare(trials=2).sweep
    for _ in range(2):
        run_slot(sweep, complete(3.0))
    assert place.join().workers == ()


def test_who_joins_may_have_the_text_elsewhere_but_no_other_text(place: Place) -> None:
    launch = place.prepare(workers=0)
    before = contents(launch.sweep.slots.database)
    moved = place.folder / "moved"
    moved.mkdir()
    for path in place.text.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    assert place.join(data=moved).corpus.corpus_digest == launch.corpus.corpus_digest
    assert "made with another corpus" in place.refusal(StudyError, place.join, data=place.other_text)
    assert contents(launch.sweep.slots.database) == before


def test_a_text_that_is_gone_is_asked_for(place: Place) -> None:
    gone = place.folder / "gone"
    gone.mkdir()
    for path in place.text.iterdir():
        (gone / path.name).write_bytes(path.read_bytes())
    place.prepare(data=gone)
    for path in gone.iterdir():
        path.unlink()
    for ask, request in ((place.join, {}), (place.prepare, {"data": None})):
        message = place.refusal(StudyError, ask, **request)
        assert message.startswith("the text of study 'small' is gone (")
        assert message.endswith("; --data says where it is now")


def test_only_a_study_of_ours_that_is_there_can_be_joined(place: Place) -> None:
    assert "no such database" in place.refusal(StorageError, place.join)
    assert [path.name for path in place.folder.iterdir()] == ["small.toml"]
    database = place.prepare().sweep.slots.database
    assert "unknown study 'large': there are small" in place.refusal(StudyError, place.join, study="large")
    optuna.create_study(storage=database.storage, study_name="theirs").optimize(lambda trial: 1.0, n_trials=1)
    assert "made by another program" in place.refusal(StudyError, place.join, study="theirs")
    assert place.refusal(UsageError, place.join, workers=-1) == "--workers must be at least 0, got -1"


def test_another_profile_than_this_machine_s_is_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    made = place.prepare(workers=0)
    use_cuda(monkeypatch, gpus=1)
    joined = place.join()
    assert place.said == ["study small was made with profile cpu; here it trains on cuda"]
    assert joined.sweep.spec == made.sweep.spec
    assert [spec.device for spec, _ in joined.workers] == ["cuda:0"]
