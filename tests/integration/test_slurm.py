"""Job arrays: submitit's local executor for real, and Slurm's commands played by two scripts."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from hpo.errors import StorageError, UsageError, WorkerError
from hpo.executors.slurm import submit_slurm
from hpo.home import Home
from hpo.worker.messages import WorkerSpec
from hpo_model.data.tokens import TokenizedCorpus
from tests.support.far_workers import FarStudy, wait_until
from tests.support.own_files import write_own_files

pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # submitit lets go
TIME = {"time": "30"}

Make = Callable[..., FarStudy]


@pytest.fixture
def far_study(sqlite_url: str, tmp_path: Path, small_corpus: TokenizedCorpus) -> Iterator[Make]:
    made: list[FarStudy] = []

    def make(url: str = sqlite_url, *, trials: int = 3, lease_s: float = 30.0, **run: Any) -> FarStudy:
        made.append(FarStudy(url, tmp_path, small_corpus, trials=trials, lease_s=lease_s, **run))
        return made[-1]

    yield make
    for study in made:
        study.close()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """For the jobs' files; whatever still runs at the end is ended."""
    yield tmp_path / "jobs"
    for process in processes_of(tmp_path / "jobs"):
        process.kill()


def processes_of(folder: Path) -> list[psutil.Process]:
    """Those that were started with the folder's name, which no other test has."""
    running = psutil.process_iter(["cmdline"])
    return [each for each in running if any(str(folder) in word for word in each.info["cmdline"] or [])]


def spec_for(url: str, root: Path) -> tuple[WorkerSpec, Path]:
    """A spec that is refused before anybody looks at its study."""
    spec = WorkerSpec(
        storage_url=url, study_name="toy", total=1, home=Home(root), device="cpu", threads=1, name="worker-0"
    )
    return spec, root / "worker-0.log"


def ended(folder: Path, jobs: list[str]) -> bool:
    return all((folder / f"{job}_0_result.pkl").is_file() for job in jobs)


def log_of(folder: Path, job: str) -> str:
    return (folder / f"{job}_0_log.out").read_text(encoding="utf-8")


def task_of(job: str) -> psutil.Process:
    """The process that works for a local job; the job's own starts and restarts it."""
    (task,) = psutil.Process(int(job)).children()
    return task


