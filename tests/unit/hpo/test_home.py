"""Where everything lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpo.home import Home


def test_home_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPO_HOME", str(tmp_path))
    assert Home.from_environment().root == tmp_path


@pytest.mark.parametrize("unset", [None, ""])
def test_home_is_runs_in_the_current_folder_otherwise(
    unset: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if unset is not None:
        monkeypatch.setenv("HPO_HOME", unset)
    monkeypatch.chdir(tmp_path)
    assert Home.from_environment().root == tmp_path / "runs"


def test_home_stays_where_it_was_when_the_current_folder_changes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HPO_HOME", "here")
    monkeypatch.chdir(tmp_path)
    home = Home.from_environment()
    monkeypatch.chdir("/")
    assert home.database == tmp_path / "here" / "studies.db"


def test_everything_lies_under_home_and_asking_makes_nothing(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    paths = [
        home.database,
        home.cache,
        home.study("toy", "uid"),
        home.trial("toy", "uid", 3),
        home.worker_log("toy", "uid", "w"),
    ]
    assert all(path.is_relative_to(home.root) for path in paths)
    assert len(set(paths)) == len(paths)
    assert not home.root.exists()


@pytest.mark.parametrize("name", ["a/b", "..", ".", "../../etc", "Φ study", "x" * 200, "Φ" * 200, "con:*?", "a\\b"])
def test_any_study_name_is_one_folder(name: str, tmp_path: Path) -> None:
    folder = Home(tmp_path).study(name, "0123abcd")
    folder.mkdir(parents=True)
    assert folder.resolve().parent == tmp_path / "studies"
    assert folder.name.endswith("-0123abcd")


def test_trials_sort_by_number(tmp_path: Path) -> None:
    home = Home(tmp_path)
    paths = [home.trial("toy", "uid", number) for number in (2, 10, 99, 100)]
    assert sorted(paths) == paths


def test_studies_of_one_name_and_names_alike_in_their_folder_stay_apart(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert home.study("toy", "1") != home.study("toy", "2")
    assert home.study("a/b", "1") != home.study("a b", "1")
