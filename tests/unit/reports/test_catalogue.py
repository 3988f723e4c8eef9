"""The message catalogue: both languages are complete and alike."""

import re
import string
from pathlib import Path
from typing import get_args

import pytest

from hpo_reports.analysis.judging import CandidateStanding
from hpo_reports.analysis.outlook import NoOutlookReason
from hpo_reports.analysis.verdicts import TrialStanding
from hpo_reports.document.catalogue import LANGUAGES, SIGNS, Catalogue, catalogue, load_messages
from hpo_reports.figures.data import Kind
from hpo_reports.records.study import OUTCOMES
from hpo_reports.sections.charts import COLORS
from hpo_reports.sections.documents import TEMPLATES
from hpo_reports.sections.objectives import Status
from hpo_reports.sections.success import METRICS
from tests.support.paths import REPOSITORY

REPORTS = REPOSITORY / "reports"
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in sorted(REPORTS.rglob("*.py")))
FAMILIES = {  # keys whose last part is a value of the study's
    "outcome": OUTCOMES,
    "outcomes": OUTCOMES,
    "standing": get_args(TrialStanding),
    "direction": ("minimize", "maximize"),
    "list": ("and", "or"),
    "status": get_args(Status),
    "refusal": get_args(NoOutlookReason),
    "final": get_args(CandidateStanding),
    "color": tuple(COLORS),
    "kind": get_args(Kind),
    "remark": [each for each in get_args(TrialStanding) if each not in ("better", "worse", "not_distinguishable")],
    "title": TEMPLATES,
    "metric": tuple(METRICS),
}


def forms(message: str | dict[str, str]) -> list[str]:
    return [message] if isinstance(message, str) else list(message.values())


def places(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_say_the_same_things(language):
    english, other = load_messages("en"), load_messages(language)
    assert list(other) == list(english)
    for key, message in other.items():
        expected = set().union(*map(places, forms(english[key])))
        assert set().union(*map(places, forms(message))) == expected, key


@pytest.mark.parametrize("language", LANGUAGES)
def test_plurals_have_both_forms_and_their_count(language):
    for key, message in load_messages(language).items():
        if not isinstance(message, str):
            assert set(message) == {"one", "other"}, key


def used_keys() -> set[str]:
    """T
    from tests.support.paths import REPOSITORY
    exts in the source that look like keys of a section that there is."""
    sections = {key.split(".")[0] for key in load_messages("en")}
    found = re.findall(r"""["']([a-z]+)\.([a-z0-9_]+)["']""", SOURCES)
    return {f"{section}.{name}" for section, name in found if section in sections}


def test_every_message_is_said_somewhere_and_every_key_exists():
    keys = set(load_messages("en"))
    families = {f"{family}.{name}" for family, names in FAMILIES.items() for name in names}
    columns = {key for key in keys if key.startswith("column.")}
    assert families <= keys
    assert used_keys() <= keys
    assert keys - families - columns - used_keys() == set()


def test_every_column_heading_is_of_a_column():
    from hpo_reports.document import tables

    source = Path(tables.__file__).read_text(encoding="utf-8")
    for key in load_messages("en"):
        if key.startswith("column."):
            name = key.removeprefix("column.").removeprefix("params_")
            assert re.search(rf"\b{name}\b", source), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_messages_are_tidy_lines(language):
    for key, message in load_messages(language).items():
        for form in forms(message):
            assert form
            assert "\n" not in form, key
            assert "  " not in form, key


def test_a_count_picks_the_form_and_shows_its_thousands():
    t = Catalogue(language="en", messages={"a.b": {"one": "{n} trial", "other": "{n} trials"}})
    assert [t("a.b", n=n) for n in (0, 1, 2, 12345)] == ["0 trials", "1 trial", "2 trials", "12,345 trials"]


def test_values_are_escaped_and_a_missing_one_is_a_dash():
    t = Catalogue(language="en", messages={"a.b": "x {value} y"})
    assert t("a.b", value="a|b <i>") == "x a\\|b &lt;i&gt; y"
    assert t("a.b", value="{value}") == "x {value} y"
    assert t("a.b", value=None) == "x – y"


def test_things_in_a_row():
    t = catalogue("es")
    assert t.listed(["a", "b", "c"], "and") == "a, b y c"
    assert t.listed([1, 2], "or") == "1 o 2"
    assert t.listed([]) == ""


def test_emoji_can_be_left_out():
    assert catalogue("en").sign("winner") == "🏆 "
    assert all(catalogue("en", emoji=False).sign(name) == "" for name in SIGNS)
