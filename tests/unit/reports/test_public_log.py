"""The five experiments of a public log, imported: the report draws none of the log's verdicts, and says why."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpo.database.connection import open_database
from hpo.sweep.sweep import load_study
from hpo.transfer.importing import import_experiments, read_experiments
from hpo_reports.records.study import StudyRecord, read_study
from hpo_reports.render import render
from tests.support.paths import SUPPORT

FIVE = SUPPORT / "five_experiments.csv"
VERDICTS = {
    "en": r"\b(better|worse|winner: trial|lowest validation loss of|no effect)\b",
    "es": r"\b(mejor|peor|ganadora: prueba|menor pérdida de validación de|sin efecto)\b",
}
REASONS = {
    "en": [
        "**No language models**: the networks of trials 0, 1, 2, 3, 4 see the tokens that they are to predict.",
        "**One run each**: no configuration was repeated, and no seed is given.",
        "**No projection**: one evaluation per run is no curve. From one point after 1 of 20 epochs",
        "**Unequal updates**: at equal epochs, batch size 16 made 2 times as many updates as 32.",
        "**Unequal machines**: times come from cpu and cuda and say nothing about configurations.",
        "**ΔΦ loss** has λ_phi as a factor",
        "**Train PPL above val PPL** in trials 0, 1, 2, 3, 4:",
        "**Text unknown**: corpus and tokenizer are not identified",
    ],
    "es": [
        "**No son modelos de lenguaje**: las redes de pruebas 0, 1, 2, 3, 4 ven tokens que deben predecir.",
        "**Una sola ejecución de cada una**: ninguna configuración se repitió, y no consta ninguna semilla.",
        "**Sin proyección**: una evaluación por ejecución no es una curva. De un solo punto tras 1 de 20 épocas",
        "**Actualizaciones desiguales**: con las mismas épocas, el lote 16 hizo 2 veces las actualizaciones",
        "**Máquinas desiguales**: los tiempos proceden de cpu y cuda",
        "**La pérdida ΔΦ** contiene λ_phi como factor",
        "**PPL de entrenamiento por encima de la de validación** en pruebas 0, 1, 2, 3, 4:",
        "**Texto desconocido**: no se identifican el corpus ni el tokenizador",
    ],
}


def imported(tmp_path: Path, file: Path) -> StudyRecord:
    database = open_database(f"sqlite:///{tmp_path}/studies.db", create=True)
    import_experiments(database, "the log", read_experiments(file))
    return read_study(load_study(database, "the log"))


def rewritten(tmp_path: Path, change: Callable[[dict[str, str]], dict[str, str]]) -> Path:
    """The table with each of its rows changed."""
    with FIVE.open(encoding="utf-8", newline="") as file:
        rows = [change(row) for row in csv.DictReader(file)]
    path = tmp_path / "log.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def without(tmp_path: Path, *columns: str) -> Path:
    """The table without some of its columns."""
    return rewritten(tmp_path, lambda row: {name: cell for name, cell in row.items() if name not in columns})


def claims(document: str, language: str) -> str:
    """What the report says of the trials: without the section that says why it says no more, and explanations."""
    reasons = r"^## (What this table cannot support|Lo que esta tabla no puede sostener)$.*?^(?=## )"
    return re.sub(reasons, "", document, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("template", ["experiments", "session"])
@pytest.mark.parametrize("language", ["en", "es"])
def test_the_report_refuses_the_verdicts_of_the_log(tmp_path, language, template):
    document = render(imported(tmp_path, FIVE), "markdown", template=template, language=language)
    assert not re.findall(VERDICTS[language], claims(document, language), re.IGNORECASE)
    for sign in "🏆✅⭐":
        assert sign not in document
    for command in ("hpo train", "hpo replicate", "hpo run"):
        assert command not in document


@pytest.mark.parametrize("template", ["experiments", "session"])
@pytest.mark.parametrize("language", ["en", "es"])
def test_the_report_says_why(tmp_path, language, template):
    document = render(imported(tmp_path, FIVE), "markdown", template=template, language=language)
    for reason in REASONS[language]:
        assert document.count(f"- {reason}") == 1


def test_nothing_is_ranked_and_everything_is_kept(tmp_path):
    content = json.loads(render(imported(tmp_path, FIVE), "json"))
    assert content["winner"] is None
    assert content["projection"] is None
    assert {row["verdict"] for row in content["rows"]} == {"not_causal"}
    assert [row["val_ppl"] for row in content["rows"]] == [647.45, 847.53, 485.99, 535.42, 647.57]
    assert content["header"]["log"]["file"] == "five_experiments.csv"


def replaced(tmp_path: Path, column: str, cell: str) -> Path:
    """The table with one cell all the way down a column."""
    return rewritten(tmp_path, lambda row: {**row, column: cell})


@pytest.mark.parametrize("language", ["en", "es"])
def test_without_knowing_whether_the_networks_cheat_nothing_is_compared(tmp_path, language):
    record = imported(tmp_path, without(tmp_path, "causal"))
    document = render(record, "markdown", language=language)
    unknown = {"en": "**Causality unknown**", "es": "**Causalidad desconocida**"}[language]
    assert document.count(f"- {unknown}") == 1
    assert not re.findall(VERDICTS[language], claims(document, language), re.IGNORECASE)
    assert {row["verdict"] for row in json.loads(render(record, "json"))["rows"]} == {"causality_unknown"}


@pytest.mark.parametrize("language", ["en", "es"])
def test_of_causal_networks_single_runs_are_no_verdicts(tmp_path, language):
    document = render(imported(tmp_path, replaced(tmp_path, "causal", "true")), "markdown", language=language)
    rows = [line for line in document.splitlines() if re.match(r"\| +\**\d+\** +\|", line)]
    one_run = {"en": "one run", "es": "una sola ejecución"}[language]
    assert len([row for row in rows if one_run in row]) >= 4
    for claim in ("🏆", "✅", "❌", "hpo train", "hpo replicate", "hpo run"):
        assert claim not in document


def test_a_difference_within_the_seed_noise_is_none(tmp_path):
    rows = json.loads(render(imported(tmp_path, replaced(tmp_path, "causal", "true")), "json"))["rows"]
    assert [row["verdict"] for row in rows] == ["baseline", "worse", "better", "better", "not_distinguishable"]
