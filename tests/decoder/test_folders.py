"""Folders that appear whole or not at all: interrupts, kills, read-only disks, and a model that is replaced."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inheritune.decoder import save_model
from inheritune.errors import OutputError
from inheritune.storage import whole_folder
from mounting import mounted
from tiny import make_llama

WRITER = """
import sys, time
from pathlib import Path
from inheritune.storage import whole_folder
with whole_folder(Path(sys.argv[1])) as temporary:
    (temporary / "config.json").write_text("{}")
    print(temporary.name, flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(destination: Path, text: str = "new", **options: bool) -> None:
    with whole_folder(destination, **options) as temporary:
        assert temporary.parent == destination.resolve().parent
        (temporary / "file").write_text(text)


def test_a_killed_writer_leaves_nothing_that_looks_whole_and_the_next_one_clears_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "out"], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        temporary = writer.stdout.readline().strip()
        write(tmp_path / "out")  # while the other is alive
        assert names(tmp_path) == [temporary, "out"]
        writer.send_signal(signal.SIGKILL)
    assert names(tmp_path) == [temporary, "out"]
    write(tmp_path / "other")
    assert temporary in names(tmp_path)  # it is not this folder's
    write(tmp_path / "out", replace=True)
    assert names(tmp_path) == ["other", "out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure), whole_folder(tmp_path / "out") as temporary:
        (temporary / "file").write_text("half")
        raise failure
    assert names(tmp_path) == []


def test_what_is_there_is_lost_only_when_the_new_folder_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(OutputError, match=r"out was filled meanwhile by another process: it stays as it is"):
        write(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", replace=True):
        raise ZeroDivisionError
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"cannot write .*out: Input/output error"):
        write(tmp_path / "out", replace=True)
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == "old"
    monkeypatch.undo()
    write(tmp_path / "out", replace=True)
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == "new"


def test_a_folder_put_aside_by_a_killed_process_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    (tmp_path / "out").rename(tmp_path / ".out.old")  # killed between the two renames
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out", replace=True):
        raise ZeroDivisionError
    assert (tmp_path / "out" / "file").read_text() == "old"
    write(tmp_path / ".out.old", "older")  # killed after them
    write(tmp_path / "out", replace=True)
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "file").read_text() == "new"


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "real")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "real" / "file").read_text() == "new"
    assert names(tmp_path / "deep") == ["real"]


def test_everything_is_on_the_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: dict[int, bool] = {}
    monkeypatch.setattr(os, "fsync", lambda file: synced.update({os.fstat(file).st_ino: (tmp_path / "out").exists()}))
    write(tmp_path / "out", sync=True)
    inode = {path: path.stat().st_ino for path in (tmp_path, tmp_path / "out", tmp_path / "out" / "file")}
    # Files and folder before the rename; the parent, which holds the new name, after it.
    assert synced == {inode[tmp_path]: True, inode[tmp_path / "out"]: False, inode[tmp_path / "out" / "file"]: False}


def test_a_saved_model_is_replaced_and_finished_before_it_is_seen(tmp_path: Path) -> None:
    save_model(make_llama(2), tmp_path / "m")
    save_model(make_llama(3), tmp_path / "m", finish=lambda folder: (folder / "README.md").write_text("card"))
    assert '"num_hidden_layers": 3' in (tmp_path / "m" / "config.json").read_text()
    assert (tmp_path / "m" / "README.md").read_text() == "card"

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"cannot write .*m: No space left on device"):
        save_model(make_llama(2), tmp_path / "m", finish=fail)
    assert (tmp_path / "m" / "README.md").read_text() == "card"
    assert names(tmp_path) == ["m"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_place_that_is_filled_while_a_model_is_saved_is_left_alone(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "m"

    def fill(folder: Path) -> None:
        if kind == "folder":
            out.mkdir()
        (out / "thesis" if kind == "folder" else out).write_text("years of work")

    line = r"^.*m was filled meanwhile by another process: it stays as it is, pass a new or empty folder$"
    with pytest.raises(OutputError, match=line):
        save_model(make_llama(2), out, finish=fill, replace=False)
    assert (out / "thesis" if kind == "folder" else out).read_text() == "years of work"
    assert names(tmp_path) == ["m"]


def test_an_empty_folder_made_while_a_model_is_saved_becomes_the_model(tmp_path: Path) -> None:
    save_model(make_llama(2), tmp_path / "m", finish=lambda folder: (tmp_path / "m").mkdir(), replace=False)
    assert (tmp_path / "m" / "model.safetensors").is_file() and names(tmp_path) == ["m"]


def test_a_model_that_fills_the_disk_is_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=60k") as disk:
        with pytest.raises(OutputError, match=r"^cannot write .*m: No space left on device$"):
            save_model(make_llama(4), disk / "m")
        assert names(disk) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_saved_files_have_the_modes_that_the_umask_asks_for(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        save_model(make_llama(4), tmp_path / "m", max_shard_size="50KB")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "m").iterdir()}
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 1 and set(modes.values()) == {0o666 & ~mask}


def test_a_read_only_place_is_one_line(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as place:
        for destination in (place / "out", place / "deep" / "out"):
            with pytest.raises(OutputError, match=r"cannot write .*out: Read-only file system") as caught:
                write(destination)
            assert "\n" not in str(caught.value)
        assert names(place) == []
