"""The command: files, what is refused, and what is printed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner, Result

import inheritune as it
from inheritune.cli import analyze
from inheritune.decoder import load_tokenizer
from inheritune.decoder.source import model_identity
from inheritune.errors import InherituneError
from inheritune.spectra import analysis
from inheritune.spectra.folder import load_spectra, read_analysis


def invoke(*arguments: object) -> Result:
    app = typer.Typer()
    app.callback()(lambda: None)
    app.command()(analyze.analyze)
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
    drawn = json.loads((out / "maps.json").read_text())["maps"]
    lowest = np.unravel_index(
        np.argmin(expected.full.rank), expected.full.rank.shape
    )  # in another than the laziest layer
    assert expected.full.rank[lowest] < 1.5 and lowest[0] != np.argmin(expected.full.max_rank)
    assert [(each["layer"], each["head"]) for each in drawn if each["role"] == "collapsed"] == [lowest]
    assert len(drawn) == 5
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
    refused = invoke(stories, "--tokens", npy, "--out", out, "--maps", "0.1")
    assert 'its list of maps is not set, yours is ["0.1"]): pass another --out folder' in str(refused.exception)
    assert (out / "spectra.json").read_bytes() == before
    foreign = invoke(stories, "--tokens", npy, "--out", tmp_path)
    assert "was not made by this command" in str(foreign.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "windows.npy"]


def test_a_model_and_its_tokens_are_known_by_what_they_are(
    stories: Path, npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, model = tmp_path / "out", tmp_path / "model"
    shutil.copytree(stories, model)
    monkeypatch.chdir(tmp_path)
    assert invoke("model", "--tokens", "windows.npy", "--out", "out").exit_code == 0
    record = read_analysis(out)
    assert record.model == str(model)  # a command that names it works in any folder
    assert record.identity == model_identity(model) is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in (model, "../model", stories):  # a path from the root, from here, and a copy
        done = invoke(name, "--tokens", npy, "--out", out)
        assert done.exit_code == 0, done.exception
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    before = (out / "spectra.json").read_bytes()
    refused = invoke(model, "--tokens", npy, "--out", out)
    assert "holds another run (its model is " in str(refused.exception)
    np.save(npy, np.load(npy)[::-1])
    refused = invoke(stories, "--tokens", npy, "--out", out)
    assert "holds another run (its tokens is " in str(refused.exception)
    assert (out / "spectra.json").read_bytes() == before


def test_what_is_given_is_checked_once(
    stories: Path, npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times: list[str] = []
    for name in ("check_tokens", "check_fit", "check_weights", "load_decoder"):
        checked = getattr(analysis, name)
        monkeypatch.setattr(analysis, name, lambda *given, n=name, c=checked: times.append(n) or c(*given))
    assert invoke(stories, "--tokens", npy, "--out", tmp_path / "out").exit_code == 0
    assert sorted(times) == ["check_fit", "check_tokens", "check_weights", "load_decoder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "missing.npy"), "no file missing.npy"),
        (("--tokens", __file__), "expected an .N, T. integer array"),
        (("--tokens", "NPY", "--length", 41), "--length 41: .* holds 40, expected 2 to 40"),
        (("--tokens", "NPY", "--sequences", 0), "--sequences 0: .* holds 6, expected 1 to 6"),
        (("--tokens", "NPY", "--data", "x.txt"), "both --data and --tokens"),
        (("--tokens", "NPY", "--mask", "bth"), "unknown mask 'bth'.*did you mean 'both'"),
        (("--tokens", "NPY", "--tau", "0.9,x"), "tau is '0.9,x': expected a number"),
        (("--tokens", "NPY", "--tau", "0.9,1"), "tau is 1.0: expected a number between 0 and 1"),
        (("--tokens", "NPY", "--memory", 0), "a memory budget of 0 MB is too small"),
        (("--tokens", "NPY", "--gradients", 7), "gradients of 7 sequences: expected 0 to 6"),
        (("--tokens", "NPY", "--gradients", 1, "--stream"), "the gradient probe needs the whole model in memory"),
        (("--tokens", "NPY", "--maps", "3"), "--maps '3': expected layer.head"),
        (("--tokens", "NPY", "--gradients", 1, "--stream"), "or pass stream=False .--no-stream."),
        (("--tokens", "NPY", "--maps", "7.0"), r"a map of layer 7 .--maps.: the model has 5 \(0-4\)"),
        (("--tokens", "NPY", "--maps", "0.8"), r"a map of head 8 of layer 0 .--maps.: it has 8 \(0-7\)"),
        (("--sequences", 4, "--seed", -1), "--seed -1: expected 0 or more"),
        (("--length", 0), "--length 0: expected at least 2"),
        (("--length", 1), "--length 1: expected at least 2"),
        (("--sequences", 0), "--sequences 0: expected at least 1"),
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


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04 no archive", b"\x93NUMPY\x01\x00v\x00{'descr': ((", b"\x93NUMPY\x01\x00v\x00{}\n"]
)
def test_a_damaged_array_is_one_line(content: bytes, stories: Path, npy: Path, tmp_path: Path) -> None:
    npy.write_bytes(content)
    done = invoke(stories, "--tokens", npy, "--out", tmp_path / "out")
    assert str(done.exception) == f"cannot read {npy}: expected an (N, T) integer array in NumPy's .npy format"


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


def test_a_file_in_the_folders_place_is_named_before_the_work(
    stories: Path, npy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.spectra.flow.measure", None)
    for out in (npy, npy / "deeper" / "out"):
        done = invoke(stories, "--tokens", npy, "--out", out)
        assert f"{npy} is a file, expected a folder: pass a new or empty --out folder" in str(done.exception)


@pytest.mark.parametrize("failing", ["draw_maps", "save_maps", "save_spectra"])
@pytest.mark.parametrize("error", [InherituneError("no"), KeyboardInterrupt()])
def test_a_run_that_ends_before_its_first_result_leaves_no_claim(
    failing: str, error: BaseException, stories: Path, npy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(f"inheritune.spectra.flow.{failing}", fail)
        assert invoke(stories, "--tokens", npy, "--out", tmp_path / "out").exit_code != 0
    left = [path.name for path in tmp_path.rglob("*")]
    # Maps that were written are a result, which the same command goes on from.
    kept = ["out", "identity.json", "maps.json"] if failing == "save_spectra" else []
    assert sorted(left) == sorted(["windows.npy", *kept])
    assert invoke(stories, "--tokens", npy, "--out", tmp_path / "out", *([] if kept else ["--eta", 0.5])).exit_code == 0


def test_each_thing_asked_for_has_a_line(stories: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "short.txt", tmp_path / "out"
    text.write_text("Once upon a time there was a little dog. He was happy. " * 6)
    more = ("--tau", "0.9,0.5", "--gradients", 2, "--maps", "1.2", "--seed", 3)
    done = invoke(stories, "--data", text, "--sequences", 8, "--length", 30, *more, "--out", out)
    assert done.exit_code == 0, done.output
    count = len(load_tokenizer(stories)(text.read_text())["input_ids"])
    record, found = json.loads((out / "spectra.json").read_text()), load_spectra(out).causal
    assert record["data"]["source"] == str(text) and record["data"]["seed"] == 3
    assert abs(record["data"]["tokens"] - count) <= 2  # whichever marks of beginning and end the tokenizer sets
    assert (
        f"Text: {text}, {record['data']['tokens']} tokens; 8 sequences of 30 tokens drawn with seed 3." in done.stdout
    )
    times = 240 / record["data"]["tokens"]
    assert f"8 sequences of 30 are 240: they overlap, each token is in about {times:.1f} of them" in done.stderr
    collapsed = int((found.ranks[0.5] < 1.5).sum())
    assert f"At tau 0.5: Causal: lazy layers (MaxRank 1): none; {collapsed} of 40 heads collapsed" in done.stdout
    probe = it.gradient_probe(it.decoder.load_model(stories), _windows(text, stories)[:2])
    ratio = probe.query_bound / probe.query
    assert (
        f"query of 40 heads {float(f'{ratio.min():.3g}'):,.0f} to {float(f'{ratio.max():.3g}'):,.0f} times"
        in done.stdout
    )
    assert "1.2; full " in done.stdout
    assert f"{out / 'identity.json'}" in done.stdout


def _windows(text: Path, stories: Path) -> np.ndarray:
    from inheritune.data import sample_windows

    return sample_windows(text, load_tokenizer(stories), 8, 30, 3)


def test_the_shipped_model_has_a_name(npy: Path, tmp_path: Path) -> None:
    done = invoke("stdlib", "--tokens", npy, "--sequences", 1, "--mask", "causal", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "out" / "spectra.json").read_text())
    assert (record["depth"], record["data"]) == (16, {"source": str(npy), "tokens": None, "seed": None})
    assert (Path(record["model"]) / "config.json").is_file()  # so that what is printed for it can be run
