"""Names that study files and stored studies had before, and the present ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from hpo.study.sections import Role

FORMER_NAMES: Mapping[tuple[str | None, str], str] = {  # by section and name; None: the file's top
    (None, "known"): "enqueued",
    ("pruner", "first_milestone"): "min_resource",
    ("pruner", "reduction"): "reduction_factor",
    ("pruner", "peers"): "n_min_trials",
}


def with_present_names(content: Mapping[str, Any], note: Callable[[str, str], None] = lambda old, new: None) -> Any:
    """A study file's content, or that of a profile, with present names in place of former ones.

    Args:
        content: sections and values by name.
        note: called with the former and the present name of each value that has a former one.

    Raises:
        ValueError: both names are given.
    """
    renamed = dict(content)
    for (section, old), new in FORMER_NAMES.items():
        holder = renamed if section is None else renamed.get(section)
        if not isinstance(holder, dict) or old not in holder:
            continue
        if new in holder:
            raise ValueError(f"{old} is the former name of {new}: give one of them")
        changed = {new if name == old else name: value for name, value in holder.items()}
        renamed = changed if section is None else {**renamed, section: changed}
        place = "" if section is None else f"{section}."
        note(f"{place}{old}", f"{place}{new}")
    return renamed


def with_former_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """A specification as studies store it: under the former names, which every version of this program reads."""
    stored = dict(content)
    for (section, old), new in FORMER_NAMES.items():
        if section is None:
            stored[old] = stored.pop(new)
        else:
            stored[section] = {old if name == new else name: value for name, value in stored[section].items()}
    return stored


def stored_role(role: Role) -> str:
    """The role of a trial as its attribute says it: `known` for `enqueued`, as every version reads it."""
    return "known" if role == "enqueued" else role


def role_of(stored: object) -> Role | None:
    """The role of a trial from its attribute."""
    known: dict[object, Role] = {role: role for role in get_args(Role)}
    return "enqueued" if stored == "known" else known.get(stored)
