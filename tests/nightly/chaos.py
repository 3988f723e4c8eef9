"""Chaos: workers, supervisors and databases are killed, stopped and restarted at random while a study runs.

make chaos, or
python tests/nightly/chaos.py --storage postgresql --workers 8 --trials 700 --kills 200 --outages 12 --seed 1
python tests/nightly/chaos.py --storage sqlite --trials 24 --kills 30 --real

Toy trials sleep and write checkpoints; real ones train a small network on a little text.

An audit in the database, by triggers that know nothing of the program, notes every report, every change of a trial's
state and every slot that is done, with the slot's fencing token (its column `epoch`) at that moment. What must hold:

- N slots, N trials, all finished, each exactly once, each slot done exactly once;
- every report was written under the lease that was in force (its value carries the writer's fencing token);
- a trial's reports only go forward;
- no trial runs at the end, no lease is left, no trial was given up for killing its processes;
- a real trial's loss curve is bit-identical to that of the same run in one piece.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy as sa
import torch

from hpo.database.connection import open_database
from hpo.executors.resources import ResourceRequest
from hpo.home import Home
from hpo.search.prepare import prepare
from hpo.search.request import Request
from hpo.sweep.sweep import create_sweep, open_sweep
from hpo_model.data.tokens import open_tokens
from hpo_model.training.loop import train
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_MACHINE, TRIAL_SLOT
from tests.nightly.chaos_supervisor import token_of
from tests.support.paths import REPOSITORY
from tests.support.postgres import own_postgres_server, restart
from tests.support.sweeps import make_record, make_spec
from tests.support.texts import write_text

STUDY = "chaos"
PRUNER = {"kind": "successive_halving", "min_resource": 3, "reduction_factor": 4, "n_min_trials": 3}
REAL_STUDY = """
name = "chaos"
trials = 8
[text]
vocabulary = 300
[run]
preset = "nano"
width = 32
heads = 2
sequence_length = 32
batch_size = 4
budget_tokens = 64000
evaluations = 10
evaluation_tokens = 512
[search]
lambda_phi = { low = 0.001, high = 0.3, log = true }
dropout = { low = 0.0, high = 0.4 }
[baseline]
lambda_phi = 0.05
dropout = 0.1
"""
LONGEST_S = 900.0  # of a campaign that does not end
TRIGGERS = {
    "chaos_reports": (
        "AFTER INSERT OR UPDATE ON trial_intermediate_values",
        "SELECT NEW.trial_id, NEW.step, NEW.intermediate_value, s.epoch, s.state FROM trials t JOIN hpo_slots s"
        " ON s.study_id = t.study_id AND s.trial_number = t.number WHERE t.trial_id = NEW.trial_id",
    ),
    "chaos_ends": (
        "AFTER UPDATE ON trials",
        "SELECT NEW.trial_id, 0, 0.0, s.epoch, s.state FROM hpo_slots s WHERE s.study_id = NEW.study_id"
        " AND s.trial_number = NEW.number AND OLD.state = 'RUNNING' AND NEW.state <> 'RUNNING'",
    ),
    "chaos_slots": (
        "AFTER UPDATE ON hpo_slots",
        "SELECT NEW.number, 0, 0.0, NEW.epoch, NEW.state WHERE OLD.state <> 'done' AND NEW.state = 'done'",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """A campaign, but for the moments, which the seed and the machine decide."""

    storage: str  # sqlite or postgresql
    workers: int = 8
    supervisors: int = 2  # which share the workers, as two people's runs would
    trials: int = 700
    kills: int = 200
    outages: int = 10  # PostgreSQL: immediate restarts; SQLite: somebody holds the file's lock
    full_disks: int = 0  # needs root, for a small tmpfs
    seed: int = 1
    lease_s: float = 2.0


@dataclasses.dataclass
class Tally:
    """What was done, and what came of it."""

    worker_kills: int = 0
    supervisor_kills: int = 0
    stops: int = 0  # SIGSTOP, and SIGCONT up to two leases later
    outages: int = 0
    full_disks: int = 0
    supervisor_starts: int = 0
    seconds: float = 0.0
    reports: int = 0
    highest_epoch: int = 0
    states: dict[str, int] = dataclasses.field(default_factory=dict)
    lost: int = 0

    @property
    def kills(self) -> int:
        """Processes that were sent SIGKILL."""
        return self.worker_kills + self.supervisor_kills


class Campaign:
    """One study and the forces against it."""

    def __init__(self, plan: Plan, url: str, folder: Path, server: Any) -> None:
        self.plan, self.url, self.folder, self.server = plan, url, folder, server
        self.home = folder / "runs"
        self.dice = random.Random(plan.seed)
        self.tally = Tally()
        self.supervisors: list[subprocess.Popen[bytes]] = []
        self.stopped: dict[int, float] = {}  # pid: when it is to go on
        self.log = (folder / "supervisors.log").open("ab")

    def setting(self, *, real: bool) -> str:
        content = {"url": self.url, "study": STUDY, "lease_s": self.plan.lease_s, "home": str(self.home), "real": real}
        content["workers"] = self.plan.workers // self.plan.supervisors
        return json.dumps(content)

    def run(self, *, real: bool = False) -> Tally:
        """Start everything, do the worst until the plan is fulfilled, and wait for the end of the study."""
        began = time.monotonic()
        try:
            while not self.over():
                self.keep_supervisors(real)
                self.wake()
                if self.left() and self.is_under_way():
                    self.strike()
                time.sleep(self.dice.uniform(0.02, 0.2))
                if time.monotonic() > began + LONGEST_S:
                    raise TimeoutError(f"the campaign did not end: {self.tally}; see {self.folder}")
        finally:
            for pid in list(self.stopped):
                self.send(pid, signal.SIGCONT)
            for process in self.supervisors:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
            for pid in self.workers():
                self.send(pid, signal.SIGKILL)
            self.log.close()
        self.tally.seconds = round(time.monotonic() - began, 1)
        return self.tally

    def is_under_way(self) -> bool:
        """Whether any trial has reached an evaluation: blows before that would all fall on workers that still start."""
        return next(self.home.rglob("checkpoint-*.pt"), None) is not None

    def left(self) -> list[str]:
        """Kinds of blows that the plan still holds; a kind is listed as often as it is to be likely."""
        tally, plan = self.tally, self.plan
        kinds = ["kill", "kill", "kill", "stop"] if tally.kills < plan.kills else []
        if kinds and tally.supervisor_kills < plan.kills // 10:
            kinds.append("supervisor")
        fulfilled = tally.kills / max(plan.kills, 1)
        if tally.outages < plan.outages and tally.outages <= fulfilled * plan.outages:
            kinds += ["outage"] * 2
        if tally.full_disks < plan.full_disks and tally.full_disks <= fulfilled * plan.full_disks:
            kinds.append("full disk")
        return kinds

    def strike(self) -> None:
        kind = self.dice.choice(self.left())
        workers = self.workers()
        if kind == "kill" and workers:
            self.tally.worker_kills += self.send(self.dice.choice(workers), signal.SIGKILL)
        elif kind == "stop" and workers:
            pid = self.dice.choice(workers)
            if pid not in self.stopped and self.send(pid, signal.SIGSTOP):
                self.tally.stops += 1
                self.stopped[pid] = time.monotonic() + self.dice.uniform(0.1, 2 * self.plan.lease_s)
        elif kind == "supervisor":
            process = self.dice.choice(self.supervisors)
            if process.poll() is None:
                process.kill()
                self.tally.supervisor_kills += 1
        elif kind == "outage":
            self.outage()
        elif kind == "full disk":
            self.fill_disk()

    def outage(self) -> None:
        self.tally.outages += 1
        if self.plan.storage == "postgresql":
            restart(self.server)
            return
        path = sa.make_url(self.url).database
        assert path is not None
        deadline = time.monotonic() + 60
        with contextlib.closing(sqlite3.connect(path, timeout=0.2, isolation_level=None)) as connection:
            while not connection.in_transaction:
                self.wake()  # a worker that was stopped inside its transaction holds the lock until it goes on
                try:
                    connection.execute("BEGIN EXCLUSIVE")
                except sqlite3.OperationalError:  # locked
                    if time.monotonic() > deadline:
                        raise
            time.sleep(self.dice.uniform(0.2, 3.0))
            connection.rollback()

    def fill_disk(self) -> None:
        """Leave no byte free where checkpoints and, with SQLite, the database lie, for a moment."""
        self.tally.full_disks += 1
        ballast = self.home / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        time.sleep(self.dice.uniform(0.2, 1.0))
        ballast.unlink()

    def keep_supervisors(self, real: bool) -> None:
        self.supervisors = [process for process in self.supervisors if process.poll() is None]
        while len(self.supervisors) < self.plan.supervisors:
            command = [sys.executable, "-m", "tests.nightly.chaos_supervisor", self.setting(real=real)]
            self.supervisors.append(
                subprocess.Popen(command, stdout=self.log, stderr=self.log, cwd=REPOSITORY, start_new_session=True)
            )
            self.tally.supervisor_starts += 1

    def wake(self) -> None:
        for pid, when in list(self.stopped.items()):
            if time.monotonic() > when:
                self.send(pid, signal.SIGCONT)
                del self.stopped[pid]

    def workers(self) -> list[int]:
        """Processes of workers that are alive, those of dead supervisors included."""
        alive = []
        for path in sorted((self.home / "pids").glob("*")) if (self.home / "pids").is_dir() else []:
            with contextlib.suppress(psutil.NoSuchProcess):
                if psutil.Process(int(path.name)).status() != psutil.STATUS_ZOMBIE:
                    alive.append(int(path.name))
                    continue
            path.unlink(missing_ok=True)
        return alive

    @staticmethod
    def send(pid: int, number: signal.Signals) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def over(self) -> bool:
        try:
            sweep = open_sweep(open_database(self.url, create=False), STUDY)
            try:
                return sweep.slots.counts(self.plan.trials).done == self.plan.trials
            finally:
                sweep.slots.database.engine.dispose()
        except Exception as error:  # the database is away, as planned
            self.log.write(f"campaign: {error}\n".encode())
            return False


def install_audit(engine: sa.Engine) -> None:
    """Triggers that note what happens, with what the slots say at that moment."""
    with engine.begin() as connection:
        serial = "INTEGER PRIMARY KEY" if engine.dialect.name == "sqlite" else "BIGSERIAL PRIMARY KEY"
        for name, (event, query) in TRIGGERS.items():
            columns = "id_ INTEGER, step INTEGER, value DOUBLE PRECISION, epoch INTEGER, state TEXT"
            connection.exec_driver_sql(f"CREATE TABLE {name} (seq {serial}, {columns})")
            insert = f"INSERT INTO {name} (id_, step, value, epoch, state) {query};"
            if engine.dialect.name == "sqlite":
                for number, one in enumerate(event.replace("INSERT OR UPDATE", "INSERT|UPDATE").split("|")):
                    once = one if number == 0 else f"AFTER {one}"
                    table = event.rpartition(" ON ")[2]
                    once = f"{once.partition(' ON ')[0]} ON {table}"
                    connection.exec_driver_sql(f"CREATE TRIGGER {name}_{number} {once} BEGIN {insert} END")
            else:
                body = f"BEGIN {insert} RETURN NULL; END"
                connection.exec_driver_sql(
                    f"CREATE FUNCTION {name}_note() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"
                )
                connection.exec_driver_sql(
                    f"CREATE TRIGGER {name}_note {event} FOR EACH ROW EXECUTE FUNCTION {name}_note()"
                )


def check(url: str, trials: int, tally: Tally, *, toys: bool) -> None:
    """Read the audit, and fail where something was lost, done twice or written by a worker without a lease."""
    database = open_database(url, create=False)
    sweep = open_sweep(database, STUDY)
    with database.engine.connect() as connection:
        audit = {name: connection.exec_driver_sql(f"SELECT * FROM {name} ORDER BY seq").all() for name in TRIGGERS}
        leases = connection.exec_driver_sql("SELECT count(*) FROM hpo_slots WHERE state <> 'done'").scalar()
    frozen = sweep.study.get_trials(deepcopy=False)
    database.engine.dispose()

    tally.reports = len(audit["chaos_reports"])
    tally.highest_epoch = max(row.epoch for row in audit["chaos_reports"])
    tally.states = dict(collections.Counter(trial.state.name for trial in frozen))
    given_up = [trial.number for trial in frozen if "process_died" in trial.constraints]
    tally.lost = trials - sum(trial.state.is_finished() for trial in frozen) + len(given_up)

    assert len(frozen) == trials, "a trial too many or too few"
    assert all(trial.state.is_finished() for trial in frozen), "a trial still runs"
    assert set(tally.states) == {"COMPLETE", "PRUNED"}, "a trial failed, or none was pruned"
    assert leases == 0, "a lease is left"
    assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in frozen) == list(range(trials)), "a slot with two trials"
    assert not given_up, f"trials {given_up} were given up"
    ends = collections.Counter(row.id_ for row in audit["chaos_ends"])
    assert len(ends) == trials, "the audit saw another number of ends"
    assert set(ends.values()) == {1}, "a trial ended twice"
    assert {row.state for row in audit["chaos_ends"]} == {"finishing"}, "a trial ended outside its slot's finishing"
    done = collections.Counter(row.id_ for row in audit["chaos_slots"])
    assert len(done) == trials, "the audit saw another number of done slots"
    assert set(done.values()) == {1}, "a slot was done twice"
    reached: dict[int, int] = {}
    for row in audit["chaos_reports"]:
        assert row.state == "leased", "a report outside a lease"
        if toys:
            assert token_of(row.value) == row.epoch, "a report of a worker that had lost its lease"
        assert row.step == reached.get(row.id_, 0) + 1, "progress went back, or leapt"
        reached[row.id_] = row.step


@contextlib.contextmanager
def place(plan: Plan) -> Iterator[tuple[str, Path, Any]]:
    """A database and a folder; the folder on a small tmpfs where the disk is to be full."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hpo-chaos-")))
        home = folder / "runs"
        home.mkdir()
        if plan.full_disks:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", home], check=True)
            stack.callback(subprocess.run, ["umount", "-l", str(home)], check=True)
        if plan.storage == "sqlite":
            yield f"sqlite:///{home / 'studies.db'}", folder, None
        else:
            server = stack.enter_context(own_postgres_server(durable=True))
            yield server.get_uri(driver="psycopg"), folder, server


