"""`hpo` as a person uses it: real workers, real kills, a real database file, wrong arguments."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
import torch
from filelock import FileLock

from hpo_model.data.tokens import open_tokens
from hpo_model.training.loop import train
from hpo_reports.records.names import (
    STUDY_TEST_EVALUATIONS,
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_SLOT,
)
from tests.support.far_workers import wait_until
from tests.support.in_process import Hpo, refused
from tests.support.place import Place, own_workers, while_it_runs
from tests.support.texts import write_text

CLOCKS = ("tokens_per_s", "seconds", "peak_memory_bytes")  # what a machine, not the run, decides


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text")


@pytest.fixture
def place(tmp_path: Path, text: Path, hpo: Hpo) -> Iterator[Place]:
    (tmp_path / "text").symlink_to(text)
    place = Place(tmp_path, hpo)
    yield place
    place.end()


@pytest.fixture(scope="module")
def finished_home(text: Path, shared_folder: Path) -> Path:
    """The home of a study that has two finished trials; made once for all processes that run tests, by another one."""
    made = Place(shared_folder / "finished", _no_calls)
    with FileLock(shared_folder / "finished.lock"):
        if not made.root.exists():
            made.root.mkdir()
            shutil.copytree(text, made.root / "text")
            made.study()
            process = made.start_run("--trials", "2", "--workers", "1")
            _, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
    return made.home.root


def _no_calls(*arguments: str | Path) -> None:
    raise AssertionError("module fixtures start processes")


@pytest.fixture
def finished(place: Place, finished_home: Path) -> Place:
    """A place of its own with the study of two finished trials."""
    shutil.copytree(finished_home, place.home.root)
    place.study()
    return place


def undisturbed_history(place: Place, trial: optuna.trial.FrozenTrial) -> list[dict[str, object]]:
    """What the trial's run gives in one piece, in this process."""
    tokens = next(path for path in (place.home.cache / "tokens").iterdir() if not path.name.startswith("."))
    threads = torch.get_num_threads()
    torch.set_num_threads(trial.user_attrs[TRIAL_MACHINE]["threads"])
    try:
        result = train(place.sweep().spec.run_with(trial.params), open_tokens(tokens))
    finally:
        torch.set_num_threads(threads)
    return [dataclasses.asdict(evaluation) for evaluation in result.history]


def without_clocks(history: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in each.items() if name not in CLOCKS} for each in history]


def assert_undisturbed(place: Place, trial: optuna.trial.FrozenTrial) -> None:
    """The trial's history is, to the bit, that of a run that nothing interrupted."""
    history = trial.user_attrs[TRIAL_HISTORY]
    undisturbed = undisturbed_history(place, trial)
    if trial.state is optuna.trial.TrialState.PRUNED:
        undisturbed = undisturbed[: len(history)]
    assert without_clocks(history) == without_clocks(undisturbed)
    assert list(trial.intermediate_values.values()) == [each["val_loss"] for each in history]


