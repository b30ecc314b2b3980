"""What is written is read back or refused in one line; files and folders are whole; claims; the time left."""

from __future__ import annotations

import json
import os
import re
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from inheritune import progress as progress_module
from inheritune.errors import InherituneError, OutputError, nearest, nearest_path, unknown_name
from inheritune.progress import progress
from inheritune.records.analysis import AnalysisRecord
from inheritune.records.base import Document, Record, environment, read_record
from inheritune.spectra.advice import load_recommendation
from inheritune.spectra.folder import from_record, load_spectra, read_analysis, read_maps
from inheritune.storage import (
    check_folder,
    claimed,
    read_identity,
    read_json,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"n": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"cannot write .*record\.json: No space left on device"):
        write_json(path, {"n": 2})
    assert read_json(path) == {"n": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_a_file_on_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"cannot write .*record\.json: Read-only file system"):
        write_json(tmp_path / "record.json", {})


class Point(Record):
    at: tuple[float, ...]
    lazy: bool = False


class Notes(Document):
    KIND = "notes"
    SCHEMA = 2
    AGAIN = "write them again"

    name: str
    count: int = 0
    points: tuple[Point, ...] = ()
    free: dict[str, Any] = Field(default_factory=dict)
    note: str | None = None


def test_a_document_goes_to_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    notes = Notes(name="n", count=2**63, points=(Point(at=(1, 2.5)),), free={"any": [1, None]})
    assert notes.write(path) is notes
    assert json.loads(path.read_text())["kind"] == "notes"
    assert read_record(path, Notes) == notes
    path.write_text(json.dumps({"name": "older", "count": 1, "what is new": [1], "points": [{"at": [1], "b": 2}]}))
    held = read_record(path, Notes)  # no kind, no schema; fields of a later version are passed over
    assert (held.name, held.points, held.note) == ("older", (Point(at=(1.0,)),), None)
    assert (held["kind"], held.get("schema"), "kind" in held, {**held} == held.as_json()) == ("notes", 2, True, False)
    assert (held["count"], held.get("count"), held.get("other", 3), dict(held)["name"]) == (1, 1, 3, "older")
    assert "name" in held and "other" not in held
    with pytest.raises(KeyError, match="other"):
        held["other"]


