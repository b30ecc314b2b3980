"""The folder of an analysis: `spectra.json` and `maps.json`."""

from __future__ import annotations

from pathlib import Path

from inheritune.records.analysis import AnalysisRecord, AttentionMap, MapsRecord
from inheritune.records.base import read_record

SPECTRA = "spectra.json"
MAPS = "maps.json"


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
