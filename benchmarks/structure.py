"""Count the structure of a checkout: folders, arrows, floors, functions, docstrings. Reads the source, imports nothing.

    python benchmarks/structure.py                        this checkout
    python benchmarks/structure.py ../before ../after     two of them, side by side

A folder of a package is a room, and so is a file that lies beside folders. An arrow is an import from one room into
another; a floor is the longest way down from a room that imports no other.
"""

from __future__ import annotations

import argparse
import ast
import re
import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

NAMES = {"hpo": ("hpo",), "model": ("hpo_model", "model"), "reports": ("hpo_reports", "reports")}
MAX_LINES = 40


@dataclass
class Package:
    """One top-level package."""

    name: str
    folder: Path
    files: dict[str, Path] = field(default_factory=dict)  # by dotted module name
    trees: dict[str, ast.Module] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in sorted(self.folder.rglob("*.py")):
            parts = (self.name, *path.relative_to(self.folder).with_suffix("").parts)
            module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.files[module] = path
            self.trees[module] = ast.parse(path.read_text(encoding="utf-8"))

    def room(self, module: str) -> str:
        """The folder or file below the package that holds a module; the package's own __init__ is none."""
        return ".".join(module.split(".")[:2])

    def imports(self, module: str) -> set[str]:
        """The package's modules that one imports, within functions or not."""
        found = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        return {name for name in found if name in self.files and name != self.name}

    def graph(self, *, files: bool = False) -> dict[str, set[str]]:
        """Which rooms, or files, import which others."""
        arrows: dict[str, set[str]] = defaultdict(set)
        for module, path in self.files.items():
            if path.name == "__init__.py":
                continue
            here = module if files else self.room(module)
            arrows[here] |= {there if files else self.room(there) for there in self.imports(module)} - {here}
        inner = {name for name, path in self.files.items() if path.name == "__init__.py"}
        return {here: {each for each in there if not files or each not in inner} for here, there in arrows.items()}


def floors(graph: dict[str, set[str]]) -> int:
    """Rooms on the longest way down; circles are walked once."""

    @cache
    def depth(room: str) -> int:
        return 1 + max((depth(each) for each in graph.get(room, ()) if each not in circles(graph)), default=0)

    return max(map(depth, graph), default=0)


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Rooms that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        seen, todo = set[str](), list(graph.get(start, ()))
        while todo:
            room = todo.pop()
            if room not in seen:
                seen.add(room)
                todo += graph.get(room, ())
        return seen

    return {room for room in graph if room in reached(room)}


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def public(tree: ast.Module) -> list[ast.AST]:
    """Public functions, classes, and methods of public classes."""
    found: list[ast.AST] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            found.append(node)
            if isinstance(node, ast.ClassDef):
                found += [each for each in node.body if is_public_method(each)]
    return found


def is_public_method(node: ast.stmt) -> bool:
    """Whether a statement of a class is a public method that does not inherit its docstring."""
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
        return False
    return not any(isinstance(each, ast.Name) and each.id == "override" for each in node.decorator_list)


def packages(root: Path) -> list[Package]:
    """The packages of a checkout, wherever they lie in it."""
    found = []
    for folder, names in NAMES.items():
        inner = [name for name in names if (root / folder / name / "__init__.py").is_file()]
        found.append(Package(inner[0] if inner else folder, root / folder / inner[0] if inner else root / folder))
    return found


def count(root: Path) -> dict[str, str]:
    """All figures of a checkout, by name."""
    figures: dict[str, str] = {}
    every = packages(root)
    for package in every:
        graph, files = package.graph(), package.graph(files=True)
        name = package.folder.relative_to(root).parts[0]
        folders = [path for path in package.folder.iterdir() if path.is_dir() and any(path.glob("*.py"))]
        figures |= {
            f"{name}: rooms (folders and files on the first level)": str(len(graph)),
            f"{name}: folders": str(len(folders)),
            f"{name}: files": str(len(files)),
            f"{name}: arrows between rooms": str(sum(map(len, graph.values()))),
            f"{name}: floors of rooms": str(floors(graph)),
            f"{name}: rooms in circles": str(len(circles(graph))),
            f"{name}: arrows between files": str(sum(map(len, files.values()))),
            f"{name}: files in circles": str(len(circles(files))),
        }
    trees = [tree for package in every for tree in package.trees.values()]
    paths = [path for package in every for path in package.files.values()]
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for tree in trees for node in functions(tree))
    documented = [ast.get_docstring(node) is not None for tree in trees for node in public(tree)]  # type: ignore
    longest = max(paths, key=lambda path: len(path.read_text(encoding="utf-8").splitlines()))
    contracts = (root / "pyproject.toml").read_text(encoding="utf-8")
    return figures | {
        "longest file": f"{longest.relative_to(root)}, {len(longest.read_text(encoding='utf-8').splitlines())} lines",
        "functions": str(len(lengths)),
        "lines of a function, median": f"{statistics.median(lengths):g}",
        "lines of a function, 95th percentile": str(lengths[int(0.95 * len(lengths))]),
        f"functions of more than {MAX_LINES} lines": str(sum(length > MAX_LINES for length in lengths)),
        "public docstrings": f"{100 * sum(documented) / len(documented):.1f} %",
        "files that use private names of Optuna": str(sum(map(uses_private_names, paths))),
        "exceptions in import contracts": str(len(re.findall(r'^\s+"[\w.*]+ -> [\w.*]+"', contracts, re.MULTILINE))),
    }


PRIVATE = re.compile(
    r"from optuna[\w.]*\._|\._(?:study_id|trial_id|storage|backend|cached_frozen_trial|system_attrs|get_trials)\b|"
    r"\._(?:base_path|get_filepath|version_manager)\b"
)


def uses_private_names(path: Path) -> bool:
    """Whether a file touches what Optuna does not promise."""
    return PRIVATE.search(path.read_text(encoding="utf-8")) is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path(__file__).parents[1]])
    columns = [count(root.resolve()) for root in parser.parse_args().checkouts]
    for name in columns[-1]:
        print(f"{name:<60}" + "".join(f"{column.get(name, ''):>45}" for column in columns))


if __name__ == "__main__":
    main()
