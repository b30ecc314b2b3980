"""Types of what is on disk, and the one reader.

A `Record` is a part of a file, a `Document` a whole file: it has a `kind` and a `schema`, the version of its fields.
`read_record` is the one reader. A field that version 0.1 did not write has a default, so its files stay readable; a
field that this version does not know is passed over. Numbers are finite: what is not defined is null.
"""

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from inheritune.errors import OutputError
from inheritune.layers import plural
from inheritune.storage import read_json, write_json

VERSIONED = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy", "scipy")


class Record(BaseModel):
    """Plain data with types; a field can also be had as `record["name"]`, as in version 0.1, where it was a dict."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=False,
        ser_json_inf_nan="constants",  # one in untyped data is refused by the writer, and not made a null
        protected_namespaces=(),
    )

    def __getitem__(self, name: str) -> Any:
        if name not in self.keys():
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def keys(self) -> Collection[str]:
        """Return the names of the fields, as the file has them."""
        return {**type(self).model_fields, **type(self).model_computed_fields}.keys()

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field by its name, `default` where there is none."""
        return self[name] if name in self.keys() else default

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON holds it."""
        return self.model_dump(mode="json")


class Document(Record):
    """A record that is a file of its own."""

    KIND: ClassVar[str]  # what the file says it is
    SCHEMA: ClassVar[int] = 1  # the version of its fields that this version writes; older ones are read as well
    AGAIN: ClassVar[str] = ""  # how to get a whole one, where it is not the command of its kind run again
    INDENT: ClassVar[int | None] = 2  # spaces of a level in the file; None for one line

    def __getitem__(self, name: str) -> Any:
        stamp = {"kind": self.KIND, "schema": self.SCHEMA}
        return stamp[name] if name in stamp else super().__getitem__(name)

    def keys(self) -> Collection[str]:
        """Return the names of the fields, as the file has them."""
        return {"kind": None, "schema": None, **dict.fromkeys(super().keys())}.keys()

    def as_json(self) -> dict[str, Any]:
        """Return the file's content."""
        return {"kind": self.KIND, "schema": self.SCHEMA, **super().as_json()}

    def write(self, path: Path) -> Self:
        """Write the file, atomically, and return the record.

        Raises:
            OutputError: it cannot be written.
        """
        write_json(path, self.as_json(), self.INDENT)
        return self


AnyDocument = TypeVar("AnyDocument", bound=Document)


def read_record(path: Path, kind: type[AnyDocument]) -> AnyDocument:
    """Read a file that an inheritune command wrote. No type is converted: a text is no number, `true` is not 1.

    Args:
        path: the file.
        kind: what it must hold.

    Raises:
        OutputError: it is missing, not JSON, of another kind, of a later version, or damaged; the line says which, and
            for a damaged one where.
    """
    again = kind.AGAIN or f"run inheritune {kind.KIND} again"
    try:
        held = read_json(path)
    except OutputError as error:
        missing = isinstance(error.__cause__, OSError)
        raise OutputError(str(error) if missing else f"{error}; {again}") from error
    fields = held if isinstance(held, dict) else {}
    if fields.get("kind", kind.KIND) != kind.KIND:
        raise OutputError(f"{path} holds a record of kind {fields['kind']!r}: expected one of kind {kind.KIND!r}")
    schema = fields.get("schema", 1)
    if type(schema) is not int or not 1 <= schema <= kind.SCHEMA:
        readable = "1" if kind.SCHEMA == 1 else f"1 to {kind.SCHEMA}"
        advice = "update inheritune" if type(schema) is int and schema > kind.SCHEMA else again
        raise OutputError(f"{path} has schema {schema!r}: this version reads schema {readable}; {advice}")
    try:
        return kind.model_validate_json(json.dumps(held), strict=True)  # from JSON, a list is a tuple
    except ValidationError as error:
        raise OutputError(f"{path} is damaged or was changed by hand ({first_problem(error)}): {again}") from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that is wrong with a record: its place in the file, what it is, what was expected."""
    problem = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    if problem["type"] == "missing":
        return f"{place} is missing"
    text, value = problem_text(problem), repr(problem["input"])
    if problem["type"] == "value_error" and isinstance(problem["input"], dict):
        return f"{place}: {text}" if place else text  # of several fields, which the text names
    return f"{place} is {value if len(value) <= 40 else f'{value[:36]} ...'}, {text}" if place else text


def problem_text(problem: Any) -> str:
    """Return what is wrong with a value, of those that pydantic lists, in the words of YAML and JSON."""
    kind, message = problem["type"], problem["msg"].removeprefix("Value error, ")
    if kind == "tuple_type":
        return "expected a list"
    if kind in ("dict_type", "model_type", "model_attributes_type"):
        return "expected a mapping"
    if kind in ("too_short", "too_long"):
        bound, side = ("min_length", "least") if kind == "too_short" else ("max_length", "most")
        return f"expected at {side} {plural(problem['ctx'][bound], 'item')}"
    return f"{message[:1].lower()}{message[1:]}"


class Environment(Record):
    """Versions, hardware, the code's commit and the command."""

    python: str | None = None
    platform: str | None = None
    versions: dict[str, str | None] = {}
    processor_count: int | None = None
    memory_bytes: int | None = None
    torch_threads: int | None = None
    accelerators: tuple[str, ...] = ()
    commit: str | None = None
    command: str | None = None


@functools.cache
def environment() -> Environment:
    """Return the environment of this process."""
    import psutil
    import torch

    own = sys.modules["inheritune"].__version__  # importing the package from here would be a circle
    program = Path(sys.argv[0])  # `python -m inheritune`, as torchrun starts it, is `inheritune`
    name = program.parent.name if program.name == "__main__.py" else program.name
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        versions={name: importlib.metadata.version(name) for name in VERSIONED}
        | {"torch": torch.__version__, "inheritune": own},  # torch's own says for which accelerator it was built
        processor_count=os.cpu_count(),
        memory_bytes=psutil.virtual_memory().total,
        torch_threads=torch.get_num_threads(),
        accelerators=tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())),
        commit=_commit(),
        command=shlex.join([name, *sys.argv[1:]]).encode("utf-8", "replace").decode(),
    )


def now() -> str:
    """Return the present time, UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """Return the git commit of the source tree this package runs from, or None for an installed package."""
    source = Path(__file__).resolve().parents[1]
    root = source.parent.parent
    if source.parent.name != "src" or not (root / ".git").exists():
        return None  # a repository around the virtual environment is not the package's own
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
