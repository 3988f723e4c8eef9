"""`hpo` as a person uses it: real processes, real kills, a real database file, wrong arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import pydoc_data.topics
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import psutil
import pytest
import torch

from hpo.database.connection import open_database
from hpo.home import Home
from hpo.sweep.sweep import open_sweep
from hpo_model.data.tokens import open_tokens
from hpo_model.training.loop import train

CLOCKS = ("tokens_per_s", "seconds", "peak_memory_bytes")  # what a machine, not the run, decides
STUDY = """
name = "small"
trials = 6
{top}
[text]
vocabulary = 300
[run]
preset = "nano"
width = 32
heads = 2
sequence_length = 32
batch_size = 4
budget_tokens = {budget}
evaluations = 5
evaluation_tokens = 512
{run}
[search]
lambda_phi = {{ low = 0.001, high = 0.3, log = true }}
dropout = {{ low = 0.0, high = 0.4 }}
[baseline]
lambda_phi = 0.05
dropout = 0.1
[[known]]
lambda_phi = 0.01
dropout = 0.25
[sampler]
startup_trials = 3
[finalists]
replicates = {replicates}
{more}
"""


@dataclasses.dataclass
class Place:
    """A folder with text, study files and a home of its own."""

    root: Path

    @property
    def home(self) -> Home:
        return Home(self.root / "runs")

    def study(self, *, budget: int = 6400, replicates: int = 0, name: str = "small.toml", **parts: str) -> str:
        """A study file; `parts` are its `top`, what is added to its `run`, and `more` sections."""
        text = STUDY.format(**{"budget": budget, "replicates": replicates, "top": "", "run": "", "more": "", **parts})
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HPO_", "OPTUNA_"))}
        return subprocess.Popen(
            [sys.executable, "-m", "hpo", *arguments],
            cwd=self.root,
            env={**kept, "HPO_HOME": str(self.home.root), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def hpo(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=200)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`hpo run` with one worker where nothing else is said: to measure how many suit takes seconds."""
        workers = () if "--workers" in arguments else ("--workers", "1")
        return self.hpo("run", "--study", "small.toml", "--data", "text", *arguments, *workers)

    def optuna_study(self, name: str = "small") -> optuna.Study:
        return optuna.load_study(study_name=name, storage=f"sqlite:///{self.home.database}")

    def checkpoints(self) -> int:
        """How many there are."""
        return len(list((self.home.root / "studies").glob("*/trial-*/checkpoint-*.pt")))

    def wait_for_checkpoint(self, seen: int) -> int:
        """Until a checkpoint is there that was not among the `seen` ones; their number."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            there = self.checkpoints()
            if there > seen:
                return there
            time.sleep(0.02)
        pytest.fail("no checkpoint was written within a minute")

    def wait_for_trials(self, count: int) -> None:
        """Until so many trials have begun."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if self.home.database.is_file():
                try:
                    with sqlite3.connect(self.home.database) as connection:
                        begun = connection.execute("SELECT count(*) FROM trials").fetchone()[0]
                except sqlite3.OperationalError:  # the tables are just being made
                    begun = 0
                if begun >= count:
                    return
            time.sleep(0.05)
        pytest.fail(f"{count} trials did not begin within a minute")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    topics = [topic for _, topic in sorted(pydoc_data.topics.topics.items())]
    for name, part in (("train", topics[:16]), ("valid", topics[30:33]), ("test", topics[33:36])):
        (folder / f"{name}.txt").write_text("\n".join(part), encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path: Path, text: Path) -> Place:
    (tmp_path / "text").symlink_to(text)
    return Place(tmp_path)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The workers of a run: processes that were not started by the run itself but by its server of forks."""
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if child.ppid() != process.pid]


def assert_one_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1, result
    assert "Traceback" not in result.stdout + result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("hpo: ")
    for word in words:
        assert word in result.stderr


def assert_exact(place: Place, total: int) -> None:
    """N slots, N finished trials, one trial per slot."""
    trials = place.optuna_study().trials
    assert len(trials) == total
    assert all(trial.state.is_finished() for trial in trials)
    assert sorted(trial.user_attrs["hpo:slot"] for trial in trials) == list(range(total))
    sweep = open_sweep(open_database(f"sqlite:///{place.home.database}", create=False), "small")
    assert sweep.slots.counts(total).done == total


def undisturbed_history(place: Place, trial: optuna.trial.FrozenTrial) -> list[dict[str, object]]:
    """What the trial's run gives in one piece, in this process."""
    sweep = open_sweep(open_database(f"sqlite:///{place.home.database}", create=False), "small")
    tokens = next(path for path in (place.home.cache / "tokens").iterdir() if not path.name.startswith("."))
    threads = torch.get_num_threads()
    torch.set_num_threads(trial.user_attrs["hpo:machine"]["threads"])
    try:
        result = train(sweep.spec.run_with(trial.params), open_tokens(tokens))
    finally:
        torch.set_num_threads(threads)
    return [dataclasses.asdict(evaluation) for evaluation in result.history]


