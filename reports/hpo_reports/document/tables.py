"""Tables of plain values, from records. How a value looks is decided where it is drawn.

A parameter's column is named `params_<name>`, as in Optuna's own data frames, so that none collides with ours.

A measurement that reports are to show is a field of `hpo_reports.records.study.Measurement`, a name in the lists below,
a heading under `[column]` in each file of `messages/`, and a format in `document/markdown.py`. The notes of trials in
the dashboard have a list of their own in `sections/trial_note.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hpo_reports.analysis.verdicts import TrialComparison, TrialVerdict
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import OUTCOMES, StudyRecord, TrialRecord

Value = Scalar | tuple[float | None, ...]
Row = tuple[Value, ...]
Cell = Callable[[TrialRecord], Value]

PARAMETER = "params_"
LOG_MEASUREMENTS = (  # in the experiment log's table
    *("epoch", "val_ppl", "val_word_ppl", "val_bits_per_byte", "train_ppl", "phi", "train_phi", "delta_phi_loss"),
    "seconds",
)
RAW_MEASUREMENTS = (  # in JSON and CSV
    *("milestone", "tokens", "step", "epoch", "full_split", "val_ppl", "val_word_ppl", "val_bits_per_byte"),
    *("train_ppl", "phi", "train_phi", "delta_phi_loss", "seconds", "tokens_per_s", "peak_memory_bytes"),
    "energy_joules",
)
LOG_PARAMETERS = ("learning_rate", "batch_size", "lambda_phi", "dropout")  # of every run's row, searched or not


@dataclass(frozen=True)
class Table:
    """Named columns and rows of plain values; None is a value that is missing."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def dicts(self) -> list[dict[str, Value]]:
        """The rows, each by column name."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def comparison_table(
    record: StudyRecord, comparison: TrialComparison, words: Callable[[TrialVerdict], str], most: int | None = None
) -> Table:
    """The complete trials, best first, those that cannot be compared last.

    Args:
        record: the study.
        comparison: of its complete trials.
        words: for a verdict, in the language of the reader.
        most: rows, after which the others are left out, but for the baseline; None: all.

    Returns:
        The columns of the experiment log; of a study that holds no runs, parameters and objectives.
    """
    cells: dict[str, Cell] = {"number": lambda trial: trial.number, **_parameters(_shown(record))}
    if record.is_ours:
        cells |= _measured(LOG_MEASUREMENTS)
    else:
        cells |= _objectives(record)
    cells["curve"] = lambda trial: trial.curve
    if record.is_ours or any(verdict.standing != "not_compared" for verdict in comparison.verdicts.values()):
        cells["verdict"] = lambda trial: words(comparison.verdicts[trial.number])
    trials = (*comparison.ranked, *comparison.unranked)
    kept = trials if most is None else (*trials[:most], *(t for t in trials[most:] if t is comparison.baseline))
    return _table(cells, kept)


def front_table(record: StudyRecord, comparison: TrialComparison) -> Table:
    """The trials of the front: what they are and what they reach."""
    measured = _measured(("val_ppl", "phi")) if record.is_ours else _objectives(record)
    cells: dict[str, Cell] = {"number": lambda trial: trial.number, **_parameters(_shown(record)), **measured}
    return _table(cells, comparison.front)


def incomplete_table(record: StudyRecord, most: int | None = None) -> Table:
    """The trials that ended early or go on, with how far they came and why they ended; `most` of them."""
    cells: dict[str, Cell] = {
        "number": lambda trial: trial.number,
        "outcome": lambda trial: trial.outcome,
        **_parameters(_shown(record)),
    }
    if record.is_ours:
        cells |= {**_measured(("tokens",)), "last_val_ppl": lambda trial: trial.measured.val_ppl}
    else:
        cells["last_value"] = lambda trial: trial.curve[-1] if trial.curve else None
    cells["reason"] = lambda trial: trial.reason
    return _table(cells, incomplete_trials(record)[:most])


def incomplete_trials(record: StudyRecord) -> list[TrialRecord]:
    """The trials that ended early or go on, by outcome."""
    begun = [trial for trial in record.trials if trial.outcome not in ("complete", "waiting")]
    return sorted(begun, key=lambda trial: (OUTCOMES.index(trial.outcome), trial.number))


def trial_table(record: StudyRecord, comparison: TrialComparison) -> Table:
    """Every trial in order, with all that is known of it as raw numbers.

    Returns:
        Where `full_split` is false, perplexities and bits per byte are of a sample of the validation split, and not to
        be compared with those of a complete trial.
    """
    names = dict.fromkeys(name for trial in record.trials for name in trial.parameters)
    cells: dict[str, Cell] = {
        "number": lambda trial: trial.number,
        "slot": lambda trial: trial.slot,
        "role": lambda trial: trial.role,
        "outcome": lambda trial: trial.outcome,
        **_objectives(record),
        **_measured(RAW_MEASUREMENTS),
        "verdict": lambda trial: _standing(comparison, trial),
        "percent_vs_baseline": lambda trial: _percent(comparison, trial),
        **_parameters(names),
        "suspicious": lambda trial: trial.suspicious,
        "feasible": lambda trial: trial.feasible,
        "continued": lambda trial: trial.continued,
        "device": lambda trial: trial.device,
        "predicted_peak_bytes": lambda trial: trial.predicted_peak_bytes,
        "reason": lambda trial: trial.reason,
    }
    return _table(cells, record.trials)


def _table(cells: dict[str, Cell], trials: Iterable[TrialRecord]) -> Table:
    return Table(tuple(cells), tuple(tuple(cell(trial) for cell in cells.values()) for trial in trials))


def _shown(record: StudyRecord) -> list[str]:
    """The log's parameters, then whatever else was searched, in the order in which it appears."""
    searched = dict.fromkeys(name for trial in record.trials for name in trial.searched)
    shown = dict.fromkeys((*LOG_PARAMETERS, *searched)) if record.is_ours else searched
    return list(shown)


def _parameters(names: Iterable[str]) -> dict[str, Cell]:
    def cell(name: str) -> Cell:
        return lambda trial: trial.parameters.get(name)

    return {f"{PARAMETER}{name}": cell(name) for name in names}


def _measured(names: Iterable[str]) -> dict[str, Cell]:
    def cell(name: str) -> Cell:
        return lambda trial: getattr(trial.measured, name)

    return {name: cell(name) for name in names}


def _objectives(record: StudyRecord) -> dict[str, Cell]:
    """One column of objective values, or as many as there are objectives."""

    def cell(place: int) -> Cell:
        return lambda trial: trial.values[place] if trial.values else None

    if len(record.directions) == 1:
        return {"objective": cell(0)}
    return {f"objective_{place}": cell(place) for place in range(len(record.directions))}


def _standing(comparison: TrialComparison, trial: TrialRecord) -> str | None:
    verdict = comparison.verdicts.get(trial.number)
    return None if verdict is None else verdict.standing


def _percent(comparison: TrialComparison, trial: TrialRecord) -> float | None:
    verdict = comparison.verdicts.get(trial.number)
    return None if verdict is None else verdict.percent
