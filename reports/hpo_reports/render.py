"""A study's record as a document: Markdown for people, JSON and CSV of all its trials for programs."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Literal, get_args

from hpo_reports.analysis.findings import Findings, analyse
from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.document.catalogue import Catalogue, Language, catalogue
from hpo_reports.document.commands import run_command, train_command
from hpo_reports.document.layout import Document, markdown_of
from hpo_reports.document.tables import trial_table
from hpo_reports.errors import EmptyStudyError, UnknownFormatError
from hpo_reports.records.finalists import FinalistsRecord
from hpo_reports.records.long_runs import LongRunRecord
from hpo_reports.records.study import StudyRecord, TrialRecord
from hpo_reports.sections.documents import Template, document

Format = Literal["markdown", "html", "json", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)


def render(
    record: StudyRecord,
    format: Format,
    *,
    template: Template = "experiments",
    finalists: FinalistsRecord | None = None,
    long_runs: Sequence[LongRunRecord] = (),
    language: Language = "en",
    plain: bool = False,
) -> str:
    """Write the experiment report of a study.

    Args:
        record: the study, as `read_study` gives it.
        format: markdown or html; or json or csv, which hold every trial with raw numbers, in no language.
        template: which document; JSON and CSV are the same for both.
        finalists: the study's best configurations under fresh seeds, if they were run.
        long_runs: of the study, with what was projected of them.
        language: of the document.
        plain: without emoji.

    Returns:
        The document, which ends in a line end.

    Raises:
        EmptyStudyError: the study has no trials.
        UnknownFormatError: the format is none of these.
    """
    if format not in FORMATS:
        raise UnknownFormatError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if not record.trials:
        command = run_command(record.name)
        raise EmptyStudyError(f"a report needs trials, study {record.name!r} has none; next: {command}")
    findings = analyse(record, finalists, long_runs)
    t = catalogue(language, emoji=not plain)
    if format == "json":
        return _json(findings)
    if format == "csv":
        return _csv(findings)
    written = document(template, findings, t)
    return markdown_of(written) if format == "markdown" else _html(written, findings, t)


def _html(document: Document, findings: Findings, t: Catalogue) -> str:
    from hpo_reports.document.html import page_of
    from hpo_reports.figures.draw import figures  # plotly: no other form needs it

    drawn = figures(findings.record, findings.comparison, t, importance=findings.importance)
    return page_of(document, drawn, t)


def _json(findings: Findings) -> str:
    record, comparison = findings.record, findings.comparison
    header = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name != "trials"}
    content = {
        "header": header,
        "rows": trial_table(record, comparison).dicts(),
        "winner": _winner(record, comparison, comparison.winner) if comparison.winner else None,
        "finalists": findings.judgement,
        "insights": findings.insights,
        "projection": findings.outlook,
        "totals": findings.totals,
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2, default=_record_as_json) + "\n"


def _winner(record: StudyRecord, comparison: TrialComparison, winner: TrialRecord) -> dict[str, object]:
    return {
        "number": winner.number,
        "objective": winner.values[0],
        "measured": winner.measured,
        "verdict": comparison.verdicts[winner.number],
        "parameters": winner.parameters,
        "compared_trials": len(comparison.ranked),
        "tied": [trial.number for trial in comparison.tied],
        "not_distinguishable": [trial.number for trial in comparison.close],
        "command": train_command(record.name, winner.number) if winner.can_train else None,
    }


def _record_as_json(value: object) -> object:
    assert dataclasses.is_dataclass(value), "a report holds plain values and records"
    assert not isinstance(value, type)
    return dataclasses.asdict(value)


def _csv(findings: Findings) -> str:
    table = trial_table(findings.record, findings.comparison)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return file.getvalue()
