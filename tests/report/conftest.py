"""Fixtures of the report's tests: two finished runs as records, and a way to lay a run on the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from report_analyses import analysis, write_analysis
from report_records import Record, grown_record, scratch_record, write_run


@pytest.fixture
def grown() -> Record:
    return grown_record()


@pytest.fixture
def scratch() -> Record:
    return scratch_record()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(record, name="run", lazy=range(0))` writes a run below the test's own folder."""

    def make(record: Record, name: str = "run", lazy: range = range(0)) -> Path:
        return write_run(tmp_path / name, record, lazy)

    return make


@pytest.fixture
def study(tmp_path: Path) -> Callable[..., Path]:
    """`study(record=None, name="study")` writes an analysis folder below the test's own folder."""

    def make(record: Record | None = None, name: str = "study", length: int = 20) -> Path:
        return write_analysis(tmp_path / name, record or analysis(6, 4), length)

    return make
