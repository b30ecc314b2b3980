"""Charts hold the records' numbers, and an SVG has a mark for each of them."""

from __future__ import annotations

import struct
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import HEADS, attention_maps, spectra

from inheritune.errors import OutputError
from inheritune.report.charts import analysis, base, maps, training
from inheritune.report.read.folders import load_runs
from inheritune.report.read.models import models
from inheritune.report.rows import series

Record = dict[str, Any]
Write = Callable[..., Path]
PALETTE = base.colours(["reference-16x64"], ["grow", "scratch-12"])


def chart_data(spec: Record) -> list[Record]:
    """All rows inside a specification."""
    spec = base.with_rows(spec)
    sources = [spec.get("data", {}), *(layer.get("data", {}) for layer in spec.get("layer", []))]
    return [row for source in sources for row in source.get("values", [])]


def test_losses_are_placed_on_the_tokens_of_all_rounds(write: Write, grown: Record) -> None:
    [run] = load_runs([write(grown)])
    rows = series.curve_rows(run)
    measured = [(row["tokens"], row["loss"]) for row in rows if row["kind"] == "validation"]
    t = 2_457_600
    assert measured == [(0, 4.6), (t, 2.981), (t, 3.4), (2 * t, 2.9324), (2 * t, 3.2), (3 * t, 2.903)]
    checks = [line for line in run.metrics[1] if line.valid_loss is not None]
    drawn = [(row["tokens"], row["loss"]) for row in rows if row["kind"] == "check" and row["round"] == "round-2"]
    assert drawn == [(t + line.tokens, line.valid_loss) for line in checks]


def test_training_losses_are_means_of_equal_bins(write: Write, grown: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "CURVE_POINTS", 60)  # 180 logged steps: bins of 3
    [run] = load_runs([write(grown)])
    drawn = [row for row in series.curve_rows(run) if row["kind"] == "training" and row["round"] == "round-1"]
    losses = np.array([line.loss for line in run.metrics[0]]).reshape(20, 3).mean(axis=1)
    np.testing.assert_allclose([row["loss"] for row in drawn], losses, rtol=1e-12)
    assert [row["tokens"] for row in drawn] == [line.tokens for line in run.metrics[0][2::3]]


def test_a_diverged_run_is_drawn_without_its_missing_numbers(write: Write, grown: Record) -> None:
    run_folder = write(grown)
    path = run_folder / "round-1/metrics.jsonl"
    path.write_text('{"step": 1, "tokens": 10, "loss": NaN}\n{"step": 2, "tokens": 20, "loss": 5.0}\n')
    [run] = load_runs([run_folder])
    first = [row for row in series.curve_rows(run) if row["round"] == "round-1" and row["kind"] == "training"]
    assert [(row["tokens"], row["loss"]) for row in first] == [(20, 5.0)]


def test_the_curves_chart_holds_the_rows_the_dashed_reference_and_the_rounds(write: Write, grown: Record) -> None:
    runs = load_runs([write(grown)])
    rows, references = series.curve_rows(runs[0]), series.reference_rows(models(runs))
    marks = series.round_rows(runs[0])
    chart = training.curves(rows, references, marks, PALETTE, series.loss_range(rows, references))
    data = chart_data(chart.to_dict())
    assert all(row in data for row in rows)
    assert references == [{"model": "reference-16x64", "loss": 2.9}]
    assert references[0] in data
    assert [(row["tokens"], row["label"]) for row in data if "label" in row][:3] == [
        (0, "8 layers"),
        (2_457_600, "10 layers"),
        (4_915_200, "12 layers"),
    ]


def test_the_range_of_losses_leaves_out_the_first_steps_only() -> None:
    rows = [{"tokens": t, "loss": loss} for t, loss in ((0, 9.0), (10, 4.0), (50, 3.2), (100, 3.0))]
    low, high = series.loss_range(rows, [{"loss": 2.9}])
    # after the first tenth: 2.9 to 4.0, with 5 % of that on both sides
    assert (low, high) == pytest.approx((2.9 - 0.055, 4.0 + 0.055))


