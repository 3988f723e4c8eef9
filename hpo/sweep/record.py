"""What a study was made from, as its database keeps it: a JSON text in our own table, and an attribute for readers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from hpo.errors import StudyError
from hpo.study.former_names import with_former_names
from hpo.study.sections import Profile
from hpo.study.spec import StudySpec
from hpo_model.config import SEMANTICS_VERSION, Scalar


@dataclass(frozen=True, kw_only=True)
class CorpusFacts:
    """The text of a study."""

    name: str
    source: str  # as it was asked for
    digest: str
    origin: str | None = None  # where it came from
    tokens: Mapping[str, int] = field(default_factory=dict)  # by split


@dataclass(frozen=True, kw_only=True)
class TokenizerFacts:
    """The tokenizer of a study."""

    digest: str
    kind: str | None = None
    vocabulary: int | None = None


@dataclass(frozen=True, kw_only=True)
class NetworkFacts:
    """The custom network of a study."""

    network: str  # module:Class
    digest: str  # of its file


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What the values of a study meant when it was made."""

    semantics_version: int = 1  # the first one was not stored
    presets: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)  # all values of each preset

    @classmethod
    def of(cls, spec: StudySpec) -> Fingerprint:
        """The fingerprint of a study that is made now: of each preset that its trials may take."""
        presets = spec.search["preset"].corners if "preset" in spec.search else (spec.run.get("preset", "nano"),)
        values = {str(preset): spec.run_with({"preset": preset}).parameters() for preset in presets}
        return cls(semantics_version=SEMANTICS_VERSION, presets=values)


@dataclass(frozen=True, kw_only=True)
class SweepRecord:
    """What a study was made from. Made once; only the specification and the versions of a revision differ later.

    Its specification takes presets by the values that they had when the study was made, so that trials of one study
    compare, whichever version of this program trains them.
    """

    uid: str  # eight hexadecimal digits that tell studies of one name apart
    spec: StudySpec
    profile: Profile
    corpus: CorpusFacts
    tokenizer: TokenizerFacts
    network: NetworkFacts | None = None  # None: the transformer
    created_at: float | None = None  # seconds since 1970
    hardware: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of hpo, python, torch, optuna
    fingerprint: Fingerprint = Fingerprint()
    stored: str = field(default="", repr=False, compare=False)  # the text that this was read from

    def __post_init__(self) -> None:
        if self.fingerprint.presets:
            object.__setattr__(self, "spec", self.spec.with_presets(self.fingerprint.presets))

    def to_dict(self) -> dict[str, Any]:
        """The content that is stored. Its keys are those of every version of this program; unknown ones are kept."""
        return _merged(json.loads(self.stored or "{}"), self._known())

    def _known(self) -> dict[str, Any]:
        return {
            "uid": self.uid,
            "created_at": self.created_at,
            "profile": self.profile,
            "spec": with_former_names(self.spec.model_dump(mode="json")),
            "corpus": dataclasses.asdict(self.corpus),
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "model": None if self.network is None else dataclasses.asdict(self.network),
            "hardware": self.hardware,
            "versions": dict(self.versions),
            "meaning": {
                "runs_version": self.fingerprint.semantics_version,
                "presets": {name: dict(values) for name, values in self.fingerprint.presets.items()},
            },
        }

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> SweepRecord:
        """The record that a text holds.

        Raises:
            StudyError: a version of this program wrote it whose study files this one cannot read.
        """
        content = json.loads(text)
        meaning = content.get("meaning", {})
        return cls(
            uid=str(content["uid"]),
            spec=_spec(content),
            profile=content["profile"],
            corpus=_facts(CorpusFacts, content["corpus"]),
            tokenizer=_facts(TokenizerFacts, content["tokenizer"]),
            network=_facts(NetworkFacts, content["model"]) if content.get("model") else None,
            created_at=content.get("created_at"),
            hardware=content.get("hardware"),
            versions=content.get("versions", {}),
            fingerprint=Fingerprint(
                semantics_version=int(meaning.get("runs_version", 1)), presets=meaning.get("presets", {})
            ),
            stored=text,
        )


def _spec(content: Mapping[str, Any]) -> StudySpec:
    try:
        return StudySpec.model_validate(content["spec"])
    except ValidationError as error:
        made_by = content.get("versions", {}).get("hpo", "unknown")
        name = content["spec"].get("name")
        raise StudyError(
            f"study {name!r} was made by version {made_by} of this program; only that version can read it"
        ) from error


def _merged(stored: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """What is known, and beside it what a newer version of this program has stored."""
    content = {**stored, **known}
    for name in ("corpus", "tokenizer", "model", "meaning"):
        if isinstance(stored.get(name), dict) and isinstance(known.get(name), dict):
            content[name] = {**stored[name], **known[name]}
    return content


def _facts(kind: type[Any], content: Mapping[str, Any]) -> Any:
    known = {each.name for each in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in content.items() if name in known})
