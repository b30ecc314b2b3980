"""A model is one row of the page, under whatever path a run and an analysis know it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_analyses import analysis

from inheritune.decoder.source import resolve_model
from inheritune.errors import OutputError
from inheritune.report import load, opening
from inheritune.report.read.folders import LoggedStep, read_log
from inheritune.report.read.models import models, path_or_id
from inheritune.report.text.steps import after_analysis

Record = dict[str, Any]
Write = Callable[..., Path]


def known_as(record: Record, model: str, identity: str | None = None) -> Record:
    """A run whose reference goes by this path and holds this identity, and was not analysed in the run."""
    record["reference"] |= {"model": model, "identity": identity, "analysis": None}
    return record


def labels(*folders: Path) -> list[str]:
    return [model.label for model in load(folders).shown]


def test_an_analysis_of_the_reference_under_another_path_is_the_references(
    write: Write, study: Write, grown: Record
) -> None:
    run = write(known_as(grown, "../models/big", "8c1f"))
    alone = study(analysis(16, 4, model="/data/models/big") | {"identity": "8c1f"})
    sources = load([run, alone])
    assert [model.label for model in sources.shown] == ["reference-16x64", "grow"]
    assert sources.shown[0].analysis is not None and sources.shown[0].analysis.depth == 16
    notes = " ".join(opening(sources).notes)
    assert "was not analysed" not in notes and "Of the reference's 16 layers" in notes


def test_one_path_with_another_content_is_another_model(write: Write, study: Write, grown: Record) -> None:
    run = write(known_as(grown, "models/big", "8c1f"))
    other = study(analysis(16, 4, model="models/big") | {"identity": "77aa"})
    assert labels(run, other) == ["reference-16x64", "grow", "models/big"]
    assert "was not analysed" in opening(load([run, other])).notes[0]


@pytest.mark.parametrize("identity", [None, "8c1f"])
def test_without_both_identities_the_resolved_paths_are_compared(
    write: Write, study: Write, grown: Record, identity: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "big").mkdir()
    monkeypatch.chdir(tmp_path)
    run = write(known_as(grown, str(tmp_path / "big"), identity))
    assert labels(run, study(analysis(16, 4, model="./big"), "a")) == ["reference-16x64", "grow"]
    assert labels(run, study(analysis(16, 4, model="big2"), "b")) == ["reference-16x64", "grow", "big2"]


def test_the_shipped_model_and_its_folder_are_one(write: Write, study: Write, grown: Record) -> None:
    run = write(known_as(grown, "stdlib"))
    assert labels(run, study(analysis(16, 4, model=resolve_model("stdlib")))) == ["reference-16x64", "grow"]


@pytest.mark.parametrize("part", ["round-3/model", "."])
def test_an_analysis_of_a_result_is_the_results(write: Write, study: Write, grown: Record, part: str) -> None:
    run = write(grown)
    (run / "round-3/model").mkdir()
    sources = load([run, study(analysis(12, 4, model=str(run / part)) | {"sequences": 7})])
    assert [model.label for model in sources.shown] == ["reference-16x64", "grow"]
    assert sources.shown[1].analysis is not None and sources.shown[1].analysis.record.sequences == 7


def test_a_runs_own_analysis_is_no_other_model(write: Write, grown: Record) -> None:
    run = write(grown)
    assert labels(run, run / "analysis/reference", run / "analysis/result") == ["reference-16x64", "grow"]


def test_a_second_analysis_of_one_model_is_shown_as_well(write: Write, study: Write, grown: Record) -> None:
    run = write(known_as(grown, "stdlib"))
    folders = [study(analysis(16, 4, model="stdlib"), name) for name in ("a", "b")]
    assert labels(run, *folders) == ["reference-16x64", "grow", "stdlib"]


def test_runs_share_the_row_of_a_reference_that_they_know_under_two_names(
    write: Write, grown: Record, scratch: Record
) -> None:
    known_as(grown, "../big", "8c1f")
    known_as(scratch, "/data/big", "8c1f")["reference"]["name"] = "big"
    runs = [write(grown, "a"), write(scratch, "b")]
    assert labels(*runs) == ["reference-16x64", "grow", "scratch-12"]
    scratch["reference"]["identity"] = "77aa"
    (runs[1] / "record.json").write_text(json.dumps(scratch))
    assert labels(*runs) == ["reference-16x64", "big", "grow", "scratch-12"]


def test_what_one_run_does_not_say_of_a_shared_reference_another_does(
    write: Write, grown: Record, scratch: Record
) -> None:
    [reference, *_] = models(load([write(scratch, "b"), write(grown, "a")]).runs)
    assert reference.record is not None and reference.record.speed is not None and reference.record.sample is not None
    assert reference.analysis is not None


def test_a_run_that_was_moved_is_read_where_it_lies(write: Write, grown: Record, tmp_path: Path) -> None:
    folder = shutil.move(write(grown), tmp_path / "elsewhere")
    [run] = load([Path(folder)]).runs
    assert run.absent == () and run.result_analysis is not None


def test_names_that_are_no_paths_stay_as_they_are() -> None:
    for name in ("acme/one", "x" * 5000, "a\0b", "stdlib"):
        assert path_or_id(name) == name


def test_a_log_line_that_was_not_finite_reads_as_none_and_damage_is_one_line(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 2, "tokens": 8, "loss": Infinity}\n\n{"step": 1, "tokens": 4, "loss": 3.5, "more": [1]}\n')
    assert [(line.step, line.loss) for line in read_log(log, LoggedStep)] == [(1, 3.5), (2, None)]
    for text, cause in (
        ("[1]", "expected a mapping"),
        ('{"step": 1', "Expecting"),
        ('{"step": 1}', "tokens is missing"),
    ):
        log.write_text(text)
        with pytest.raises(OutputError, match=rf"metrics\.jsonl line 1 is not a logged step: .*{cause}"):
            read_log(log, LoggedStep)
    log.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(OutputError, match="line 1 is not a logged step"):
        read_log(log, LoggedStep)
    with pytest.raises(OutputError, match="cannot read"):
        read_log(tmp_path, LoggedStep)


@pytest.mark.parametrize("kind", ["quickstart", "reproduce"])
def test_the_folder_of_a_quickstart_or_a_table_stands_for_its_runs(
    write: Write, grown: Record, scratch: Record, tmp_path: Path, kind: str
) -> None:
    runs = {"grow": write(grown, "grow"), "scratch-12": write(scratch, "scratch-12")}
    record: Record = {"kind": kind, "created": "2026-11-24T12:00:00+00:00"}
    if kind == "quickstart":
        record |= {"runs": list(runs), "report": "report.html", "verdict": "worse", "scratch": scratch["result"]}
        record |= {"result": grown["result"]}
    else:
        record |= {"experiment": "table1", "scale": "tiny", "published": {}}
        record |= {"ours": {"grow": grown["result"], "scratch-12": scratch["result"]}}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert labels(tmp_path) == labels(tmp_path, *runs.values()) == ["reference-16x64", "grow", "scratch-12"]
    shutil.rmtree(runs["grow"])
    with pytest.raises(OutputError, match=r"no folder .*grow: expected a finished run"):
        load([tmp_path])


def test_a_label_is_no_name_that_a_command_takes(study: Write) -> None:
    [old] = load([study(analysis(6, 4, model="quickstart: reference"))]).studies
    assert all("MODEL" in str(step.command) for step in after_analysis(old))