def without_clocks(evaluation: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in evaluation.items() if name not in CLOCKS}


def test_a_study_runs_to_its_total_resumes_beyond_it_and_has_nothing_to_do_after(place: Place) -> None:
    place.study()
    first = place.run("--trials", "3", "--workers", "2")
    assert first.returncode == 0, first.stderr
    assert_exact(place, 3)
    more = place.run("--trials", "5", "--workers", "auto")
    assert "3 of 5 trials finished" in more.stdout
    assert_exact(place, 5)
    again = place.run("--trials", "5")
    assert again.returncode == 0
    assert "nothing to do: 5 of 5 trials finished" in again.stdout
    fewer = place.run("--trials", "2")
    assert "nothing to do" in fewer.stdout
    assert_exact(place, 5)

    by_slot = {trial.user_attrs["hpo:slot"]: trial for trial in place.optuna_study().trials}
    assert by_slot[0].params == {"lambda_phi": 0.05, "dropout": 0.1}
    assert by_slot[1].params == {"lambda_phi": 0.01, "dropout": 0.25}
    without_data = place.hpo("run", "--study", "small.toml", "--trials", "5")
    assert "nothing to do" in without_data.stdout, "the study remembers where its text is"

    for command in (["report"], ["report", "small", "--format", "csv"], ["status"], ["studies"]):
        result = place.hpo(*command)
        assert result.returncode == 0, result.stderr
        assert "small" in result.stdout or command[-1] == "csv"
    out = place.root / "log.json"
    assert place.hpo("report", "--format", "json", "--out", str(out)).returncode == 0
    assert json.loads(out.read_text(encoding="utf-8"))

    listing = subprocess.run(
        [
            *(Path(sys.executable).with_name("optuna"), "trials", "--study-name", "small"),
            *("--storage", f"sqlite:///{place.home.database}", "--format", "json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(listing.stdout)) == 5


def test_killed_runs_end_with_the_exact_total_and_the_loss_curves_of_undisturbed_ones(place: Place) -> None:
    place.study(budget=25_000)
    moments = random.Random(20261121)
    checkpoints = 0
    for _ in range(3):
        process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "5", "--workers", "2")
        checkpoints = place.wait_for_checkpoint(checkpoints)
        time.sleep(moments.uniform(0.0, 0.5))
        os.killpg(process.pid, signal.SIGKILL)  # the supervisor and its workers at once
        process.communicate()
    last = place.run("--trials", "5", "--workers", "2")
    assert last.returncode == 0, last.stderr
    assert_exact(place, 5)

    trials = place.optuna_study().trials
    assert any(trial.user_attrs.get("hpo:continued") for trial in trials), "no kill hit a trial with a checkpoint"
    for trial in trials:
        history = trial.user_attrs["hpo:history"]
        undisturbed = undisturbed_history(place, trial)
        if trial.state is optuna.trial.TrialState.PRUNED:
            undisturbed = undisturbed[: len(history)]
        assert [without_clocks(each) for each in history] == [without_clocks(each) for each in undisturbed]
        assert list(trial.intermediate_values.values()) == [each["val_loss"] for each in history]


def test_a_killed_run_of_two_objectives_goes_on_and_ends_with_a_front(place: Place) -> None:
    place.study(budget=25_000, top='objectives = ["val_loss", "phi"]', more='[pruner]\nkind = "none"')
    process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "3", "--workers", "1")
    place.wait_for_checkpoint(0)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    last = place.run("--trials", "3", "--workers", "1")
    assert last.returncode == 0, last.stderr
    assert_exact(place, 3)
    front = place.optuna_study().best_trials
    assert f"3 of 3 trials finished · front of {len(front)}, from val ppl " in last.stdout
    first = place.optuna_study().trials[0]
    history = first.user_attrs["hpo:history"]
    assert first.user_attrs["hpo:continued"] == 1
    assert [without_clocks(each) for each in history] == [
        without_clocks(each) for each in undisturbed_history(place, first)
    ]
    assert list(first.intermediate_values.values()) == [each["val_loss"] for each in history]
    assert first.values == [history[-1]["val_loss"], history[-1]["phi"]]
    assert "## Pareto front" in place.hpo("report").stdout
    lowest = min(front, key=lambda trial: trial.values[0]).number
    assert (
        f"trial {lowest} has the lowest validation loss"
        in place.hpo("train", "--from", "small", "--epochs", "1").stdout
    )


def test_finalists_follow_the_search_survive_kills_and_let_the_winner_look_at_the_test_split_once(place: Place) -> None:
    place.study(budget=25_000, replicates=2)
    arguments = ("run", "--study", "small.toml", "--data", "text", "--trials", "3", "--workers", "2")
    assert place.hpo(*arguments, "--no-finalists").returncode == 0
    search = place.optuna_study()
    assert optuna.get_all_study_names(f"sqlite:///{place.home.database}") == ["small"]
    checkpoints = place.checkpoints()
    for _ in range(2):
        process = place.start(*arguments)
        checkpoints = place.wait_for_checkpoint(checkpoints)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    last = place.hpo(*arguments)
    assert last.returncode == 0, last.stderr
    assert "finalists of small: trial" in last.stdout
    assert "4 of 4 trials finished" in last.stdout
    assert "no verdict: it takes 6 seeds" in last.stdout
    assert place.optuna_study().trials == search.trials, "the search stays what it was"

    study = place.optuna_study("small--finalists")
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert any(trial.user_attrs["hpo:continued"] for trial in study.trials), "no kill hit a trial with a checkpoint"
    assert sorted(trial.user_attrs["hpo:slot"] for trial in study.trials) == [0, 1, 2, 3]
    for trial in study.trials:
        history = trial.user_attrs["hpo:history"]
        undisturbed = undisturbed_history(place, trial)
        assert [without_clocks(each) for each in history] == [without_clocks(each) for each in undisturbed]
    (look,) = study.user_attrs["hpo:test_split"]
    assert [score["seed"] for score in look["scores"]] == [2, 3]
    assert all(score["loss"] > 1 for score in look["scores"])

    again = place.hpo(*arguments)
    assert "nothing to do: 4 of 4 trials finished" in again.stdout
    assert "test split" not in again.stdout
    status = place.hpo("status")
    assert "study small: 3 of 3" in status.stdout
    assert "study small--finalists: 4 of 4" in status.stdout
    more = place.hpo("replicate", "--replicates", "3", "--test-again")
    assert more.returncode == 0, more.stderr
    assert "6 of 6 trials finished" in more.stdout
    assert [len(look["scores"]) for look in place.optuna_study("small--finalists").user_attrs["hpo:test_split"]] == [
        2,
        3,
    ]
    assert_one_line(place.hpo("replicate", "--replicates", "0"), "--replicates", "at least 1")


def test_finalists_wait_for_workers_from_elsewhere(place: Place) -> None:
    place.study(replicates=1)
    assert place.run("--trials", "3", "--no-finalists").returncode == 0
    waiting = place.hpo("replicate", "small", "--workers", "0")
    assert "it waits for `hpo worker --study small--finalists`" in waiting.stdout
    worker = place.hpo("worker", "--study", "small--finalists", "--workers", "1")
    assert worker.returncode == 0, worker.stderr
    assert "2 of 2 trials finished" in worker.stdout
    last = place.run("--trials", "3")
    assert "lowest mean: trial" in last.stdout
    assert "test split, seed 2: ppl" in last.stdout


def test_workers_of_a_killed_supervisor_leave_and_their_trials_go_on(place: Place) -> None:
    place.study(budget=60_000)
    process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "3", "--workers", "2")
    place.wait_for_trials(2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    last = place.run("--trials", "3")
    assert last.returncode == 0, last.stderr
    assert_exact(place, 3)


def test_a_killed_worker_is_started_again_and_its_trial_goes_on(place: Place) -> None:
    place.study(budget=60_000)
    process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "3", "--workers", "1")
    place.wait_for_trials(1)
    (worker,) = workers_of(process)
    worker.kill()
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert "worker-0 was killed by SIGKILL" in out
    assert_exact(place, 3)


