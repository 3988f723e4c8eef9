"""What the documents say is true of the program: commands, options, names, links, examples."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from hpo.cli import app
from hpo.study.toml import load_study_file, parse_study, shipped_studies
from hpo_model.config import build_run
from tests.support.paths import REPOSITORY

DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
STUDY_FILES = (REPOSITORY / "docs" / "study-files.md").read_text(encoding="utf-8")
COMMANDS = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_is_in_the_readme(command: str) -> None:
    row = next(line for line in README.splitlines() if line.startswith(f"| `hpo {command}"))
    options = {option for parameter in COMMANDS[command].params for option in parameter.opts if option.startswith("--")}
    for option in options - {"--storage"}:
        assert option in row
    assert "--storage" in README


def test_the_readme_names_no_command_that_is_not_there() -> None:
    named = set(re.findall(r"(?:^|[`$ /\\])hpo ([a-z][a-z-]*)\b", README, flags=re.MULTILINE))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_files_of_tests_that_documents_name_are_there() -> None:
    there = {path.name for path in (REPOSITORY / "tests").rglob("test_*.py")}
    text = "".join((REPOSITORY / name).read_text(encoding="utf-8") for name in ("README.md", "docs/testing.md"))
    named = set(re.findall(r"test_\w+\.py", text))
    assert named
    assert named <= there


def test_every_value_of_a_run_is_documented_and_no_other() -> None:
    table = STUDY_FILES[STUDY_FILES.index("## Values of a run") :]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert named == {"preset", *build_run({}).parameters()}


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
def test_the_example_is_a_study_file(profile: str) -> None:
    example = re.search(r"```toml\n(.*?)```", STUDY_FILES, flags=re.DOTALL)
    assert example is not None
    spec = parse_study(example.group(1), "example", profile)  # type: ignore[arg-type]
    assert spec.planned()[0][1]["dropout"] == 0.1


@pytest.mark.parametrize("study", shipped_studies())
def test_every_shipped_study_is_documented(study: str) -> None:
    shipped = STUDY_FILES[STUDY_FILES.index("## Shipped studies") : STUDY_FILES.index("## Values of a run")]
    assert f"| `{study}` |" in shipped
    assert f"`{study}`" in README


def test_the_shipped_studies_search_the_values_of_the_logs() -> None:
    assert set(shipped_studies()) == {
        *("lambda_phi", "lambda_phi_grid", "lambda_schedule"),
        *("learning_rate", "batch_size", "architecture", "full", "ppl_vs_phi"),
    }
    spec = load_study_file("lambda_phi", "cpu")
    space = spec.search["lambda_phi"]
    assert (space.low, space.high, space.log) == (0.001, 0.3, True)
    first, second = (parameters for _, parameters in spec.planned())
    assert (first["lambda_phi"], first["dropout"]) == (0.05, 0.1)
    assert (second["lambda_phi"], second["dropout"]) == (0.01, 0.25)
    grid = [parameters["lambda_phi"] for _, parameters in load_study_file("lambda_phi_grid", "cpu").planned()]
    assert sorted(grid) == [0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3]
