"""What the report draws of analyses: rows hold the records' numbers, sentences say what they show."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_analyses import TAUS, analysis, collapse_lines, watch_run
from report_records import spectra

from inheritune.errors import OutputError
from inheritune.report import findings, load, measures, series
from inheritune.report.load import Analysis, Model
from inheritune.spectra import BothSpectra, Spectra
from inheritune.surgery import LayerPlan

Record = dict[str, Any]
Write = Callable[..., Path]


def model_of(record: Record, label: str = "m") -> Model:
    return Model(label, {}, Analysis(record, []), None, str(record.get("model")))


def one_layer(rank: list[float], mass: list[float], **more: Any) -> Record:
    part = {"rank": rank, "mass": mass, "max_rank": max(rank), "avg_mass": sum(mass) / len(mass), "lazy": False}
    record = {"masks": ["causal"], "tau": 0.9, "eta": 0.9, "sequences": 4, "length": 8, "model": "m"}
    return record | {"layers": [{"index": 2, "causal": part | more}], "depth": 5}


def test_a_layers_row_holds_its_spread_and_the_error_of_its_top_head() -> None:
    record = one_layer([1.0, 5.0, 2.0, 4.0, 3.0], [10, 20, 30, 40, 50], rank_error=[0.1, 0.2, 0.3, 0.4, 0.5])
    [row] = series.layer_rows(model_of(record), "causal")
    assert [row[f"rank_{key}"] for key in ("low", "q1", "median", "q3", "high")] == [1, 2, 3, 4, 5]
    assert [row[f"mass_{key}"] for key in ("low", "q1", "median", "q3", "high")] == [10, 20, 30, 40, 50]
    assert (row["top_head"], row["rank_error"], row["depth"]) == (1, 0.2, 0.5)  # layer 2 of 0 to 4: half way


@pytest.mark.parametrize("error", [None, [None, None]])
def test_an_unknown_standard_error_is_left_out(error: Any) -> None:
    record = one_layer([1.0, 5.0], [10, 20], rank_error=error)
    assert "rank_error" not in series.layer_rows(model_of(record), "causal")[0]
    assert "error" not in series.head_rows(Analysis(record, []), "causal")[0]
    assert series.layer_rows(model_of(record), "full") == []


def test_the_tau_sweep_takes_the_highest_head_at_each_tau() -> None:
    record = analysis(3, 4)
    rows = series.tau_rows(Analysis(record, []), "full")
    assert [row["tau"] for row in rows[:4]] == ["0.8", "0.85", "0.9", "0.95"]
    for row in rows:
        assert row["max_rank"] == max(record["layers"][row["layer"]]["full"]["ranks"][row["tau"]])
    for layer in record["layers"]:
        layer["full"]["ranks"] = {"0.9": layer["full"]["ranks"]["0.9"]}
    assert series.tau_rows(Analysis(record, []), "full") == []  # one tau is no sweep
    assert len(rows) == 3 * len(TAUS)


def test_classes_of_an_older_record_are_those_of_the_spectra() -> None:
    record = spectra(12, lazy=range(4, 6))
    tables = {mask: np.array([layer[mask]["rank"] for layer in record["layers"]]) for mask in ("causal", "full")}
    parts = {
        mask: Spectra(table, table, 0.9, 0.9, mask, 100, 100, tuple(range(12)))  # type: ignore[arg-type]
        for mask, table in tables.items()
    }
    wanted = BothSpectra(parts["causal"], parts["full"]).head_classes.ravel().tolist()
    assert [row["class"] for row in series.class_rows(Analysis(record, []))] == wanted
    assert set(wanted) == {"sink", "uniform", "potent"}
    assert series.class_rows(Analysis(spectra(4, masks=("full",)), [])) == []


def test_a_model_whose_layers_differ_is_drawn_where_it_has_attention() -> None:
    record = analysis(6, 4)
    record["layers"] = [record["layers"][1], record["layers"][4]]
    record["layers"][1]["causal"] |= {"rank": [2.0, 3.0]}
    found = Analysis(record, [])
    assert [(row["layer"], row["head"]) for row in series.head_rows(found, "causal")] == [
        (1, 0), (1, 1), (1, 2), (1, 3), (4, 0), (4, 1),
    ]  # fmt: skip
    assert [row["depth"] for row in series.layer_rows(model_of(record), "causal")] == [0.2, 0.8]
    assert [row["causal"] is None for row in measures.block_rows(model_of(record))] == [
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
    [found] = measures.agreements(model_of(record))
    # ranks 6 4 5 3 2 1 and 6 5 3 4 1 2: squared differences 0 1 4 1 1 1, rho = 1 - 6 * 8 / (6 * 35)
    assert found.correlation == pytest.approx(1 - 6 * 8 / 210, abs=1e-12)
    assert (found.mask, found.layers) == ("causal", 6)
    text = findings.agreement_sentence(model_of(record))
    assert "no clear agreement under the causal mask (Spearman rank correlation 0.77, n = 6 layers, p = 0.072)" in text
    assert "weak evidence" in text


def test_agreement_is_not_claimed_where_there_is_no_order() -> None:
    record = analysis(6, 2, masks=("causal",))
    for layer in record["layers"]:
        layer["causal"]["max_rank"] = 1.0
    [found] = measures.agreements(model_of(record))
    assert found.correlation is None
    assert "one of them is the same for all 6 layers" in findings.agreement_sentence(model_of(record))
    assert measures.agreements(model_of(analysis(2, 2))) == []


def test_the_closest_span_of_each_length_is_marked() -> None:
    record = {"angular_distance": [[0.3, 0.5, 0.6], [0.1, 0.2], [0.2]]}
    rows = measures.angular_rows(Analysis(record, []))
    best = {(row["start"], row["end"], row["distance"]) for row in rows if row["best"]}
    assert best == {(1, 1, 0.1), (1, 2, 0.2), (0, 2, 0.6)}
    assert len(rows) == 6
    assert findings.best_spans(rows, [1, 3, 9]) == "n = 1: layer 1 (0.100); n = 3: layers 0–2 (0.600)"


def test_gradients_keep_what_a_logarithm_can_show() -> None:
    record = analysis(2, 3)
    record["layers"][0]["gradients"] |= {"query": [0.0, 0.5, 0.25], "query_bound": [1.0, None, 2.0]}
    record["layers"][0]["causal"]["sink_epsilon"] = [0.1, 0.2, 0.0]
    rows = measures.gradient_rows(Analysis(record, []), "query")[:3]
    assert [(row["gradient"], row["bound"], row["epsilon"]) for row in rows] == [
        (None, 1.0, 0.1), (0.5, None, 0.2), (0.25, 2.0, None),
    ]  # fmt: skip
    assert [row["class"] for row in rows] == record["layers"][0]["classes"]
    alone = measures.gradient_rows(Analysis(analysis(2, 3, masks=("full",)), []), "key")
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
    assert advice.facts == [("start with", "0–5 (6 of 12)"), ("cut", "8–10 (3 of 12)"), ("keep", "0–7, 11 (9 of 12)")]
    grow, cut = (command for _, command in advice.commands)
    assert grow == "inheritune run RECIPE.yaml --set 'reference=acme/my model' --set layers=6"
    assert cut == "inheritune inherit 'acme/my model' --layers 0,1,2,3,4,5,6,7,11 --out DIR"
    plan = LayerPlan.from_layers(cut.split()[5], 12, "all")
    assert [row.source for row in plan] == held["keep"]
    held |= {"cut": [9, 10, 11], "keep": list(range(9))}
    assert findings.recommendation(model_of(record)).commands[1][1].split()[-3] == "9"  # type: ignore[union-attr]
    assert findings.recommendation(model_of(spectra(4))) is None


def test_a_statement_counts_what_the_record_holds() -> None:
    record = spectra(10, lazy=range(2, 4))
    heads = [rank for layer in record["layers"] for rank in layer["full"]["rank"]]
    collapsed = sum(rank < 1.5 for rank in heads)
    text = findings.statement(model_of(record))
    assert text.startswith(
        "m: of 10 layers with attention, lazy (MaxRank = 1 at τ = 0.9) are none under the causal mask"
    )
    assert "and 2 (2–3) under the full mask; of 40 heads, collapsed are " in text
    assert f"{collapsed} ({100 * collapsed / 40:.0f} %) under the full mask." in text


def test_labels_are_the_ends_of_paths_and_all_differ(study: Write) -> None:
    names = ["/models/acme/one", "acme/one", "hub/two", "acme/one"]
    paths = [study(analysis(2, 2, model=name), f"s{i}") for i, name in enumerate(names)]
    found = load([*paths, paths[0]]).studies
    assert [model.label for model in found] == ["acme/one", "acme/one (s1)", "hub/two", "acme/one (s3)"]
    assert [model.name for model in found] == names


def test_what_is_neither_run_nor_analysis_is_refused(tmp_path: Path, study: Write) -> None:
    with pytest.raises(OutputError, match=r"has no record\.json and no spectra\.json"):
        load([tmp_path])
    with pytest.raises(OutputError, match="nothing to report on"):
        load([])
    broken = analysis(2, 2)
    del broken["layers"]
    with pytest.raises(OutputError, match="is not an analysis"):
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
    assert [row["layer"] for row in measures.agreement_rows(model_of(record)) if row["mask"] == "full"] == [1, 2]
