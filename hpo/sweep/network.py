"""A study's network where it is the user's own: the same code in every session, and none that the user did not name."""

from __future__ import annotations

from typing import Any

from hpo.errors import StudyError, StudyFileError
from hpo.study.spec import StudySpec
from hpo.sweep.sweep import Sweep
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import ModelError
from hpo_model.network.custom import build_network, has_phi, source_digest


def network_record(spec: StudySpec, corpus: TokenizedCorpus) -> dict[str, Any] | None:
    """What a study remembers of the user's network, which is imported and built once; None for the transformer.

    Raises:
        StudyFileError: it cannot be imported, built or used as the study wants it.
    """
    name = spec.model.network
    if not name:
        return None
    try:
        digest = source_digest(name)
        build_network(spec.run_with({}).architecture, corpus.tokenizer.vocabulary)
        if "phi" in spec.objectives and not has_phi(name):
            raise StudyFileError(f"study {spec.name!r}: objectives: {name} has no Φ to look for")
    except ModelError as error:
        raise StudyFileError(f"study {spec.name!r}: model.network: {error}") from error
    return {"network": name, "digest": digest}


def check_same_network(sweep: Sweep) -> None:
    """Refuse code other than the study's, before any of it is run.

    Raises:
        StudyError: the file has changed.
        NetworkError: it is not here.
    """
    recorded = sweep.record.get("model")
    if recorded is None:
        return
    now = source_digest(recorded["network"])
    if now != recorded["digest"]:
        raise StudyError(
            f"study {sweep.spec.name!r} was made with other code of {recorded['network']} "
            f"(digest {recorded['digest']}, now {now}); its trials would not compare; restore the file, "
            "or name another study"
        )
