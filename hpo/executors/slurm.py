"""Workers as the tasks of a Slurm job array, which this process submits and leaves to Slurm.

`hpo status` follows such a run and `hpo stop` ends it. A task that reaches its time limit, or has to make room for
another job, gives its trial back and is queued again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hpo.dashboard.publishing import publish_quietly
from hpo.database.connection import open_database
from hpo.database.url import has_password, is_sqlite, masked
from hpo.errors import HpoError, StorageError, UsageError, WorkerError, one_line
from hpo.sweep.sweep import open_sweep
from hpo.worker.messages import Event, WorkerSpec, new_owner
from hpo.worker.worker import work
from hpo_model.errors import ModelError
from hpo_reports.records.names import TRIAL_REASON

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

TIMEOUTS = 1000  # after so many of them a task is not queued again; a study may outlast many time limits
ALIASES = {"time": "timeout_min"}  # in minutes, both
COMMON: dict[str, Callable[[str], Any]] = {
    "cpus_per_task": int,
    "gpus_per_node": int,
    "mem_gb": int,
    "name": str,
    "timeout_min": int,
}
OF_SLURM: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(("array_parallelism", "cpus_per_gpu", "gpus_per_task", "signal_delay_s"), int),
    **dict.fromkeys(("account", "comment", "constraint", "dependency", "exclude", "gres", "mail_type"), str),
    **dict.fromkeys(("mail_user", "mem", "mem_per_cpu", "mem_per_gpu", "nodelist", "partition", "qos", "wckey"), str),
    "setup": lambda command: [command],  # a line of shell before the worker: module load cuda
    "srun_args": str.split,
}


def submit_slurm(
    workers: Sequence[tuple[WorkerSpec, Path]], folder: Path, options: Mapping[str, str], *, cluster: str = "slurm"
) -> list[str]:
    """Submit one array with a task for each worker.

    Each task has its own share of a node, whatever its spec says of device number, threads and memory.

    Args:
        workers: a worker's spec, and the file in which people look for what it prints.
        folder: for the array's files alone, on a disk that all nodes see; made, and closed to other users.
        options: as submitit names them: partition, time (minutes), gpus_per_node, …
        cluster: "slurm", or "local" for processes of this machine.

    Returns:
        The jobs' ids.

    Raises:
        WorkerError: submitit or Slurm is missing, or Slurm refuses.
        StorageError: the database is none for several machines, or its URL holds a password.
        UsageError: an option is unknown or missing. Nothing has been written, except where Slurm itself refuses.
    """
    try:
        import submitit
    except ImportError as error:
        raise WorkerError("the Slurm executor needs submitit: pip install 'assay-hpo[slurm]'") from error
    check_slurm(workers[0][0].storage_url, options, cluster=cluster)
    parameters = {"name": f"hpo-{workers[0][0].study_name}", **_parameters(options)}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        # -P: a task imports no file of the folder that it was submitted from in the place of a module of that name.
        python = f"{shlex.quote(sys.executable)} -P"
        executor = submitit.AutoExecutor(
            folder, cluster=cluster, slurm_max_num_timeout=TIMEOUTS, slurm_python=python, local_python=python
        )
        executor.update_parameters(stderr_to_stdout=True, **parameters)
        with contextlib.redirect_stderr(io.StringIO()):  # sbatch's words, which the error has as well
            jobs = executor.submit_array([SlurmTask(spec, log) for spec, log in workers])
    except RuntimeError as error:
        raise WorkerError(f"Slurm did not take the jobs: {one_line(error)}") from error
    return [str(job.job_id) for job in jobs]


def check_slurm(url: str, options: Mapping[str, str], *, cluster: str = "slurm") -> None:
    """Refuse what `submit_slurm` would, with the same errors."""
    if cluster == "slurm" and shutil.which("sbatch") is None:
        raise WorkerError("there is no sbatch here: submit from a machine of the Slurm cluster")
    _parameters(options)
    if has_password(url):
        raise StorageError("put the password in ~/.pgpass or PGPASSWORD; a job file would hold it")
    if cluster == "slurm" and is_sqlite(url):
        raise StorageError(f"{masked(url)}: locks on network disks do not hold; workers on nodes need PostgreSQL")


def asks_for_gpus(options: Mapping[str, str]) -> bool:
    """Whether tasks are to have GPUs."""
    return "gpus_per_node" in options or "gpus_per_task" in options or "gpu" in options.get("gres", "")


def _parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """The options as submitit takes them.

    Raises:
        UsageError: an option is unknown, not of its kind, or missing.
    """
    parameters = {}
    for name, text in options.items():
        wanted = ALIASES.get(name, name)
        kind = COMMON.get(wanted) or OF_SLURM.get(wanted)
        if kind is None:
            known = ", ".join(sorted({*COMMON, *OF_SLURM, *ALIASES}))
            raise UsageError(f"--slurm {name}: unknown; there are {known}")
        try:
            parameters[wanted if wanted in COMMON else f"slurm_{wanted}"] = kind(text)
        except ValueError as error:
            raise UsageError(f"--slurm {name} takes a whole number, got {text!r}") from error
    if "timeout_min" not in parameters:
        raise UsageError("--slurm time=MINUTES is missing: how long a task may run before it is queued again")
    return parameters


@dataclass(frozen=True)
class SlurmTask:
    """One worker as Slurm runs it, again and again if need be: each of its processes has leases of its own."""

    spec: WorkerSpec
    log: Path

    def __call__(self) -> None:
        """Work until the study is done, a stop is wanted, or Slurm wants the node back."""
        import submitit

        spec = self._placed()
        self._write_output_path(spec.owner)
        sink = _LogSink()
        signal.signal(signal.SIGTERM, sink.request_stop)
        died = True
        try:
            work(spec, sink)
            died = False
            if not sink.stopped:
                publish_quietly(spec.storage_url, spec.study_name, lambda line: print(f"{_now()} {line}", flush=True))
        except SystemExit:  # submitit has queued the task again
            died = False
            raise
        except (HpoError, ModelError) as error:
            died = False
            sink.send(Event(kind="fatal", worker=spec.name, message=str(error)))
            raise
        finally:
            with contextlib.suppress(HpoError):  # without a database the lease expires by itself
                database = open_database(spec.storage_url, create=False)
                open_sweep(database, spec.study_name).slots.release_owner(spec.owner, crashed=died)
        if sink.stopped and _only_makes_room():
            signal.raise_signal(signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"])  # submitit queues it again

    def checkpoint(self) -> DelayedSubmission:
        """What is to run when the task is queued again; submitit asks for it at the time limit and on preemption."""
        from submitit.core.utils import DelayedSubmission

        return DelayedSubmission(self)

    def _placed(self) -> WorkerSpec:
        """The spec on what Slurm has given to this task, which sees no other GPU than its own."""
        return dataclasses.replace(
            self.spec,
            device="cuda:0" if self.spec.device.startswith("cuda") else "cpu",
            threads=int(os.environ.get("SLURM_CPUS_ON_NODE", self.spec.threads)),
            memory_fraction=1.0,
            owner=new_owner(self.spec.name),
        )

    def _write_output_path(self, owner: str) -> None:
        from submitit import JobEnvironment

        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as file:
            print(f"{_now()} {owner}: see {JobEnvironment().paths.stdout}", file=file)


class _LogSink:
    """Writes a task's events into its log."""

    def __init__(self) -> None:
        self.stopped = False
        self.last = ""

    def send(self, event: Event) -> None:
        if not event.kind == self.last == "waiting":
            print(f"{_now()} {_line(event)}", flush=True)
        self.last = event.kind

    def stop_wanted(self) -> bool:
        return self.stopped

    def request_stop(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.stopped = True
        print(f"{_now()} {signal.Signals(number).name}: leaving at the next evaluation", flush=True)


def _only_makes_room() -> bool:
    """Whether Slurm wants the node for another job: a cancelled job, which gets the same SIGTERM, runs no longer."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    squeue = subprocess.run(["squeue", "--noheader", "--format=%T", "--jobs", job], capture_output=True, text=True)
    print(f"{_now()} squeue: {(squeue.stdout or squeue.stderr).strip()}", flush=True)
    return squeue.stdout.strip() == "RUNNING"


def _line(event: Event) -> str:
    """An event in one line."""
    parts = [event.worker, event.kind if event.trial is None else f"trial {event.trial} {event.kind}"]
    if event.kind == "started":
        parts.append(" ".join(f"{name}={value}" for name, value in event.parameters.items()))
    if event.evaluation is not None:
        parts.append(f"validation loss {event.evaluation.val_loss:.4f} at {event.evaluation.tokens:,} tokens")
    if event.result is not None:
        parts.append(f"{event.result.state.lower()}, {event.result.attributes.get(TRIAL_REASON, '')}")
    if event.message:
        parts.append(event.message)
    return ": ".join(parts)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")
