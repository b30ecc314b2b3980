"""The folder of an analysis, `spectra.json` and `maps.json`: results to records and back, written and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.records.analysis import (
    AnalysedText,
    AnalysisRecord,
    AttentionMap,
    BlockAnalysis,
    GradientRun,
    LayerAnalysis,
    LayerGradients,
    LayerMeasures,
    MapsRecord,
    Mask,
    Recommendation,
)
from inheritune.records.base import environment, now, read_record
from inheritune.spectra.recommend import recommend
from inheritune.spectra.result import BlockMeasures, BothSpectra, GradientProbe, Spectra

SPECTRA = "spectra.json"
MAPS = "maps.json"
PRICES = "prices.json"
"""Where layers were left out too; also in the folder of a run."""
PART = "prices.part.npz"
"""In its place while layers are left out, to go on from."""

_OF_BLOCKS = ("influence", "mlp_rank", "mlp_rank_error", "mlp_mass")
_MEASURES = ("rank", "rank_error", "mass", "entropy", "stable_rank", "sink_column", "sink_epsilon")
"""The tables of `Spectra`, (layers, heads), by the name that they have in the file too."""


def read_analysis(folder: str | Path) -> AnalysisRecord:
    """Read `spectra.json` in `folder`.

    Raises:
        OutputError: there is none, or it is not as an analysis wrote it.
    """
    return read_record(Path(folder) / SPECTRA, AnalysisRecord)


def read_maps(folder: str | Path) -> tuple[AttentionMap, ...]:
    """Read the attention maps in `maps.json` of `folder`; none where there is no such file.

    Raises:
        OutputError: it is not as an analysis wrote it.
    """
    path = Path(folder) / MAPS
    return read_record(path, MapsRecord).maps if path.is_file() else ()


def load_spectra(folder: str | Path) -> Spectra | BothSpectra:
    """Read the result that `save_spectra` wrote in `folder`, without the gradient probe.

    Raises:
        OutputError: there is no `spectra.json`, or it is not as an analysis wrote it.
    """
    return from_record(read_analysis(folder))


def save_spectra(
    result: Spectra | BothSpectra,
    folder: str | Path,
    model: str,
    data: AnalysedText | None = None,
    identity: str | None = None,
    advice: Recommendation | None = None,
) -> AnalysisRecord:
    """Write `result` to `spectra.json` in `folder` and return the record; see `to_record`.

    Raises:
        OutputError: the file cannot be written.
    """
    return to_record(result, model, data, identity, advice).write(Path(folder) / SPECTRA)


def save_maps(maps: Iterable[AttentionMap], folder: str | Path) -> MapsRecord:
    """Write attention maps to `maps.json` in `folder` and return the record.

    Raises:
        OutputError: the file cannot be written.
    """
    return MapsRecord(maps=tuple(maps)).write(Path(folder) / MAPS)


def to_record(
    result: Spectra | BothSpectra,
    model: str,
    data: AnalysedText | None = None,
    identity: str | None = None,
    advice: Recommendation | None = None,
) -> AnalysisRecord:
    """Return the record of what `analyze` returned, in which null is what is not defined (NaN).

    `model` is what to call the model, a folder or hub id; `data` where the tokens are from; `identity` what the model
    is, wherever it lies (`model_identity`); `advice` its recommendation, where more is known of it than the ranks say.
    """
    first, probe, advice = result.parts[0], result.parts[0].gradients, advice or recommend(result)
    return AnalysisRecord(
        model=model,
        identity=identity,
        depth=advice.depth,
        tau=first.tau,
        taus=tuple(first.ranks or [first.tau]),
        eta=first.eta,
        sequences=first.sequences,
        length=first.length,
        masks=tuple(part.mask for part in result.parts),
        layers=tuple(_layer(result, row) for row in range(len(first.layers_index))),
        gradients=None if probe is None else GradientRun(sequences=probe.sequences, loss=probe.loss),
        recommendation=advice,
        data=data,
        environment=environment(),
        created=now(),
        **_blocks(first.blocks),
    )


def from_record(record: AnalysisRecord) -> Spectra | BothSpectra:
    """Return the result that a record holds, without the gradient probe."""
    parts = [_spectra(record, mask) for mask in sorted(record.masks)]
    return parts[0] if len(parts) == 1 else BothSpectra(*parts)


def _layer(result: Spectra | BothSpectra, row: int) -> LayerAnalysis:
    """Return one layer; the places of heads that it lacks are left out."""
    first, classes = result.parts[0], None
    if isinstance(result, BothSpectra):
        classes = tuple(name for name in result.head_classes[row].tolist() if name)
    return LayerAnalysis(
        index=first.layers_index[row],
        classes=classes,
        gradients=None if first.gradients is None else _gradients(first.gradients, row),
        **{part.mask: _measures(part, row) for part in result.parts},
    )


def _measures(part: Spectra, row: int) -> LayerMeasures:
    heads, tables = ~np.isnan(part.rank[row]), {name: getattr(part, name) for name in _MEASURES}
    return LayerMeasures(
        max_rank=part.max_rank[row],
        avg_mass=part.avg_mass[row],
        lazy=part.layers_index[row] in part.lazy_layers,
        ranks={f"{tau:g}": _plain(table[row][heads]) for tau, table in part.ranks.items()},
        **{name: _plain(table[row][heads]) for name, table in tables.items() if table is not None},
    )


def _gradients(probe: GradientProbe, row: int) -> LayerGradients:
    heads = ~np.isnan(probe.query[row])
    return LayerGradients(**{name: _plain(getattr(probe, name)[row][heads]) for name in LayerGradients.model_fields})


def _plain(values: np.ndarray[Any, Any]) -> tuple[Any, ...]:
    """Return the numbers of (heads,) values as JSON can hold them: NaN is null."""
    return tuple(None if value != value else value for value in values.tolist())


def _spectra(record: AnalysisRecord, mask: Mask) -> Spectra:
    layers = [layer[mask] for layer in record.layers]
    tables: dict[str, Any] = {
        name: _padded([layer[name] for layer in layers]) for name in _MEASURES if layers[0][name] is not None
    }
    if "sink_column" in tables:
        tables["sink_column"] = np.nan_to_num(tables["sink_column"], nan=-1).astype(np.int64)
    return Spectra(
        tau=record.tau,
        eta=record.eta,
        mask=mask,
        sequences=record.sequences,
        length=record.length,
        layers_index=tuple(layer.index for layer in record.layers),
        ranks={float(tau): _padded([layer.ranks[tau] for layer in layers]) for tau in layers[0].ranks},
        blocks=_block_measures(record),
        **tables,
    )


def _blocks(measures: BlockMeasures | None) -> dict[str, Any]:
    """Return the record's fields on whole blocks."""
    if measures is None:
        return {}
    columns = {name: _plain(getattr(measures, name)) for name in _OF_BLOCKS}
    blocks = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    distances = (_plain(row[1 : measures.depth - i + 1]) for i, row in enumerate(measures.angular_distance))
    return {
        "blocks": tuple(BlockAnalysis(index=index, **block) for index, block in enumerate(blocks)),
        "angular_distance": tuple(distances),
    }


def _block_measures(record: AnalysisRecord) -> BlockMeasures | None:
    if record.blocks is None or record.angular_distance is None:
        return None
    columns = {name: np.array([block[name] for block in record.blocks], dtype=np.float64) for name in _OF_BLOCKS}
    return BlockMeasures(angular_distance=_padded([(None, *row) for row in record.angular_distance]), **columns)


def _padded(rows: Sequence[Sequence[float | None]]) -> np.ndarray[Any, Any]:
    """Return rows of different lengths as one (layers, heads) float64 array, NaN behind the short ones."""
    table = np.full((len(rows), max(map(len, rows))), np.nan)
    for row, values in zip(table, rows, strict=True):
        row[: len(values)] = np.array(values, dtype=np.float64)  # null is NaN
    return table
