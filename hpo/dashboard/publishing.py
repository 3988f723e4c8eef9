"""Notes and figures of a study for Optuna's dashboard, kept up to date while it runs: never where a trial trains.

What is shown is a pure function of the study, so any process may bring it up to date: the supervisor of workers, a
Slurm task that has ended, the dashboard itself. A failure is reported and costs nothing but what is shown.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import optuna

from hpo.dashboard.freshness import State, states
from hpo.dashboard.notes import Notes, PublishedVersion, write_notes
from hpo.database import optuna_private
from hpo.database.connection import Database, open_database
from hpo.database.retry import is_transient
from hpo.errors import one_line
from hpo.sweep.sweep import load_study
from hpo_reports.records.names import FINALISTS_SUFFIX

if TYPE_CHECKING:
    from hpo.worker.messages import Event

MIN_PERIOD_S = 20.0
MAX_SHARE = 0.01  # of the time that may be spent on publishing
MAX_TRIAL_NOTES = 300  # the dashboard's answers take time by the square of their number
POLL_S = 15.0  # between the dashboard's checks for stale studies

logger = logging.getLogger(__name__)


def publish(database: Database, name: str, *, final: bool = False) -> float:
    """Bring a study's notes and figures up to date, if it has moved on since and enough time has passed.

    Args:
        database: that holds the study.
        name: of a study; one that another program made is left alone.
        final: do not wait until enough time has passed.

    Returns:
        Seconds after which to come again; 0 where nothing is left to do.
    """
    state = states(database).get(name)
    if state is None or not state.is_stale:
        return 0.0
    early_s = state.stamp.at + max(MIN_PERIOD_S, state.stamp.seconds / MAX_SHARE) - time.time()
    if early_s > 0 and not final:
        return early_s
    write_notes(database, state.study_id, _notes(database, load_study(database, name), state))
    return 0.0


@contextlib.contextmanager
def publishing(url: str, name: str, announce: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """Publish a study from a thread of this process while its workers run, and once more when they have left.

    Args:
        url: of the database.
        name: of the study.
        announce: called with each failure, once.

    Yields:
        A function to call with each event of a worker.
    """
    news, over = threading.Event(), threading.Event()
    failures = _Failures(announce)

    def on_event(event: Event) -> None:
        if event.kind == "finished":
            news.set()

    def keep() -> None:
        wait_s: float | None = None  # until there is news
        while not over.is_set():
            news.wait(wait_s)
            news.clear()
            wait_s = None
            with failures.reported():
                if not over.is_set():
                    wait_s = publish_at(url, name) or None

    thread = threading.Thread(target=keep, name="publishing", daemon=True)
    thread.start()
    try:
        yield on_event
    finally:
        over.set()
        news.set()
        thread.join()
        with failures.reported():
            publish_at(url, name, final=True)


def publish_quietly(url: str, name: str, announce: Callable[[str], None]) -> None:
    """Publish a study after a task without a supervisor; a failure is reported, and no more."""
    with _Failures(announce).reported():
        publish_at(url, name, final=True)


def publish_at(url: str, name: str, *, final: bool = False) -> float:
    """The same as `publish`, on a database that is opened for it; of finalists their search as well."""
    with contextlib.closing(open_database(url, create=False)) as database:
        names = dict.fromkeys((name, name.removesuffix(FINALISTS_SUFFIX)))
        return max(publish(database, each, final=final) for each in names)


@contextlib.contextmanager
def publishing_all(url: str, announce: Callable[[str], None]) -> Iterator[None]:
    """Keep all studies of a database published, from a thread: as the dashboard does while it serves."""
    over = threading.Event()
    failures = _Failures(announce)

    def keep() -> None:
        while True:
            with failures.reported(), contextlib.closing(open_database(url, create=False)) as database:
                for name in [name for name, state in states(database).items() if state.is_stale]:
                    if over.is_set():
                        return
                    with failures.reported():
                        publish(database, name)
            if over.wait(POLL_S):
                return

    thread = threading.Thread(target=keep, name="publishing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


class _Failures:
    """Failures to publish, reported once each: the search goes on without notes."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self.announce = announce
        self.known: set[str] = set()

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            words = one_line(error)
            logger.debug("notes and figures were not written: %s", words, exc_info=True)
            if words not in self.known and not is_transient(error):
                self.known.add(words)
                self.announce(f"notes and figures for the dashboard were not written ({words}); nothing else is lost")


def _notes(database: Database, study: optuna.Study, state: State) -> Notes:
    """All that is to be shown of a study in this state, or a later one."""
    from hpo_reports.analysis.findings import analyse
    from hpo_reports.document.catalogue import catalogue
    from hpo_reports.document.layout import markdown_of
    from hpo_reports.figures.draw import figures  # plotly, which takes a second
    from hpo_reports.records.finalists import read_finalists
    from hpo_reports.records.long_runs import read_long_runs
    from hpo_reports.records.study import read_study
    from hpo_reports.sections.documents import document
    from hpo_reports.sections.trial_note import study_note, trial_note

    began = time.thread_time()  # processor time, and not that of the imports, which happen once
    record, t = read_study(study), catalogue("en")
    findings = analyse(record, read_finalists(study, database.storage), read_long_runs(study))
    comparison = findings.comparison
    ended = [trial for trial in record.trials if trial.outcome not in ("running", "waiting")]
    if len(ended) > MAX_TRIAL_NOTES:
        rank = {trial.number: place for place, trial in enumerate((*comparison.ranked, *comparison.front))}
        first = sorted(ended, key=lambda trial: (not trial.is_baseline, rank.get(trial.number, len(ended))))
        ended = first[:MAX_TRIAL_NOTES]
    ids = {trial.number: optuna_private.trial_id(trial) for trial in study.get_trials(deepcopy=False)}
    trials = {ids[trial.number]: trial_note(record, comparison, trial, t) for trial in ended}
    drawn = figures(record, comparison, t, importance=findings.importance)
    shown = {name: figure.to_json() for name, figure in drawn.items()}
    report = markdown_of(document("experiments", findings, t), diagrams=False)  # which a note does not draw
    seconds = round(time.thread_time() - began, 3)
    stamp = PublishedVersion(finished=state.finished, state=state.digest, at=time.time(), seconds=seconds)
    return Notes(stamp=stamp, study=study_note(report, t), trials=trials, figures=shown)