def text_of(**changes: Any) -> str:
    return json.dumps({"kind": "notes", "schema": 2, "name": "n"} | changes)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", r"cannot read PATH as JSON: .*; write them again"),
        ("{half", r"cannot read PATH as JSON: .*; write them again"),
        (b"\xff\xfe{}", r"cannot read PATH as JSON: .*utf-8.*; write them again"),
        ("[" * 100_000, r"cannot read PATH as JSON: .*recursion.*; write them again"),
        ("[1]", "PATH is damaged .*expected a mapping.*: write them again"),
        ("null", "PATH is damaged .*expected a mapping.*: write them again"),
        (text_of(kind="run"), "PATH holds a record of kind 'run': expected one of kind 'notes'$"),
        (text_of(kind=None), "PATH holds a record of kind None"),
        (text_of(schema=3), "PATH has schema 3: this version reads schema 1 to 2; update inheritune"),
        (text_of(schema=0), "PATH has schema 0: this version reads schema 1 to 2; write them again"),
        (text_of(schema=True), "PATH has schema True"),
        (text_of(schema="2"), "PATH has schema '2'"),
        (text_of(schema=[1]), r"PATH has schema \[1\]"),
        (
            json.dumps({"kind": "notes"}),
            r"PATH is damaged or was changed by hand \(name is missing\): write them again",
        ),
        (text_of(name=3), r"PATH is damaged .*\(name is 3, input should be a valid string\)"),
        (text_of(count="3"), r"\(count is '3', input should be a valid integer\)"),
        (text_of(count=True), r"\(count is True, "),
        (text_of(count=1.5), r"\(count is 1.5, "),
        (text_of(points={}), r"\(points is {}, "),
        (text_of(points=[{"at": [1.0]}, {"at": [1.0, None]}]), r"\(points\[1\].at\[1\] is None, .* number\)"),
        (text_of(points=[{"at": [True]}]), r"\(points\[0\].at\[0\] is True, "),
        (text_of(points=[{"at": [10**15 * 10**15]}]), "it holds a whole number of 31 digits"),
        (text_of(points=[{"at": [], "lazy": 1}]), r"\(points\[0\].lazy is 1, "),
        (text_of(points=[3]), r"\(points\[0\] is 3, "),
        (text_of(name="x" * 10**5, count="y" * 10**5), r"\(count is 'yyyyy[y]{30} \.\.\., "),
        (text_of(points=[{"at": [float("nan")]}]), "it holds NaN, which is not a finite number"),
        (text_of(free={"deep": [float("-inf")]}), "it holds -Infinity, which"),
        ('{"name": "n", "free": {"a": 1e999}}', "it holds 1e999, which"),
        ('{"name": "n", "count": ' + "9" * 5000 + "}", "cannot read PATH as JSON: "),
    ],
)
def test_a_file_that_is_not_as_it_was_written_is_one_line(text: str | bytes, line: str, tmp_path: Path) -> None:
    path = tmp_path / "notes.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(OutputError, match=line.replace("PATH", re.escape(str(path)))) as caught:
        read_record(path, Notes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))
    assert "notes.json" in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no file .*notes\.json: expected a record"):
        read_record(tmp_path / "notes.json", Notes)
    with pytest.raises(OutputError, match=r"cannot read .* as JSON: Is a directory$"):
        read_record(tmp_path, Notes)
    with pytest.raises(OutputError, match=r"cannot read .* as JSON: File name too long$"):
        read_record(tmp_path / ("x" * 300), Notes)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot read .* as JSON: Not a directory$"):
        read_record(tmp_path / "file" / "notes.json", Notes)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_never_written(number: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite number"):
        Point(at=(number,))
    with pytest.raises(ValueError, match="Out of range float values"):
        Notes(name="n", free={"deep": [number]}).write(tmp_path / "x.json")
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "x.json", {"loss": number})
    assert not any(tmp_path.iterdir())


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")  # a file's name on a system that writes Latin-1
    write_json(tmp_path / "x.json", {"source": name})
    assert read_json(tmp_path / "x.json") == {"source": "caf?"}
    monkeypatch.setattr("sys.argv", ["inheritune", name])
    assert environment.__wrapped__().command == "inheritune 'caf?'"
    command = ["inheritune", "run", "my recipe.yaml", "--set", "evaluation.prompt=it's $5"]
    monkeypatch.setattr("sys.argv", ["/some/where/inheritune", *command[1:]])
    assert shlex.split(environment.__wrapped__().command) == command, "it can be copied"


def test_the_command_is_named_as_a_user_types_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/lib/inheritune/__main__.py", "run", "a b.yaml"])
    assert environment.__wrapped__().command == "inheritune run 'a b.yaml'"


def test_an_analysis_of_version_01_is_read() -> None:
    folder = Path(__file__).parent / "records" / "v01" / "analysis"
    raw, record = json.loads((folder / "spectra.json").read_text()), read_analysis(folder)
    assert (record.masks, record.depth, record.taus, record.identity) == (("causal", "full"), 5, (0.9, 0.5), None)
    both = load_spectra(folder)
    for mask in record.masks:
        part = both.causal if mask == "causal" else both.full
        for row, layer in enumerate(raw["layers"]):
            for name in ("rank", "mass", "entropy", "stable_rank", "sink_column", "sink_epsilon", "rank_error"):
                assert getattr(part, name)[row].tolist() == layer[mask][name]
    later = {"measured": False, "losses": {}, "uniform": None, "order": []}
    assert load_recommendation(folder).as_json() == raw["recommendation"] | later
    maps = json.loads((folder / "maps.json").read_text())["maps"]
    assert [each.as_json() for each in read_maps(folder)] == maps
    oldest = {key: raw[key] for key in ("tau", "eta", "sequences", "length", "masks")}  # of schema 1
    kept = ("rank", "mass", "max_rank", "avg_mass", "lazy")
    oldest["layers"] = [
        {"index": each["index"], **{mask: {key: each[mask][key] for key in kept} for mask in raw["masks"]}}
        for each in raw["layers"]
    ]
    old = from_record(AnalysisRecord.model_validate_json(json.dumps(oldest), strict=True))
    assert old.causal.rank.tolist() == both.causal.rank.tolist() and old.full.entropy is None


