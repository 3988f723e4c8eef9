"""A study's text, in tokens: the same wherever its trials run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hpo.errors import StudyError
from hpo.home import Home
from hpo.study.spec import StudySpec
from hpo.sweep.record import SweepRecord
from hpo_model.data.corpus import load_corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.errors import CorpusError


def load_text(
    spec: StudySpec, data: Path | None, record: SweepRecord | None, home: Home, announce: Callable[[str], None]
) -> TokenizedCorpus:
    """The study's text in tokens: from `--data`, else from where an existing study has it, else as its file says."""
    recorded = None if record is None else record.corpus.source
    try:
        text = load_corpus(str(data or recorded or spec.text.corpus), home.corpora, announce)
    except CorpusError as error:
        if data is not None or recorded is None:
            raise
        raise StudyError(f"the text of study {spec.name!r} is gone ({error}); --data says where it is now") from error
    corpus = tokenize_corpus(text, spec.text.choice, home.tokens)
    corpus.check_length(spec.run_with({}).architecture.sequence_length)
    return corpus
