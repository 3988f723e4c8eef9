"""A researcher's folder, whose files have the names of modules that the program imports."""

from __future__ import annotations

from pathlib import Path

MODULES = (
    *("config", "data", "model", "network", "reports", "studies", "training", "worker"),
    *("queue", "random", "secrets", "optuna", "torch", "typing_extensions"),
)


def write_own_files(folder: Path) -> None:
    """Write modules that cannot be imported."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(f'raise RuntimeError("{name}.py of the user was imported")\n', "utf-8")