def make_toys(plan: Plan, url: str) -> None:
    """The study of trials that sleep instead of training."""
    database = open_database(url, create=True)
    spec = make_spec(name=STUDY, trials=plan.trials, sampler={"kind": "random"}, pruner=PRUNER)
    create_sweep(database, make_record(spec)).slots.ensure(plan.trials)
    database.engine.dispose()


def make_real(plan: Plan, url: str, home: Path) -> None:
    """The study of trials that train, on pages of Python's documentation."""
    write_text(home)
    file = home / "chaos.toml"
    file.write_text(REAL_STUDY, encoding="utf-8")
    request = Request(study=str(file), trials=plan.trials, data=home, resources=ResourceRequest(workers=0))
    prepare(request, url, Home(home)).sweep.slots.database.engine.dispose()


def check_curves(url: str, home: Path) -> None:
    """Fail where a trial's loss curve is not that of the same run in one piece, to the last bit."""
    database = open_database(url, create=False)
    sweep = open_sweep(database, STUDY)
    (tokens,) = (path for path in (home / "cache" / "tokens").iterdir() if not path.name.startswith("."))
    threads = torch.get_num_threads()
    for trial in sweep.study.get_trials(deepcopy=False):
        torch.set_num_threads(trial.user_attrs[TRIAL_MACHINE]["threads"])
        whole = train(sweep.spec.run_with(trial.params), open_tokens(tokens)).history
        curve = [evaluation["val_loss"] for evaluation in trial.user_attrs[TRIAL_HISTORY]]
        assert curve == [evaluation.val_loss for evaluation in whole[: len(curve)]], f"trial {trial.number}: its curve"
        assert curve == list(trial.intermediate_values.values()), f"trial {trial.number}: what Optuna was told"
    torch.set_num_threads(threads)
    database.engine.dispose()


