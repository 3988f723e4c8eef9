"""The HTML page: one file that fetches nothing and runs nothing that a user gave."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest

from hpo_reports.analysis.findings import analyse
from hpo_reports.document.catalogue import catalogue
from hpo_reports.document.html import page_of
from hpo_reports.document.layout import Document, Section
from hpo_reports.document.markdown import Markdown, escape
from hpo_reports.records.names import TRIAL_REASON
from hpo_reports.records.study import read_study
from hpo_reports.sections.documents import document
from tests.support.studies import FACTS, HOSTILE, pruned, study_of, trial

CHROMIUM = shutil.which("chromium")
ATTACK = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 1'>"


class Page(HTMLParser):
    """Elements and text of a page, as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def drawn() -> dict[str, go.Figure]:
    return {
        "history": go.Figure(go.Scatter(y=[3.0, 2.0], name=ATTACK), layout={"title": "Best so far"}),
        "other": go.Figure(go.Scatter(y=[1.0, None]), layout={"title": "Other"}),
    }


def page(*trials, figures=None, language="en", **options) -> str:
    record = read_study(study_of(*trials, **options))
    findings, t = analyse(record), catalogue(language)
    return page_of(document("experiments", findings, t), drawn() if figures is None else figures, t)


def study() -> list:
    return [trial(5.0, slot=0), trial(4.8, dropout=0.3), pruned()]


def test_a_page_holds_everything_itself():
    elements = Page(page(*study())).elements
    for tag, attributes in elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")


def test_figures_stand_where_their_charts_do_and_the_others_last():
    text = page(*study())
    assert text.index('data-figure="history"') < text.index("Winner: trial 1</h2>") < text.index('data-figure="other"')
    assert "xychart" not in text.split("<script")[0]
    contents = re.findall(r'<script type="application/json" data-content="(\w+)">(.*?)</script>', text, re.DOTALL)
    assert [name for name, _ in contents] == ["history", "other"]
    assert json.loads(contents[0][1])["data"][0]["name"] == ATTACK


def test_without_figures_there_is_no_script():
    text = page(*study(), figures={})
    assert "<script" not in text
    assert "script-src 'none'" in text
    assert len(text) < 100_000


def test_the_policy_admits_only_the_scripts_that_are_there():
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page(*study()))
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 2
    assert "unsafe-inline" not in policy.split("style-src")[0]


@pytest.mark.parametrize("language", ["en", "es"])
def test_a_page_names_its_language_and_sections(language):
    text = page(*study(), language=language)
    assert f'<html lang="{language}">' in text
    anchors = re.findall(r'<li><a href="#([\w-]+)">', text)
    assert len(anchors) >= 9
    assert all(f'<section id="{anchor}">' in text for anchor in anchors)


@pytest.mark.parametrize("text", [*HOSTILE, ATTACK])
def test_what_a_user_gave_adds_no_element(text):
    facts = {**FACTS, "hardware": text, "spec": {**FACTS["spec"], "description": text}}
    trials = [trial(5.0, slot=0), trial(4.8), pruned(attributes={TRIAL_REASON: text})]
    hostile, calm = (Page(page(*trials, **options)) for options in ({"facts": facts, "study_name": text}, {}))
    for tag in ("script", "img", "a", "h1", "h2", "table", "td", "b", "em", "code"):
        assert hostile.count(tag) == calm.count(tag), tag


def test_tables_scroll_in_a_box_of_their_own():
    text = page(*study())
    assert text.count('<div class="wide" tabindex="0"><table>') == text.count("</table></div>") == 4


def test_a_percent_sign_stays_with_its_number():
    document = Document(title=Markdown("x"), sections=(Section(title=None, blocks=(Markdown("is 5.8 % of it"),)),))
    assert "is 5.8\u00a0% of it" in page_of(document, {}, catalogue("en"))


def test_a_title_is_text_in_the_head():
    document = Document(title=Markdown(f"Experiments: {escape('a_b `c` <i> & d')}"), sections=())
    text = page_of(document, {}, catalogue("en"))
    assert "<title>Experiments: a_b `c` &lt;i&gt; &amp; d</title>" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: no `chromium` on PATH")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_browser_draws_the_figures_and_asks_for_nothing(tmp_path: Path, width, scheme):
    from playwright.sync_api import sync_playwright

    file = tmp_path / "report.html"
    file.write_text(page(*study(), study_name=ATTACK), encoding="utf-8")
    complaints: list[str] = []
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(file.as_uri())
        tab.wait_for_selector('[data-figure="other"] .main-svg')
        assert tab.locator(".figure > .plot-container").count() == 2
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("window.broken") is None
        assert ATTACK in tab.inner_text("h1")
        browser.close()
    assert complaints == []
    assert requests == [file.as_uri()]
