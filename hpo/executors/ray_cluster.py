"""A Ray cluster as executors meet it: how to reach it, and how many workers it has room for."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpo.errors import WorkerError, one_line
from hpo.worker.messages import WorkerSpec

CONNECT_S = 5.0
PROBE_S = 20.0  # for an answer that tells a Ray cluster from whatever else listens


@dataclass(frozen=True, kw_only=True)
class NodeShare:
    """What each worker gets of its node."""

    cpus: int
    gpus: float  # 0.5: two workers on each GPU; 0: it computes on the CPU

    def __str__(self) -> str:
        return amounts({"CPU": self.cpus, "GPU": self.gpus})

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many workers fit into a node's resources."""
        workers = int(resources.get("CPU", 0) / self.cpus)
        return min(workers, int(resources.get("GPU", 0) / self.gpus + 1e-6)) if self.gpus else workers

    def apply(self, spec: WorkerSpec) -> WorkerSpec:
        """A worker's specification with these resources; Ray shows a worker no other GPU than its own."""
        return dataclasses.replace(
            spec,
            device="cuda:0" if self.gpus else "cpu",
            threads=self.cpus,
            memory_fraction=min(1.0, self.gpus) if self.gpus else 1.0,
        )


def capacity(address: str | None, gpus_per_worker: float, *, cpus_per_worker: int = 1) -> int:
    """How many workers a cluster can hold at once, when nothing else runs there.

    A cluster without GPUs holds workers that compute on CPUs.
    """
    with connected(address):
        gpus = gpus_per_worker if has_gpus(address) else 0.0
        share = NodeShare(cpus=cpus_per_worker, gpus=gpus)
        return sum(share.fits(node["Resources"]) for node in nodes())


def has_gpus(address: str | None) -> bool:
    """Whether a cluster has GPUs."""
    with connected(address):
        return any(node["Resources"].get("GPU", 0) > 0 for node in nodes())


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a Ray cluster for as long as the block lasts; within another such block that connection serves.

    Args:
        address: host:port of the cluster's head, asked from one of its nodes; "auto" for the one that this machine is
            part of. None: what RAY_ADDRESS names, else the one that this machine is part of, else one is started here.

    Raises:
        WorkerError: Ray is not installed, or there is no cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    named = address if address not in (None, "auto") else os.environ.get("RAY_ADDRESS")
    if named:
        _check_address(named)
    before = signal.getsignal(signal.SIGTERM)
    # Ray puts the folder that we connect from first on its workers' path, where a user's torch.py would take the place
    # of the module; so that folder is an empty one.
    with tempfile.TemporaryDirectory(prefix="hpo-ray-") as empty:
        try:
            with contextlib.chdir(empty):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise WorkerError(f"Ray{f' at {named}' if named else ''}: {one_line(error)}") from error
        finally:
            if signal.getsignal(signal.SIGTERM) is not before:  # Ray's handler would end this process
                signal.signal(signal.SIGTERM, before)
        try:
            yield
        finally:
            ray.shutdown()


def nodes() -> list[dict[str, Any]]:
    """The nodes that are part of the connected cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def import_ray() -> Any:
    """Ray, silent: what it is to print is read from the environment when it is imported first.

    Raises:
        WorkerError: it is not installed.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # nothing of the raylets' reports of deaths
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a Ray that is started here reports to nobody
    try:
        import ray
    except ImportError as error:
        raise WorkerError("the Ray executor needs Ray: pip install 'assay-hpo[ray]'") from error
    return ray


def _check_address(address: str) -> None:
    """Refuse an address that Ray itself would try for minutes.

    Raises:
        WorkerError: nothing listens there, or something else than a Ray cluster.
    """
    if address.startswith("ray://"):
        raise WorkerError(
            f"{address}: Ray's client does not do; run on a node of the cluster and name its head host:port"
        )
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # Ray knows what it means, or says so at once
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise WorkerError(f"no Ray cluster at {address}: {error}") from error
    probe = [sys.executable, "-P", "-m", "ray.scripts.scripts", "health-check", "--address", address]
    with contextlib.suppress(subprocess.TimeoutExpired):
        if subprocess.run(probe, capture_output=True, timeout=PROBE_S).returncode == 0:
            return
    raise WorkerError(f"no Ray cluster at {address}: something else listens there, or another version of Ray")


def amounts(resources: Mapping[str, float]) -> str:
    """Cores and GPUs among resources: `2 CPUs and 1 GPU`."""
    cpus, gpus = resources.get("CPU", 0), resources.get("GPU", 0)
    words = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return f"{words} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else words
