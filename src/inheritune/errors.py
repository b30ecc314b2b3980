"""Errors a user can mend. Each is one line: what was passed, what was expected, the nearest valid choice.

The command line turns an `InherituneError` into that line and exit status 2; every other exception is an internal
fault and keeps its traceback.
"""

import difflib
import textwrap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class InherituneError(Exception):
    """A mistake in what the user passed; `str(error)` is the one line to show."""


class ModelError(InherituneError):
    """The model cannot be found, read, or is not a decoder language model."""


class DataError(InherituneError):
    """The text, tokens or shards cannot be used."""


class PlanError(InherituneError):
    """A layer plan does not fit its source model."""


class RecipeError(InherituneError):
    """A recipe has unknown keys, wrong types or values that contradict each other."""


class OutputError(InherituneError):
    """The output folder cannot be written or holds something else."""


class InherituneWarning(UserWarning):
    """What a user should know of a result that was made all the same; the command line shows it as a note."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest of `choices`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def nearest_path(path: Path, *names: str, pattern: str = "*") -> str:
    """Return, as `nearest` does, which of `names` or of what lies beside `path` has a name like its own."""
    beside = path.parent.glob(pattern) if path.parent.is_dir() else ()
    known = {each.name: str(each) for each in beside} | {name: name for name in names}
    close = difflib.get_close_matches(path.name, known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def unknown_name(kind: str, name: str, choices: Iterable[str]) -> str:
    """Return the line for an unknown name: what was passed, all valid choices and the nearest one."""
    known = sorted(choices)
    return f"unknown {kind} {name!r}: expected one of {', '.join(known)}{nearest(name, known)}"


@contextmanager
def library_errors(
    failure: str, check: Callable[[], object] = lambda: None, kind: type[InherituneError] = ModelError
) -> Iterator[None]:
    """Turn every error of a library into one line; our own errors and a lack of memory pass through.

    Args:
        failure: what could not be done, naming the file or the model; the library's reason is put behind it.
        check: called after an error of the library; may raise a line that says more (which file is damaged).
        kind: the error that is raised.

    Raises:
        InherituneError: of the type `kind`, with the library's error as its cause.
    """
    try:
        yield
    except (InherituneError, MemoryError):
        raise
    except BaseException as error:
        # Libraries written in Rust raise a PanicException, which is no Exception, where they give up.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        check()
        raise kind(f"{failure}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what an error says, in one line of at most 300 characters."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}"[:300] if error.filename else str(error.strerror)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if type(error).__name__.startswith("StrictDataclass"):  # its last line says which field holds what
        return lines[-1].partition("Error: ")[2] or lines[-1]
    if isinstance(error, KeyError):
        name = str(error.args[0])  # its text is the name's repr
        return name if " " in name else f"unknown name {name!r}"
    said = textwrap.shorten(" ".join(lines) if lines[0].endswith(":") else lines[0], 300, placeholder=" ...")
    vague = isinstance(error, IndexError | TypeError | AttributeError | ArithmeticError | AssertionError)
    return f"{said} ({type(error).__name__})" if vague else said