def can_mount() -> bool:
    """Whether this process may mount a tmpfs."""
    with tempfile.TemporaryDirectory() as folder:
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def run_campaign(plan: Plan, *, real: bool = False) -> Tally:
    """A whole campaign, on toy trials or real ones."""
    with place(plan) as (url, folder, server):
        if real:
            make_real(plan, url, folder / "runs")
        else:
            make_toys(plan, url)
        audited = sa.create_engine(url)
        install_audit(audited)
        audited.dispose()
        campaign = Campaign(plan, url, folder, server)
        try:
            tally = campaign.run(real=real)
            check(url, plan.trials, tally, toys=not real)
            if real:
                check_curves(url, folder / "runs")
        except BaseException:
            kept = Path(tempfile.mkdtemp(prefix="hpo-chaos-failed-"))
            shutil.copytree(folder, kept, dirs_exist_ok=True)
            print(f"{campaign.tally}\nwhat it left is in {kept}", file=sys.stderr)
            raise
        return tally


def main() -> None:
    """Run a campaign from the command line and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", choices=("sqlite", "postgresql"), required=True)
    for name in ("workers", "supervisors", "trials", "kills", "outages", "full-disks", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name.replace("-", "_")))
    parser.add_argument("--real", action="store_true", help="train for real")
    arguments = vars(parser.parse_args())
    real = arguments.pop("real")
    plan = Plan(**arguments)
    if plan.full_disks and not can_mount():
        parser.error("--full-disks needs the right to mount a small tmpfs")
    tally = run_campaign(plan, real=real)
    print(json.dumps({"plan": dataclasses.asdict(plan), "tally": dataclasses.asdict(tally)}, indent=1))


if __name__ == "__main__":
    main()
