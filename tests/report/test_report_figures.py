"""The page of analyses, the weights under the pointer, and every chart as files."""

from __future__ import annotations

import base64
import json
import re
import struct
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from report_analyses import analysis, watch_run
from report_records import attention_maps
from test_report_page import HOSTILE, Page, data, specs
from typer.testing import CliRunner

from inheritune import storage
from inheritune.cli import report as command
from inheritune.errors import OutputError
from inheritune.report import load, save_figures, write_report
from inheritune.report.charts.analysis import profile
from inheritune.report.charts.base import INK, save_chart
from inheritune.report.charts.maps import attention_picture
from inheritune.report.page import sections
from inheritune.report.page.figures import Figures, page_data, slug

Record = dict[str, Any]
Write = Callable[..., Path]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    def make(*paths: Path) -> Page:
        return Page(write_report(paths, tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def sections_of(page: Page) -> list[str | None]:
    return [attributes["id"] for tag, attributes in page.elements if tag == "section"]


def test_a_page_of_analyses_alone_has_no_empty_sections(study: Write, page: Callable[..., Page]) -> None:
    made = page(study())
    assert made.open == []
    assert sections_of(made) == ["recommendation", "layers", "heads", "importance", "gradients", "maps", "settings"]
    text = " ".join(made.text().split())
    assert "Inheritune report: acme/medium-24" in text
    assert "acme/medium-24 (τ = 0.9): under the causal mask 2 of 6 layers are lazy (layers 4–5)" in text
    assert "Start Inheritune with the first 3 layers (0–2)" in text
    for absent in ("No losses were logged", "No text was generated", "reference"):
        assert absent not in text.replace("--set reference=", "")
    drawn = set(specs(made))
    assert drawn <= made.ids()
    assert {
        "tau-sweep-acme-medium-24-causal",
        "classes-of-heads-acme-medium-24",
        "block-influence-acme-medium-24",
        "angular-distance-acme-medium-24",
        "mlp-rank-of-each-layer",
        "gradient-query-acme-medium-24",
    } <= drawn
    assert not any("depth" in name for name in drawn)


def test_models_of_different_depth_are_drawn_together_over_relative_depth(
    study: Write, page: Callable[..., Page]
) -> None:
    paths = [study(analysis(n, 2, model=f"acme/m{n}"), f"s{n}") for n in (4, 6, 8)]
    made = page(*paths)
    tables, found = data(made)["tables"], specs(made)
    for name in ("maxrank-of-each-layer-causal", "maxrank-over-relative-depth-causal"):
        table = tables[found[name]["data"]["table"]]
        models = [row[table["fields"].index("model")] for row in table["rows"]]
        assert [models.count(f"acme/m{n}") for n in (4, 6, 8)] == [4, 6, 8]
    # three bands would cover each other: each model has a chart of its own with them
    bands = {
        name: sum(layer["mark"]["type"] == "area" for layer in spec["layer"])
        for name, spec in found.items()
        if "layer" in spec
    }
    assert bands["maxrank-of-each-layer-causal"] == 0
    assert bands["maxrank-of-acme-m8-with-its-heads-causal"] == 2


def test_a_watched_run_is_drawn_over_training(write: Write, grown: Record, page: Callable[..., Page]) -> None:
    folder = write(grown)
    before = sections_of(page(folder))
    watch_run(folder, grown)
    made = page(folder)
    assert before == ["models", "training", "layers", "heads", "maps", "samples", "settings"]
    assert sections_of(made) == ["models", "training", "watched", *before[2:]]
    names = {name for name in specs(made) if "over-training" in name}
    assert names == {
        *(f"{kind}-over-training-grow-{mask}" for kind in ("maxrank", "collapsed") for mask in ("causal", "full")),
        "gradient-query-over-training-grow",
        "gradient-key-over-training-grow",
    }
    domains = {name: specs(made)[name]["layer"][0]["encoding"]["color"]["scale"]["domain"] for name in names}
    assert (
        domains["maxrank-over-training-grow-causal"] == domains["maxrank-over-training-grow-full"]
    )  # one scale side by side
    assert domains["collapsed-over-training-grow-full"] == [0, 1]


def test_the_page_holds_each_row_once_to_six_digits() -> None:
    rows = [{"layer": i, "max_rank": 1 / (i + 3), "lazy": i == 1, "model": "m"} for i in range(3)]
    rows[2]["extra"] = 7
    figures = Figures()
    for name in ("a", "A"):
        figures.add(profile(rows, "max_rank", {"m": "#1b7fc4"}, "t", 1.0), "same", name.upper())
    packed = page_data(figures)
    [table] = packed["tables"]
    assert table["fields"] == ["layer", "max_rank", "lazy", "model", "extra"]
    assert table["rows"] == [[0, 0.333333, False, "m", None], [1, 0.25, True, "m", None], [2, 0.2, False, "m", 7]]
    assert all(spec["data"] == {"table": 0} for spec in packed["charts"].values())
    assert list(figures.charts) == ["same-a", "same-a-2"]


def test_the_weight_under_the_pointer_is_the_records(study: Write, page: Callable[..., Page]) -> None:
    made = page(study(length=30))
    viewer = data(made)["weights"]
    assert viewer["tokens"] == [[f"t{i} " for i in range(30)]]
    for j, drawn in enumerate(attention_maps(30)["maps"]):
        shown = viewer["maps"][f"map-0-{j}"]
        assert f"map-0-{j}" in made.ids()
        weights = (np.frombuffer(base64.b64decode(shown["bytes"]), np.uint8).reshape(30, 30) / 255.0) ** 2
        values = np.array(drawn["values"])
        assert np.all(np.abs(weights - values) <= 0.004 * np.sqrt(values) + 4e-6)


def test_hostile_names_of_a_model_stay_text(study: Write, page: Callable[..., Page], tmp_path: Path) -> None:
    plain = page(study(name="plain"))
    record = analysis(6, 4, model=HOSTILE)
    record["recommendation"]["reason"] = HOSTILE
    folder = study(record, "hostile")
    maps = attention_maps()
    maps["maps"][0]["tokens"] = [HOSTILE] * 20
    (folder / "maps.json").write_text(json.dumps(maps))
    made = page(folder)
    assert made.open == []
    assert [tag for tag, _ in made.elements] == [tag for tag, _ in plain.elements]
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<img src=x" not in raw
    assert HOSTILE in made.text("p")
    names = sections.build(load([folder]))[0].charts
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) for name in names)