@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_loses_nothing(place: Place, presses: int) -> None:
    place.study(budget=60_000)
    process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "4", "--workers", "2")
    place.wait_for_trials(2)
    for _ in range(presses):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Ctrl-C" in out
    assert "run again to go on" in out
    assert "Traceback" not in out + err
    begun = len(place.optuna_study().trials)
    started = time.monotonic()
    last = place.run("--trials", "4", "--workers", "2")
    assert last.returncode == 0, last.stderr
    assert time.monotonic() - started < 60, "released leases are taken over at once"
    assert begun >= 2
    assert_exact(place, 4)


def test_a_time_limit_stops_the_run_and_the_next_one_goes_on(place: Place) -> None:
    place.study(budget=200_000)
    limited = place.run("--trials", "3", "--timeout", "0.1")
    assert limited.returncode == 0, limited.stderr
    assert "the time limit is over" in limited.stdout
    trials = place.optuna_study().trials
    assert len(trials) < 3 or not all(trial.state.is_finished() for trial in trials)
    assert place.run("--trials", "3", "--workers", "2").returncode == 0
    assert_exact(place, 3)


def test_two_runs_started_together_share_one_total(place: Place) -> None:
    place.study()
    both = [place.start("run", "--study", "small.toml", "--data", "text", "--trials", "6") for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    assert_exact(place, 6)


def test_workers_join_a_study_that_was_made_without_any(place: Place) -> None:
    place.study(budget=25_000)
    made = place.run("--trials", "4", "--workers", "0")
    assert made.returncode == 0, made.stderr
    assert "0 of 4 trials finished" in made.stdout
    assert "it waits for `hpo worker --study small`" in made.stdout
    joined = [place.start("worker", "--study", "small", "--workers", "1") for _ in range(2)]
    for process in joined:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert "4 of 4 trials finished" in out
    assert_exact(place, 4)
    again = place.hpo("worker", "--study", "small")
    assert "nothing to do" in again.stdout
    assert_one_line(place.hpo("worker", "--study", "large"), "unknown study 'large'", "small")
    assert_one_line(place.hpo("worker", "--study", "small", "--data", "nowhere"), "nowhere")


def test_a_stop_reaches_all_workers_and_a_later_run_goes_on(place: Place) -> None:
    place.study(budget=100_000)
    first = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "6", "--workers", "1")
    place.wait_for_trials(1)
    second = place.start("worker", "--study", "small", "--workers", "1")
    place.wait_for_trials(2)
    stopped = place.hpo("stop", "small")
    assert stopped.returncode == 0, stopped.stderr
    assert "no worker is left" in stopped.stdout
    for process in (first, second):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "hpo stop" in out
        assert "run again to go on" in out
    assert "0 leased" in place.hpo("status", "small").stdout
    last = place.run("--trials", "3", "--workers", "2")
    assert last.returncode == 0, last.stderr
    assert "3 of 3 trials finished" in last.stdout


