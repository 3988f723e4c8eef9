"""Work before the user's eyes: a search to its end, then its finalists, then the winner's look at the test split."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote

import typer
from rich.console import Console

from hpo.dashboard.publishing import publish_quietly, publishing
from hpo.database.connection import storage_errors
from hpo.errors import StudyError, UsageError
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.monitor.console import Board, open_view
from hpo.search.launch import Launch, Request, connected_to, join_search, launch_finalists, run_workers, submit
from hpo.search.test_split import look_at_test_split, looks
from hpo.study.spec import FinalistsSection
from hpo.sweep.finalists import overtaken, plan_finalists
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event
from hpo_reports.analysis.judging import CandidateJudgement, FinalistsJudgement, judge
from hpo_reports.records.finalists import read_companion

INTERRUPTED = 130  # exit code of a command that a signal ended
SIGNALS = ("Ctrl-C", "SIGTERM", "SIGHUP")

MakeReady = Callable[[Request, str, Home, Callable[[str], None]], Launch]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One call of a command that works on a study."""

    request: Request
    url: str
    home: Home
    timeout_min: float | None = None
    finalists: bool = True  # whether the search's finalists follow
    concludes: bool = True  # whether it names the winner, which then looks at the test split
    test_again: bool = False  # whether the test split may be looked at once more

    def __post_init__(self) -> None:
        if self.timeout_min is not None and not self.timeout_min > 0:
            raise UsageError(f"--timeout must be above 0 minutes, got {self.timeout_min:g}")


def search(session: Session, make_ready: MakeReady) -> None:
    """Fill a study's slots; when all are done, those of its finalists.

    Args:
        session: what was asked for.
        make_ready: opens the study or makes it.
    """
    deadline = _deadline(session)
    with connected_to(session.request.executor), storage_errors(session.url):
        launch = make_ready(session.request, session.url, session.home, typer.echo)
        if _worked_to_its_end(launch, deadline) and launch.sweep.spec.replication is None and session.finalists:
            _finish(session, launch, launch.sweep.spec.finalists, deadline)


def replicate(session: Session, candidates: int | None, replicates: int | None) -> None:
    """Run a study's finalists, more of them than there are where more are asked for.

    Args:
        session: what was asked for.
        candidates: how many there are to be beside the baseline; None: as the study file or an earlier call says.
        replicates: fresh seeds that there are to be for each; None: the same.
    """
    for flag, value in (("--candidates", candidates), ("--replicates", replicates)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} is the total that there is to be, at least 1, got {value}")
    deadline = _deadline(session)
    with connected_to(session.request.executor), storage_errors(session.url):
        launch = join_search(session.request, session.url, session.home, typer.echo)
        usual = launch.sweep.spec.finalists
        wanted = FinalistsSection(count=candidates or usual.count or 1, replicates=replicates or usual.replicates or 1)
        board = Board(launch.sweep)
        if not board.search_is_over():
            typer.echo(f"the search goes on ({board.ending()}); finalists are the best so far")
        _finish(session, launch, wanted, deadline)


def _deadline(session: Session) -> float | None:
    return None if session.timeout_min is None else time.monotonic() + 60 * session.timeout_min


def _worked_to_its_end(launch: Launch, deadline: float | None) -> bool:
    """Run workers until the study is done or a stop is wanted; whether nothing is left to do."""
    name = launch.sweep.spec.name
    board = Board(launch.sweep, launch.total)
    typer.echo(launch.describe(board.counts))
    if board.search_is_over():
        typer.echo(f"nothing to do: {board.ending()}")
        return True
    if not launch.orders:
        typer.echo(f"it waits for `hpo worker --study {quote(name)}`")
    elif launch.request.executor.kind == "slurm":
        jobs = ", ".join(submit(launch))
        typer.echo(f"submitted: {jobs}; `hpo status {name}` follows, `hpo stop {name}` ends it")
    else:
        _watch(launch, board, deadline)
        return board.search_is_over()
    return False


