"""The house's one structural rule: imports point downward only, and commands start without the heavy libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "inheritune"
ROOMS = (
    "cli", "experiments", "report", "recipes", "evaluation", "training", "data", "surgery", "spectra", "decoder",
)  # fmt: skip
COMMANDS = ("quickstart", "analyze", "inherit", "prepare", "plan", "run", "evaluate", "reproduce", "report")


def imported_rooms(path: Path) -> set[str]:
    """Return the rooms that a file imports from, wherever in it the import stands."""
    modules = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    parts = [module.split(".") for module in modules if module.startswith("inheritune.")]
    return {part[1] for part in parts if part[1] in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downward(room: str) -> None:
    above = set(ROOMS[: ROOMS.index(room)])
    for path in (SOURCE / room).rglob("*.py"):
        assert not imported_rooms(path) & above, f"{path} imports upward"


@pytest.mark.parametrize("name", ["records.py", "progress.py", "errors.py", "distributed.py"])
def test_what_all_rooms_use_imports_none(name: str) -> None:
    assert not imported_rooms(SOURCE / name)


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
