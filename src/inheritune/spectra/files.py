"""The analysis folder: `spectra.json` and `maps.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.errors import OutputError
from inheritune.records import environment, now, read_json, write_json, write_text
from inheritune.spectra.result import BothSpectra, Spectra

SPECTRA = "spectra.json"
MAPS = "maps.json"


def save_spectra(result: Spectra | BothSpectra, folder: str | Path, model_name: str) -> Path:
    """Write `result` to `spectra.json` in `folder` and return the file's path.

    The file has `model`, `tau`, `eta`, `sequences`, `length`, `masks`, `layers` (for each `index` and, for each mask,
    `rank` and `mass` per head, `max_rank`, `avg_mass`, `lazy`), `environment` and `created`.

    Args:
        result: what `analyze` returned.
        folder: made where it is missing.
        model_name: what to call the model, a folder or hub id.

    Raises:
        OutputError: the file cannot be written.
    """
    parts = [result.causal, result.full] if isinstance(result, BothSpectra) else [result]
    first = parts[0]
    layers: list[dict[str, Any]] = [{"index": index} for index in first.layers_index]
    for part in parts:
        for row, layer in enumerate(layers):
            layer[part.mask] = _layer(part, row)
    path = Path(folder) / SPECTRA
    record = {
        "kind": "analysis",
        "schema": 1,
        "model": model_name,
        "tau": first.tau,
        "eta": first.eta,
        "sequences": first.sequences,
        "length": first.length,
        "masks": [part.mask for part in parts],
        "layers": layers,
        "environment": environment(),
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
        OutputError: there is no `spectra.json`, or it is not one of ours.
    """
    path = Path(folder) / SPECTRA
    record = read_json(path)
    try:
        parts = [_read_part(record, mask) for mask in record["masks"]]
    except (KeyError, TypeError, ValueError) as error:
        raise OutputError(f"{path} is not an analysis ({type(error).__name__}: {error})") from error
    return parts[0] if len(parts) == 1 else BothSpectra(*parts)


def _layer(part: Spectra, row: int) -> dict[str, Any]:
    """Return one layer under one mask as plain data; the places of heads that it lacks are left out."""
    heads = ~np.isnan(part.rank[row])
    return {
        "rank": part.rank[row][heads].tolist(),
        "max_rank": float(part.max_rank[row]),
        "mass": part.mass[row][heads].tolist(),
        "avg_mass": float(part.avg_mass[row]),
        "lazy": part.layers_index[row] in part.lazy_layers,
    }


def _read_part(record: dict[str, Any], mask: Any) -> Spectra:
    layers = record["layers"]
    return Spectra(
        rank=_padded([layer[mask]["rank"] for layer in layers]),
        mass=_padded([layer[mask]["mass"] for layer in layers]),
        tau=record["tau"],
        eta=record["eta"],
        mask=mask,
        sequences=record["sequences"],
        length=record["length"],
        layers_index=tuple(layer["index"] for layer in layers),
    )


def _padded(rows: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return rows of different lengths as one array, NaN behind the short ones."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = values
    return table
