"""Whether new trials would compare with those that a study has: the one place that decides.

Whether a study can be opened at all is decided before: by `hpo.database` (tables), `hpo.sweep.record` (its record) and
`hpo.sweep.sweep` (made by another program, deleted).

A study's trials are ranked together, so each must have been trained from the same study file, with the same meaning of
its values, on the same text under the same tokenizer, and by the same network code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hpo.errors import StudyError, StudyFileError
from hpo.study.spec import StudySpec
from hpo.sweep.record import Fingerprint, NetworkFacts, SweepRecord
from hpo_model.config import PRESETS, SEMANTICS_VERSION, recorded_run
from hpo_model.errors import ModelError

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus


def check_compatible(record: SweepRecord, spec: StudySpec | None = None, corpus: TokenizedCorpus | None = None) -> None:
    """Refuse to continue a study whose trials would not compare with new ones.

    Args:
        record: of the study.
        spec: the study file as it is now; None: the study's own is used.
        corpus: the text as it is now; None: not loaded yet, so neither text nor network is compared.

    Raises:
        StudyError: what differs, and what to do.
        NetworkError: a custom network is missing.
    """
    if spec is not None:
        _check_study_file(record, spec)
    _check_semantics(record)
    if corpus is not None:
        check_text(record, corpus)
        check_network(record)


def _check_study_file(record: SweepRecord, spec: StudySpec) -> None:
    differences = list(_differences(record.spec.identity(), spec.identity()))
    if not differences:
        return
    hint = (
        f" (it was made with profile {record.spec.profile}, this machine takes {spec.profile})"
        if record.spec.profile != spec.profile
        else ""
    )
    raise StudyError(
        f"study {spec.name!r} was made from another study file: {'; '.join(differences[:3])}{hint}; "
        "restore the file, or give it another name"
    )


def _check_semantics(record: SweepRecord) -> None:
    """A value that runs did not have then is no difference: by its default they are as before."""
    made = record.fingerprint.semantics_version
    if made != SEMANTICS_VERSION:
        raise StudyError(
            f"study {record.spec.name!r} was made by a version that trained these values differently "
            f"(runs were of version {made}, are of {SEMANTICS_VERSION}); new trials would not compare: give the new "
            "study another name, or use the version that made it"
        )


def preset_changes(record: SweepRecord) -> str:
    """What today's presets have otherwise than those that a study was made with, in a few words; "" for nothing."""
    then, now = record.fingerprint, Fingerprint.of(record.spec.with_presets(PRESETS))
    changes = [
        f"{name} {old!r} (now {now.presets[preset][name]!r})"
        for preset, values in then.presets.items()
        if preset in now.presets
        for name, old in recorded_run(values).parameters().items()
        if old != now.presets[preset][name]
    ]
    return ", ".join(dict.fromkeys(changes))


def check_text(record: SweepRecord, corpus: TokenizedCorpus) -> None:
    """Refuse a corpus or tokenizer other than the study's; the rest does not matter to replicates, which are all new.

    Raises:
        StudyError: naming both digests.
    """
    for what, old, new in (
        ("corpus", record.corpus.digest, corpus.corpus_digest),
        ("tokenizer", record.tokenizer.digest, corpus.tokenizer.digest),
    ):
        if old != new:
            raise StudyError(
                f"study {record.spec.name!r} was made with another {what} (of {record.corpus.name}, digest {old}; "
                f"{corpus.corpus_name} gives {new}); its trials would not compare"
            )


def check_network(record: SweepRecord) -> None:
    """Refuse other code of a custom network than the study's; it is read and compared before any of it runs.

    Raises:
        StudyError: the file has changed.
        NetworkError: it is missing.
    """
    if record.network is None:
        return
    from hpo_model.network.custom import source_digest

    now = source_digest(record.network.network)
    if now != record.network.digest:
        raise StudyError(
            f"study {record.spec.name!r} was made with other code of {record.network.network} "
            f"(digest {record.network.digest}, now {now}); its trials would not compare; restore the file, "
            "or name another study"
        )


def network_facts(spec: StudySpec, corpus: TokenizedCorpus) -> NetworkFacts | None:
    """What a new study remembers of a custom network, which is imported and built once; None for the transformer.

    Raises:
        StudyFileError: it cannot be imported, built or used as the study wants it.
    """
    name = spec.model.network
    if not name:
        return None
    from hpo_model.network.custom import build_network, has_phi, source_digest
    from hpo_model.training.optimizer import make_optimizer

    try:
        digest = source_digest(name)
        network = build_network(spec.run_with({}).architecture, corpus.tokenizer.vocabulary)
        usual = spec.run_with({}).training.optimizer
        for optimizer in spec.search["optimizer"].corners if "optimizer" in spec.search else (usual,):
            make_optimizer(network, spec.run_with({"optimizer": optimizer}).training)
        if "phi" in spec.objectives and not has_phi(name):
            raise StudyFileError(f"study {spec.name!r}: objectives: {name} has no Φ objective")
    except ModelError as error:
        raise StudyFileError(f"study {spec.name!r}: model.network: {error}") from error
    return NetworkFacts(network=name, digest=digest)


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key} was {before!r}, is {after!r}"
