"""Cells of the tables, how numbers are written, and which files a run needs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_records import taken

from inheritune.errors import OutputError
from inheritune.records.surgery import PlanRow
from inheritune.report.read.folders import load_runs, unique_folders
from inheritune.report.read.models import models
from inheritune.report.text import format as fmt
from inheritune.report.text import tables

Record = dict[str, Any]
Write = Callable[..., Path]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (999, "999"), (1000, "1.00K"), (9_994, "9.99K"), (9_996, "10.0K"), (99_960, "100K"),
        (999_499, "999K"), (999_500, "1.00M"), (7_372_800, "7.37M"), (1_558_000_000, "1.56B"), (2.5e12, "2.50T"),
    ],
)  # fmt: skip
def test_counts_have_three_digits(number: float, text: str) -> None:
    assert fmt.count(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert fmt.duration(seconds) == text


def test_ranges_and_signs() -> None:
    assert fmt.ranges([0, 1, 2, 5, 7, 8]) == "0–2, 5, 7–8"
    assert (fmt.signed(-0.00314), fmt.signed(0.0)) == ("−0.0031", "+0.0000")
    assert (fmt.percent(0.95), fmt.percent(0.995)) == ("95 %", "99.5 %")


def test_the_model_table_has_the_records_numbers(write: Write, grown: Record, scratch: Record) -> None:
    runs = load_runs([write(grown, "a"), write(scratch, "b")])
    rows = tables.model_table(models(runs)).rows
    assert rows[0] == [
        "reference-16x64", "reference", "16", "931K", "2.9000 ± 0.0200", "18.17", "–", "–", "40.0M", "–",
        "900\n2 threads",
    ]  # fmt: skip
    assert rows[2] == [
        "scratch-12", "scratch", "12", "731K", "3.0030 ± 0.0200", "20.15",
        "+0.1030\n95 % CI +0.0970 to +0.1090", "no", "7.37M", "6 min 40 s", "1,260\n2 threads",
    ]  # fmt: skip
    assert len(rows) == 3  # one reference, though both runs name it


def test_a_row_has_dashes_for_what_is_not_in_the_record(write: Write, grown: Record) -> None:
    grown["result"] |= {"comparison": None, "speed": None}
    grown["result"]["evaluation"] |= {"perplexity": None, "standard_error": None}
    row = tables.model_table(models(load_runs([write(grown)]))).rows[1]
    assert [row[i] for i in (4, 5, 6, 7, 10)] == ["2.9030 ± –", "–", "–", "–", "–"]


def test_references_that_differ_have_rows_of_their_own(write: Write, grown: Record, scratch: Record) -> None:
    scratch["reference"]["evaluation"]["loss"] = 2.95
    labels = [model.label for model in models(load_runs([write(grown, "a"), write(scratch, "b")]))]
    assert labels == ["reference-16x64", "reference-16x64 (reference)", "grow", "scratch-12"]


def test_the_rounds_of_growth(write: Write, grown: Record) -> None:
    rows = tables.rounds_table(load_runs([write(grown)])).rows
    assert rows[1] == [
        "round-2", "10", "target 0–7, reference 8–9", "2.46M", "3.4000 → 2.9324",
        "+0.0324\n95 % CI +0.0274 to +0.0374", "no", "2 min 10 s",
    ]  # fmt: skip


def rows(plan: list[Record]) -> list[PlanRow]:
    return [PlanRow.model_validate(row) for row in plan]


def test_plans_are_written_briefly() -> None:
    attention = [{**layer, "parts": ["attention", "norms"]} for layer in taken("reference", range(4, 6), 3)]
    stacked = rows(taken("target", range(2)) + taken("target", range(2), 2))
    assert tables.plan_text(rows(taken(None, range(3)) + attention)) == "3 random, reference (attention, norms) 4–5"
    assert tables.plan_text(stacked) == "target 0–1, target 0–1"
    assert tables.plan_text([]) == "–"


def test_runs_of_one_name_are_told_apart_and_a_run_is_read_once(write: Write, grown: Record) -> None:
    a, b = write(grown, "first"), write(grown, "second")
    assert [run.label for run in load_runs([a, b, a])] == ["grow (first)", "grow (second)"]


def test_one_folder_may_be_named(write: Write, grown: Record) -> None:
    a = write(grown, "first")
    assert unique_folders(str(a)) == unique_folders(a) == [a.resolve()]


@pytest.mark.parametrize("kind", ["run", "frontier", "quickstart", "reproduce"])
def test_what_is_not_finished_is_named_with_what_to_do(kind: str, tmp_path: Path) -> None:
    (tmp_path / "identity.json").write_text(json.dumps({"kind": kind, "recipe": {}}))
    with pytest.raises(OutputError, match=f" is a {kind} that is not finished: give the same inheritune {kind} comma"):
        load_runs([tmp_path])


def test_a_folder_that_is_not_a_finished_run_is_one_line(tmp_path: Path, write: Write, grown: Record) -> None:
    with pytest.raises(OutputError, match=r"is neither a finished run nor an analysis: it has no record\.json"):
        load_runs([tmp_path])
    (tmp_path / "record.json").write_text(json.dumps({"kind": "analysis"}))
    with pytest.raises(OutputError, match="of kind 'analysis': expected one of kind 'run'"):
        load_runs([tmp_path])
    with pytest.raises(OutputError, match="has schema 2: this version reads schema 1; update inheritune"):
        load_runs([write(grown | {"schema": 2}, "new")])
    del grown["result"]["tokens"], grown["method"]
    with pytest.raises(
        OutputError, match=r"damaged or was changed by hand \(method is missing\): delete it and run the recipe again"
    ):
        load_runs([write(grown, "damaged")])


def test_a_line_that_is_no_step_is_named(write: Write, grown: Record) -> None:
    run = write(grown)
    with (run / "round-2/metrics.jsonl").open("a") as file:
        file.write('{"loss": 3.0}\n')
    with pytest.raises(OutputError, match=r"round-2/metrics\.jsonl line 61 is not a logged step"):
        load_runs([run])
