"""The analysis folder: `spectra.json` and `maps.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.errors import OutputError
from inheritune.records.base import environment, now
from inheritune.spectra.gradients import GradientProbe
from inheritune.spectra.measure.blocks import BlockMeasures
from inheritune.spectra.reading import MAPS, SCHEMA, SPECTRA, read_spectra
from inheritune.spectra.recommend import recommend
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.storage import write_json, write_text


def save_spectra(
    result: Spectra | BothSpectra, folder: str | Path, model_name: str, data: Mapping[str, Any] | None = None
) -> Path:
    """Write `result` to `spectra.json` in `folder` and return the file's path.

    The file has `model`, `depth`, `tau`, `taus`, `eta`, `sequences`, `length`, `masks`, `layers` (for each `index` and,
    for each mask, the measures of `Spectra` per head, `max_rank`, `avg_mass`, `lazy`; `classes` of the heads where both
    masks were analysed; `gradients` where they were probed), `blocks` and `angular_distance` (`BlockMeasures`),
    `recommendation`, `data`, `environment` and `created`. What is not defined is null.

    Args:
        result: what `analyze` returned.
        folder: made where it is missing.
        model_name: what to call the model, a folder or hub id.
        data: where the tokens are from, as plain values: `source`, `tokens` (in all of it) and `seed` of the draw.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [result.causal, result.full] if isinstance(result, BothSpectra) else [result]
    first = parts[0]
    layers: list[dict[str, Any]] = [{"index": index} for index in first.layers_index]
    for part in parts:
        for row, layer in enumerate(layers):
            layer[part.mask] = _layer(part, row)
    if isinstance(result, BothSpectra):
        for layer, classes in zip(layers, result.head_classes.tolist(), strict=True):
            layer["classes"] = [name for name in classes if name]
    if first.gradients is not None:
        for row, layer in enumerate(layers):
            layer["gradients"] = _gradients(first.gradients, row)
    advice = recommend(result)
    path = Path(folder) / SPECTRA
    record = {
        "kind": "analysis",
        "schema": SCHEMA,
        "model": model_name,
        "depth": advice.depth,
        "tau": first.tau,
        "taus": list(first.ranks or [first.tau]),
        "eta": first.eta,
        "sequences": first.sequences,
        "length": first.length,
        "masks": [part.mask for part in parts],
        "layers": layers,
        **({} if first.blocks is None else first.blocks.as_record()),
        "recommendation": advice.as_record(),
        **({} if data is None else {"data": dict(data)}),
        "environment": environment().as_json(),
        "created": now(),
    }
    write_json(path, record)
    return path


def save_maps(maps: list[dict[str, Any]], folder: str | Path) -> Path:
    """Write attention maps to `maps.json` in `folder` and return the file's path.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(folder) / MAPS
    write_text(path, json.dumps({"maps": maps}, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def load_spectra(folder: str | Path) -> Spectra | BothSpectra:
    """Read the result that `save_spectra` wrote in `folder`.

    Raises:
        OutputError: there is no `spectra.json`, or it is not one of ours, or damaged.
    """
    record = read_spectra(folder)
    try:
        parts = [_read_part(record, mask) for mask in sorted(record["masks"])]
    except (KeyError, TypeError) as error:  # a field that some layers have and others lack
        path = Path(folder) / SPECTRA
        raise OutputError(
            f"{path} is not an analysis, its layers differ ({error}): run inheritune analyze again"
        ) from error
    return parts[0] if len(parts) == 1 else BothSpectra(*parts)


_MEASURES = ("rank", "rank_error", "mass", "entropy", "stable_rank", "sink_column", "sink_epsilon")
"""The tables of `Spectra`, (layers, heads), by the name that they have in the file too."""


def _layer(part: Spectra, row: int) -> dict[str, Any]:
    """Return one layer under one mask as plain data; the places of heads that it lacks are left out."""
    heads = ~np.isnan(part.rank[row])
    tables = {name: getattr(part, name) for name in _MEASURES}
    return {
        **{name: _plain(table[row][heads]) for name, table in tables.items() if table is not None},
        "max_rank": float(part.max_rank[row]),
        "avg_mass": float(part.avg_mass[row]),
        "lazy": part.layers_index[row] in part.lazy_layers,
        "ranks": {f"{tau:g}": _plain(table[row][heads]) for tau, table in part.ranks.items()},
    }


def _gradients(probe: GradientProbe, row: int) -> dict[str, Any]:
    names = ("query", "key", "query_bound", "key_bound")
    heads = ~np.isnan(probe.query[row])
    return {name: _plain(getattr(probe, name)[row][heads]) for name in names}


def _plain(values: np.ndarray[Any, Any]) -> list[Any]:
    """Return numbers as JSON can hold them: NaN is null."""
    return [None if value != value else value for value in values.tolist()]


def _read_part(record: dict[str, Any], mask: Any) -> Spectra:
    layers = record["layers"]

    def table(name: str) -> Any:
        return _padded([layer[mask][name] for layer in layers]) if layers[0][mask].get(name) is not None else None

    columns = table("sink_column")
    taus = layers[0][mask].get("ranks", {})
    return Spectra(
        rank=table("rank"),
        mass=table("mass"),
        tau=record["tau"],
        eta=record["eta"],
        mask=mask,
        sequences=record["sequences"],
        length=record["length"],
        layers_index=tuple(layer["index"] for layer in layers),
        ranks={float(tau): _padded([layer[mask]["ranks"][tau] for layer in layers]) for tau in taus},
        rank_error=table("rank_error"),
        entropy=table("entropy"),
        stable_rank=table("stable_rank"),
        sink_column=None if columns is None else np.nan_to_num(columns, nan=-1).astype(np.int64),
        sink_epsilon=table("sink_epsilon"),
        blocks=BlockMeasures.from_record(record) if "blocks" in record else None,
    )


def _padded(rows: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return rows of different lengths as one array, NaN behind the short ones."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = np.array(values, dtype=np.float64)  # null is NaN
    return table
