"""The log on disk: strict JSON, and what a resumed round keeps of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from inheritune.training.log import StepLog


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.append({"step": 1, "a": math.inf, "b": {"c": [1.5, math.nan, None]}, "d": -math.inf, "e": 1e-300, "f": True})
    text = log.path.read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1, "a": None, "b": {"c": [1.5, None, None]}, "d": None, "e": 1e-300, "f": True,
    }  # fmt: skip


def test_a_resumed_round_keeps_what_an_uninterrupted_one_has(tmp_path: Path) -> None:
    log = StepLog(tmp_path / "folder" / "log.jsonl")
    assert log.cut_behind(5) is None
    assert log.path.read_text() == ""
    for step in (0, 2, 3, 4, 6, 8):
        log.append({"step": step, "loss": step / 3})
    before = log.path.read_text().splitlines()
    assert log.cut_behind(6, keep=lambda step: step % 2 == 0) == {"step": 6, "loss": 2.0}
    assert log.path.read_text().splitlines() == [before[n] for n in (0, 1, 3, 4)]


@pytest.mark.parametrize("bad", [b"", b"{", b"3", b"[]", b'{"loss": 1}', b'{"step": "x"}', b"\xff\xfe\x00", b"\0" * 9])
def test_a_damaged_line_is_dropped(tmp_path: Path, bad: bytes) -> None:
    log = StepLog(tmp_path / "log.jsonl")
    log.path.write_bytes(b'{"step": 1}\n' + bad + b'\n{"step": 2, "grad_norm": NaN}\n{"step": 3, "lo')
    assert log.cut_behind(9) == {"step": 2, "grad_norm": pytest.approx(math.nan, nan_ok=True)}
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2, "grad_norm": None},
    ]