def test_a_study_goes_on_in_the_database_to_which_it_was_copied(place: Place, new_url: Callable[[str], str]) -> None:
    place.study()
    assert place.run("--trials", "2", "--workers", "1").returncode == 0
    here, there = f"sqlite:///{place.home.database}", new_url("postgresql")
    copied = place.hpo("storage", "copy", here, there)
    assert copied.returncode == 0, copied.stderr
    assert copied.stdout == "small: 2 trials, 2 slots\n"
    assert_one_line(place.hpo("storage", "copy", here, there), "small", "in the target already")
    more = place.hpo("run", "--study", "small.toml", "--trials", "4", "--workers", "2", HPO_STORAGE=there)
    assert more.returncode == 0, more.stderr
    assert "2 of 4 trials finished" in more.stdout
    assert "4 of 4 trials finished" in more.stdout
    assert "nothing to do" in place.hpo("storage", "upgrade", HPO_STORAGE=there).stdout
    assert_exact(place, 2)


def test_a_study_without_improvement_ends_early_and_stays_ended(place: Place) -> None:
    place.study(more="[stopping]\ntrials_without_improvement = 1")
    ended = place.run("--trials", "30", "--workers", "1")
    assert ended.returncode == 0, ended.stderr
    assert "ended after 1 without improvement" in ended.stdout
    trials = place.optuna_study().trials
    assert len(trials) < 30
    assert "nothing to do" in place.run("--trials", "30", "--workers", "1").stdout


