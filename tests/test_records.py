"""Files that are never seen half-written, folders that are never overwritten, progress that tells the time left."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inheritune import progress as progress_module
from inheritune.errors import OutputError, nearest, unknown_name
from inheritune.progress import progress
from inheritune.records.base import environment
from inheritune.storage import check_folder, claim_folder, read_json, release_folder, write_json, write_text


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


def test_what_is_not_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert not any(tmp_path.iterdir())


def test_reading_what_is_no_record_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no file .*x\.json: expected a record"):
        read_json(tmp_path / "x.json")
    write_text(tmp_path / "x.json", "{half")
    with pytest.raises(OutputError, match=r"cannot read .*x\.json as JSON"):
        read_json(tmp_path / "x.json")


def test_a_folder_belongs_to_one_work(tmp_path: Path) -> None:
    mine = {"kind": "run", "recipe": {"seed": 0, "training": {"steps": 5}}}
    claim_folder(tmp_path / "a", mine)
    claim_folder(tmp_path / "a", mine)
    other = {"kind": "run", "recipe": {"seed": 0, "training": {"steps": 6}}}
    with pytest.raises(OutputError, match=r"its recipe\.training\.steps is 5, yours is 6"):
        claim_folder(tmp_path / "a", other)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "photo.jpg").write_text("")
    with pytest.raises(OutputError, match="was not made by this command"):
        claim_folder(tmp_path / "b", mine)
    (tmp_path / "a" / "work").write_text("")
    release_folder(tmp_path / "a")
    assert (tmp_path / "a" / "identity.json").is_file()
    (tmp_path / "a" / "work").unlink()
    release_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    release_folder(tmp_path / "a")  # nothing to give back


def test_a_folder_is_checked_without_a_trace_and_by_the_options_name(tmp_path: Path) -> None:
    mine = {"kind": "figures"}
    check_folder(tmp_path / "new" / "folder", mine)
    assert not any(tmp_path.iterdir())
    claim_folder(tmp_path / "a", {"kind": "analysis", "eta": 0.9})
    line = r'its kind is "analysis", yours is "figures"\): pass another --figures folder'
    with pytest.raises(OutputError, match=line):
        check_folder(tmp_path / "a", mine, "--figures")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"--figures .*file: .*file is a file, expected a folder"):
        claim_folder(tmp_path / "file", mine, "--figures")
    with pytest.raises(OutputError, match="pass a new or empty --figures folder"):
        check_folder(tmp_path, mine, "--figures")


def test_the_environment_is_recorded_as_json() -> None:
    import torch

    record = json.loads(json.dumps(environment()))
    assert record["versions"]["torch"] == torch.__version__
    assert record["torch_threads"] == torch.get_num_threads()


def test_names_are_answered_with_the_nearest() -> None:
    assert nearest("atention", ["attention", "mlp"]) == "; did you mean 'attention'?"
    assert nearest("zzz", ["attention", "mlp"]) == ""
    line = unknown_name("part", "mpl", ["norms", "mlp"])
    assert line == "unknown part 'mpl': expected one of mlp, norms; did you mean 'mlp'?"


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
