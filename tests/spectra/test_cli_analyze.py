"""The command: files, what is refused, and what is printed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import inheritune as it
from inheritune.cli import analyze
from inheritune.errors import InherituneError
from inheritune.spectra import load_spectra


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    analyze.register(app)
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


@pytest.fixture
def npy(tmp_path: Path) -> Path:
    path = tmp_path / "windows.npy"
    np.save(path, np.random.default_rng(0).integers(3, 500, (6, 40)))
    return path


def test_tokens_to_files_equal_to_the_library(stories: Path, npy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = invoke(stories, "--tokens", npy, "--sequences", 4, "--length", 30, "--tau", 0.8, "--out", out)
    assert done.exit_code == 0, done.output
    expected = it.analyze(stories, np.load(npy)[:4, :30], tau=0.8, mask="both")
    written = load_spectra(out)
    np.testing.assert_array_equal(written.causal.rank, expected.causal.rank)
    np.testing.assert_array_equal(written.full.mass, expected.full.mass)
    assert len(json.loads((out / "maps.json").read_text())["maps"]) == 4
    assert f"{expected.causal.max_rank[1]:.2f}" in done.output
    collapsed = int((expected.full.rank < 1.5).sum())
    assert f"Full: lazy layers (MaxRank 1): none; {collapsed} of 40 heads collapsed" in done.output
    assert f"Heads: 0 sink, {collapsed} uniform, {40 - collapsed} potent." in done.output


def test_text_is_read_with_the_models_own_tokenizer(stories: Path, tmp_path: Path) -> None:
    text = stories / "tinystories_sample.txt"
    sizes = ("--sequences", 3, "--length", 20, "--mask", "causal")
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = invoke(stories, "--data", text, *sizes, "--seed", seed, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    a, b, c = (load_spectra(tmp_path / name) for name in "abc")
    assert (a.mask, a.sequences, a.length) == ("causal", 3, 20)
    np.testing.assert_array_equal(a.rank, b.rank)
    assert not np.array_equal(a.rank, c.rank)
    names = json.loads((tmp_path / "a" / "maps.json").read_text())["maps"][0]["tokens"]
    written = text.read_text().replace(" ", "")
    pieces = "".join(names).replace(" ", "").split("<s>")  # a window may reach into the next story
    assert all(piece in written for piece in pieces)
    assert max(map(len, pieces)) > 10


def test_same_command_again_rewrites_and_another_is_refused(stories: Path, npy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        assert invoke(stories, "--tokens", npy, "--out", out).exit_code == 0
    before = (out / "spectra.json").read_bytes()
    refused = invoke(stories, "--tokens", npy, "--out", out, "--eta", 0.5)
    assert isinstance(refused.exception, InherituneError)
    assert "its eta is 0.9, yours is 0.5" in str(refused.exception)
    assert (out / "spectra.json").read_bytes() == before
    foreign = invoke(stories, "--tokens", npy, "--out", tmp_path)
    assert "was not made by this command" in str(foreign.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "windows.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "missing.npy"), "no file missing.npy"),
        (("--tokens", __file__), "expected an .N, T. integer array"),
        (("--tokens", "NPY", "--length", 41), "--length 41: .* holds 40, expected 1 to 40"),
        (("--tokens", "NPY", "--sequences", 0), "--sequences 0: .* holds 6, expected 1 to 6"),
        (("--tokens", "NPY", "--data", "x.txt"), "both --data and --tokens"),
        (("--tokens", "NPY", "--mask", "bth"), "unknown mask 'bth'.*did you mean 'both'"),
        (("--tokens", "NPY", "--tau", "0.9,x"), "tau is '0.9,x': expected a number"),
        (("--tokens", "NPY", "--tau", "0.9,1"), "tau is 1.0: expected a number between 0 and 1"),
        (("--tokens", "NPY", "--memory", 0), "a memory budget of 0 MB is too small"),
        (("--tokens", "NPY", "--gradients", 7), "gradients of 7 sequences: expected 0 to 6"),
        (("--tokens", "NPY", "--gradients", 1, "--stream"), "the gradient probe needs the whole model in memory"),
        (("--tokens", "NPY", "--maps", "3"), "--maps '3': expected layer.head"),
        (("--tokens", "NPY", "--maps", "7.0"), "--maps: no layer 7, the model has 5"),
    ],
)
def test_mistakes_leave_no_folder(
    stories: Path, npy: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    out = tmp_path / "out"
    done = invoke(stories, *(npy if item == "NPY" else item for item in arguments), "--out", out)
    assert isinstance(done.exception, InherituneError)
    with pytest.raises(InherituneError, match=message):
        raise done.exception
    assert not out.exists()


def test_streamed_from_disk_is_the_same_analysis(stories: Path, npy: Path, tmp_path: Path) -> None:
    for name, option in (("whole", "--no-stream"), ("streamed", "--stream")):
        done = invoke(stories, "--tokens", npy, "--tau", "0.9,0.8", "--maps", "1.2", option, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    one, two = (json.loads((tmp_path / name / "spectra.json").read_text()) for name in ("whole", "streamed"))
    assert one["layers"] == two["layers"]
    assert one["blocks"] == two["blocks"]
    assert "Recommended: start with" in done.output
    maps = [json.loads((tmp_path / name / "maps.json").read_text()) for name in ("whole", "streamed")]
    assert maps[0] == maps[1]