def test_a_deleted_study_leaves_nothing_to_the_next_one(place: Place) -> None:
    place.study()
    assert place.run("--trials", "1").returncode == 0
    optuna.delete_study(study_name="small", storage=f"sqlite:///{place.home.database}")
    place.study(run="weight_decay = 0.2")
    again = place.run("--trials", "2")
    assert again.returncode == 0, again.stderr
    assert_exact(place, 2)


def test_a_damaged_checkpoint_is_set_aside_and_its_trial_starts_over(place: Place) -> None:
    place.study(budget=60_000)
    process = place.start("run", "--study", "small.toml", "--data", "text", "--trials", "2", "--workers", "1")
    place.wait_for_checkpoint(0)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    checkpoint = next((place.home.root / "studies").glob("*/trial-*/checkpoint-*.pt"))
    checkpoint.write_bytes(b"garbage")
    last = place.run("--trials", "2", "--workers", "1")
    assert last.returncode == 0, last.stderr
    assert_exact(place, 2)


def test_a_stopping_rule_may_change_between_sessions(place: Place) -> None:
    place.study(more="[stopping]\ntrials_without_improvement = 1")
    assert "ended after 1 without improvement" in place.run("--trials", "20", "--workers", "1").stdout
    begun = len(place.optuna_study().trials)
    place.study()
    assert place.run("--trials", str(begun + 1), "--workers", "1").returncode == 0
    assert_exact(place, begun + 1)


def test_diverged_trials_are_outcomes_that_break_a_constraint(place: Place) -> None:
    place.study(run="learning_rate = 1e6\nclip_norm = 1e9\nwarmup = 0.0")
    result = place.run("--trials", "2", "--workers", "1")
    assert result.returncode == 0, result.stderr
    for trial in place.optuna_study().trials:
        assert trial.user_attrs["hpo:outcome"] == "diverged"
        assert trial.state is optuna.trial.TrialState.PRUNED
        assert trial.constraints == {"diverged": 1.0}


