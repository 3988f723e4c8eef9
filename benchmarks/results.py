"""Where benchmarks keep what they measured: dated JSON, with hardware and versions.

Imports torch at most, so that a machine with a GPU needs no more than what trains.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hpo_model.hardware import cpu_cores, describe

FOLDER = Path(__file__).parent / "results"
PACKAGES = ("torch", "optuna", "sqlalchemy", "psycopg")
LOAD_BEFORE = round(os.getloadavg()[0], 2)  # what the machine did when the benchmark began


def keep(name: str, figures: dict[str, Any], *, device: str = "cpu", folder: Path = FOLDER) -> None:
    """Write figures to a folder, dated, with the hardware of the device that was used."""
    folder.mkdir(parents=True, exist_ok=True)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    content = {
        "date": today,
        "hardware": describe(device),
        "cores": cpu_cores(),
        "load_before": LOAD_BEFORE,
        "versions": {"python": platform.python_version(), **_versions()},
        **figures,
    }
    path = folder / f"{name}-{today}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"kept in {os.path.relpath(path)}")


def _versions() -> dict[str, str]:
    """Of those packages that are installed."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