class TestLocalJobs:
    def test_two_tasks_end_a_study_with_its_exact_total(self, far_study: Make, folder: Path) -> None:
        study = far_study(trials=4)
        jobs = submit_slurm(study.specs(2), folder, TIME, cluster="local")
        assert len(set(jobs)) == 2
        wait_until("both tasks end", lambda: ended(folder, jobs))
        study.assert_exact()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        logs = [log_of(folder, job) for job in jobs]
        assert all("validation loss" in log and "finished: complete" in log for log in logs), logs
        log = study.home.worker_log(study.sweep.spec.name, study.sweep.uid, "worker-1").read_text(encoding="utf-8")
        assert str(folder / f"{jobs[1]}_0_log.out") in log

    def test_a_users_own_files_take_the_place_of_no_module(
        self, far_study: Make, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_own_files(tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as the command line does; submitit's own process has no -P
        study = far_study(trials=1)
        jobs = submit_slurm(study.specs(1), folder, TIME, cluster="local")
        wait_until("the task ends", lambda: ended(folder, jobs))
        study.assert_exact()

    def test_a_killed_task_s_trial_goes_on_in_the_other_when_its_lease_expires(
        self, far_study: Make, folder: Path
    ) -> None:
        study = far_study(trials=3, lease_s=2.0, budget_tokens=20_000)
        jobs = submit_slurm(study.specs(2), folder, TIME, cluster="local")
        wait_until("both work on a trial and have a checkpoint", lambda: study.under_way() == 2)
        task_of(jobs[0]).kill()
        wait_until("the other task ends", lambda: ended(folder, jobs[1:]))
        study.assert_exact()
        assert study.continued()

    def test_a_preempted_task_gives_its_trial_back_and_goes_on_as_another_owner(
        self, far_study: Make, folder: Path
    ) -> None:
        study = far_study(trials=2, lease_s=300.0, budget_tokens=20_000)
        (job,) = submit_slurm(study.specs(1), folder, TIME, cluster="local")
        wait_until("a checkpoint is written", study.checkpoints)
        owners = set(study.sweep.slots.owners().values())
        task_of(job).send_signal(signal.SIGUSR2)
        wait_until("the lease has another owner", lambda: set(study.sweep.slots.owners().values()) - owners)
        wait_until("the task ends", lambda: ended(folder, [job]))
        study.assert_exact()
        assert study.continued() == [0]
        assert "Requeued job" in log_of(folder, job)

    def test_sigterm_lets_a_task_leave_at_its_next_evaluation(self, far_study: Make, folder: Path) -> None:
        study = far_study(trials=2, lease_s=300.0, budget_tokens=20_000)
        (job,) = submit_slurm(study.specs(1), folder, TIME, cluster="local")
        wait_until("a checkpoint is written", study.checkpoints)
        task_of(job).terminate()
        wait_until("the task ends", lambda: ended(folder, [job]))
        counts = study.sweep.slots.counts(2)
        assert (counts.done, counts.released, counts.leased, counts.open) == (0, 1, 0, 1)
        assert "SIGTERM: leaving at the next evaluation" in log_of(folder, job)

    def test_a_worker_that_cannot_go_on_says_why_in_the_log(self, far_study: Make, folder: Path) -> None:
        study = far_study()
        (job,) = submit_slurm(study.specs(1, tokens=folder / "nowhere"), folder, TIME, cluster="local")
        wait_until("the task ends", lambda: ended(folder, [job]))
        assert f"worker-0: fatal: {folder / 'nowhere'}" in log_of(folder, job)
        assert study.sweep.slots.counts(3).open == 3


SBATCH = """#!{python}
import os, re, subprocess, sys
text = open(sys.argv[1]).read()
array = re.search(r"--array=0-(\\d+)", text)
for task in range(int(array[1]) + 1 if array else 1):
    own = dict(SLURM_JOB_ID=str(4242 + task), SLURM_CPUS_ON_NODE="1")
    own |= dict(SLURM_ARRAY_JOB_ID="4242", SLURM_ARRAY_TASK_ID=str(task)) if array else {{}}
    file = re.search(r"--output=(\\S+)", text)[1].replace("%A_%a", f"4242_{{task}}").replace("%j", "4242")
    log = open(file, "a")
    subprocess.Popen(["bash", sys.argv[1]], env={{**os.environ, **own}}, stdout=log, stderr=log)
print("Submitted batch job 4242")
"""
SRUN = '#!/bin/bash\nwhile [[ $1 == --* ]]; do [[ $1 == --output ]] && shift; shift; done\nexec "$@"\n'
SCONTROL = '#!/bin/bash\necho "$@" > "$(dirname "$0")/asked"\n'


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an `sbatch` that runs the array's tasks at once on this machine, first on the PATH."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH.format(python=sys.executable)), ("srun", SRUN), ("scontrol", SCONTROL)):
        write_command(commands / name, text)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    return commands


def write_command(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def test_an_array_of_slurm_ends_a_study_with_its_exact_total(
    far_study: Make, folder: Path, slurm: Path, new_postgres_url: Callable[[], str]
) -> None:
    study = far_study(new_postgres_url(), trials=4)
    options = {**TIME, "partition": "gpu", "cpus_per_task": "2", "setup": "export TASK_WAS_SET_UP=1"}
    jobs = submit_slurm(study.specs(2), folder, options)
    assert jobs == ["4242_0", "4242_1"]
    wait_until("both tasks end", lambda: ended(folder, jobs))
    study.assert_exact()
    script = (folder / "4242_submission.sh").read_text(encoding="utf-8")
    for line in ("--array=0-1%2", "--time=30", "--partition=gpu", "--cpus-per-task=2", f"hpo-{study.sweep.spec.name}"):
        assert line in script
    assert "\nexport TASK_WAS_SET_UP=1\n" in script


@pytest.mark.parametrize(("state", "asked"), [("RUNNING", "requeue 4242\n"), ("COMPLETING", None)])
def test_sigterm_queues_a_task_again_that_makes_room_but_not_a_cancelled_one(
    far_study: Make, folder: Path, slurm: Path, new_postgres_url: Callable[[], str], state: str, asked: str | None
) -> None:
    write_command(slurm / "squeue", f"#!/bin/bash\necho {state}\n")
    study = far_study(new_postgres_url(), trials=1, lease_s=300.0, budget_tokens=20_000)
    (job,) = submit_slurm(study.specs(1), folder, TIME)
    wait_until("a checkpoint is written", study.checkpoints)
    (task,) = [each for each in processes_of(folder) if "submitit.core._submit" in each.info["cmdline"]]
    task.terminate()
    wait_until("the task has ended", lambda: not task.is_running())
    assert study.sweep.slots.counts(1).released == 1
    told = slurm / "asked"
    assert (told.read_text(encoding="utf-8") if told.exists() else None) == asked
    assert f"squeue: {state}" in log_of(folder, job)


def test_what_sbatch_refuses_is_told_in_its_words(
    folder: Path, slurm: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (slurm / "sbatch").write_text("#!/bin/bash\necho 'error: invalid partition: gpuu' >&2\nexit 1\n", encoding="utf-8")
    specs = [spec_for("postgresql+psycopg:///studies", tmp_path)] * 2
    with pytest.raises(WorkerError, match=r"\ASlurm did not take the jobs: error: invalid partition: gpuu\Z"):
        submit_slurm(specs, folder, {**TIME, "partition": "gpuu"})
    assert capfd.readouterr().err == ""


class TestRefusals:
    """One line each, and nothing is written."""

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({**TIME, "partitoin": "gpu"}, r"--slurm partitoin: unknown; there are account, .* partition, .* wckey"),
            ({"time": "4h"}, "--slurm time takes a whole number, got '4h'"),
            ({"partition": "gpu"}, "--slurm time=MINUTES is missing"),
            ({**TIME, "nodes": "2"}, "--slurm nodes: unknown"),
        ],
    )
    def test_options(self, options: dict[str, str], words: str, folder: Path, sqlite_url: str) -> None:
        with pytest.raises(UsageError, match=rf"\A{words}[^\n]*\Z"):
            submit_slurm([spec_for(sqlite_url, folder)], folder, options, cluster="local")
        assert not folder.exists()

    @pytest.mark.parametrize("url", ["postgresql://me:hunter2@db/studies", "postgresql:///studies?password=hunter2"])
    def test_a_url_with_a_password(self, url: str, folder: Path) -> None:
        with pytest.raises(StorageError, match=r"put the password in ~/.pgpass or PGPASSWORD") as caught:
            submit_slurm([spec_for(url, folder)], folder, TIME, cluster="local")
        assert "hunter2" not in str(caught.value)
        assert not folder.exists()

    @pytest.mark.usefixtures("slurm")
    def test_sqlite_for_several_machines(self, folder: Path, sqlite_url: str) -> None:
        with pytest.raises(StorageError, match=r"\Asqlite:///.*PostgreSQL\Z"):
            submit_slurm([spec_for(sqlite_url, folder)], folder, TIME)
        assert not folder.exists()

    def test_a_machine_without_sbatch(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(folder))
        with pytest.raises(WorkerError, match="there is no sbatch here"):
            submit_slurm([spec_for("postgresql:///studies", folder)], folder, TIME)
        assert not folder.exists()

    def test_an_installation_without_the_extra(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "submitit", None)
        with pytest.raises(WorkerError, match=r"pip install 'assay-hpo\[slurm\]'"):
            submit_slurm([spec_for("postgresql:///studies", folder)], folder, TIME)
        assert not folder.exists()