def claim(folder: Path, identity: dict[str, Any], option: str = "--out") -> None:
    with claimed(folder, identity, option):
        pass


def test_a_folder_belongs_to_one_work(tmp_path: Path) -> None:
    mine = {"kind": "run", "recipe": {"seed": 0, "training": {"steps": 5}}}
    claim(tmp_path / "a", mine)
    claim(tmp_path / "a", mine)
    other = {"kind": "run", "recipe": {"seed": 0, "training": {"steps": 6}}}
    with pytest.raises(OutputError, match=r"its recipe\.training\.steps is 5, yours is 6"):
        claim(tmp_path / "a", other)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.jpg").write_text("")
    with pytest.raises(OutputError, match="was not made by this command"):
        claim(tmp_path / "b", mine)


def test_a_folder_is_checked_without_a_trace_and_by_the_options_name(tmp_path: Path) -> None:
    mine = {"kind": "figures"}
    check_folder(tmp_path / "new" / "folder", mine)
    assert not any(tmp_path.iterdir())
    claim(tmp_path / "a", {"kind": "analysis", "eta": 0.9})
    line = r'its kind is "analysis", yours is "figures"\): pass another --figures folder'
    with pytest.raises(OutputError, match=line):
        check_folder(tmp_path / "a", mine, "--figures")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--figures .*file: .*file is a file, expected a folder"):
        claim(tmp_path / "file", mine, "--figures")
    with pytest.raises(OutputError, match="pass a new or empty --figures folder"):
        check_folder(tmp_path, mine, "--figures")
    with pytest.raises(OutputError, match=r"cannot use .xxx.* as a path: File name too long$"):
        check_folder(Path("x" * 300), mine, "--figures")


def test_a_damaged_claim_is_one_line(tmp_path: Path) -> None:
    for text, line in (
        ("", r"cannot read .*identity\.json as JSON: .*; "),
        ("[]", r"identity\.json holds a list, .*: "),
    ):
        (tmp_path / "identity.json").write_text(text)
        with pytest.raises(OutputError, match=f"{line}pass another --out folder"):
            claim(tmp_path, {"kind": "run"})


def work_in(folder: Path, error: BaseException | None, *files: str, seed: int = 0) -> None:
    with claimed(folder, {"kind": "run", "seed": seed}, preparation=("data",)):
        for name in files:
            write_text(folder / name, "")
        if error is not None:
            raise error


