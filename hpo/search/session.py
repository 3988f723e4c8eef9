"""One call of a command that works on a study: the search to its end, its finalists, the winner's test evaluation.

What a user should see is logged; the progress of workers goes to the view that the caller opens.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from shlex import quote
from typing import Literal, Protocol

from hpo.dashboard.publishing import publish_quietly, publishing
from hpo.database.connection import storage_errors
from hpo.errors import StudyError, UsageError
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.monitor.board import Board, Update
from hpo.search.launch import Launch, OpenStudy, connected_to, plan_launch, run_workers, submit
from hpo.search.prepare import open_study
from hpo.search.request import Request
from hpo.search.test_split import evaluate_on_test_split, tested_candidates
from hpo.study.sections import MAX_FINALISTS, MAX_REPLICATES, FinalistsSection
from hpo.sweep.finalists import overtaken, plan_finalists
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event
from hpo_reports.analysis.judging import CandidateJudgement, FinalistsJudgement, judge
from hpo_reports.records.finalists import read_companion

SIGNALS = ("Ctrl-C", "SIGTERM", "SIGHUP")

Ending = Literal["done", "unfinished", "interrupted"]  # unfinished: a time limit, a stop, or workers elsewhere
Prepare = Callable[[Request, str, Home], Launch]

logger = logging.getLogger(__name__)


class View(Protocol):
    """Where a user sees what workers do."""

    def show(self, update: Update) -> None:
        """Show what has changed."""

    def pulse(self) -> None:
        """Called a few times a second."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """What a command asks for."""

    request: Request
    url: str
    home: Home
    open_view: Callable[[Board], AbstractContextManager[View]]
    timeout_s: float | None = None
    finalists: bool = True  # whether the search's finalists follow
    concludes: bool = True  # whether it names the winner, and evaluates it on the test split
    test_again: bool = False  # whether the test split may be used once more


def search(session: Session, prepare: Prepare) -> Ending:
    """Fill a study's slots; when all are done, those of its finalists.

    Args:
        session: what was asked for.
        prepare: opens the study or creates it.
    """
    deadline = _deadline(session)
    with connected_to(session.request.executor), storage_errors(session.url):
        launch = prepare(session.request, session.url, session.home)
        ending = _run(session, launch, deadline)
        if ending == "done" and launch.sweep.spec.replication is None and session.finalists:
            return _run_finalists(session, launch.study, launch.sweep.spec.finalists, deadline)
        return ending


def replicate(session: Session, candidates: int | None, replicates: int | None) -> Ending:
    """Run a study's finalists, more of them than there are where more are asked for.

    Args:
        session: what was asked for.
        candidates: how many there are to be beside the baseline; None: as the study file or an earlier call says.
        replicates: fresh seeds that there are to be for each; None: the same.
    """
    for flag, value, most in (
        ("--candidates", candidates, MAX_FINALISTS),
        ("--replicates", replicates, MAX_REPLICATES),
    ):
        if value is not None and not 1 <= value <= most:
            raise UsageError(f"{flag} is the total that there is to be, at least 1 and at most {most:,}, got {value}")
    deadline = _deadline(session)
    with connected_to(session.request.executor), storage_errors(session.url):
        study = open_study(session.request, session.url, session.home)
        if (searched := study.sweep.spec.replication) is not None:
            raise StudyError(
                f"{study.sweep.spec.name} holds finalists; `hpo replicate {quote(searched.study)}` adds some"
            )
        usual = study.sweep.spec.finalists
        wanted = FinalistsSection(count=candidates or usual.count or 1, replicates=replicates or usual.replicates or 1)
        board = Board(study.sweep)
        if not board.is_over():
            logger.info("the search goes on (%s); finalists are the best so far", board.ending())
        return _run_finalists(session, study, wanted, deadline)


def _deadline(session: Session) -> float | None:
    return None if session.timeout_s is None else time.monotonic() + session.timeout_s


def _run(session: Session, launch: Launch, deadline: float | None) -> Ending:
    """Run workers until the study is done or a stop is requested."""
    name = launch.sweep.spec.name
    board = Board(launch.sweep, launch.total)
    logger.info("%s", launch.describe(board.counts))
    if board.is_over():
        logger.info("nothing to do: %s", board.ending())
        return "done"
    if not launch.workers:
        logger.info("it waits for `hpo worker --study %s`", quote(name))
    elif launch.study.request.executor.kind == "slurm":
        jobs = ", ".join(submit(launch))
        logger.info("submitted: %s; `hpo status %s` follows, `hpo stop %s` ends it", jobs, name, name)
    else:
        return _supervise(session, launch, board, deadline)
    return "unfinished"


def _supervise(session: Session, launch: Launch, board: Board, deadline: float | None) -> Ending:
    stop = Stop(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    name = launch.sweep.spec.name
    with (
        session.open_view(board) as view,
        stop.on_signals(),
        publishing(session.url, name, logger.warning) as publish,
    ):

        def on_event(event: Event) -> None:
            view.show(Update.of_event(event, board.evaluations))
            publish(event)

        run_workers(launch, on_event, view.pulse, stop)
    board.try_to_refresh()
    over = board.is_over()
    reason = stop.reason or ("" if over else "requested by `hpo stop`")
    logger.info("%s%s", board.ending(), f" ({reason}); run again to go on" if reason else "")
    if stop.reason in SIGNALS:
        return "interrupted"
    return "done" if over else "unfinished"


# ------------------------------------------------------------------------------------------------------- finalists


def _run_finalists(session: Session, study: OpenStudy, wanted: FinalistsSection, deadline: float | None) -> Ending:
    """Plan the finalists, run them, name the winner, and evaluate it on the test split."""
    spec = study.sweep.spec
    if len(spec.objectives) > 1:
        logger.info("no finalists: with two objectives no trial is the best to run again")
        return "done"
    companion = plan_finalists(study.sweep, wanted.count, wanted.replicates)
    if companion is None:
        if wanted.count and wanted.replicates:
            logger.info("no finalists: no trial but the baseline is complete and feasible")
        return "done"
    logger.info("%s", _describe_finalists(companion))
    _log_overtaken(study.sweep, companion)
    with storage_errors(session.url):
        stop_requests, total = companion.row.stop_requests(), companion.slots.total()
        launch = plan_launch(replace(study, sweep=companion), total, stop_requests)
    ending = _run(session, launch, deadline)
    if ending == "done" and session.concludes:
        _conclude(session, study, companion)
        publish_quietly(session.url, companion.spec.name, logger.warning)  # what the test evaluation adds
    return ending


def _describe_finalists(companion: Sweep) -> str:
    replication = companion.spec.replication
    assert replication is not None
    best = [candidate.trial for candidate in replication.candidates if candidate.role == "finalist"]
    beside = " and the baseline" if len(best) < len(replication.candidates) else ""
    over = Board(companion).is_over()
    skip = "" if over else " (--no-finalists, or replicates = 0 under [finalists], skips this)"
    return (
        f"finalists of {replication.study}: {_trials(best)}{beside} again, "
        f"each under the same {len(replication.seeds)} fresh seeds{skip}"
    )


def _log_overtaken(search: Sweep, companion: Sweep) -> None:
    better = [trial.number for trial in overtaken(search, companion)]
    if better:
        count = sum(candidate.role == "finalist" for candidate in companion.spec.replication.candidates)  # type: ignore[union-attr]
        logger.info(
            f"since these were chosen, {_trials(better[:5])} did better in the search; "
            f"`hpo replicate {quote(search.spec.name)} --candidates {count + len(better)}` adds "
            f"{'it' if len(better) == 1 else 'them'}"
        )


def _conclude(session: Session, study: OpenStudy, companion: Sweep) -> None:
    record = read_companion(companion.study)
    assert record is not None, "all of its runs have ended"
    judgement = judge(record)
    for candidate in judgement.candidates:
        logger.info("%s", _describe_candidate(candidate, judgement))
    if judgement.winner is None:
        logger.info("no winner: no candidate is complete under a seed that the others are complete under")
        return
    tied = f"; {_trials(judgement.tied)} cannot be told from it" if judgement.tied else ""
    logger.info("lowest mean: trial %d%s", judgement.winner, tied)
    _evaluate_winner(session, study, companion, judgement.winner)


def _evaluate_winner(session: Session, study: OpenStudy, companion: Sweep, winner: int) -> None:
    """Evaluate the winner on the test split, unless that was used before."""
    earlier = tested_candidates(companion)
    if earlier and not session.test_again:
        if earlier[0] != winner:
            logger.info(
                "the test split was already used for trial %d, which won then; testing again would be biased by the "
                "first result (`hpo replicate %s --test-again` does it)",
                *(earlier[0], quote(study.sweep.spec.name)),
            )
        return
    try:
        evaluate_on_test_split(companion, winner, study.corpus, study.home)
    except StudyError as error:
        logger.warning("test split: %s", error)


def _describe_candidate(candidate: CandidateJudgement, judgement: FinalistsJudgement) -> str:
    """`trial 7: mean val ppl 131.20 of 6 seeds · 3.1 % below the baseline, p 0.031`."""
    name = f"trial {candidate.trial}{' (baseline)' if candidate.is_baseline else ''}"
    ppl = candidate.mean_val_ppl
    parts = [
        f"{name}: " + ("no complete run" if ppl is None else f"mean val ppl {ppl:.2f} of {candidate.complete} seeds")
    ]
    if candidate.lost:
        parts.append(f"lost under {candidate.lost}")
    if candidate.percent is not None and candidate.p_adjusted is not None:
        side = "below" if candidate.percent < 0 else "above"
        parts.append(f"{abs(candidate.percent):.1f} % {side} the baseline, p {candidate.p_adjusted:.3f}")
    if candidate.standing == "too_few_seeds":
        parts.append(f"no verdict: it takes {judgement.seeds_needed} seeds")
    return " · ".join(parts)


def _trials(numbers: tuple[int, ...] | list[int]) -> str:
    return f"trial{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"
