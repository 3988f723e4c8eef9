"""Import a module that a user has named, without getting in the way of any other module.

The module is looked for in the current folder first, then on `sys.path`. The current folder is the last entry of
`sys.path` from then on: the files beside the module are importable, and none of them hides an installed module. A file
whose name another module has already (random.py, queue.py) is imported under a private name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType

from hpo_model.errors import NetworkError, class_and_message


def source_file(name: str) -> Path:
    """Find the file of the module in `module:Class`. The module is not imported, but its parent packages may be.

    Raises:
        NetworkError: there is none.
    """
    module_name = name.partition(":")[0]
    here = _enter_current_folder()
    if (file := _file_in(here, module_name)) is not None:
        return file
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception as error:  # a parent package is imported for it, and may raise anything
        reason = class_and_message(error)
        raise NetworkError(f"{name}: importing a package of {module_name} failed: {reason}") from error
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise NetworkError(f"{name}: there is no module {module_name} in {here} or on PYTHONPATH")
    return Path(spec.origin)


def import_module(name: str) -> ModuleType:
    """Import the module in `module:Class`. This runs its code.

    Raises:
        NetworkError: there is no such module, or importing it failed.
    """
    module_name = name.partition(":")[0]
    source_file(name)
    here = _enter_current_folder()
    top, _, rest = module_name.partition(".")
    try:
        if _file_in(here, module_name) is not None and _is_taken(top, here):
            private = _import_privately(top, here)
            return importlib.import_module(f"{private}.{rest}") if rest else sys.modules[private]
        return importlib.import_module(module_name)
    except Exception as error:
        raise NetworkError(f"{name}: importing {module_name} failed: {class_and_message(error)}") from error


def _file_in(folder: Path, module_name: str) -> Path | None:
    """The file of a module under a folder, a package before a module as Python has it."""
    path = folder.joinpath(*module_name.split("."))
    return next((file for file in (path / "__init__.py", path.with_name(f"{path.name}.py")) if file.is_file()), None)


def _is_taken(top: str, folder: Path) -> bool:
    """Whether a top-level name is already that of a module elsewhere, or would be if it were imported."""
    if top in sys.stdlib_module_names:
        return True
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module without a specification, as __main__
        return True
    return spec is None or not _lies_in(spec, top, folder)


def _lies_in(spec: ModuleSpec, top: str, folder: Path) -> bool:
    """Whether a top-level module is a file or a package of this folder itself."""
    places = [spec.origin] if spec.has_location else list(spec.submodule_search_locations or ())
    own = {folder / top, folder / f"{top}.py", folder / top / "__init__.py"}
    return any(place is not None and not own.isdisjoint((Path(place), Path(place).resolve())) for place in places)


def _import_privately(top: str, folder: Path) -> str:
    """Import a top-level module or package of a folder under a name that no other module has; returns the name."""
    file, package = _file_in(folder, top), folder / top
    private = f"hpo_network_{hashlib.sha256(str(package).encode()).hexdigest()[:12]}_{top}"
    if private in sys.modules:
        return private
    if file is None:  # a folder of modules without an __init__.py
        sys.modules[private] = ModuleType(private)
        sys.modules[private].__path__ = [str(package)]
        return private
    locations = [str(package)] if file.parent == package else None
    spec = importlib.util.spec_from_file_location(private, file, submodule_search_locations=locations)
    assert spec is not None
    assert spec.loader is not None, "a .py file has a loader"
    module = sys.modules[private] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[private]
        raise
    return private


# ---------------------------------------------------------------------------------------------- the current folder


@dataclass(frozen=True)
class _Entered:
    """A folder that was put at the end of `sys.path`."""

    folder: Path
    before: frozenset[str]  # names of the modules that were imported before


_entered: _Entered | None = None


def _enter_current_folder() -> Path:
    """Make the current folder the last entry of `sys.path`, in place of the one that was current before."""
    global _entered
    here = Path.cwd()
    if _entered is not None and _entered.folder != here:
        _leave(_entered)
        _entered = None
    if str(here) not in sys.path:
        sys.path.append(str(here))
        importlib.invalidate_caches()
        _entered = _entered or _Entered(here, frozenset(sys.modules))
    if not any(isinstance(finder, _FormerNames) for finder in sys.meta_path):
        sys.meta_path.append(_FormerNames())
    return here


def _leave(entered: _Entered) -> None:
    """Forget the modules of a folder that is not current any more: the next one may have files of equal names."""
    if str(entered.folder) in sys.path:
        sys.path.remove(str(entered.folder))
    imported = {name: module for name, module in sys.modules.items() if "." not in name and name not in entered.before}
    left = {
        name
        for name, module in imported.items()
        if (_is_former(name) or (module.__spec__ is not None and _lies_in(module.__spec__, name, entered.folder)))
    }
    for name in [name for name in sys.modules if name.partition(".")[0] in left]:
        del sys.modules[name]


# ---------------------------------------------------------------------------------------------- former names

_FORMER_NAMES = MappingProxyType(
    {"model": None, "model.config": "hpo_model.config", "model.transformer": "hpo_model.network.transformer"}
)
_FORMER_CLASSES = MappingProxyType({"States": "ForwardOutput"})


def _is_former(name: str) -> bool:
    """Whether a name is that of a module before `hpo_model` was, and not that of a user's file."""
    return name in _FORMER_NAMES and getattr(sys.modules[name], "__file__", None) is None


class _FormerNames(MetaPathFinder, Loader):
    """Finds `model.config` and `model.transformer`, as users' networks import them that are older than `hpo_model`.

    It is asked last: a `model.py` or a package `model` of the user's comes before it.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname not in _FORMER_NAMES or (fullname != "model" and not _is_former("model")):
            return None
        return ModuleSpec(fullname, self, is_package=fullname == "model")

    def exec_module(self, module: ModuleType) -> None:
        now = _FORMER_NAMES[module.__name__]
        if now is None:
            return
        names = vars(importlib.import_module(now))
        vars(module).update({name: value for name, value in names.items() if not name.startswith("__")})
        vars(module).update({old: names[new] for old, new in _FORMER_CLASSES.items() if new in names})