@pytest.mark.parametrize("files", [(), ("data/train.bin", "data/manifest.json")])
@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_a_mistake_before_the_work_gives_the_folder_back(files: tuple[str, ...], before: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    if before != "nothing":
        folder.mkdir(parents=True)
    with pytest.raises(InherituneError, match="no"):
        work_in(folder, InherituneError("no"), *files)
    assert sorted(tmp_path.rglob("*")) == ([] if before == "nothing" else [folder.parent, folder])
    work_in(folder, None, seed=1)  # with corrected settings
    assert read_identity(folder) == {"kind": "run", "seed": 1}


@pytest.mark.parametrize(
    ("error", "files"),
    [
        (InherituneError("no"), ("data/manifest.json", "round-1/model.safetensors")),
        (KeyboardInterrupt(), ("data/manifest.json",)),
        (RuntimeError("a bug"), ("round-1/model.safetensors",)),
        (None, ()),
    ],
)
def test_work_keeps_its_folder(error: BaseException | None, files: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    with pytest.raises(type(error)) if error else nullcontext():
        work_in(folder, error, *files)
    assert all((folder / name).is_file() for name in files)
    with pytest.raises(OutputError, match="its seed is 0, yours is 1"):
        work_in(folder, None, seed=1)
    with pytest.raises(InherituneError, match="no"):  # another mistake of the same work takes nothing away
        work_in(folder, InherituneError("no"))
    assert all((folder / name).is_file() for name in files) and (folder / "identity.json").is_file()


def test_claims_inside_each_other_are_all_given_back(tmp_path: Path) -> None:
    with (
        pytest.raises(InherituneError, match="no"),
        claimed(tmp_path / "all", {"kind": "quickstart"}, "--out", ["data"]),
    ):
        write_text(tmp_path / "all" / "data" / "manifest.json", "")
        write_text(tmp_path / "all" / ".data.lock", "")
        work_in(tmp_path / "all" / "one", InherituneError("no"))
    assert not any(tmp_path.iterdir())


def test_an_interruption_with_nothing_to_go_on_with_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        work_in(tmp_path / "mine", KeyboardInterrupt())
    assert not any(tmp_path.iterdir())


def test_a_mistake_takes_only_what_it_made(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").mkdir()
    (tmp_path / "mine" / "data" / "book.txt").write_text("mine")
    with pytest.raises(OutputError, match="was not made by this command"):
        work_in(tmp_path / "mine", None)
    with pytest.raises(InherituneError, match="no"):
        work_in(tmp_path / "new", InherituneError("no"), "data/manifest.json", "notes.txt")
    assert (tmp_path / "new" / "notes.txt").is_file() and (tmp_path / "new" / "data" / "manifest.json").is_file()


def test_the_environment_is_recorded_as_json() -> None:
    import torch

    record = environment().as_json()
    assert record["versions"]["torch"] == torch.__version__
    assert record["torch_threads"] == torch.get_num_threads()


def test_names_are_answered_with_the_nearest() -> None:
    assert nearest("atention", ["attention", "mlp"]) == "; did you mean 'attention'?"
    assert nearest("zzz", ["attention", "mlp"]) == ""
    line = unknown_name("part", "mpl", ["norms", "mlp"])
    assert line == "unknown part 'mpl': expected one of mlp, norms; did you mean 'mlp'?"


def test_paths_are_answered_with_a_neighbour_of_a_like_name(tmp_path: Path) -> None:
    (tmp_path / "whole.yaml").touch()
    (tmp_path / "whale").touch()
    assert nearest_path(tmp_path / "whle") == f"; did you mean '{tmp_path / 'whale'}'?"
    assert nearest_path(tmp_path / "whale.yml", pattern="*.y*ml") == f"; did you mean '{tmp_path / 'whole.yaml'}'?"
    assert nearest_path(tmp_path / "other", "stdlib") == ""  # the folders alike are no reason
    assert nearest_path(tmp_path / "stdlb", "stdlib") == "; did you mean 'stdlib'?"


def test_the_time_left_is_from_this_process_s_own_speed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 20.0, 25.0, 40.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with progress("training", total=100, done=50) as advance:
        advance(10, "loss 3.2")  # 20 s for 10: 40 left take 80 s
        advance(5)  # too soon for another line
        with progress("evaluating", total=10) as inner:
            inner(5)  # a work inside another shows nothing
        advance(5)  # 40 s for 20: 30 left take 60 s
    assert capsys.readouterr().err.splitlines() == [
        "training: 60/100 (60%), 1:20 left  loss 3.2",
        "training: 70/100 (70%), 1:00 left",
    ]


def test_only_the_first_process_shows_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(progress_module, "LOG_SECONDS", 0.0)
    with progress("training", total=2) as advance:
        advance()
    assert capsys.readouterr().err == ""
