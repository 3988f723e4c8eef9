"""Tables of past experiments: what is read, what is refused, and that the study they make is never run."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from typer.testing import CliRunner

from hpo.cli import app
from hpo.database.connection import Database, open_database
from hpo.errors import StudyError, UsageError
from hpo.sweep.sweep import describe_studies, find_sweep, load_study
from hpo.transfer.importing import (
    BASELINE,
    CAUSAL,
    LABELS,
    MEASURES,
    Experiment,
    PastExperiments,
    import_experiments,
    read_experiments,
)
from hpo_reports.records.names import STUDY_TABLE, TRIAL_CAUSAL, TRIAL_LABELS, TRIAL_ROLE
from tests.support.paths import REPOSITORY, SUPPORT

FIVE = SUPPORT / "five_experiments.csv"


def read(tmp_path: Path, content: str | bytes, name: str = "log.csv") -> PastExperiments:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_experiments(path)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return open_database(f"sqlite:///{tmp_path}/studies.db", create=True)


# ------------------------------------------------------------------------------------------------------- read


def test_a_csv_table_is_read(tmp_path: Path) -> None:
    past = read(tmp_path, "\ufefflearning_rate, val_ppl ,causal,note\n1e-4,100,true,first\n\n2e-4,90.5,no,\n")
    assert past.file == "log.csv"
    assert past.rows == (
        Experiment(
            parameters={"learning_rate": 1e-4},
            measured={"val_ppl": 100.0},
            labels={"note": "first"},
            causal=True,
            is_baseline=True,
        ),
        Experiment(
            parameters={"learning_rate": 2e-4}, measured={"val_ppl": 90.5}, labels={}, causal=False, is_baseline=False
        ),
    )


def test_a_json_table_is_read(tmp_path: Path) -> None:
    rows = [
        {"batch_size": 32, "iit": True, "val_ppl": 100},
        {"batch_size": 16, "iit": False, "val_ppl": 90, "baseline": True},
        {"batch_size": None, "val_ppl": 95},
    ]
    first, second, third = read(tmp_path, json.dumps(rows), "log.json").rows
    assert (first.parameters, first.is_baseline, first.causal) == ({"batch_size": 32, "iit": True}, False, None)
    assert (second.parameters, second.is_baseline) == ({"batch_size": 16, "iit": False}, True)
    assert third.parameters == {}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"val_ppl\n\xff\n", "not UTF-8 at byte 8"),
        ("", "between one and 100,000 experiments, got 0"),
        ("val_ppl\n", "between one and 100,000 experiments, got 0"),
        ("val_ppl,colour\n100,red\n", "row 1: unknown column 'colour'; known are a run's parameters and val_ppl"),
        ("learning_rate\n1e-3\n", "row 1: val_ppl is missing"),
        ("learning_rate,val_ppl\n1e-3,100\n1e-3,\n", "row 2: val_ppl is missing"),
        ("val_ppl\nnan\n", "val_ppl must be a finite number, got 'nan'; leave unknown values empty"),
        ("val_ppl\ninf\n", "val_ppl must be a finite number"),
        ("val_ppl\nlow\n", "val_ppl must be a finite number, got 'low'"),
        ("val_ppl\n0.5\n", "val_ppl must be at least 1, got 0.5"),
        ("val_ppl,seconds\n100,1e999\n", "seconds must be a finite number"),
        ("val_ppl,batch_size\n100,16.5\n", "batch_size must be a whole number below 2^53, got '16.5'"),
        ("val_ppl,learning_rate\n100,small\n", "learning_rate must be a finite number, got 'small'"),
        ("val_ppl,epoch,val_ppl\n100,1,100\n", "a column occurs twice in the header: val_ppl, epoch, val_ppl"),
        ("val_ppl,epoch\n100,1\n100\n", "row 2: the header has 2 columns, the row 1"),
        ("val_ppl,epoch\n100,1,2\n", "row 1: the header has 2 columns, the row 3"),
        ("val_ppl,causal\n100,perhaps\n", "row 1: causal must be one of true, yes, 1, false, no, 0, got 'perhaps'"),
        ("val_ppl,baseline\n100,yes\n90,1\n", "one baseline at most, got 2"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path, content: str | bytes, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, content)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not valid JSON"),
        ('{"val_ppl": 100}', "must be a list of objects"),
        ("[100]", "must be a list of objects"),
        ("[]", "between one and 100,000 experiments, got 0"),
        ('[{"val_ppl": NaN}]', "val_ppl must be a finite number"),
        ('[{"val_ppl": true}]', "val_ppl must be a finite number, got True"),
        ('[{"val_ppl": [100]}]', "val_ppl must be a finite number"),
        (f'[{{"val_ppl": {"9" * 5000}}}]', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_is_no_table_is_refused(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, content, "log.json")
    assert told in str(refused.value)


def test_a_cell_beyond_what_csv_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not valid CSV: field larger than field limit"):
        read(tmp_path, f"val_ppl,note\n100,{'x' * 200_000}\n")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_experiments(tmp_path / "none.csv")


# ----------------------------------------------------------------------------------------------------- import


def test_a_study_holds_what_the_table_says(database: Database) -> None:
    import_experiments(database, "log", read_experiments(FIVE))
    study = load_study(database, "log")
    first, *_, last = study.get_trials()
    assert len(study.get_trials()) == 5
    assert first.value == pytest.approx(math.log(647.45))
    assert first.distributions["learning_rate"] == FloatDistribution(5e-5, 2e-4)
    assert last.params == {"learning_rate": 1e-4, "batch_size": 32.0, "lambda_phi": 0.3}
    assert last.user_attrs[TRIAL_CAUSAL] is False
    assert [trial.user_attrs[TRIAL_ROLE] for trial in study.get_trials()] == ["baseline", *["known"] * 4]
    assert study.user_attrs[STUDY_TABLE]["file"] == "five_experiments.csv"


def test_values_that_are_no_numbers_are_categories(database: Database, tmp_path: Path) -> None:
    past = read(tmp_path, "val_ppl,iit,lambda_schedule\n100,true,constant\n90,false,constant\n")
    import_experiments(database, "log", past)
    trial = load_study(database, "log").get_trials()[0]
    assert trial.distributions == {"iit": CategoricalDistribution([True, False])}


def test_texts_that_utf8_cannot_write_are_kept_as_far_as_it_can(database: Database, tmp_path: Path) -> None:
    past = read(tmp_path, r'[{"val_ppl": 100, "note": "a\ud800b"}]', "log.json")
    import_experiments(database, "log", past)
    assert load_study(database, "log").get_trials()[0].user_attrs[TRIAL_LABELS] == {"note": "a?b"}


def test_a_name_that_is_taken_is_refused(database: Database) -> None:
    past = read_experiments(FIVE)
    optuna.create_study(study_name="log", storage=database.storage)
    with pytest.raises(StudyError, match="there is a study 'log' already; --name gives the experiments another name"):
        import_experiments(database, "log", past)


@pytest.mark.parametrize("name", ["", " log", "a\nb", "x" * 201, "log--finalists"])
def test_a_name_that_no_study_may_have_is_refused(database: Database, name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        import_experiments(database, name, read_experiments(FIVE))


def test_the_study_is_listed_and_never_run(database: Database) -> None:
    import_experiments(database, "log", read_experiments(FIVE))
    assert describe_studies(database) == ["log                5 trials · a table of past experiments"]
    with pytest.raises(StudyError, match="'log' is a table of past experiments, which nothing can run; `hpo report`"):
        find_sweep(database, "log")


# ---------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--study", "lambda_phi"],
        ["worker", "--study", "lambda_phi"],
        ["replicate", "lambda_phi"],
        ["train", "--from", "lambda_phi", "--epochs", "2"],
        ["status", "lambda_phi"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_that_would_run_it_refuse(arguments: list[str], tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/studies.db"
    environment = {"HPO_HOME": str(tmp_path)}
    told = CliRunner().invoke(app, ["import-log", str(FIVE), "--name", "lambda_phi", "--storage", url], env=environment)
    assert (told.exit_code, told.stdout) == (
        0,
        "study lambda_phi: 5 experiments of five_experiments.csv; next: hpo report lambda_phi\n",
    )
    refused = CliRunner().invoke(app, [*arguments, "--storage", url], env=environment)
    assert isinstance(refused.exception, StudyError)
    assert "is a table of past experiments, which nothing can run" in str(refused.exception)
    report = CliRunner().invoke(app, ["report", "lambda_phi", "--storage", url], env=environment)
    assert report.exit_code == 0
    assert "## What this table cannot support" in report.stdout


def test_the_document_knows_every_column_and_shows_what_the_command_says(tmp_path: Path) -> None:
    document = (REPOSITORY / "docs" / "past-experiments.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1] for line in document.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {*MEASURES, *LABELS, CAUSAL, BASELINE}
    told = CliRunner().invoke(app, ["import-log", str(FIVE)], env={"HPO_HOME": str(tmp_path)})
    assert f"$ hpo import-log {FIVE.name}\n{told.stdout}" in document


def test_an_import_that_is_cut_short_leaves_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(study: optuna.Study, trials: list[optuna.trial.FrozenTrial]) -> None:
        study.add_trial(trials[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "add_trials", stop)
    with pytest.raises(KeyboardInterrupt):
        import_experiments(database, "cut", read_experiments(FIVE))
    assert "cut" not in [study.study_name for study in database.storage.get_all_studies()]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("val_ppl,seconds\n100,-1\n", "seconds must be at least 0, got -1"),
        ("val_ppl,seed\n100,1e300\n", "seed must be a whole number below 2^53"),
    ],
)
def test_figures_that_cannot_be_are_refused(tmp_path: Path, content: str, told: str) -> None:
    with pytest.raises(UsageError) as refused:
        read(tmp_path, content)
    assert told in str(refused.value)


def test_the_word_unknown_is_an_empty_cell(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "val_ppl,causal,seed,baseline\n100,unknown,unknown,unknown\n").rows
    assert (row.causal, row.parameters, row.is_baseline) == (None, {}, True)


def test_lists_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="note must be a text, got a list"):
        read(tmp_path, '[{"val_ppl": 100, "note": [1]}]', "log.json")
