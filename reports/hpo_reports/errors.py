"""What can keep a report from being written.

    ReportError
    ├── EmptyStudyError      the study has no trials yet
    ├── IncomparableError    studies that cannot be held against each other
    └── UnknownFormatError   a format that no renderer writes

Every message is one line: the rule, the value received, the next step.
"""


class ReportError(ValueError):
    """Base of all errors that this package raises on purpose."""


class EmptyStudyError(ReportError):
    """The study has no trials yet."""


class IncomparableError(ReportError):
    """Studies that cannot be held against each other."""


class UnknownFormatError(ReportError):
    """No renderer writes this format."""
