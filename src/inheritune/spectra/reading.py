"""Read `spectra.json` and `maps.json`, and refuse what no analysis has written: one check for all who read them.

A file of an older version lacks fields, so each is checked where it is there, and a reader says which it needs. Null
stands for what is not defined, such as the standard error of one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, get_args

from inheritune.errors import OutputError
from inheritune.records.analysis import Mask
from inheritune.storage import read_json

SPECTRA = "spectra.json"
MAPS = "maps.json"
SCHEMA = 2
"""The version of `spectra.json`; older ones have fewer fields and are read as well."""
WHOLE = ("masks", "layers", "tau", "eta", "sequences", "length")
"""What every analysis has."""

_LARGEST = 1e300
_AGAIN = "run inheritune analyze again"
_OPTIONAL = ("entropy", "stable_rank", "sink_column", "sink_epsilon")
_GRADIENTS = ("query", "key", "query_bound", "key_bound")
_BLOCK = ("influence", "mlp_rank", "mlp_rank_error", "mlp_mass")

Check = Callable[[Any, str], object]
"""Takes a value and its place in the file, and raises where the value is wrong."""


class _WrongError(Exception):
    """Something that an analysis does not write; `str` says where, what it is, and what was expected."""

    def __init__(self, place: str, value: Any, expected: str) -> None:
        text = repr(value)
        super().__init__(f"{place} is {text if len(text) <= 40 else f'{text[:36]} ...'}, expected {expected}")


def read_spectra(folder: str | Path, needed: Iterable[str] = WHOLE) -> dict[str, Any]:
    """Return the content of `spectra.json` in `folder`.

    Args:
        folder: of an analysis.
        needed: the fields that must be there.

    Raises:
        OutputError: there is no such file, it is not JSON, a later version wrote it, a field has another type or shape
            than an analysis gives it, a number is missing or not finite, or a needed field is not there.
    """
    path = Path(folder) / SPECTRA
    record = _read(path)
    if isinstance(record, dict) and record.get("schema", 1) not in range(1, SCHEMA + 1):
        raise OutputError(
            f"{path} has schema {record['schema']!r}: this version reads schemas 1 to {SCHEMA}, update inheritune"
        )
    _checked(path, lambda: _check_spectra(record, needed))
    return dict(record)


def read_maps(folder: str | Path) -> list[dict[str, Any]]:
    """Return the attention maps in `maps.json` of `folder`; none where there is no such file.

    Raises:
        OutputError: it is not JSON, or not what an analysis writes.
    """
    path = Path(folder) / MAPS
    if not path.is_file():
        return []
    record = _read(path)
    _checked(path, lambda: _each(_map)(_dict(record, "the file").get("maps"), "maps"))
    return list(record["maps"])


def _read(path: Path) -> Any:
    try:
        return read_json(path)
    except OutputError as error:
        raise OutputError(f"{error}; {_AGAIN}" if path.is_file() else str(error)) from error


def _checked(path: Path, check: Callable[[], object]) -> None:
    try:
        check()
    except _WrongError as wrong:
        raise OutputError(f"{path} is not an analysis as it was written ({wrong}): {_AGAIN}") from wrong


def _check_spectra(record: Any, needed: Iterable[str]) -> None:
    _dict(record, "the file")
    for name in needed:
        if record.get(name) is None:
            raise _WrongError(name, "missing", "the file that inheritune analyze writes")
    fields: dict[str, Check] = {
        "masks": _masks,
        "tau": _number,
        "eta": _number,
        "taus": _each(_number),
        "sequences": _whole,
        "length": _whole,
        "depth": _whole,
        "model": _text,
        "blocks": _each(_block),
        "angular_distance": _each(_each(_optional(_number))),
        "recommendation": _recommendation,
        "environment": _environment,
        "data": _dict,
    }
    for name, check in fields.items():
        if record.get(name) is not None:
            check(record[name], name)
    if "layers" in record:
        _check_layers(record["layers"], record.get("masks") or [], record.get("depth"))
    _check_angles(record)


def _check_layers(layers: Any, masks: list[str], depth: int | None) -> None:
    """Check every layer: its index, and under each mask as many numbers as it has heads."""
    if not isinstance(layers, list) or not layers:
        raise _WrongError("layers", layers, "a list of layers")
    before = -1
    for i, layer in enumerate(layers):
        place = f"layers[{i}]"
        index: Any = _dict(layer, place).get("index")
        _whole(index, f"{place}.index", least=before + 1)
        if depth is not None and index >= depth:
            raise _WrongError(f"{place}.index", index, f"less than the depth {depth}")
        before, first = index, _dict(layer.get(masks[0]), f"{place}.{masks[0]}").get("rank") if masks else []
        heads = len(first) if isinstance(first, list) else 1
        for mask in masks:
            _check_part(layer.get(mask), f"{place}.{mask}", heads)
        if layer.get("classes") is not None:
            _each(_one_of("sink", "uniform", "potent"), heads)(layer["classes"], f"{place}.classes")
        _check_tables(layer.get("gradients") or {}, _GRADIENTS, f"{place}.gradients", heads)


def _check_part(part: Any, place: str, heads: int) -> None:
    """Check one layer under one mask."""
    _dict(part, place)
    for name in ("rank", "mass"):
        _each(_number, max(heads, 1))(part.get(name), f"{place}.{name}")
    for name in ("max_rank", "avg_mass"):
        _number(part.get(name), f"{place}.{name}")
    if not isinstance(part.get("lazy"), bool):
        raise _WrongError(f"{place}.lazy", part.get("lazy"), "true or false")
    _check_tables(part, ("rank_error", *_OPTIONAL), place, heads)
    for tau, ranks in _dict(part.get("ranks") or {}, f"{place}.ranks").items():
        try:
            float(tau)
        except ValueError:
            raise _WrongError(f"{place}.ranks", tau, "a tau for a name") from None
        _each(_number, heads)(ranks, f"{place}.ranks[{tau}]")


def _check_tables(tables: Any, names: Iterable[str], place: str, heads: int) -> None:
    for name in names:
        if _dict(tables, place).get(name) is not None:
            _each(_optional(_number), heads)(tables[name], f"{place}.{name}")


def _check_angles(record: dict[str, Any]) -> None:
    """Check that the spans of layers fit the number of blocks."""
    rows, blocks = record.get("angular_distance"), record.get("blocks")
    if rows is None or blocks is None:
        return
    if [len(row) for row in rows] != list(range(len(blocks), 0, -1)):
        raise _WrongError("angular_distance", [len(row) for row in rows], f"rows of {len(blocks)} to 1 numbers")
    if record.get("depth") not in (None, len(blocks)):
        raise _WrongError("blocks", f"{len(blocks)} entries", f"{record['depth']}, the depth")


def _masks(value: Any, place: str) -> None:
    _each(_one_of(*get_args(Mask)))(value, place)
    if not value or len(set(value)) < len(value):
        raise _WrongError(place, value, f"some of {', '.join(get_args(Mask))}")


def _environment(value: Any, place: str) -> None:
    _dict(_dict(value, place).get("versions") or {}, f"{place}.versions")
    _each(_text)(value.get("accelerators") or [], f"{place}.accelerators")
    _optional(_number)(value.get("memory_bytes"), f"{place}.memory_bytes")


def _block(value: Any, place: str) -> None:
    _whole(_dict(value, place).get("index"), f"{place}.index")
    for name in _BLOCK:
        _optional(_number)(value.get(name), f"{place}.{name}")


def _recommendation(value: Any, place: str) -> None:
    for name, check in (("depth", _whole), ("start", _whole), ("cut", _each(_whole)), ("reason", _text)):
        check(_dict(value, place).get(name), f"{place}.{name}")
    for name, layers in _dict(value.get("others") or {}, f"{place}.others").items():
        _each(_whole)(layers, f"{place}.others[{name}]")


def _map(value: Any, place: str) -> None:
    """Check an attention map: a square matrix and what is said of it."""
    fields: dict[str, Check] = {"layer": _whole, "head": _whole, "mask": _text, "role": _text}
    fields |= {"rank": _number, "mean_rank": _number}
    for name, check in fields.items():
        check(_dict(value, place).get(name), f"{place}.{name}")
    size = len(value["values"]) if isinstance(value.get("values"), list) and value["values"] else 1
    _each(_each(_number, size), size)(value.get("values"), f"{place}.values")
    if value.get("tokens") is not None:
        _each(_text)(value["tokens"], f"{place}.tokens")
    _optional(_text)(value.get("text"), f"{place}.text")


def _dict(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _WrongError(place, value, "named values")
    return value


def _number(value: Any, place: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -_LARGEST < value < _LARGEST:
        raise _WrongError(place, value, "a finite number")


def _whole(value: Any, place: str, least: int = 0) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < _LARGEST:
        raise _WrongError(place, value, f"a whole number of at least {least}")


def _text(value: Any, place: str) -> None:
    if not isinstance(value, str):
        raise _WrongError(place, value, "a text")


def _one_of(*names: str) -> Check:
    def check(value: Any, place: str) -> None:
        if value not in names:
            raise _WrongError(place, value, f"one of {', '.join(names)}")

    return check


def _optional(check: Check) -> Check:
    return lambda value, place: None if value is None else check(value, place)


def _each(check: Check, count: int | None = None) -> Check:
    """Return the check of a list whose items pass `check`, as many as `count` of them where it is not None."""

    def check_all(value: Any, place: str) -> None:
        if not isinstance(value, list) or count not in (None, len(value)):
            raise _WrongError(place, value, "a list" if count is None else f"a list of {count}")
        for i, item in enumerate(value):
            check(item, f"{place}[{i}]")

    return check_all
