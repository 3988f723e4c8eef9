"""What is installed is what is there, under names that no file of a user's has."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement

from tests.support.paths import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {name: REPOSITORY / folder for name, folder in PROJECT["tool"]["setuptools"]["package-dir"].items()}


def test_every_package_is_installed() -> None:
    found = {
        ".".join((name, *init.parent.relative_to(folder).parts))
        for name, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found


def test_import_names_are_ours() -> None:
    assert set(FOLDERS) == {"hpo", "hpo_model", "hpo_reports", "hpo_studies"}


def test_every_dependency_has_an_upper_bound() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    for text in (*PROJECT["project"]["dependencies"], *extras["ray"], *extras["slurm"], *extras["tensorboard"]):
        bounds = {each.operator for each in Requirement(text).specifier}
        assert bounds == {">=", "<"}, text


def test_no_python_is_too_new() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_files_of_packages_are_declared() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for name, patterns in data.items():
        top, *inner = name.split(".")
        folder = Path(FOLDERS[top], *inner)
        assert all(any(folder.glob(pattern)) for pattern in patterns), name
