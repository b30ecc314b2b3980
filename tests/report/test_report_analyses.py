"""What the report draws of analyses: rows hold the records' numbers, sentences say what they show."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_analyses import TAUS, analysis, collapse_lines, watch_run
from report_records import spectra

from inheritune.decoder.source import resolve_model
from inheritune.errors import OutputError
from inheritune.records.analysis import AnalysisRecord
from inheritune.report import load
from inheritune.report.read.folders import Analysis
from inheritune.report.read.models import Model
from inheritune.report.rows import measures, series
from inheritune.report.text import findings, tables
from inheritune.spectra.folder import load_spectra
from inheritune.spectra.result import BothSpectra
from inheritune.surgery import LayerPlan

Record = dict[str, Any]
Write = Callable[..., Path]


def read(record: Record) -> Analysis:
    """The analysis as the page has it, from the content of spectra.json."""
    return Analysis(AnalysisRecord.model_validate(record))


def model_of(record: Record, label: str = "m") -> Model:
    return Model(label, None, read(record), name=str(record.get("model")))


def one_layer(rank: list[float], mass: list[float], **more: Any) -> Record:
    part = {"rank": rank, "mass": mass, "max_rank": max(rank), "avg_mass": sum(mass) / len(mass), "lazy": False}
    record = {"masks": ["causal"], "tau": 0.9, "eta": 0.9, "sequences": 4, "length": 8, "model": "m"}
    return record | {"layers": [{"index": 2, "causal": part | more}], "depth": 5}


def test_a_layers_row_holds_its_spread_and_the_error_of_its_top_head() -> None:
    record = one_layer([1.0, 5.0, 2.0, 4.0, 3.0], [10, 20, 30, 40, 50], rank_error=[0.1, 0.2, 0.3, 0.4, 0.5])
    [row] = series.layer_rows("m", read(record), "causal")
    assert [row[f"rank_{key}"] for key in ("low", "q1", "median", "q3", "high")] == [1, 2, 3, 4, 5]
    assert [row[f"mass_{key}"] for key in ("low", "q1", "median", "q3", "high")] == [10, 20, 30, 40, 50]
    assert (row["top_head"], row["rank_error"], row["depth"]) == (1, 0.2, 0.5)  # layer 2 of 0 to 4: half way


@pytest.mark.parametrize("error", [None, [None, None]])
def test_an_unknown_standard_error_is_left_out(error: Any) -> None:
    record = one_layer([1.0, 5.0], [10, 20], rank_error=error)
    assert "rank_error" not in series.layer_rows("m", read(record), "causal")[0]
    assert "error" not in series.head_rows(read(record), "causal")[0]
    assert series.layer_rows("m", read(record), "full") == []


def test_the_tau_sweep_takes_the_highest_head_at_each_tau() -> None:
    record = analysis(3, 4)
    rows = series.tau_rows(read(record), "full")
    assert [row["tau"] for row in rows[:4]] == ["0.8", "0.85", "0.9", "0.95"]
    for row in rows:
        assert row["max_rank"] == max(record["layers"][row["layer"]]["full"]["ranks"][row["tau"]])
    for layer in record["layers"]:
        layer["full"]["ranks"] = {"0.9": layer["full"]["ranks"]["0.9"]}
    assert series.tau_rows(read(record), "full") == []  # one tau is no sweep
    assert len(rows) == 3 * len(TAUS)


def test_classes_stand_beside_the_ranks_under_both_masks() -> None:
    record = spectra(12, lazy=range(4, 6))
    rows = series.class_rows(read(record))
    assert [row["class"] for row in rows] == [name for layer in record["layers"] for name in layer["classes"]]
    for mask in ("causal", "full"):
        ranks = [rank for layer in record["layers"] for rank in layer[mask]["rank"]]
        assert [row[f"rank_{mask}"] for row in rows] == ranks
    assert list(series.class_counts(read(record))) == ["sink", "uniform", "potent"]
    assert sum(series.class_counts(read(record)).values()) == len(rows) == 48
    assert series.class_rows(read(spectra(4, masks=("full",)))) == []


def test_a_model_whose_layers_differ_is_drawn_where_it_has_attention() -> None:
    record = analysis(6, 4)
    record["layers"] = [record["layers"][1], analysis(6, 2)["layers"][4]]
    found = read(record)
    assert [(row["layer"], row["head"]) for row in series.head_rows(found, "causal")] == [
        (1, 0), (1, 1), (1, 2), (1, 3), (4, 0), (4, 1),
    ]  # fmt: skip
    assert [row["depth"] for row in series.layer_rows("m", read(record), "causal")] == [0.2, 0.8]
    assert [row["causal"] is None for row in measures.block_rows("m", read(record))] == [
        True,
        False,
        True,
        True,
        False,
        True,
    ]


def test_agreement_is_spearmans_correlation() -> None:
    record = analysis(6, 2, masks=("causal",))
    for i, (rank, influence) in enumerate(zip((9, 7, 8, 3, 2, 1), (0.6, 0.5, 0.3, 0.4, 0.1, 0.2), strict=True)):
        record["layers"][i]["causal"]["max_rank"] = rank
        record["blocks"][i]["influence"] = influence
    [found] = measures.agreements(read(record))
    # ranks 6 4 5 3 2 1 and 6 5 3 4 1 2: squared differences 0 1 4 1 1 1, rho = 1 - 6 * 8 / (6 * 35)
    assert found[:2] == ("causal", 6)
    assert found[2] == pytest.approx(1 - 6 * 8 / 210, abs=1e-12)
    text = findings.agreement_sentence(read(record))
    assert "no clear agreement under the causal mask (Spearman rank correlation 0.77, n = 6 layers, p = 0.072)" in text
    assert "weak evidence" in text


def test_agreement_is_not_claimed_where_there_is_no_order() -> None:
    record = analysis(6, 2, masks=("causal",))
    for layer in record["layers"]:
        layer["causal"]["max_rank"] = 1.0
    [found] = measures.agreements(read(record))
    assert found == ("causal", 6, None, None)
    assert "one of them is the same for all 6 layers" in findings.agreement_sentence(read(record))
    assert measures.agreements(read(analysis(2, 2))) == []


def test_the_closest_span_of_each_length_is_marked() -> None:
    record = analysis(3, 2) | {"angular_distance": [[0.3, 0.5, 0.6], [0.1, 0.2], [0.2]]}
    rows = measures.angular_rows(read(record))
    best = {(row["start"], row["end"], row["distance"]) for row in rows if row["best"]}
    assert best == {(1, 1, 0.1), (1, 2, 0.2), (0, 2, 0.6)}
    assert len(rows) == 6
    assert findings.best_spans(rows, [1, 3, 9]) == "n = 1: layer 1 (0.100); n = 3: layers 0–2 (0.600)"


def test_gradients_keep_what_a_logarithm_can_show() -> None:
    record = analysis(2, 3)
    record["layers"][0]["gradients"] |= {"query": [0.0, 0.5, 0.25], "query_bound": [1.0, None, 2.0]}
    record["layers"][0]["causal"]["sink_epsilon"] = [0.1, 0.2, 0.0]
    rows = measures.gradient_rows(read(record), "query")[:3]
    assert [(row["gradient"], row["bound"], row["epsilon"]) for row in rows] == [
        (None, 1.0, 0.1), (0.5, None, 0.2), (0.25, 2.0, None),
    ]  # fmt: skip
    assert [row["class"] for row in rows] == record["layers"][0]["classes"]
    alone = measures.gradient_rows(read(analysis(2, 3, masks=("full",))), "key")
    assert {(row["class"], row["epsilon"]) for row in alone} == {("not classed", None)}  # theorem and class need causal


def test_watched_steps_tile_the_rounds_of_a_run(write: Write, grown: Record) -> None:
    folder = write(grown)
    watch_run(folder, grown)
    [run] = load([folder]).runs
    rows = [row for row in measures.collapse_rows(run, "max_rank", "full") if row["layer"] == 1]
    tokens = 2_457_600
    assert [row["value"] for row in rows[:9]] == [
        line["full"]["max_rank"][1] for line in collapse_lines(8, tokens, 600)
    ]
    assert [row["tokens"] for row in rows[9:18]] == [tokens + round(i / 8 * tokens) for i in range(9)]
    assert rows[0]["start"] == 0
    assert rows[-1]["end"] == 3 * tokens
    assert all(a["end"] == b["start"] for a, b in itertools.pairwise(rows))  # no gap and no overlap
    assert len({row["layer"] for row in measures.collapse_rows(run, "query", None)}) == 12
    lines = (folder / "round-1/collapse.jsonl").read_text().splitlines()
    assert '"full"' in lines[0]
    (folder / "round-1/collapse.jsonl").unlink()
    [again] = load([folder]).runs
    assert again.absent == ("round-1/collapse.jsonl",)
    assert again.collapse[0] == []


def test_a_colour_scale_has_two_ends_even_for_one_value() -> None:
    rows = [{"value": 0.0}, {"value": 4.0}]
    assert measures.value_range(rows, logarithmic=True) == (4.0, 8.0)
    assert measures.value_range(rows, logarithmic=False) == (0.0, 4.0)
    assert measures.value_range([{"value": 0.0}], logarithmic=True) is None


def test_the_recommended_commands_keep_the_layers_of_the_record() -> None:
    record = analysis(12, 4, model="acme/my model")
    advice = findings.recommendation(model_of(record))
    assert advice is not None
    held = record["recommendation"]
    assert (held["cut"], held["keep"]) == ([8, 9, 10], [0, 1, 2, 3, 4, 5, 6, 7, 11])
    assert advice.facts == [
        ("start with", "layers 0–5 (6 of 12)"),
        ("cut", "layers 8–10 (3 of 12)"),
        ("keep", "layers 0–7, 11 (9 of 12)"),
    ]
    cut, grow = (step.command for step in advice.steps)
    assert grow == (
        "inheritune run heal --set 'reference=acme/my model' --set data.source=TEXT.txt --set layers=6 --out m-healed"
    )
    assert cut == "inheritune inherit 'acme/my model' --layers 0,1,2,3,4,5,6,7,11 --out m-9-layers"
    plan = LayerPlan.from_layers(cut.split()[5], 12, "all")
    assert [row.source for row in plan] == held["keep"]
    held |= {"cut": [9, 10, 11], "keep": list(range(9))}
    assert findings.recommendation(model_of(record)).steps[0].command.split()[-3] == "9"  # type: ignore[union-attr]
    assert findings.recommendation(model_of(spectra(4))) is None
    held |= {"cut": [6, 7, 8, 9, 10, 11], "reason": "no layer stands out.", "others": {"Block Influence": [1, 2, 3]}}
    short = findings.recommendation(model_of(record))
    assert short is not None and short.reason.startswith("No layer stands out. The paper's rule of thumb, unmeasured")
    assert short.facts[1:] == [("cut", "layers 6–11 (6 of 12)"), ("Block Influence would cut", "layers 1–3 (3 of 12)")]


def test_a_statement_counts_what_the_record_holds() -> None:
    record = spectra(10, lazy=range(2, 4))
    heads = [rank for layer in record["layers"] for rank in layer["full"]["rank"]]
    collapsed = sum(rank < 1.5 for rank in heads)
    text = findings.statement("m", read(record))
    assert text.startswith("m (τ = 0.9): under the causal mask none of 10 layers is lazy, and ")
    share = f"{collapsed} of 40 heads ({100 * collapsed / 40:.0f} %) are collapsed"
    assert text.endswith(f"; under the full mask 2 of 10 layers are lazy (layers 2–3), and {share}.")
    record["depth"] = 12
    assert "none of 10 layers with attention is lazy" in findings.statement("m", read(record))


def test_labels_are_the_ends_of_paths_and_all_differ(study: Write) -> None:
    names = ["/models/acme/one", "acme/one", "hub/two", "acme/one"]
    paths = [study(analysis(2, 2, model=name), f"s{i}") for i, name in enumerate(names)]
    found = load([*paths, paths[0]]).studies
    assert [model.label for model in found] == ["acme/one", "acme/one (s1)", "hub/two", "acme/one (s3)"]
    assert [model.name for model in found] == names


def test_what_is_neither_run_nor_analysis_is_refused(tmp_path: Path, study: Write) -> None:
    with pytest.raises(OutputError, match=r"has no record\.json and no spectra\.json"):
        load([tmp_path])
    folder = study(analysis(2, 2), "whole")
    with pytest.raises(OutputError, match=r"spectra\.json is a file: expected its folder, .*whole$"):
        load([folder / "spectra.json"])
    with pytest.raises(OutputError, match=r"no folder .*whale: .*did you mean '.*whole'"):
        load([tmp_path / "whale"])
    with pytest.raises(OutputError, match="nothing to report on"):
        load([])
    broken = analysis(2, 2)
    del broken["layers"]
    with pytest.raises(OutputError, match=r"spectra\.json is damaged .*layers is missing"):
        load([study(broken)])
    with pytest.raises(OutputError, match="has schema 9: this version reads"):
        load([study(analysis(2, 2) | {"schema": 9}, "newer")])


def test_numbers_that_are_not_finite_are_not_drawn(write: Write, grown: Record) -> None:
    folder = write(grown)
    watch_run(folder, grown)
    path = folder / "round-1/collapse.jsonl"
    path.write_text(path.read_text().replace("[0.1,", "[NaN,", 1))
    [run] = load([folder]).runs
    rows = measures.collapse_rows(run, "query", None)
    assert all(math.isfinite(row["value"]) for row in rows)
    assert (0, 0) not in {(row["tokens"], row["layer"]) for row in rows}
    record = copy.deepcopy(analysis(3, 2))
    record["blocks"][0]["influence"] = None
    assert [row["layer"] for row in measures.agreement_rows(read(record)) if row["mask"] == "full"] == [1, 2]


DAMAGE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("tau",), "x", "tau is 'x', input should be a valid number"),
    (("sequences",), True, "sequences is True"),
    (("masks",), [], "masks is"),
    (("layers", 1), "x", r"layers\[1\] is 'x'"),
    (("layers", 1, "index"), 0, r"layers\[1\].index is 0, expected more than 0"),
    (("layers", 0, "causal", "rank", 1), math.nan, "it holds NaN, which is not a finite number"),
    (("layers", 0, "causal", "rank", 1), None, r"layers\[0\].causal.rank\[1\] is None"),
    (("layers", 0, "full", "rank"), [2.0, 3.0], r"layers\[0\]: full.rank has 2 entries, expected 3, one for"),
    (("layers", 0, "full", "max_rank"), math.inf, "it holds Infinity, which"),
    (("layers", 0, "full", "ranks"), {"high": [1.0, 1.0, 1.0]}, r"layers\[0\].full.ranks.high.* is 'high', "),
    (("layers", 0, "classes"), ["sink"], r"layers\[0\]: classes has 1 entries"),
    (("layers", 0, "gradients", "query"), [0.1], r"layers\[0\]: gradients.query has 1 entries"),
    (("blocks", 0, "influence"), "x", r"blocks\[0\].influence is 'x'"),
    (("blocks",), [], "angular_distance has not the expected rows of 0 to 1"),
    (("angular_distance", 0), [0.1], "angular_distance has not the expected rows of 4 to 1"),
    (("recommendation", "cut"), [99], "do not fit a model of 4 layers"),
    (("environment", "versions"), "x", "environment.versions is 'x'"),
]
"""Of each kind one; the rest of what an analysis may hold is tested with its record."""


@pytest.mark.parametrize(("place", "value", "line"), DAMAGE, ids=[".".join(map(str, row[0])) for row in DAMAGE])
def test_damage_is_one_line_that_names_the_file(place: tuple[Any, ...], value: Any, line: str, study: Write) -> None:
    record = analysis(4, 3)
    part: Any = record
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    folder = study(record)
    with pytest.raises(OutputError, match=rf"spectra\.json.*{line}.*run inheritune analyze again"):
        load([folder])


def test_a_truncated_file_and_damaged_maps_say_what_to_do(study: Write) -> None:
    folder = study()
    maps = json.loads((folder / "maps.json").read_text())
    maps["maps"][0]["values"][3] = [0.5]
    (folder / "maps.json").write_text(json.dumps(maps))
    with pytest.raises(
        OutputError, match=r"maps\.json .*maps\[0\]: values\[3\] has 1 numbers, .*run inheritune analyze again"
    ):
        load([folder])
    (folder / "spectra.json").write_text((folder / "spectra.json").read_text()[:900])
    with pytest.raises(OutputError, match=r"cannot read .*spectra\.json as JSON.*run inheritune analyze again"):
        load([folder])


def test_null_stands_for_what_is_not_defined(study: Write) -> None:
    record = analysis(3, 2)
    for layer in record["layers"]:
        layer["causal"]["rank_error"] = [None, None]
        layer["gradients"]["key_bound"] = [None, None]
    record["angular_distance"][0][1] = record["blocks"][2]["influence"] = None
    folder = study(record)
    assert load([folder]).studies[0].analysis is not None
    both = load_spectra(folder)
    assert isinstance(both, BothSpectra) and both.causal.rank_error is not None
    assert np.isnan(both.causal.rank_error).all() and not np.isnan(both.causal.rank).any()


def test_lengths_that_differ_are_said_to(study: Write) -> None:
    alike = [study(analysis(3, 2, model=f"m{i}"), f"s{i}") for i in range(2)]
    assert not any("different length" in note for note in findings.opening(load(alike)).cautions)
    other = study(analysis(3, 2, model="long") | {"length": 200}, "long")
    assert "different length (100, 200 tokens)" in findings.opening(load([*alike, other])).cautions[-1]


def test_the_shipped_model_is_called_by_its_name(study: Write) -> None:
    folder = study(analysis(2, 2, model=resolve_model("stdlib")))
    [found] = load([folder]).studies
    assert (found.label, found.name) == ("stdlib", "stdlib")  # a command takes the name wherever it is run


def test_equal_words_on_two_masks_are_said_once() -> None:
    record = analysis(6, 2)
    for mask in ("causal", "full"):
        for i, rank in enumerate((9, 7, 8, 3, 2, 1)):
            record["layers"][i][mask]["max_rank"] = rank
            record["blocks"][i]["influence"] = 0.1 * i
    text = findings.agreement_sentence(read(record))
    # ranks 6 4 5 3 2 1 and 1 to 6: squared differences 25 4 4 1 9 25, rho = 1 - 6 * 68 / 210
    numbers = "(Spearman rank correlation −0.94, n = 6 layers, p = 0.0048)"
    assert f"Influence disagree under the causal mask {numbers} and under the full mask {numbers}." in text


def test_scales_fit_what_they_show() -> None:
    assert measures.influence_scale([1.08, 0.19, 0.01]) == "log"
    assert measures.influence_scale([1.08, 0.19, 0.0]) == "symlog"
    assert measures.influence_scale([0.4, 0.19, 0.01]) == measures.influence_scale([0.4]) == "linear"
    rows = [{"epsilon": value} for value in (None, 0.99, 1.0)]
    assert measures.gradient_axis(rows) == measures.gradient_axis([{"epsilon": None}]) == "layer"
    assert measures.gradient_axis([*rows, {"epsilon": 0.2}]) == "epsilon"


def test_what_made_an_analysis_is_in_its_settings() -> None:
    record = analysis(2, 2) | {"data": {"source": "stories.txt", "tokens": 12345, "seed": 7}}
    pairs = dict(tables.study_settings(read(record)))
    assert "data.source=stories.txt" in str(findings.recommendation(model_of(record)).steps[-1])  # type: ignore[union-attr]
    assert (pairs["data: source"], pairs["data: tokens"], pairs["seed"]) == ("stories.txt", "12,345", "7")
    assert dict(tables.study_settings(read(analysis(2, 2))))["seed"] == "–"
