"""The layout's rules: imports point downward only, without circles, and commands start without the heavy libraries."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
PACKAGE = "inheritune"
ROOMS = (
    "cli", "experiments", "report", "recipes", "training", "surgery", "spectra", "evaluation", "data", "decoder",
    "checkpoints",
)  # fmt: skip
BASE = ("errors", "layers", "progress", "distributed", "records", "storage")
"""What all rooms may use; these files use no room."""
COMMANDS = ("quickstart", "analyze", "inherit", "prepare", "plan", "run", "frontier", "evaluate", "reproduce", "report")


@functools.cache
def imports() -> dict[str, set[str]]:
    """Return the modules of the package that each module imports, wherever in the file the import stands."""
    files = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
        for path in (SOURCE / PACKAGE).rglob("*.py")
    }
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                named |= {name if name in files else node.module for name in inner}
            elif isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
        found[module] = (named & files.keys()) - {module}
    return found


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a circle of a graph, or nothing where it has none."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def folder(module: str) -> str:
    """Return the folder below the room that a module lies in, `room/folder`, or an empty text for one beside it."""
    parts = module.split(".")
    inside = (SOURCE / PACKAGE / Path(*parts[1:3])).is_dir() if len(parts) > 2 else False
    return "/".join(parts[1:3]) if inside else ""


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downward(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    for module, used in imports().items():
        if module.split(".")[1:2] == [room]:
            assert not {name.split(".")[1] for name in used if "." in name} & above, f"{module} imports upward"


def test_what_all_rooms_use_imports_no_room() -> None:
    for module, used in imports().items():
        if module.split(".")[1:2] and module.split(".")[1] in BASE:
            assert {name.split(".")[1] for name in used} <= set(BASE), module


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "c", "b", "a"]
    assert not circle(imports())


def test_no_folders_of_a_room_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for module, used in imports().items():
        if folder(module):
            graph.setdefault(folder(module), set()).update(folder(name) for name in used)
    graph = {name: used - {name, ""} for name, used in graph.items()}
    assert {"spectra/measure", "spectra/watch", "surgery/plan", "report/rows"} <= graph.keys()
    assert not circle(graph)


def test_recipes_are_listed_without_torch_and_transformers() -> None:
    program = (
        "import sys\n"
        "from inheritune.cli.main import app\n"
        "try: app(['run', '--list'])\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'transformers', 'scipy', 'altair', 'datasets'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "stdlib-reference" in done.stdout


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_loads_no_heavy_library(command: str) -> None:
    program = (
        "import sys\n"
        "from inheritune.cli.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy', 'altair', 'datasets', 'numba'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [command, "--help"] if command else ["--help"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
