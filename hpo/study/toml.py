"""Study files: TOML in, a frozen and validated `StudySpec` out.

A study file is one complete named configuration. `[run]` holds the values that every trial shares, `[search]` those
that are searched; both use the names of `hpo_model.config`. `[profile.cpu]` and `[profile.cuda]` override any section.
The grammar is documented in docs/study-files.md.
"""

from __future__ import annotations

import importlib.resources
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo.errors import StudyFileError
from hpo.study.former_names import with_present_names
from hpo.study.sections import Profile
from hpo.study.spec import StudySpec

logger = logging.getLogger(__name__)


def load_study_file(study: str, profile: Profile) -> StudySpec:
    """Load a study by the name of a shipped file, or from a path.

    Args:
        study: a name such as `lambda_phi`, or a path that ends in `.toml`.
        profile: whose overrides to apply.

    Raises:
        StudyFileError: unknown, unreadable or inconsistent; the message names the key or the line.
    """
    if study.endswith(".toml"):
        origin, text = study, _read(Path(study))
    elif study in shipped_studies():
        origin = f"studies/{study}.toml"
        text = importlib.resources.files("hpo_studies").joinpath(f"{study}.toml").read_text(encoding="utf-8")
    else:
        names = ", ".join(shipped_studies())
        raise StudyFileError(f"unknown study {study!r}: shipped are {names}; a file of your own ends in .toml")
    return parse_study(text, origin, profile)


def shipped_studies() -> dict[str, str]:
    """Name and description of every study file that comes with the program."""
    files = importlib.resources.files("hpo_studies").iterdir()
    texts = {file.name.removesuffix(".toml"): file.read_text("utf-8") for file in files if file.name.endswith(".toml")}
    return {name: tomllib.loads(text).get("description", "") for name, text in sorted(texts.items())}


def parse_study(text: str, origin: str, profile: Profile) -> StudySpec:
    """Parse and validate a study file's text; `origin` is its name in messages.

    Raises:
        StudyFileError: as `load_study_file`.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyFileError(f"{origin}: not valid TOML: {error}") from error
    profiles = content.pop("profile", {})
    if not isinstance(profiles, dict) or not set(profiles) <= {"cpu", "cuda"}:
        raise StudyFileError(f"{origin}: profile: only [profile.cpu] and [profile.cuda] are known")
    for name, override in profiles.items():
        if not isinstance(override, dict):
            raise StudyFileError(f"{origin}: profile.{name}: must be a table, got {override!r}")
        if "profile" in override:
            raise StudyFileError(f"{origin}: profile.{name}.profile: unknown key")
    content = _renamed(content, origin, "")
    profiles = {name: _renamed(override, origin, f"profile.{name}.") for name, override in profiles.items()}
    spec = _validated(origin, _merged(content, profiles.get(profile, {})), profile)
    other: Profile = "cuda" if profile == "cpu" else "cpu"  # so that a file that works here works there
    _validated(f"{origin} (profile {other})", _merged(content, profiles.get(other, {})), other)
    return spec


def _renamed(content: Mapping[str, Any], origin: str, place: str) -> dict[str, Any]:
    """The content with present names; a note for each former one."""

    def note(old: str, new: str) -> None:
        logger.info("%s: %s%s is now called %s%s", origin, place, old, place, new)

    try:
        renamed: dict[str, Any] = with_present_names(content, note)
    except ValueError as error:
        raise StudyFileError(f"{origin}: {place}{error}") from error
    return renamed


def _validated(origin: str, content: dict[str, Any], profile: Profile) -> StudySpec:
    if "replication" in content:
        raise StudyFileError(f"{origin}: replication: unknown key")
    try:
        return StudySpec.model_validate({**content, "profile": profile})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = [str(part) for part in first["loc"]]
        rule = first["msg"].removeprefix("Value error, ")
        if place and place[-1] in ("bool", "int", "float", "str"):  # a kind that pydantic tried
            place.pop()
            rule = f"must be one number, text or truth value, got {first['input']!r}"
        elif first["type"] == "extra_forbidden":
            rule = "unknown key"
        elif first["type"] not in ("value_error", "missing"):
            rule = f"{rule}, got {first['input']!r}"
        raise StudyFileError(": ".join([origin, ".".join(place), rule] if place else [origin, rule])) from error


def _merged(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Sections are merged key by key; a searched value is replaced whole."""
    merged = dict(base)
    for section, content in override.items():
        old = base.get(section)
        merged[section] = {**old, **content} if isinstance(old, dict) and isinstance(content, dict) else content
    return merged


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise StudyFileError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise StudyFileError(f"{path}: not UTF-8 at byte {error.start}") from error
