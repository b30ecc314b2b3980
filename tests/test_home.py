"""`~` is the home folder in every public call that takes a path, not only in the commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import inheritune as it
from inheritune.data import open_shards, prepare
from inheritune.spectra.flow import analyze_into

RECIPE: dict[str, Any] = {
    "name": "x",
    "method": "inheritune",
    "reference": "~/model",
    "layers": 2,
    "data": {"source": "~/text.txt", "folder": "~/shards", "valid_fraction": 0.2},
    "training": {"steps": 1, "batch": 2, "length": 16, "warmup_steps": 0, "valid_every": 0, "watch_every": 0},
    "growth": {"max_rounds": 1},
    "evaluation": {"windows": 8, "speed": False, "prompt": None},
    "analysis": None,
}


def test_python_calls_read_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir(), here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    (home / "text.txt").write_text("\n\n".join(f"Document {i} says {i * i} and a few words more." for i in range(200)))
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    it.inherit_checkpoint("stdlib", "~/model", layers=3)
    assert prepare("~/text.txt", "~/cut", "~/model").folder == home / "cut"
    assert open_shards("~/cut").tokens("train") > 0
    assert it.plan("~/recipe.yaml").tokens == 32
    it.run("~/recipe.yaml", "~/run")
    depths = {**RECIPE, "frontier": {"depths": [2]}}
    del depths["layers"]
    it.frontier(depths, "~/frontier")
    assert it.evaluate("~/run", "~/cut", windows=8, length=16).settings.windows == 8
    analyze_into("~/analysis", "~/model", np.arange(64).reshape(4, 16))
    assert it.recommend("~/analysis").depth == 3
    assert it.inherit("~/run", 1).config.num_hidden_layers == 1
    it.report(["~/run", "~/frontier"], "~/report.html")
    assert (home / "report.html").is_file()
    assert list(here.iterdir()) == []
