"""Where everything lies: one folder, by default `runs/`, or what `HPO_HOME` names."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Home:
    """All paths of the program. Nothing is created by asking for a path."""

    root: Path

    @classmethod
    def from_environment(cls) -> Home:
        """`HPO_HOME`, or `runs` in the current folder."""
        return cls(Path(os.environ.get("HPO_HOME") or "runs").absolute())

    @property
    def database(self) -> Path:
        """SQLite file of all studies, unless another database is named."""
        return self.root / "studies.db"

    @property
    def cache(self) -> Path:
        """Corpora and token files, by content; may be deleted while nothing runs."""
        return self.root / "cache"

    @property
    def artifacts(self) -> Path:
        """Files of trials for the dashboard, by Optuna's ids; checkpoints among them are links."""
        return self.root / "artifacts"

    def trained(self, corpus: str, digest: str) -> Path:
        """Folder of long runs without a study, on one text under one tokenizer; `digest` tells such folders apart."""
        return self.root / "trained" / f"{urllib.parse.quote(corpus, safe='')[:80]}-{digest}"

    def study(self, name: str, uid: str) -> Path:
        """Folder of one study's trials and logs. The uid keeps studies of one name in two databases apart."""
        return self.root / "studies" / f"{urllib.parse.quote(name, safe='')[:80]}-{uid}"

    def trial(self, name: str, uid: str, number: int) -> Path:
        """Folder of one trial's checkpoints."""
        return self.study(name, uid) / f"trial-{number:05d}"

    def worker_log(self, name: str, uid: str, worker: str) -> Path:
        """What a worker printed: warnings, tracebacks, the last words of a crash."""
        return self.study(name, uid) / "logs" / f"{worker}.log"

    def slurm_jobs(self, name: str, uid: str) -> Path:
        """Folder of what submitit keeps for a study's Slurm jobs."""
        return self.study(name, uid) / "slurm"

    def long_runs(self, name: str, uid: str) -> Path:
        """Folder of the checkpoints of a study's long runs."""
        return self.study(name, uid) / "long-runs"

    @property
    def corpora(self) -> Path:
        """Texts that were downloaded or made."""
        return self.cache / "corpora"

    @property
    def tokens(self) -> Path:
        """Token files."""
        return self.cache / "tokens"

    @property
    def throughputs(self) -> Path:
        """File of the throughputs of so many workers, as measured on this machine."""
        return self.cache / "placements.json"