def test_every_chart_and_map_becomes_a_picture_on_white(study: Write, tmp_path: Path) -> None:
    folder = study(analysis(3, 2))
    files = save_figures([folder], tmp_path / "figures")
    drawn = sections.build(load([folder]))[0].charts
    assert len(files) == len(set(files)) == 2 * (len(drawn) + 4)
    names = {path.name for path in files}
    wanted = ("maxrank-of-each-layer-causal", "rank-of-heads-acme-medium-24-full", "tau-sweep-acme-medium-24-causal")
    wanted += (
        "angular-distance-acme-medium-24",
        "gradient-query-acme-medium-24",
        "attention-acme-medium-24-full-potent",
    )
    assert {f"{name}.{ending}" for name in wanted for ending in ("svg", "png")} <= names
    for path in files:
        if path.suffix == ".png":
            width, height = struct.unpack(">II", path.read_bytes()[16:24])
            assert min(width, height) > 200
        else:
            root = ET.parse(path).getroot()
            assert root.find(f"{SVG}rect").get("fill") == "#ffffff"  # type: ignore[union-attr]
            inks = {e.get("fill") for e in root.iter(f"{SVG}text")}
            assert inks == {INK}


def test_an_attention_map_is_a_picture_of_whole_cells(tmp_path: Path) -> None:
    values = attention_maps(30)["maps"][0]["values"]
    save_chart(attention_picture(values, "layer 1"), tmp_path, "map")
    root = ET.parse(tmp_path / "map.svg").getroot()
    [image] = root.iter(f"{SVG}image")
    address = next(value for key, value in image.attrib.items() if key.endswith("href"))
    png = base64.b64decode(address.removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", png[16:24]) == (420, 420)  # 14 pixels a token, the least that reach 400
    assert (image.get("width"), image.get("height")) == ("420", "420")
    assert "token attended to" in "".join(root.itertext())


def test_figures_go_into_a_folder_of_their_own(study: Write, tmp_path: Path) -> None:
    folder = study()
    with pytest.raises(OutputError, match="was not made by this command"):
        save_figures([folder], folder)
    assert sorted(path.name for path in folder.iterdir()) == ["maps.json", "spectra.json"]


def test_file_names_are_plain() -> None:
    assert slug("MaxRank of Çelik/Modèl 7B (x)") == "maxrank-of-celik-model-7b-x"
    assert slug("…") == "figure"


def test_the_command_writes_page_and_figures(study: Write, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.report)
    app.callback()(lambda: None)
    out, figures = tmp_path / "page.html", tmp_path / "figures"
    record = analysis(3, 2)
    for key in ("angular_distance", "blocks"):
        del record[key]
    done = CliRunner().invoke(app, ["report", str(study(record)), "--out", str(out), "--figures", str(figures)])
    assert done.exit_code == 0, done.exception
    assert "acme/medium-24 (τ = 0.9): under the causal mask 1 of 3 layers is lazy (layer 2)" in " ".join(
        done.stdout.split()
    )
    count = len([path for path in figures.iterdir() if path.suffix in (".svg", ".png")])
    assert f"figures: {count} files in" in " ".join(done.stdout.split())


def test_a_wrong_folder_for_figures_leaves_no_page(study: Write, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.report)
    app.callback()(lambda: None)
    record = analysis(2, 2)
    folder, out = (
        study({key: record[key] for key in record if key not in ("angular_distance", "blocks")}),
        tmp_path / "p.html",
    )
    storage.write_json(tmp_path / "other" / "identity.json", {"kind": "analysis", "eta": 0.9})
    lines = {
        folder / "maps.json": "--figures .*maps.json is a file, expected a folder",
        folder: "pass a new or empty --figures folder",
        tmp_path / "other": r'its kind is "analysis", yours is "figures".: pass another --figures folder',
    }
    for figures, line in lines.items():
        done = CliRunner().invoke(app, ["report", str(folder), "--out", str(out), "--figures", str(figures)])
        assert isinstance(done.exception, OutputError) and re.search(line, str(done.exception)), done.exception
        assert not out.exists() and not done.stdout
    done = CliRunner().invoke(app, ["report", str(folder), "--out", str(folder), "--figures", str(tmp_path / "new")])
    assert "is a folder: expected the name of a page" in str(done.exception)
    assert not (tmp_path / "new").exists()
    inside = tmp_path / "new" / "page.html"  # a page among its figures
    for _ in range(2):
        done = CliRunner().invoke(app, ["report", str(folder), "--out", str(inside), "--figures", str(inside.parent)])
        assert done.exit_code == 0, done.exception
    assert inside.is_file() and list(inside.parent.glob("*.svg"))


def test_masks_far_apart_have_a_scale_each(study: Write, page: Callable[..., Page]) -> None:
    def tops(made: Page) -> list[float]:
        found = specs(made)
        layers = [found[f"maxrank-of-each-layer-{mask}"]["layer"] for mask in ("causal", "full")]
        encodings = [next(each for each in layer if each["mark"]["type"] == "line")["encoding"] for layer in layers]
        return [encoding["y"]["scale"]["domain"][1] for encoding in encodings]

    near, far = analysis(4, 3), analysis(4, 3)
    for layer in near["layers"]:
        layer["causal"] |= {"rank": [30.0, 2.0, 9.0], "max_rank": 30.0}
        layer["full"] |= {"rank": [10.0, 2.0, 9.0], "max_rank": 10.0}
    for layer in far["layers"]:
        layer["causal"] |= {"rank": [30.0, 2.0, 9.0], "max_rank": 30.0}
        layer["full"] |= {"rank": [3.0, 2.0, 1.0], "max_rank": 3.0}
    one, two = page(study(near, "near")), page(study(far, "far"))
    assert tops(one) == [30.0, 30.0]
    assert tops(two) == [30.0, 3.0]
    assert "The two masks have a scale each." not in one.text()
    assert "The two masks have a scale each." in two.text()


def test_the_caption_speaks_of_lazy_layers_where_there_are_some(study: Write, page: Callable[..., Page]) -> None:
    some, none = analysis(6, 3), analysis(4, 3)
    assert any(layer["full"]["lazy"] for layer in some["layers"])
    for layer in none["layers"]:
        layer["causal"]["lazy"] = layer["full"]["lazy"] = False
    assert "marks a lazy layer" in page(study(some, "some")).text()
    assert "marks a lazy layer" not in page(study(none, "none")).text()


def test_layers_and_influence_fit_their_axes(study: Write, page: Callable[..., Page]) -> None:
    record = analysis(4, 3)
    for i, block in enumerate(record["blocks"]):
        block["influence"] = 1.08 if i == 0 else 0.01 * i
    for layer in record["layers"]:
        layer["causal"]["sink_epsilon"] = [1.0, 1.0, 0.99]
    made = page(study(record))
    found = specs(made)
    scales = [
        found["block-influence-acme-medium-24"]["layer"][0]["encoding"]["y"]["scale"]["type"],
        found["block-influence-over-maxrank-acme-medium-24"]["encoding"]["y"],
    ]
    assert scales[0] == scales[1]["scale"]["type"] == "log"
    assert found["block-influence-over-maxrank-acme-medium-24"]["encoding"]["x"]["scale"][
        "zero"
    ]  # a rank is not below 0
    gradient = found["gradient-query-acme-medium-24"]["layer"]
    assert {layer["encoding"]["x"]["field"] for layer in gradient} == {"layer"}
    assert "bound (dash)" in gradient[1]["encoding"]["color"]["scale"]["domain"]
    text = " ".join(made.text().split())
    assert "they are drawn over the layers" in text and "collapse lasts" not in text
