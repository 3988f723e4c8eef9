"""What can be wrong between a user and a search.

    HpoError
    ├── UsageError        an argument outside its range
    ├── StudyFileError    a study file that is missing, unreadable or inconsistent
    ├── StudyError        an unknown study, or one that was made with something else
    ├── StorageError      a database that cannot be used
    └── WorkerError       workers that cannot go on

The command line turns these, `hpo_model.errors.ModelError` and `hpo_reports.errors.ReportError` into one line and
exit code 1. Anything else is a defect and keeps its traceback.
"""


class HpoError(Exception):
    """Base of all errors that this package raises on purpose."""


class UsageError(HpoError):
    """An argument is outside its range."""


class StudyFileError(HpoError):
    """A study file is missing, unreadable or inconsistent."""


class StudyError(HpoError):
    """A study is unknown, or was made with another study file, corpus, tokenizer or program."""


class StorageError(HpoError):
    """A database cannot be opened, read or written."""


class WorkerError(HpoError):
    """Workers cannot go on: their disk is full, they keep dying, every trial fails."""


def one_line(error: BaseException) -> str:
    """An error's message without line breaks."""
    return " ".join(str(error).split())
