"""What `hpo run` and `hpo watch` show while a study runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hpo.monitor.board import Board, Update, WorkerRow, clock, describe_ended, describe_parameters


class Lines:
    """Plain lines, one per event that matters: for logs and pipes."""

    def __init__(self, board: Board, console: Console) -> None:
        self.board, self.console = board, console

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def show(self, update: Update) -> None:
        """Take in a change, and show what is news in it."""
        self.board.apply(update)
        for trial in update.ended:
            self.say(f"{describe_ended(trial)}  [{self.board.summary()}]")
        for message in update.messages:
            self.say(message)

    def say(self, line: str) -> None:
        """Show a line."""
        self.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def pulse(self) -> None:
        """Nothing moves between lines."""


class LiveTable(Lines):
    """A table of workers that is redrawn in place; finished trials scroll past above it."""

    def __init__(self, board: Board, console: Console) -> None:
        super().__init__(board, console)
        self.live = Live(self.draw(), console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> LiveTable:
        self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def pulse(self) -> None:
        """Redraw."""
        self.live.update(self.draw())

    def draw(self) -> Group:
        """The table and the totals below it."""
        table = Table(box=None, pad_edge=False, header_style="dim")
        for title in ("worker", "trial", "parameters", "progress", "", "val ppl", "tokens/s"):
            table.add_column(title, justify="right" if title in ("val ppl", "tokens/s") else "left", no_wrap=True)
        for name, row in sorted(self.board.workers.items()):
            table.add_row(*self._cells(name, row))
        elapsed = clock(time.monotonic() - self.board.started_at)
        totals = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.board.total, completed=self.board.counts.done, width=40)
        totals.add_row(bar, Text(f"{self.board.summary()} · {elapsed} so far"))
        return Group(table, totals)

    def _cells(self, name: str, row: WorkerRow) -> tuple[str | Text | ProgressBar, ...]:
        if row.trial is None:
            return name, "", row.doing, "", "", "", ""
        val_ppl = "" if row.val_ppl is None else f"{row.val_ppl:.2f}"
        speed = "" if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
        bar = ProgressBar(total=self.board.evaluations, completed=row.milestone, width=20)
        parameters = Text(describe_parameters(row.parameters))
        return name, str(row.trial), parameters, bar, f"{row.milestone}/{self.board.evaluations}", val_ppl, speed


def open_view(board: Board, console: Console) -> Lines:
    """The view that suits the console."""
    return LiveTable(board, console) if console.is_terminal else Lines(board, console)
