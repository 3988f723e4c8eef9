"""All that a report is written from: the study and what was computed from it."""

from __future__ import annotations

from dataclasses import dataclass

from reports.records import StudyRecord
from reports.verdicts import Comparison


@dataclass(frozen=True, kw_only=True)
class Findings:
    """A study with its comparison."""

    record: StudyRecord
    comparison: Comparison

    @property
    def single(self) -> bool:
        """Whether one objective ranks the trials."""
        return len(self.record.directions) == 1
