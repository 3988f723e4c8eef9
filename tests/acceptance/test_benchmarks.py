"""Each benchmark can be imported and says what it measures; `make nightly` runs them on as little as possible."""

from __future__ import annotations

import importlib
import sys

import pytest

from tests.support.paths import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
COMMANDS = [path.stem for path in sorted(BENCHMARKS.glob("*.py")) if "__main__" in path.read_text(encoding="utf-8")]
WITHOUT_OPTIONS = {"recovery", "storage", "workers"}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_benchmark_says_what_it_measures(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module(name)
    assert module.__doc__
    if name in WITHOUT_OPTIONS:
        assert callable(module.main)
        return
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert module.__doc__.splitlines()[0] in capsys.readouterr().out
