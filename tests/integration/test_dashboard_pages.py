"""What people see of a study in the dashboard, in a real browser. Screenshots go to CI_ARTIFACTS, if that is set."""

from __future__ import annotations

import csv
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from hpo.dashboard.server import AccessPolicy, open_server
from hpo.database.connection import open_database
from tests.support.dashboard_study import HOSTILE, SCRIPT, home_in, make_study

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ROOT_FLAGS = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
PATIENCE_MS = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The dashboard of a study of four trials; the study has the number 1."""
    folder = tmp_path_factory.mktemp("site")
    home, database = home_in(folder), open_database(f"sqlite:///{folder / 'studies.db'}", create=True)
    make_study(database, home)
    with open_server(database.storage, home, AccessPolicy(host="127.0.0.1", port=0)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/dashboard"
        finally:
            server.shutdown()
            thread.join()
            database.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ROOT_FLAGS)
        yield browser
        browser.close()


@pytest.fixture(params=["light", pytest.param("dark", marks=pytest.mark.nightly)])
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A page that notes the errors of its scripts and lets none of the names run one."""
    context = browser.new_context(
        viewport={"width": 1400, "height": 1000}, color_scheme=request.param, accept_downloads=True
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    _keep(page, request.node.name)
    assert page.evaluate("window.hacked") is None, "a name was run as a script"
    assert page.locator("img[src='x']").count() == 0, "a name became a picture"
    assert errors == []
    context.close()


def _keep(page: Page, name: str) -> None:
    folder = os.environ.get("CI_ARTIFACTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_the_study_has_the_report_as_its_note(page: Page, site: str) -> None:
    page.goto(f"{site}/studies/1/note")
    page.get_by_role("heading", name="Comparison").wait_for()
    words = page.locator("body").inner_text()
    assert HOSTILE in words
    assert SCRIPT in words
    assert page.locator("table").count() >= 1
    assert "█" in words, "curves"
    assert "hpo train --from" in words
    assert "[//]" not in words, "the mark by which the note is known is not to be seen"


def test_the_study_has_our_figures(page: Page, site: str) -> None:
    page.goto(f"{site}/studies/1")
    figure = page.locator("[id='user-defined-plot:hpo-history'] .plot-container")
    figure.wait_for()
    assert "What each trial reached" in figure.inner_text()
    assert "validation perplexity per token" in figure.inner_text()
    assert figure.locator(".scatterlayer .point").count() == 4
    names = page.locator("[id^='user-defined-plot:hpo-']").evaluate_all("all => all.map(each => each.id)")
    assert {name.partition("hpo-")[2] for name in names} == {"history", "curves", "phi", "slice-1"}
    assert "validation loss (nats per token)" in page.locator("body").inner_text(), "the objective's name"


def test_a_trial_has_its_note_and_its_files(page: Page, site: str, tmp_path: Path) -> None:
    page.goto(f"{site}/studies/1/trials?numbers=3")
    page.get_by_text("Trial 3: complete.").wait_for()
    words = page.locator("body").inner_text()
    assert "The best of 4 comparable trials." in words
    assert HOSTILE[:40] in words
    assert "hpo train --from" in words
    assert "checkpoint.pt" in words
    assert "history.csv" in words
    assert page.evaluate("document.documentElement.scrollWidth") <= 1400, "nothing lies beyond the window"
    for name, check in (("checkpoint.pt", _is_checkpoint), ("history.csv", _is_history)):
        with page.expect_download() as download:
            page.locator(f"a[download='{name}']").first.click()
        path = tmp_path / name
        download.value.save_as(path)
        check(path)


def _is_checkpoint(path: Path) -> None:
    assert path.read_bytes() == b"weights of 3"


def _is_history(path: Path) -> None:
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["milestone"] for row in rows] == [str(m) for m in range(1, 11)]
    assert float(rows[-1]["val_loss"]) == pytest.approx(4.2)
