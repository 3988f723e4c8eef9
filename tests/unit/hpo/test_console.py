"""What a terminal or a pipe shows while a study runs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from hpo.monitor.board import Board, Update
from hpo.monitor.console import Lines, LiveTable, open_view
from hpo.sweep.result import TrialResult
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_OUTCOME, TRIAL_REASON
from tests.support.sweeps import make_evaluation, make_event, make_update


class Screen:
    def __init__(self, *, terminal: bool = False, width: int = 200) -> None:
        self.file = io.StringIO()
        self.console = Console(
            file=self.file, force_terminal=terminal, width=width, color_system=None, legacy_windows=False, _environ={}
        )

    @property
    def text(self) -> str:
        return self.file.getvalue()


def outcome(state: Any, name: str, reason: str, val_ppl: float | None = 54.6) -> TrialResult:
    attributes = {TRIAL_OUTCOME: name, TRIAL_REASON: reason, TRIAL_HISTORY: [{"val_ppl": 99.0}, {"val_ppl": val_ppl}]}
    return TrialResult(state=state, values=(4.0,) if state == "COMPLETE" else (), attributes=attributes)


# ---------------------------------------------------------------------------------------------- plain lines

PARAMETERS = {"dropout": 0.123456, "layers": 2, "iit": True, "blocks": "attention"}
ENDINGS = {
    "complete": (
        outcome("COMPLETE", "complete", "reached its budget"),
        "trial 3 complete: val ppl 54.60, reached its budget",
    ),
    "pruned": (
        outcome("PRUNED", "pruned", "behind at milestone 2"),
        "trial 3 pruned: val ppl 54.60, behind at milestone 2",
    ),
    "diverged": (
        outcome("PRUNED", "diverged", "loss is not finite", None),
        "trial 3 diverged: loss is not finite",
    ),
    "failed": (
        TrialResult(state="FAIL", attributes={TRIAL_OUTCOME: "failed", TRIAL_REASON: "OSError: x; see worker-0.log"}),
        "trial 3 failed: OSError: x; see worker-0.log",
    ),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_finished_trial_is_one_line_with_its_parameters_and_the_totals(ending: str, board: Board) -> None:
    told, line = ENDINGS[ending]
    screen = Screen(width=40)  # lines are not wrapped: a pipe has no width
    Lines(board, screen.console).show(
        Update.of_event(make_event("finished", trial=3, parameters=PARAMETERS, result=told), board.evaluations)
    )
    assert screen.text == f"{line} · dropout=0.1235 layers=2 iit=True blocks=attention  [0/10 trials]\n"


@pytest.mark.parametrize("kind", ["started", "evaluated", "waiting"])
def test_what_is_no_news_is_no_line(kind: str, board: Board) -> None:
    screen = Screen()
    with Lines(board, screen.console) as view:
        view.show(make_update(board, kind, trial=3, evaluation=make_evaluation()))
        view.pulse()
    assert screen.text == ""


def test_a_restart_is_told(board: Board) -> None:
    screen = Screen()
    message = "worker-0 was killed by SIGKILL (see worker-0.log); it is started again"
    Lines(board, screen.console).show(make_update(board, "restarted", message=message))
    assert screen.text == f"{message}\n"


def test_a_warning_is_told_with_its_worker_and_leaves_the_table_as_it_is(board: Board) -> None:
    screen = Screen()
    view = Lines(board, screen.console)
    view.show(make_update(board, "evaluated", trial=3, evaluation=make_evaluation()))
    view.show(
        Update.of_event(make_event("warned", message="cannot reach the database (x); waiting"), board.evaluations)
    )
    assert screen.text == "worker-0: cannot reach the database (x); waiting\n"
    assert board.workers["worker-0"].trial == 3


MARKUP = ["[bold]not bold[/bold]", "[/nothing to close]", "[red", "ends in \\", "\\[x]", "[link=file:///etc]x[/link]"]


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_a_line_is_text(text: str, board: Board) -> None:
    screen = Screen(terminal=True)
    told = outcome("FAIL", "failed", text)
    Lines(board, screen.console).show(
        Update.of_event(make_event("finished", trial=3, parameters={"blocks": text}, result=told), board.evaluations)
    )
    assert screen.text.count(text) == 2
    Lines(board, screen.console).say(text)
    assert screen.text.endswith(f"{text}\n")


# ---------------------------------------------------------------------------------------------- the live table


def drawn(view: LiveTable, screen: Screen) -> str:
    screen.console.print(view.draw())
    return screen.text


def test_the_table_shows_each_worker_s_trial(board: Board) -> None:
    screen = Screen()
    view = LiveTable(board, screen.console)
    view.show(make_update(board, "started", trial=4, worker="worker-1"))
    evaluation = make_evaluation(3, val_ppl=123.456, tokens_per_s=45_678.9)
    view.show(make_update(board, "evaluated", trial=3, evaluation=evaluation))
    lines = drawn(view, screen).splitlines()
    first, second = (next(line for line in lines if line.startswith(name)) for name in ("worker-0", "worker-1"))
    assert first.split()[1:3] == ["3", "dropout=0.1"]
    assert first.split()[-3:] == ["3/10", "123.46", "45,679"]
    assert second.split()[-1] == "0/10"
    assert lines[-1].strip() == "0/10 trials · 45,679 tokens/s · 0:00 so far"


def test_a_worker_without_a_trial_waits(board: Board) -> None:
    screen = Screen()
    view = LiveTable(board, screen.console)
    view.show(make_update(board, "waiting"))
    assert "worker-0 waiting for other workers' trials" in " ".join(drawn(view, screen).split())


def test_a_finished_trial_s_progress_is_full(board: Board) -> None:
    screen = Screen()
    view = LiveTable(board, screen.console)
    view.show(
        Update.of_event(
            make_event("finished", trial=3, result=outcome("COMPLETE", "complete", "reached its budget")),
            board.evaluations,
        )
    )
    assert "10/10" in drawn(view, screen)


@pytest.mark.parametrize("text", MARKUP)
def test_markup_in_the_table_is_text(text: str, board: Board) -> None:
    screen = Screen()
    view = LiveTable(board, screen.console)
    view.show(make_update(board, "started", trial=3, parameters={"blocks": text}))
    assert f"blocks={text} " in drawn(view, screen)


def test_finished_trials_scroll_past_above_the_table(board: Board) -> None:
    screen = Screen(terminal=True)
    with LiveTable(board, screen.console) as view:
        view.show(make_update(board, "started", trial=3))
        view.pulse()
        view.show(
            Update.of_event(
                make_event("finished", trial=3, result=outcome("PRUNED", "pruned", "behind at milestone 2")),
                board.evaluations,
            )
        )
    assert "trial 3 pruned: val ppl 54.60, behind at milestone 2 · dropout=0.1  [0/10 trials]" in screen.text
    assert "worker-0" in screen.text


def test_the_table_is_for_terminals(board: Board) -> None:
    assert type(open_view(board, Screen(terminal=True).console)) is LiveTable
    assert type(open_view(board, Screen(terminal=False).console)) is Lines


def test_a_name_between_colons_is_no_emoji(board: Board) -> None:
    screen = Screen()
    Lines(board, screen.console).say("see /data/:key:/worker-0.log")
    assert screen.text == "see /data/:key:/worker-0.log\n"


def test_a_restarted_worker_is_told_so_in_the_table(board: Board) -> None:
    screen = Screen()
    view = LiveTable(board, screen.console)
    board.apply(make_update(board, "restarted", message="worker-0 was killed"))
    assert "waiting" not in drawn(view, screen)
