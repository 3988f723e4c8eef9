"""Values and tables as Markdown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from hpo_reports.document import formats
from hpo_reports.document.markdown import Markdown, escape, markdown_table, plain
from hpo_reports.document.tables import Table
from tests.support.studies import HOSTILE


def shown(html: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&quot;", '"'), ("&amp;", "&")):
        html = html.replace(entity, character)
    return html


def rendered(markdown: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(markdown)


@pytest.mark.parametrize("text", HOSTILE)
def test_escaped_text_shows_itself_and_does_nothing(text):
    assert shown(rendered(escape(text))) == f"<p>{' '.join(text.split())}</p>\n"


@given(st.text())
def test_any_text_shows_itself(text):
    expected = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    assert shown(rendered(escape(text))) == f"<p>{expected or '–'}</p>\n"


def test_names_stay_readable_in_the_source():
    assert escape("lambda_phi") == "lambda_phi"
    assert escape("2.13.0+cpu") == "2.13.0+cpu"


@given(st.lists(st.tuples(st.text(), st.text(), st.text()), max_size=5))
def test_every_row_has_as_many_cells_as_the_heading(rows):
    html = rendered(markdown_table(Table(("a|b", "b", "c"), tuple(rows)), {}))
    assert html.count("<th") == 3 + html.count("<thead")
    assert html.count("<td") == 3 * len(rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.002, "0.002"),
        (0.00012345, "0.0001234"),
        (5e-05, "5e-05"),
        (1.0, "1"),
        (123456.7, "123,457"),
        (1e300, "1e+300"),
        (0.0, "0"),
        (-0.5, "-0.5"),
        (16, "16"),
        (True, "true"),
        ("x|y", "x\\|y"),
        ("", "–"),
        (Markdown("**x**"), "**x**"),
    ],
)
def test_values_in_sentences(value, text):
    assert plain(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (4.25, "4.2 s"),
        (47.3, "47 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11_220, "3 h 07 min"),
    ],
)
def test_durations(seconds, text):
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("epoch_s", "text"),
    [(0.0, "1970-01-01 00:00 UTC"), (1763409600.0, "2025-11-17 20:00 UTC"), (None, "–"), (1e20, "–")],
)
def test_moments_are_in_utc(epoch_s, text):
    assert formats.moment(epoch_s) == text


def test_perplexities_have_two_decimals_until_they_are_huge():
    assert [formats.perplexity(value) for value in (1199.59, 1e12, None)] == ["1,199.59", "1e+12", "–"]


def test_curves_are_drawn_on_the_given_scale():
    assert formats.sparkline([8, 4.5, 1, None, 100], 1, 8) == "█▅▁·█"
    assert formats.sparkline([2, 2], 2, 2) == "▁▁"
    assert formats.sparkline([-1e308, 1e308], -1e308, 1e308) == "▁█"
    assert formats.sparkline([], 0, 1) == "–"


def test_tables_align_numbers_right_and_mark_the_winner():
    table = Table(("number", "params_x_y", "reason"), ((0, 0.5, "fine"), (12, None, None)))
    assert markdown_table(table, {"number": "Exp"}, bold=12).splitlines() == [
        "|    Exp | x_y | reason |",
        "| -----: | --: | --- |",
        "|      0 | 0.5 | fine |",
        "| **12** |   – | –   |",
    ]


def test_long_texts_are_cut():
    line = markdown_table(Table(("reason",), (("x" * 5000,),)), {}).splitlines()[2]
    assert len(line) < 310
    assert line.endswith("x… |")
