"""The files that runs of version 0.1 left behind are read as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inheritune.errors import OutputError
from inheritune.records.base import Document, read_record
from inheritune.records.runs import (
    PlanRecord,
    QuickstartRecord,
    ReproductionRecord,
    RoundRecord,
    RunRecord,
    TrainedOn,
)

V01 = Path(__file__).parents[1] / "records" / "v01"
FILES: dict[str, type[Document]] = {
    "run/record.json": RunRecord,
    "run/round-1/round.json": RoundRecord,
    "run/round-2/round.json": RoundRecord,
    "run/round-2/training.json": TrainedOn,
    "quickstart.json": QuickstartRecord,
    "reproduce.json": ReproductionRecord,
    "plan.json": PlanRecord,
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_version_0_1_is_read_and_keeps_what_it_says(name: str) -> None:
    record, held = read_record(V01 / name, FILES[name]), json.loads((V01 / name).read_text())
    said = record.as_json()
    for key, value in held.items():
        assert holds(said[key], value), key


def holds(said: object, held: object) -> bool:
    """Return whether everything in `held` is in `said`, which may have more fields."""
    if isinstance(held, dict):
        return isinstance(said, dict) and all(key in said and holds(said[key], held[key]) for key in held)
    if isinstance(held, list):
        return isinstance(said, list) and len(said) == len(held) and all(map(holds, said, held))
    return said == held


def test_a_record_answers_as_the_dict_of_version_0_1_did() -> None:
    record = read_record(V01 / "run/record.json", RunRecord)
    assert record["result"]["layers"] == record.result.layers == 10
    assert record["rounds"][0]["comparison"]["matches"] is False
    assert record["recipe"]["training"]["steps"] == 4
    assert "reference" in record and "x" not in record
    assert {**record}["name"] == "inheritune"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("text", ["", "{", "[]", '{"kind": "shards"}', '{"schema": 9}', '{"schema": 1}'])
def test_a_damaged_file_is_one_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(OutputError, match=r"file\.json") as caught:
        read_record(tmp_path / "file.json", FILES[name])
    assert "\n" not in str(caught.value)