def kill_all(process: subprocess.Popen[str]) -> None:
    """The supervisor and its workers at once."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


# ---------------------------------------------------------------------------------------------- to the total and beyond


def test_a_study_runs_to_its_total_resumes_beyond_it_and_has_nothing_to_do_after(place: Place) -> None:
    place.study()
    first = place.run("--trials", "3", "--workers", "2")
    assert first.code == 0, first.err
    place.assert_exact(3)
    more = place.run("--trials", "5", "--workers", "auto")
    assert "3 of 5 trials finished" in more.out
    place.assert_exact(5)
    again = place.run("--trials", "5")
    assert again.code == 0
    assert "nothing to do: 5 of 5 trials finished" in again.out
    fewer = place.run("--trials", "2")
    assert "nothing to do" in fewer.out
    place.assert_exact(5)

    by_slot = {trial.user_attrs[TRIAL_SLOT]: trial for trial in place.optuna_study().trials}
    assert by_slot[0].params == {"lambda_phi": 0.05, "dropout": 0.1}
    assert by_slot[1].params == {"lambda_phi": 0.01, "dropout": 0.25}
    without_data = place.hpo("run", "--study", "small.toml", "--trials", "5")
    assert "nothing to do" in without_data.out, "the study remembers where its text is"

    for command in (["report"], ["report", "small", "--format", "csv"], ["status"], ["studies"]):
        answer = place.hpo(*command)
        assert answer.code == 0, answer.err
        assert "small" in answer.out or command[-1] == "csv"
    out = place.root / "log.json"
    assert place.hpo("report", "--format", "json", "--out", str(out)).code == 0
    assert json.loads(out.read_text(encoding="utf-8"))

    listing = subprocess.run(
        [
            *(Path(sys.executable).with_name("optuna"), "trials", "--study-name", "small"),
            *("--storage", place.url, "--format", "json"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(json.loads(listing.stdout)) == 5


def test_two_runs_started_together_share_one_total(place: Place) -> None:
    place.study()
    other = place.start_run("--trials", "6")
    own = place.run("--trials", "6")
    _, err = other.communicate(timeout=200)
    assert own.code == 0, own.err
    assert other.returncode == 0, err
    place.assert_exact(6)


def test_workers_join_a_study_that_was_made_without_any(place: Place) -> None:
    place.study(budget=12_000)
    made = place.run("--trials", "4", "--workers", "0")
    assert made.code == 0, made.err
    assert "0 of 4 trials finished" in made.out
    assert "it waits for `hpo worker --study small`" in made.out
    other = place.start("worker", "--study", "small", "--workers", "1")
    place.wait_for_trials(1)  # its imports take longer than all trials
    own = place.hpo("worker", "--study", "small", "--workers", "1")
    out, err = other.communicate(timeout=200)
    assert (own.code, other.returncode) == (0, 0), own.err + err
    assert "4 of 4 trials finished" in own.out
    assert "4 of 4 trials finished" in out
    place.assert_exact(4)
    again = place.hpo("worker", "--study", "small")
    assert "nothing to do" in again.out
    refused(place.hpo("worker", "--study", "large"), "unknown study 'large'", "small")
    refused(place.hpo("worker", "--study", "small", "--data", "nowhere"), "nowhere")


def test_a_study_goes_on_in_the_database_to_which_it_was_copied(finished: Place, new_url: Callable[[str], str]) -> None:
    there = new_url("postgresql")
    copied = finished.hpo("storage", "copy", finished.url, there)
    assert copied.code == 0, copied.err
    assert copied.out == "small: 2 trials, 2 slots\n"
    refused(finished.hpo("storage", "copy", finished.url, there), "small", "in the target already")
    more = finished.hpo("run", "--study", "small.toml", "--trials", "4", "--workers", "2", HPO_STORAGE=there)
    assert more.code == 0, more.err
    assert "2 of 4 trials finished" in more.out
    assert "4 of 4 trials finished" in more.out
    assert "nothing to do" in finished.hpo("storage", "upgrade", HPO_STORAGE=there).out
    finished.assert_exact(2)


def test_a_study_without_improvement_stays_ended_until_its_rule_changes(place: Place) -> None:
    place.study(more="[stopping]\ntrials_without_improvement = 1")
    ended = place.run("--trials", "30")
    assert ended.code == 0, ended.err
    assert "ended after 1 without improvement" in ended.out
    begun = len(place.optuna_study().trials)
    assert begun < 30
    assert "nothing to do" in place.run("--trials", "30").out
    place.study()
    assert place.run("--trials", str(begun + 1)).code == 0
    place.assert_exact(begun + 1)


def test_a_deleted_study_leaves_nothing_to_the_next_one(finished: Place) -> None:
    optuna.delete_study(study_name="small", storage=finished.url)
    finished.study(run="weight_decay = 0.2")
    again = finished.run("--trials", "2")
    assert again.code == 0, again.err
    finished.assert_exact(2)


def test_diverged_trials_are_outcomes_that_break_a_constraint(place: Place) -> None:
    place.study(run="learning_rate = 1e6\nclip_norm = 1e9\nwarmup = 0.0")
    answer = place.run("--trials", "2")
    assert answer.code == 0, answer.err
    for trial in place.optuna_study().trials:
        assert trial.user_attrs[TRIAL_OUTCOME] == "diverged"
        assert trial.state is optuna.trial.TrialState.PRUNED
        assert trial.constraints == {"diverged": 1.0}


def test_the_long_run_uses_a_trials_configuration_and_resumes(finished: Place) -> None:
    first = finished.hpo("train", "--from", "small", "--trial", "1", "--epochs", "1")
    assert first.code == 0, first.err
    assert "complete" in first.out
    again = finished.hpo("train", "--from", "small", "--trial", "1", "--epochs", "1")
    assert again.out.count("(before)") == 10
    refused(finished.hpo("train", "--from", "small", "--trial", "7", "--epochs", "1"), "no trial 7")
    refused(finished.hpo("train", "--from", "small", "--epochs", "0"), "--epochs")


# ---------------------------------------------------------------------------------------------- kills and stops


def test_killed_runs_end_with_the_exact_total_and_the_loss_curves_of_undisturbed_ones(place: Place) -> None:
    """Killed as a whole, a checkpoint damaged; then the supervisor alone, whose workers leave of themselves."""
    place.study(budget=12_000)
    moments = random.Random(20261121)
    checkpoints = 0
    for whole in (True, False):
        process = place.start_run("--trials", "4", "--workers", "2")
        checkpoints = place.wait_for_checkpoint(checkpoints)
        time.sleep(moments.uniform(0.0, 0.25))
        if whole:
            kill_all(process)
            place.let_leases_expire()
        else:
            process.kill()
            process.communicate()
    last = place.run("--trials", "4", "--workers", "2")
    assert last.code == 0, last.err
    place.assert_exact(4)

    trials = place.optuna_study().trials
    assert any(trial.user_attrs.get(TRIAL_CONTINUED) for trial in trials), "no kill hit a trial with a checkpoint"
    for trial in trials:
        assert_undisturbed(place, trial)


def test_a_killed_worker_is_started_again_and_its_trial_goes_on_past_a_damaged_checkpoint(place: Place) -> None:
    place.study(budget=16_000)

    def kill() -> None:
        place.wait_for_checkpoint(0)
        (worker,) = own_workers()
        worker.suspend()
        for path in place.checkpoints():
            path.write_bytes(b"garbage")
        worker.kill()

    beside = while_it_runs(kill)
    answer = place.run("--trials", "3")
    beside.join()
    assert answer.code == 0, answer.err
    assert "worker-0 was killed by SIGKILL" in answer.out
    place.assert_exact(3)
    assert list((place.home.root / "studies").glob("*/trial-*/*.damaged"))


def test_a_killed_run_of_two_objectives_goes_on_and_ends_with_a_front(place: Place) -> None:
    place.study(budget=12_000, top='objectives = ["val_loss", "phi"]', more='[pruner]\nkind = "none"')
    process = place.start_run("--trials", "3", "--workers", "1")
    place.wait_for_checkpoint(0)
    kill_all(process)
    place.let_leases_expire()
    last = place.run("--trials", "3")
    assert last.code == 0, last.err
    place.assert_exact(3)
    front = place.optuna_study().best_trials
    assert f"3 of 3 trials finished · front of {len(front)}, from val ppl " in last.out
    first = place.optuna_study().trials[0]
    history = first.user_attrs[TRIAL_HISTORY]
    assert first.user_attrs[TRIAL_CONTINUED] == 1
    assert_undisturbed(place, first)
    assert first.values == [history[-1]["val_loss"], history[-1]["phi"]]
    assert "## Pareto front" in place.hpo("report").out
    lowest = min(front, key=lambda trial: trial.values[0]).number
    trained = place.hpo("train", "--from", "small", "--epochs", "1")
    assert f"trial {lowest} has the lowest validation loss" in trained.out


def test_finalists_follow_the_search_survive_a_kill_and_use_the_test_split_once(place: Place) -> None:
    place.study(budget=12_000, replicates=2)
    arguments = ("--trials", "3", "--workers", "2")
    assert place.run(*arguments, "--no-finalists").code == 0
    search = place.optuna_study()
    assert optuna.get_all_study_names(place.url) == ["small"]
    process = place.start_run(*arguments)
    place.wait_for_checkpoint(len(place.checkpoints()))
    kill_all(process)
    place.let_leases_expire()
    last = place.run(*arguments)
    assert last.code == 0, last.err
    assert "finalists of small: trial" in last.out
    assert "4 of 4 trials finished" in last.out
    assert "no verdict: it takes 6 seeds" in last.out
    assert place.optuna_study().trials == search.trials, "the search stays what it was"

    study = place.optuna_study("small--finalists")
    assert all(trial.state is optuna.trial.TrialState.COMPLETE for trial in study.trials)
    assert any(trial.user_attrs[TRIAL_CONTINUED] for trial in study.trials), "no kill hit a trial with a checkpoint"
    assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in study.trials) == [0, 1, 2, 3]
    for trial in study.trials:
        assert_undisturbed(place, trial)
    (look,) = study.user_attrs[STUDY_TEST_EVALUATIONS]
    assert [score["seed"] for score in look["scores"]] == [2, 3]
    assert all(score["loss"] > 1 for score in look["scores"])

    again = place.run(*arguments)
    assert "nothing to do: 4 of 4 trials finished" in again.out
    assert "test split" not in again.out
    status = place.hpo("status")
    assert "study small: 3 of 3" in status.out
    assert "study small--finalists: 4 of 4" in status.out
    more = place.hpo("replicate", "--replicates", "3", "--test-again")
    assert more.code == 0, more.err
    assert "6 of 6 trials finished" in more.out
    looks = place.optuna_study("small--finalists").user_attrs[STUDY_TEST_EVALUATIONS]
    assert [len(look["scores"]) for look in looks] == [2, 3]
    refused(place.hpo("replicate", "--replicates", "0"), "--replicates", "at least 1")
    refused(place.hpo("replicate", "--replicates", "1001"), "--replicates", "at most 1,000")
    refused(place.hpo("replicate", "--candidates", "101"), "--candidates", "at most 100")
    refused(place.hpo("replicate", "small--finalists"), "small--finalists holds finalists", "`hpo replicate small`")
    for command in ("replicate", "status", "report"):
        refused(place.hpo(command, ""), "unknown study ''")


def test_finalists_wait_for_workers_from_elsewhere(place: Place) -> None:
    place.study(replicates=1)
    assert place.run("--trials", "3", "--no-finalists").code == 0
    waiting = place.hpo("replicate", "small", "--workers", "0")
    assert "it waits for `hpo worker --study small--finalists`" in waiting.out
    worker = place.hpo("worker", "--study", "small--finalists", "--workers", "1")
    assert worker.code == 0, worker.err
    assert "2 of 2 trials finished" in worker.out
    last = place.run("--trials", "3")
    assert "lowest mean: trial" in last.out
    assert "test split, seed 2: ppl" in last.out


def assert_interrupted(place: Place, code: int, out: str, err: str) -> None:
    assert code == 130, err
    assert "Ctrl-C" in out
    assert "run again to go on" in out
    assert "Traceback" not in out + err
    assert len(place.optuna_study().trials) >= 2
    assert place.sweep().slots.counts(4).leased == 0, "the next run need not wait until a lease expires"
    last = place.run("--trials", "4", "--workers", "2")
    assert last.code == 0, last.err
    place.assert_exact(4)


def test_ctrl_c_in_a_terminal_loses_nothing(place: Place) -> None:
    place.study(budget=15_000)
    process = place.start_run("--trials", "4", "--workers", "2")
    place.wait_for_trials(2)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the workers too
    out, err = process.communicate(timeout=200)
    assert_interrupted(place, process.returncode, out, err)


def test_a_second_ctrl_c_loses_nothing_either(place: Place) -> None:
    place.study(budget=25_000)

    def press() -> None:
        place.wait_for_trials(2)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # where the run has ended before the second
    try:
        beside = while_it_runs(press)
        answer = place.run("--trials", "4", "--workers", "2")
        beside.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert_interrupted(place, answer.code, answer.out, answer.err)


def test_a_time_limit_stops_the_run_and_the_next_one_goes_on(place: Place) -> None:
    place.study(budget=25_000)
    limited = place.run("--trials", "3", "--timeout", "0.02")
    assert limited.code == 0, limited.err
    assert "the time limit is over" in limited.out
    trials = place.optuna_study().trials
    assert len(trials) < 3 or not all(trial.state.is_finished() for trial in trials)
    assert place.run("--trials", "3", "--workers", "2").code == 0
    place.assert_exact(3)


def test_a_stop_reaches_all_workers_and_a_later_run_goes_on(place: Place) -> None:
    place.study(budget=25_000)
    assert place.run("--trials", "6", "--workers", "0").code == 0
    first = place.start_run("--trials", "6", "--workers", "1")
    second = place.start("worker", "--study", "small", "--workers", "1")
    slots = place.sweep().slots
    wait_until("both work", lambda: slots.counts(6).leased == 2)
    stopped = place.hpo("stop", "small")
    assert stopped.code == 0, stopped.err
    assert "no worker is left" in stopped.out
    for process in (first, second):
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
        assert "hpo stop" in out
        assert "run again to go on" in out
    assert "0 leased" in place.hpo("status", "small").out
    last = place.run("--trials", "3", "--workers", "2")
    assert last.code == 0, last.err
    assert "3 of 3 trials finished" in last.out


def test_a_full_disk_ends_the_run_in_one_line_and_the_next_one_goes_on(place: Place) -> None:
    folder = place.home.root / "studies"
    folder.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        place.study(run="layers = 4")
        answer = place.run("--trials", "2")
        assert answer.code == 1
        assert "Traceback" not in answer.out + answer.err
        (line,) = answer.err.splitlines()
        assert line.startswith("hpo: ")
        assert all(words in line for words in ("checkpoint", "No space left", "run again"))
    finally:
        subprocess.run(["umount", folder], check=True)
    assert place.run("--trials", "2").code == 0
    place.assert_exact(2)


# ---------------------------------------------------------------------------------------------- bad input


RUN_SMALL = ("run", "--study", "small.toml", "--data", "text")


class TestBadInput:
    """One clear line, exit code 1, nothing lost."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["run", "--study", "nowhere"], ["unknown study 'nowhere'", "lambda_phi"]),
            (["run", "--study", "nowhere.toml"], ["nowhere.toml", "cannot be read"]),
            ([*RUN_SMALL, "--trials", "0"], ["--trials", "at least 1"]),
            ([*RUN_SMALL, "--trials", "-3"], ["--trials", "at least 1"]),
            ([*RUN_SMALL, "--workers", "-1"], ["--workers"]),
            ([*RUN_SMALL, "--workers", "many"], ["--workers", "auto", "'many'"]),
            ([*RUN_SMALL, "--gpus", "0,0"], ["--gpus", "twice"]),
            ([*RUN_SMALL, "--ray-address", "x:1"], ["--executor ray"]),
            (["run", "--study", "small.toml", "--executor", "slurm"], ["--workers N"]),
            (["run", "--study", "small.toml", "--executor", "slurm", "--slurm", "time"], ["KEY=VALUE", "'time'"]),
            (["worker", "--study", "small"], ["no such database"]),
            (["stop"], ["no such database"]),
            (["storage", "upgrade"], ["no such database"]),
            (["storage", "copy", "nonsense", "sqlite:///b.db"], ["not a database URL"]),
            ([*RUN_SMALL, "--timeout", "-1"], ["--timeout"]),
            (["run", "--study", "small.toml", "--data", "nowhere"], ["nowhere", "neither a folder"]),
            (["run", "--study", "lambda_phi_grid", "--trials", "9"], ["the grid of lambda_phi_grid has 8 points"]),
            (["report"], ["no such database"]),
            (["status"], ["no such database"]),
            (["report", "--storage", "nonsense"], ["not a database URL"]),
        ],
    )
    def test_wrong_arguments(self, place: Place, arguments: list[str], words: list[str]) -> None:
        place.study()
        refused(place.hpo(*arguments), *words)

    def test_a_refusal_of_the_installed_program(self, place: Place) -> None:
        """What the others see in this process, once through a process: one line, exit code 1, no traceback."""
        process = place.start("run", "--study", "nowhere")
        out, err = process.communicate(timeout=200)
        assert (process.returncode, out) == (1, "")
        assert err.startswith("hpo: unknown study 'nowhere'")
        assert len(err.splitlines()) == 1

    def test_a_study_file_with_an_unknown_key(self, place: Place) -> None:
        place.study(run="learning_rat = 1.0")
        refused(place.run(), "small.toml", "run.learning_rat")

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
        refused(place.hpo("run", "--study", "small.toml", "--data", "bad"), *words)

    def test_resuming_with_something_else(self, finished: Place) -> None:
        other = finished.root / "other"
        shutil.copytree(finished.root / "text", other)
        with (other / "valid.txt").open("a", encoding="utf-8") as file:
            file.write("one more line\n")
        refused(finished.hpo("run", "--study", "small.toml", "--data", "other", "--trials", "3"), "another corpus")
        finished.study(run="weight_decay = 0.2")
        refused(finished.run("--trials", "3"), "another study file", "run.weight_decay was None, is 0.2")
        path = finished.study()
        path.write_text(path.read_text().replace("vocabulary = 300", "vocabulary = 301"), encoding="utf-8")
        refused(finished.run("--trials", "3"), "text.vocabulary was 300, is 301")
        path.write_text(path.read_text().replace('preset = "nano"', 'preset = "tiny_iit"'), encoding="utf-8")
        refused(finished.run("--trials", "3"), "run.preset was 'nano', is 'tiny_iit'")
        finished.study()
        assert finished.run("--trials", "3").code == 0
        finished.assert_exact(3)

    def test_a_database_of_another_program(self, place: Place) -> None:
        place.study()
        path = place.root / "theirs.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()
        before = path.read_bytes()
        refused(place.run("--storage", f"sqlite:///{path}"), "another program", "customers")
        assert path.read_bytes() == before
        (place.root / "note.txt").write_text("this is a note, no database, and long enough to look like one" * 20)
        refused(place.run("--storage", f"sqlite:///{place.root}/note.txt"), "not a database")

    def test_a_study_of_plain_optuna(self, place: Place) -> None:
        place.study()
        place.home.root.mkdir()
        theirs = optuna.create_study(study_name="small", storage=place.url)
        refused(place.hpo("report", "small"), "trials")
        theirs.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
        refused(place.run(), "made by another program")
        assert place.hpo("report", "small").code == 0
        refused(place.hpo("report", "large"), "unknown study 'large'", "small")

    def test_a_password_is_never_shown(self, place: Place) -> None:
        place.study()
        url = "postgresql+psycopg://me:hunter2@127.0.0.1:1/studies"
        answer = place.run("--storage", url)
        refused(answer, "me:***@127.0.0.1")
        assert "hunter2" not in answer.out + answer.err
        through_environment = place.hpo("report", HPO_STORAGE=url)
        assert "hunter2" not in through_environment.out + through_environment.err


# ---------------------------------------------------------------------------------------------- the process itself


def test_the_dashboard_serves_the_studies_on_loopback(finished: Place) -> None:
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    process = finished.start("dashboard", "--port", port)
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=20) as response:
        assert [study["study_name"] for study in json.load(response)["study_summaries"]] == ["small"]
    refused(finished.hpo("dashboard", "--port", port), f"port {port} is taken")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
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