def test_the_long_run_uses_a_trials_configuration_and_resumes(place: Place) -> None:
    place.study()
    place.run("--trials", "2")
    first = place.hpo("train", "--from", "small", "--trial", "1", "--epochs", "1")
    assert first.returncode == 0, first.stderr
    assert "complete" in first.stdout
    again = place.hpo("train", "--from", "small", "--trial", "1", "--epochs", "1")
    assert again.stdout.count("(before)") == 10
    assert_one_line(place.hpo("train", "--from", "small", "--trial", "7", "--epochs", "1"), "no trial 7")
    assert_one_line(place.hpo("train", "--from", "small", "--epochs", "0"), "--epochs")


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_one_goes_on(place: Place) -> None:
    folder = place.home.root / "studies"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        place.study(run="layers = 4")
        assert_one_line(place.run("--trials", "2", "--workers", "1"), "checkpoint", "No space left", "run again")
    finally:
        subprocess.run(["umount", folder], check=True)
    assert place.run("--trials", "2", "--workers", "1").returncode == 0
    assert_exact(place, 2)


class TestBadInput:
    """One clear line, exit code 1, nothing lost."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["run", "--study", "nowhere"], ["unknown study 'nowhere'", "lambda_phi"]),
            (["run", "--study", "nowhere.toml"], ["nowhere.toml", "cannot be read"]),
            (["run", "--study", "small.toml", "--data", "text", "--trials", "0"], ["--trials", "at least 1"]),
            (["run", "--study", "small.toml", "--data", "text", "--trials", "-3"], ["--trials", "at least 1"]),
            (["run", "--study", "small.toml", "--data", "text", "--workers", "-1"], ["--workers"]),
            (["run", "--study", "small.toml", "--data", "text", "--workers", "many"], ["--workers", "auto", "'many'"]),
            (["run", "--study", "small.toml", "--data", "text", "--gpus", "0,0"], ["--gpus", "twice"]),
            (["run", "--study", "small.toml", "--data", "text", "--ray-address", "x:1"], ["--executor ray"]),
            (["run", "--study", "small.toml", "--executor", "slurm"], ["--workers N"]),
            (["run", "--study", "small.toml", "--executor", "slurm", "--slurm", "time"], ["KEY=VALUE", "'time'"]),
            (["worker", "--study", "small"], ["no such database"]),
            (["stop"], ["no such database"]),
            (["storage", "upgrade"], ["no such database"]),
            (["storage", "copy", "nonsense", "sqlite:///b.db"], ["not a database URL"]),
            (["run", "--study", "small.toml", "--data", "text", "--timeout", "-1"], ["--timeout"]),
            (["run", "--study", "small.toml", "--data", "nowhere"], ["nowhere", "neither a folder"]),
            (["run", "--study", "lambda_phi_grid", "--trials", "9"], ["the grid of lambda_phi_grid has 8 points"]),
            (["report"], ["no such database"]),
            (["status"], ["no such database"]),
            (["report", "--storage", "nonsense"], ["not a database URL"]),
        ],
    )
    def test_wrong_arguments(self, place: Place, arguments: list[str], words: list[str]) -> None:
        place.study()
        assert_one_line(place.hpo(*arguments), *words)

    def test_a_study_file_with_an_unknown_key(self, place: Place) -> None:
        place.study(run="learning_rat = 1.0")
        assert_one_line(place.run(), "small.toml", "run.learning_rat")

    @pytest.mark.parametrize(
        ("file", "content", "words"),
        [
            ("valid.txt", None, ["valid"]),
            ("train.txt", None, ["train"]),
            ("train.txt", b"", ["train.txt", "empty"]),
            ("valid.txt", b"good\xff\xfe", ["valid.txt", "not UTF-8 at byte 4"]),
            ("valid.txt", b"too short", ["valid", "fewer than one sequence"]),
        ],
    )
    def test_text_that_cannot_be_used(self, place: Place, file: str, content: bytes | None, words: list[str]) -> None:
        place.study()
        bad = place.root / "bad"
        shutil.copytree(place.root / "text", bad)
        (bad / file).unlink()
        if content is not None:
            (bad / file).write_bytes(content)
        assert_one_line(place.hpo("run", "--study", "small.toml", "--data", "bad"), *words)

    def test_resuming_with_something_else(self, place: Place) -> None:
        place.study()
        assert place.run("--trials", "1").returncode == 0
        other = place.root / "other"
        shutil.copytree(place.root / "text", other)
        with (other / "valid.txt").open("a", encoding="utf-8") as file:
            file.write("one more line\n")
        result = place.hpo("run", "--study", "small.toml", "--data", "other", "--trials", "2")
        assert_one_line(result, "another corpus")
        place.study(run="weight_decay = 0.2")
        assert_one_line(place.run("--trials", "2"), "another study file", "run.weight_decay was None, is 0.2")
        path = Path(place.study())
        path.write_text(path.read_text().replace("vocabulary = 300", "vocabulary = 301"), encoding="utf-8")
        assert_one_line(place.run("--trials", "2"), "text.vocabulary was 300, is 301")
        path.write_text(path.read_text().replace('preset = "nano"', 'preset = "tiny_iit"'), encoding="utf-8")
        assert_one_line(place.run("--trials", "2"), "run.preset was 'nano', is 'tiny_iit'")
        place.study()
        assert place.run("--trials", "2").returncode == 0
        assert_exact(place, 2)

    def test_a_database_of_another_program(self, place: Place) -> None:
        place.study()
        path = place.root / "theirs.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()
        before = path.read_bytes()
        assert_one_line(place.run("--storage", f"sqlite:///{path}"), "another program", "customers")
        assert path.read_bytes() == before
        (place.root / "note.txt").write_text("this is a note, no database, and long enough to look like one" * 20)
        assert_one_line(place.run("--storage", f"sqlite:///{place.root}/note.txt"), "not a database")

    def test_a_study_of_plain_optuna(self, place: Place) -> None:
        place.study()
        place.home.root.mkdir()
        theirs = optuna.create_study(study_name="small", storage=f"sqlite:///{place.home.database}")
        assert_one_line(place.hpo("report", "small"), "trials")
        theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        assert_one_line(place.run(), "made by another program")
        assert place.hpo("report", "small").returncode == 0
        assert_one_line(place.hpo("report", "large"), "unknown study 'large'", "small")

    def test_a_password_is_never_shown(self, place: Place) -> None:
        place.study()
        url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/studies"
        result = place.run("--storage", url)
        assert_one_line(result, "me:***@127.0.0.1")
        assert "hunter2" not in result.stdout + result.stderr
        through_environment = place.hpo("report", HPO_STORAGE=url)
        assert "hunter2" not in through_environment.stdout + through_environment.stderr


def test_the_dashboard_serves_the_studies_on_loopback(place: Place) -> None:
    import urllib.request

    place.study()
    place.run("--trials", "1")
    process = place.start("dashboard", "--port", "18473")
    try:
        assert process.stdout is not None
        assert "http://127.0.0.1:18473/" in process.stdout.readline()
        with urllib.request.urlopen("http://127.0.0.1:18473/api/studies", timeout=20) as response:
            assert [study["study_name"] for study in json.load(response)["study_summaries"]] == ["small"]
        assert_one_line(place.hpo("dashboard", "--port", "18473"), "port 18473 is taken")
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert "Traceback" not in out + err


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    times = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "hpo", "--help"], check=True, capture_output=True)
        after = os.times()
        times.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(times) <= 0.4  # of processor time, which other processes do not lengthen
    loaded = "import sys, hpo.cli; print([name for name in ('torch', 'optuna', 'pandas') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True).stdout == "[]\n"