def test_profiles_hold_max_rank_and_mass_of_each_layer_under_their_mask(write: Write, grown: Record) -> None:
    shown = models(load_runs([write(grown, lazy=range(10, 13))]))
    wanted = spectra(16, range(10, 13))["layers"]
    for mask in ("causal", "full"):
        rows = [
            row for model in shown if model.analysis for row in series.layer_rows(model.label, model.analysis, mask)
        ]
        data = chart_data(analysis.profile(rows, "max_rank", PALETTE, mask, 20.0).to_dict())
        drawn = [row for row in data if row["model"] == "reference-16x64"]
        assert [row["max_rank"] for row in drawn] == [layer[mask]["max_rank"] for layer in wanted]
        assert [row["avg_mass"] for row in drawn] == [layer[mask]["avg_mass"] for layer in wanted]
        assert [row["layer"] for row in drawn if row["lazy"]] == ([10, 11, 12] if mask == "full" else [])
        assert sum(row["model"] == "grow" for row in data) == 12


def test_collapsed_heads_are_red_in_the_svg(write: Write, grown: Record, tmp_path: Path) -> None:
    reference = models(load_runs([write(grown)]))[0]
    assert reference.analysis is not None
    rows = series.head_rows(reference.analysis, "causal")
    expected = sum(rank < 1.5 for layer in spectra(16)["layers"] for rank in layer["causal"]["rank"])
    assert len(rows) == 16 * HEADS
    base.save_chart(analysis.rank_map(rows, 16.0, "reference, causal mask"), tmp_path, "heads")
    svg = ET.parse(tmp_path / "heads.svg").getroot()
    cells = [e for e in svg.iter("{http://www.w3.org/2000/svg}path") if e.get("aria-roledescription") == "rect mark"]
    assert len(cells) == 16 * HEADS
    assert sum(e.get("fill") == base.COLLAPSED_COLOUR for e in cells) == expected > 0
    assert "reference, causal mask" in "".join(svg.itertext())


def test_curves_are_saved_as_svg_and_png(write: Write, grown: Record, tmp_path: Path) -> None:
    runs = load_runs([write(grown)])
    rows, references = series.curve_rows(runs[0]), series.reference_rows(models(runs))
    chart = training.curves(rows, references, series.round_rows(runs[0]), PALETTE, (2.5, 5.0))
    svg, png = base.save_chart(chart, tmp_path, "curves")
    text = svg.read_text()
    measured = sum(row["kind"] != "training" for row in rows)
    assert text.count('aria-roledescription="point"') == measured
    assert text.count('aria-roledescription="rule mark"') == 1 + 3  # the reference and three rounds
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(OutputError, match=r"cannot write .*gone/curves\.svg: Not a dir"):
        base.save_chart(chart, svg / "gone", "curves")


def test_a_map_is_a_png_whose_pixels_are_the_square_roots_of_the_weights() -> None:
    values = attention_maps(7)["maps"][0]["values"]
    png = maps.attention_png(values)
    assert struct.unpack(">II", png[16:24]) == (7, 7)
    start = png.index(b"IDAT")
    [length] = struct.unpack(">I", png[start - 4 : start])
    rows = np.frombuffer(zlib.decompress(png[start + 4 : start + 4 + length]), dtype=np.uint8).reshape(7, 8)
    assert (rows[:, 0] == 0).all()  # PNG's filter byte: none
    np.testing.assert_array_equal(rows[:, 1:], np.rint(255 * np.sqrt(np.array(values))).astype(np.uint8))
    table = maps.colour_table()
    lightness = np.frombuffer(table, dtype=np.uint8).reshape(256, 3) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > -0.5).all()
    assert lightness[-1] - lightness[0] > 200
