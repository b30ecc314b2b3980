"""LayerPlan: what each constructor takes, how a plan prints, and what a wrong request is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inheritune.errors import OutputError, PlanError
from inheritune.spectra.recommend import Recommendation
from inheritune.surgery import LayerPlan, LayerRow, parse_parts
from tiny import analysis_of


def taken(plan: LayerPlan) -> list[tuple[str | None, int | None]]:
    return [(row.model, row.source) for row in plan]


def as_json(plan: LayerPlan) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(json.dumps([row.as_json() for row in plan.as_records()]))
    return rows


def layers(plan: LayerPlan) -> list[int | None]:
    assert plan.models == {"reference"}
    return [row.source for row in plan]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (3, [0, 1, 2]),
        ("3", [0, 1, 2]),
        ("0:3", [0, 1, 2]),
        (":3", [0, 1, 2]),
        ("4:", [4, 5, 6, 7]),
        ("1:8:3", [1, 4, 7]),
        ("0,2,4", [0, 2, 4]),
        (" 5 , 0:2 ", [5, 0, 1]),
        ("3,", [3]),
        (range(2, 5), [2, 3, 4]),
        ([7, 0, 0], [7, 0, 0]),
        ((i for i in (1, 2)), [1, 2]),
    ],
)
def test_from_layers(asked: object, expected: list[int]) -> None:
    assert layers(LayerPlan.from_layers(asked, 8)) == expected


def test_contiguous_choices() -> None:
    assert layers(LayerPlan.first(4, 12)) == [0, 1, 2, 3]
    assert layers(LayerPlan.middle(4, 12)) == [4, 5, 6, 7]
    assert layers(LayerPlan.middle(4, 11)) == [3, 4, 5, 6]
    assert layers(LayerPlan.last(4, 12)) == [8, 9, 10, 11]


def test_the_papers_distilbert_student() -> None:
    # method.md section 3: 16 of 24 layers are every other layer, then 18 to 21.
    assert layers(LayerPlan.distilbert(24, 16)) == [*range(0, 24, 2), 18, 19, 20, 21]
    assert layers(LayerPlan.distilbert(12, 6)) == [0, 2, 4, 6, 8, 10]
    assert layers(LayerPlan.distilbert(12, 4)) == [0, 3, 6, 9]


@pytest.mark.parametrize("depth", range(1, 14))
def test_distilbert_of_any_size_stays_inside_the_teacher(depth: int) -> None:
    for count in range(1, depth + 1):
        plan = LayerPlan.distilbert(depth, count)
        plan.check({"reference": depth})
        assert len(plan) == count


def test_stacking_and_growth() -> None:
    assert taken(LayerPlan.stacking(2)) == [("target", 0), ("target", 1)] * 2
    before, after = LayerPlan.hybrid_stacking(4, 12)
    assert layers(before) == [0, 1]
    assert after == LayerPlan.stacking(2)
    assert taken(LayerPlan.append(2, 4)) == [("target", 0), ("target", 1), ("reference", 2), ("reference", 3)]
    assert layers(LayerPlan.append(2, 4, "restart")) == [0, 1, 2, 3]
    assert LayerPlan.append(2, 4).rest == "target"
    assert LayerPlan.append(2, 4, "restart").rest == "reference"


@pytest.mark.parametrize(
    ("start", "upto", "expected"),
    [
        ([0, 2], 3, [0, 2, 3]),
        ([0, 2], 5, [0, 2, 3, 4, 5]),
        ([3, 1, 1], 5, [3, 1, 1, 4, 5]),
        ([5], 8, [5, 6, 7, 8, 9, 10, 11, 12]),
    ],
)
def test_growth_goes_on_behind_the_last_layer_that_is_there(start: list[int], upto: int, expected: list[int]) -> None:
    plan = LayerPlan.from_layers(start, 13, "attention,norms")
    restarted = LayerPlan.append(len(start), upto, "restart", start=plan, depth=13)
    assert layers(restarted) == expected and {row.parts for row in restarted} == {("attention", "norms")}
    grown = LayerPlan.append(len(start), upto, start=plan, depth=13)
    kept = [("target", t) for t in range(len(start))]
    assert taken(grown) == [*kept, *(("reference", layer) for layer in expected[len(start) :])]
    assert {row.parts for row in grown.rows[len(start) :]} == {("attention", "norms")}
    twice = LayerPlan.append(upto, upto + 1, start=plan, depth=14)  # the second growth starts from the same plan
    assert twice.rows[-1].source == expected[-1] + 1
    assert LayerPlan.append(len(start), str(upto), start=plan, depth=13) == grown


def test_growth_past_the_reference_is_refused() -> None:
    plan = LayerPlan.from_layers([0, 2], 4)
    line = (
        r"cannot grow to 4 layers: the plan starts with layers 0, 2 of the reference, and 1 of its 4 are behind the "
        "last of them: expected at most 3"
    )
    for mode in ("continue", "restart"):
        with pytest.raises(PlanError, match=line):
            LayerPlan.append(2, 4, mode, start=plan, depth=4)
    with pytest.raises(PlanError, match="none of its 4 are behind the last of them: expected at most 1"):
        LayerPlan.append(1, 2, start=LayerPlan.last(1, 4), depth=4)


def test_evenly_spaced_layers_rise_and_hold_both_ends() -> None:
    assert layers(LayerPlan.evenly_spaced(4, 10)) == [0, 3, 6, 9]
    assert layers(LayerPlan.evenly_spaced(1, 10)) == [0]
    assert LayerPlan.arranged("evenly-spaced", "24", 30) == LayerPlan.evenly_spaced(24, 30)
    for depth in range(1, 30):
        for count in range(1, depth + 1):
            plan = LayerPlan.evenly_spaced(count, depth)
            exact = np.linspace(0, depth - 1, count) if count > 1 else np.zeros(1)
            assert np.abs(np.array(layers(plan), dtype=float) - exact).max() <= 0.5
            assert layers(plan) == sorted({row.source or 0 for row in plan})
            assert "note:" not in str(plan)


@pytest.mark.parametrize(
    ("plan", "note"),
    [
        (LayerPlan.distilbert(24, 16), "of the reference, layers 18, 20 more than once and out of order (layer 18 "),
        (LayerPlan.distilbert(30, 24), "of the reference, layers 20, 22, 24, 26 more than once and out of order "),
        (LayerPlan.stacking(3), "of the target, layers 0-2 more than once and out of order (layer 0 behind layer 2)"),
        (LayerPlan.from_layers([3, 3], 4), "of the reference, layers 3 more than once"),
        (LayerPlan.from_layers([3, 1], 4), "of the reference, out of order (layer 1 behind layer 3)"),
        (LayerPlan.append(3, 5), ""),
        (LayerPlan.in_place([0, 3], 5), ""),
        (LayerPlan.distilbert(12, 4), ""),
    ],
)
def test_a_plan_with_repeats_or_out_of_order_says_so(plan: LayerPlan, note: str) -> None:
    notes = [line for line in str(plan).splitlines() if line.startswith("note: ")]
    assert len(notes) == bool(note) and all(line.startswith(f"note: {note}") for line in notes)


def test_lazy_layers_kept_in_place_and_random() -> None:
    # Fig. 23: 24 layers, the last 9 from the reference, the rest random.
    plan = LayerPlan.in_place("15:24", 24)
    assert taken(plan) == [(None, None)] * 15 + [("reference", i) for i in range(15, 24)]
    assert taken(LayerPlan.random(2)) == [(None, None)] * 2
    assert not plan.copies_all


def test_arrangements_by_name() -> None:
    def arranged(how: str, asked: object, parts: str = "all") -> list[int | None]:
        return layers(LayerPlan.arranged(how, asked, 12, parts))

    assert arranged("first", "4") == arranged("first", "0:4") == [0, 1, 2, 3]
    assert arranged("middle", 4) == [4, 5, 6, 7]
    assert arranged("last", " 4 ") == [8, 9, 10, 11]
    assert arranged("distilbert", 6) == [0, 2, 4, 6, 8, 10]
    assert LayerPlan.arranged("in-place", "10:12", 12) == LayerPlan.in_place([10, 11], 12)
    assert arranged("stacking", 6) == [0, 1, 2, 0, 1, 2]
    assert LayerPlan.arranged("random", 2, 12) == LayerPlan.random(2)
    assert LayerPlan.arranged("last", 2, 12, "mlp") == LayerPlan.last(2, 12, "mlp")


def test_growth_by_chosen_layers() -> None:
    assert LayerPlan.append(2, "4", depth=12) == LayerPlan.append(2, 4)
    assert taken(LayerPlan.append(1, "9,2", depth=12)) == [("target", 0), ("reference", 9), ("reference", 2)]
    assert layers(LayerPlan.append(1, [9, 2], "restart", depth=12)) == [0, 9, 2]
    with pytest.raises(PlanError, match=r"cannot append layers '9,2' of a reference of unknown depth: pass depth="):
        LayerPlan.append(1, "9,2")
    silent = LayerPlan.append(2, [2, 3], zero_output=True, depth=12)
    assert silent == LayerPlan.append(2, 4, zero_output=True)
    assert [row.zero_output for row in silent] == [False, False, True, True]
    assert not silent.copies_all
    assert str(silent).splitlines()[1:] == [
        "target      source         copied                 random  then",
        "0-1     <-  target 0-1     attention, mlp, norms  -",
        "2-3     <-  reference 2-3  attention, mlp, norms  -       output zero",
    ]
    assert LayerPlan.from_records(as_json(silent)) == silent


def test_table_says_every_row_with_both_ends() -> None:
    plan = LayerPlan.append(2, 4) + LayerPlan.from_layers([9, 7], 12, "norms, attention") + LayerPlan.random(1)
    assert str(plan).splitlines() == [
        "7 layers, numbered from 0, both ends of a range included",
        "target      source         copied                 random",
        "0-1     <-  target 0-1     attention, mlp, norms  -",
        "2-3     <-  reference 2-3  attention, mlp, norms  -",
        "4       <-  reference 9    attention, norms       mlp",
        "5       <-  reference 7    attention, norms       mlp",
        "6       <-  -              -                      attention, mlp, norms",
        "note: of the reference, out of order (layer 7 behind layer 9)",
    ]


def test_records_go_through_json_and_back() -> None:
    plan = LayerPlan.append(1, 2) + LayerPlan.first(1, 4, "mlp") + LayerPlan.random(1)
    records = as_json(plan)
    unchanged = {"zero_output": False, "revived": [], "moved": "keep"}
    rows = [
        {"target": 0, "model": "target", "source": 0, "parts": ["attention", "mlp", "norms"]},
        {"target": 1, "model": "reference", "source": 1, "parts": ["attention", "mlp", "norms"]},
        {"target": 2, "model": "reference", "source": 0, "parts": ["mlp"]},
        {"target": 3, "model": None, "source": None, "parts": []},
    ]
    assert records == [row | unchanged for row in rows]
    assert LayerPlan.from_records(records) == LayerPlan.from_records(plan.as_records()) == plan
    assert LayerPlan.from_records(rows) == plan.with_moved("as-is")  # as version 0.1 wrote it


def test_plans_are_values() -> None:
    plan = LayerPlan.first(2, 4)
    assert plan == LayerPlan.from_layers("0:2", 4) and hash(plan) == hash(LayerPlan.first(2, 4))
    with pytest.raises(AttributeError):
        plan.rows = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (20, "asked for 20 layers, the model has 16 (0-15)"),
        ("20", "asked for 20 layers, the model has 16 (0-15)"),
        ("0:20", "asked for layers 0 to 19 ('0:20'), the model has 16 (0-15)"),
        ([3, 16], "asked for layer 16, the model has 16 (0-15)"),
        ("0,99", "asked for layer 99, the model has 16 (0-15)"),
        (0, "asked for 0 layers: expected 1 or more"),
        ("-3", "asked for -3 layers: expected 1 or more"),
        ([0, -1], "layer -1 is negative: the model has 16 (0-15)"),
        ("5:5", "'5:5' holds no layers: the start must be less than the end, which is excluded"),
        (True, "True is not a layer: expected a whole number"),
        (2.0, "2.0 is not a layer: expected a whole number"),
        (["a"], "'a' is not a layer: expected a whole number"),
    ],
)
def test_wrong_layers(asked: object, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        LayerPlan.from_layers(asked, 16)
    assert str(caught.value) == line


def test_unreadable_layers_are_shown_what_can_be_written() -> None:
    with pytest.raises(
        PlanError, match=r"'0-11': expected a count \(12\), a range .* \(0:12\) .*did you mean '0:12'\?"
    ):
        LayerPlan.from_layers("0-11", 16)
    for text in ("", "a", "1,,2", "0:4;6", "-4:", "0:-1", "0:4:0", "4:0:-1"):
        with pytest.raises(PlanError, match="cannot read layers"):
            LayerPlan.from_layers(text, 16)
    with pytest.raises(PlanError, match=r"\[\] holds no layers: expected a count"):
        LayerPlan.from_layers([], 16)


def test_wrong_plans() -> None:
    with pytest.raises(PlanError, match="cannot grow 4 layers to 4: expected 5 or more"):
        LayerPlan.append(4, 4)
    with pytest.raises(PlanError, match=r"unknown growth mode 'contineu'.*did you mean 'continue'"):
        LayerPlan.append(2, 4, "contineu")
    with pytest.raises(PlanError, match="its 5 layers must be even; try 6"):
        LayerPlan.hybrid_stacking(5, 12)
    with pytest.raises(PlanError, match="the plan has no layers"):
        LayerPlan(())
    with pytest.raises(PlanError, match=r"unknown model in a plan 'refrence'.*did you mean 'reference'"):
        LayerRow("refrence", 0)
    with pytest.raises(PlanError, match="a random layer takes nothing"):
        LayerRow(None, None, ("mlp",))
    with pytest.raises(PlanError, match=r"layer 1 of the plan takes layer 5, the target has 4 \(0-3\)"):
        (LayerPlan.first(1, 4) + LayerPlan((LayerRow("target", 5),))).check({"reference": 4, "target": 4})
    with pytest.raises(PlanError, match="comes from the target model: pass target="):
        LayerPlan.stacking(2).check({"reference": 4})
    with pytest.raises(PlanError, match="layer 3 is named twice: a layer that is kept in place can stand there once"):
        LayerPlan.in_place("1,3,3", 12)
    with pytest.raises(PlanError, match="growth mode 'restart' keeps no trained layers"):
        LayerPlan.append(2, 4, "restart", zero_output=True)
    with pytest.raises(PlanError, match=r"cannot grow to 13 layers: .* 10 of its 12 are behind .* at most 12"):
        LayerPlan.append(2, "13", depth=12)
    with pytest.raises(PlanError, match=r"none of its 4 are behind .* at most 6, or the layers to append"):
        LayerPlan.append(6, 7, depth=4)
    with pytest.raises(PlanError, match=r"unknown arrangement of layers 'midle'.*did you mean 'middle'"):
        LayerPlan.arranged("midle", 4, 12)
    with pytest.raises(PlanError, match="layers '0:4' with 'middle': expected a count, for example 6"):
        LayerPlan.arranged("middle", "0:4", 12)
    with pytest.raises(PlanError, match="its 5 layers must be even; try 6"):
        LayerPlan.arranged("stacking", 5, 12)
    with pytest.raises(PlanError, match=r"asked for layer 12, the model has 12 \(0-11\)"):
        LayerPlan.arranged("stacking", 26, 12)
    with pytest.raises(PlanError, match="a plan has 'a' for a row: expected a LayerRow"):
        LayerPlan(("a",))  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=r"random layers copy nothing, parts mlp neither"):
        LayerPlan.arranged("random", 5, 12, "mlp")
    with pytest.raises(PlanError, match=r"cannot revive heads \[0\] of a layer that takes \['mlp'\]"):
        LayerRow("reference", 0, ("mlp",), revived=(0,))


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"target": 0, "model": "reference"}, "row 0 of the plan is .*: source is missing"),
        ({"target": 1, "model": "reference", "source": 0, "parts": ["mlp"]}, "is for target layer 1: expected 0"),
        (
            {"target": 0, "model": "reference", "source": None, "parts": ["mlp"]},
            "source layer None: expected 0 or more",
        ),
        ({"target": 0, "model": "reference", "source": 0, "parts": ["head"]}, "unknown part 'head'"),
        ("0", "row 0 of the plan is '0': "),
    ],
)
def test_wrong_records(record: object, line: str) -> None:
    with pytest.raises(PlanError, match=line):
        LayerPlan.from_records([record])


def test_parts() -> None:
    assert parse_parts("all") == ("attention", "mlp", "norms")
    assert parse_parts("norms, attention") == ("attention", "norms")
    assert parse_parts({"mlp"}) == ("mlp",)
    assert parse_parts(["mlp", "mlp"]) == ("mlp",)
    assert parse_parts("mlp,all") == ("attention", "mlp", "norms")
    with pytest.raises(PlanError, match="parts 3: expected 'all' or some of"):
        parse_parts(3)  # type: ignore[arg-type]
    for nothing in ("", [], ()):
        with pytest.raises(PlanError, match="no parts given: expected 'all' or some of attention, mlp, norms"):
            parse_parts(nothing)
    with pytest.raises(PlanError, match=r"unknown part 'attn'.*did you mean 'attention'"):
        parse_parts("attn,mlp")


def test_a_recommendation_stands_for_the_layers_it_keeps(tmp_path: Path) -> None:
    found = Recommendation(depth=8, start=6, cut=(3, 6, 7), reason="by hand.")
    assert layers(LayerPlan.from_layers(found, 8)) == [0, 1, 2, 4, 5]
    (tmp_path / "spectra.json").write_text(analysis_of(found))
    for named in (tmp_path, str(tmp_path), f" {tmp_path}".strip()):
        assert layers(LayerPlan.from_layers(named, 8)) == [0, 1, 2, 4, 5]
    assert [row.source for row in LayerPlan.in_place(found, 8)] == [0, 1, 2, None, 4, 5, None, None]
    line = r"the recommendation is for a model of 8 layers, this model has 16 \(0-15\): analyse this model"
    for wrong in (found, tmp_path):
        with pytest.raises(PlanError, match=line):
            LayerPlan.from_layers(wrong, 16)


def test_a_number_is_a_count_even_where_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "3" / "spectra.json").write_text(analysis_of(Recommendation(depth=8, start=1, cut=(7,), reason="")))
    assert layers(LayerPlan.from_layers("3", 8)) == [0, 1, 2]
    assert len(layers(LayerPlan.from_layers("./3", 8))) == 7


def test_folders_that_hold_no_recommendation(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"cannot read layers .*or an analysis folder \(with spectra\.json\)"):
        LayerPlan.from_layers(str(tmp_path), 8)
    with pytest.raises(PlanError, match="cannot read layers"):
        LayerPlan.from_layers("a" * 5000, 8)
    (tmp_path / "spectra.json").write_text(analysis_of(None))
    with pytest.raises(OutputError, match=r"holds no recommendation .*run inheritune analyze again") as caught:
        LayerPlan.from_layers(tmp_path, 8)
    assert "\n" not in str(caught.value)