def _watch(launch: Launch, board: Board, deadline: float | None) -> None:
    stop = Stop(None if deadline is None else max(deadline - time.monotonic(), 0.0))
    with (
        open_view(board, Console()) as view,
        stop.on_signals(view.say),
        publishing(launch.url, launch.sweep.spec.name, view.say) as also_hear,
    ):

        def hear(event: Event) -> None:
            view.hear(event)
            also_hear(event)

        run_workers(launch, hear, view.pulse, stop)
    board.try_to_refresh()
    over = board.search_is_over()
    reason = stop.reason or ("" if over else "somebody asked for it by `hpo stop`")
    typer.echo(f"{board.ending()}{f' ({reason}); run again to go on' if reason else ''}")
    if stop.reason in SIGNALS:
        raise typer.Exit(INTERRUPTED)


# ------------------------------------------------------------------------------------------------------- finalists


def _finish(session: Session, launch: Launch, wanted: FinalistsSection, deadline: float | None) -> None:
    """Plan the finalists, run them, name the winner, and let it look at the test split."""
    spec = launch.sweep.spec
    if len(spec.objectives) > 1:
        typer.echo("no finalists: with two objectives no trial is the best to run again")
        return
    companion = plan_finalists(launch.sweep, wanted.count, wanted.replicates)
    if companion is None:
        if wanted.count and wanted.replicates:
            typer.echo("no finalists: no trial but the baseline is complete and feasible")
        return
    typer.echo(_announcement(companion))
    _tell_of_overtaken(launch.sweep, companion)
    if _worked_to_its_end(launch_finalists(launch, companion, typer.echo), deadline) and session.concludes:
        _conclude(session, launch, companion)
        publish_quietly(session.url, companion.spec.name, typer.echo)  # what the winner's look at the test split adds


def _announcement(companion: Sweep) -> str:
    replication = companion.spec.replication
    assert replication is not None
    best = [candidate.trial for candidate in replication.candidates if candidate.role == "finalist"]
    beside = " and the baseline" if len(best) < len(replication.candidates) else ""
    over = Board(companion).search_is_over()
    skip = "" if over else " (--no-finalists, or replicates = 0 under [finalists], skips this)"
    return (
        f"finalists of {replication.study}: {_trials(best)}{beside} again, "
        f"each under the same {len(replication.seeds)} fresh seeds{skip}"
    )


def _tell_of_overtaken(search: Sweep, companion: Sweep) -> None:
    better = [trial.number for trial in overtaken(search, companion)]
    if better:
        count = sum(candidate.role == "finalist" for candidate in companion.spec.replication.candidates)  # type: ignore[union-attr]
        typer.echo(
            f"since these were chosen, {_trials(better[:5])} did better in the search; "
            f"`hpo replicate {quote(search.spec.name)} --candidates {count + len(better)}` adds "
            f"{'it' if len(better) == 1 else 'them'}"
        )


def _conclude(session: Session, launch: Launch, companion: Sweep) -> None:
    record = read_companion(companion.study)
    assert record is not None, "all of its runs have ended"
    judgement = judge(record)
    for candidate in judgement.candidates:
        typer.echo(_line(candidate, judgement))
    if judgement.winner is None:
        typer.echo("no winner: no candidate is complete under a seed that the others are complete under")
        return
    tied = f"; {_trials(judgement.tied)} cannot be told from it" if judgement.tied else ""
    typer.echo(f"lowest mean: trial {judgement.winner}{tied}")
    _look(session, launch, companion, judgement.winner)


def _look(session: Session, launch: Launch, companion: Sweep, winner: int) -> None:
    """Let the winner look at the test split, which nobody has looked at yet."""
    taken = looks(companion)
    if taken and not session.test_again:
        if taken[0].candidate != winner:
            typer.echo(
                f"the test split was looked at for trial {taken[0].candidate}, which won then; another look would be "
                f"chosen knowing the first (`hpo replicate {quote(launch.sweep.spec.name)} --test-again` takes it)"
            )
        return
    try:
        look_at_test_split(companion, winner, launch.corpus, launch.home, typer.echo)
    except StudyError as error:
        typer.echo(f"test split: {error}")


def _line(candidate: CandidateJudgement, judgement: FinalistsJudgement) -> str:
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
