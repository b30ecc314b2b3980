"""The recommendation on profiles worked out by hand, some of the shape that the paper reports."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from inheritune.errors import InherituneError, OutputError, PlanError
from inheritune.layers import ranges
from inheritune.records.analysis import Recommendation
from inheritune.spectra.advice import load_recommendation
from inheritune.spectra.measure.blocks import BlockMeasures
from inheritune.spectra.recommend import recommend
from inheritune.spectra.result import BothSpectra, Spectra
from tiny import analysis_of

SINK = "where rank 1 is a sink"
AVERAGE = "where rank 1 is a sink or even averaging"


def spectra(
    max_rank: list[float],
    mask: str = "causal",
    index: tuple[int, ...] | None = None,
    blocks: BlockMeasures | None = None,
) -> Spectra:
    """Return spectra of two heads, of which the second has the MaxRank."""
    table = np.stack([np.ones(len(max_rank)), max_rank], axis=1)
    table[np.isnan(max_rank)] = np.nan
    places = index or tuple(range(len(table)))
    return Spectra(table, table, 0.9, 0.9, mask, 4, 8, places, blocks=blocks)  # type: ignore[arg-type]


MEDIUM = [9.0] * 12 + [5.0] * 9 + [1.0] * 3
"""GPT-2 Medium: 24 layers, 3 of the last 12 of rank 1."""
SCATTERED = [9.0] * 12 + [5.0, 5.0, 1.0] * 3 + [5.0] * 3
XLARGE = [10.0] * 24 + [1.0] * 6 + [6.0] + [1.0] * 9 + [6.0] + [1.0] * 7
"""GPT-2 XLarge: 48 layers, 22 of the last 24 of rank 1: AvgRank of those 24 is (22 + 2 * 6) / 24 = 1.42."""


def test_the_papers_xlarge_starts_with_the_24_layers_that_the_paper_starts_with() -> None:
    found = recommend(spectra(XLARGE))
    assert (found.depth, found.start, found.cut, found.keep) == (48, 24, tuple(range(24, 48)), tuple(range(24)))
    assert found.reason == (
        f"layers 24-47 are lazy (AvgRank 1.42 under the causal mask, {SINK}; 10.00 for the layers before)."
    )


def test_the_papers_medium_starts_with_12_and_says_where_growth_meets_the_lazy_tail() -> None:
    found = recommend(spectra(MEDIUM))
    assert (found.start, found.cut) == (12, tuple(range(12, 24)))
    assert found.reason == (
        f"layers 21-23 are lazy (AvgRank 1.00 under the causal mask, {SINK}), fewer than half, so the start is "
        "Algorithm 1's default, half of the 24 layers, and growth beyond 21 layers would only reach into them."
    )


def test_lazy_layers_that_are_no_tail_change_nothing() -> None:
    found = recommend(spectra(SCATTERED))
    assert found.start == 12
    assert found.reason == (
        "no run of layers at the end is lazy (AvgRank below 2) under the causal mask, so the start is Algorithm 1's "
        "default, half of the 24 layers."
    )


@pytest.mark.parametrize(
    ("max_rank", "start", "lazy"),
    [
        ([8.0] * 5 + [1.0] * 7, 5, "5-11"),  # before the half: the tail decides
        ([8.0] * 6 + [1.0] * 6, 6, "6-11"),
        ([8.0] * 4 + [1.9, 8.0] + [1.0] * 6, 4, "4-11"),  # from layer 4 on AvgRank is 15.9 / 8, below 2 by a hair
        ([8.0] * 4 + [1.9, 8.2] + [1.0] * 6, 6, "6-11"),  # 16.1 / 8 is not, and layer 5 is not lazy itself
        ([8.0] * 2 + [1.0] * 10, 4, "2-11"),  # a third of 12 is the least
        ([8.0] * 6 + [2.0] * 6, 6, None),  # AvgRank 2 is not lazy
        ([8.0] * 6 + [1.0] * 5 + [8.0], 6, None),  # 13 / 6, then 12 / 5, 11 / 4, 10 / 3, 9 / 2: never below 2
    ],
)
def test_where_the_lazy_tail_begins(max_rank: list[float], start: int, lazy: str | None) -> None:
    found = recommend(spectra(max_rank))
    assert (found.start, found.keep) == (start, tuple(range(start)))
    assert found.reason.startswith(f"layers {lazy} are lazy" if lazy else "no run of layers at the end is lazy")


def test_a_third_is_the_least_and_says_so() -> None:
    assert recommend(spectra([8.0] * 2 + [1.0] * 10)).reason == (
        f"layers 2-11 are lazy (AvgRank 1.00 under the causal mask, {SINK}; 8.00 for the layers before), and a third "
        "of the 12 layers is the least that the paper starts with; of the layers that stay, 2-3 are lazy too under the "
        "causal mask."
    )


def test_the_causal_mask_is_asked_first_and_the_reason_names_the_mask() -> None:
    causal, full = [9.0] * 5 + [1.0] * 7, [7.0] * 4 + [1.0] * 8
    both = recommend(BothSpectra(spectra(causal), spectra(full, "full")))
    assert both.start == 5 and SINK in both.reason
    full_alone = recommend(BothSpectra(spectra([9.0] * 12), spectra(full, "full")))
    assert full_alone.start == 4
    assert full_alone.reason.startswith(f"layers 4-11 are lazy (AvgRank 1.00 under the full mask, {AVERAGE};")
    assert recommend(spectra(full, "full")) == full_alone
    neither = recommend(BothSpectra(spectra([9.0] * 12), spectra([9.0] * 12, "full")))
    assert "(AvgRank below 2) under the causal or the full mask" in neither.reason


def test_a_short_causal_tail_leaves_the_decision_to_a_long_full_one() -> None:
    found = recommend(BothSpectra(spectra([9.0] * 11 + [1.0]), spectra([7.0] * 4 + [1.0] * 8, "full")))
    assert found.start == 4 and "under the full mask" in found.reason
    short = recommend(BothSpectra(spectra([9.0] * 11 + [1.0]), spectra([9.0] * 10 + [1.0] * 2, "full")))
    assert short.reason.startswith("layer 11 is lazy (AvgRank 1.00 under the causal mask") and short.start == 6


def test_all_layers_lazy_tells_nothing_apart() -> None:
    found = recommend(spectra([1.0] * 8))
    assert found.start == 4
    assert found.reason == (
        f"all layers are one lazy group (AvgRank 1.00 under the causal mask, {SINK}), so the start is Algorithm 1's "
        "default, half of the 8 layers."
    )


def test_lazy_layers_that_stay_are_named() -> None:
    found = recommend(spectra([1.0, 20.0, 20.0, 1.0, 20.0, 20.0] + [1.0] * 6))
    assert found.start == 6
    assert found.reason.endswith("; of the layers that stay, 0, 3 are lazy too under the causal mask.")


@pytest.mark.parametrize(
    ("max_rank", "start", "cut"),
    [([5.0], 1, ()), ([1.0], 1, ()), ([5.0, 1.0], 1, (1,)), ([5.0, 5.0], 1, (1,)), ([1.0, 1.0], 1, (1,)),
     ([5.0, 5.0, 1.0], 1, (1, 2))],
)  # fmt: skip
def test_shallow_models(max_rank: list[float], start: int, cut: tuple[int, ...]) -> None:
    found = recommend(spectra(max_rank))
    assert (found.start, found.cut) == (start, cut)
    assert "\n" not in found.reason and found.reason.endswith(".")


def test_a_model_of_one_layer_says_so() -> None:
    assert recommend(spectra([3.0])).reason == "the model has one layer, so there is nothing to cut."


def test_layers_without_a_rank() -> None:
    found = recommend(spectra([9.0, np.nan, 9.0, 9.0, np.nan, 1.0, 1.0, 1.0]))
    assert found.reason.startswith("layers 5-7 are lazy")
    assert found.reason.endswith("; 2 layers without attention have no rank.")
    nothing = recommend(spectra([np.nan] * 4))
    assert nothing.start == 2
    assert nothing.reason == "no layer has a rank, so the start is Algorithm 1's default, half of the 4 layers."


def test_a_hybrid_model_is_cut_at_a_layer_with_attention() -> None:
    """12 blocks with attention in 2, 5, 8 and 11: the tail begins at layer 5, and 3 and 4 have no say."""
    profile = spectra([9.0, 1.0, 1.0, 1.5], index=(2, 5, 8, 11))
    found = recommend(profile)
    assert (found.depth, found.start) == (12, 5)
    assert found.reason == (
        f"layers 5-11 are lazy (AvgRank 1.17 under the causal mask, {SINK}; 9.00 for the layers before); 8 layers "
        "without attention have no rank."
    )
    assert recommend(profile, depth=14).cut == tuple(range(5, 14))
    with pytest.raises(PlanError, match="depth is 8: expected at least 12, layer 11 was analysed"):
        recommend(profile, depth=8)


def measures(influence: list[float], spans: dict[tuple[int, int], float]) -> BlockMeasures:
    depth = len(influence)
    distance = np.full((depth, depth + 1), np.nan)
    for layer in range(depth):
        distance[layer, 1 : depth - layer + 1] = 0.5
    for place, value in spans.items():
        distance[place] = value
    empty = np.full(depth, np.nan)
    return BlockMeasures(np.array(influence), distance, empty, empty, empty)


def test_what_the_neighbours_would_cut_stands_beside_it() -> None:
    blocks = measures([0.5, 0.1, 0.2, 0.4], {(1, 2): 0.1})
    found = recommend(spectra([5.0, 5.0, 1.0, 1.0], blocks=blocks))
    assert found.others == {"Block Influence": (1, 2), "angular distance": (1, 2)}
    assert str(found).splitlines() == [
        "start with 2 layers of 4, numbered from 0, both ends of a range included",
        "                            ranges  layers",
        "keep                        0-1     0, 1",
        "cut                         2-3     2, 3",
        "Block Influence would cut   1-2     1, 2",
        "angular distance would cut  1-2     1, 2",
        f"why: layers 2-3 are lazy (AvgRank 1.00 under the causal mask, {SINK}; 5.00 for the layers before).",
        "note: the paper's rule of thumb, unmeasured: analyze --ablate measures what each layer costs",
        "how: --layers 0:2 (the end is excluded)",
    ]
    unknown = recommend(spectra([5.0, 5.0, 1.0, 1.0], blocks=measures([0.5, np.nan, 0.2, 0.4], {(0, 2): np.nan})))
    assert unknown.others == {}


def test_the_depth_comes_from_the_blocks_where_they_were_measured() -> None:
    found = recommend(spectra([9.0, 9.0], index=(1, 3), blocks=measures([0.1] * 6, {})))
    assert (found.depth, found.start) == (6, 3)


def test_layers_that_stay_may_have_gaps() -> None:
    found = Recommendation(depth=8, start=6, cut=(3, 6, 7), reason="by hand.")
    assert (found.keep, list(found), len(found)) == ((0, 1, 2, 4, 5), [0, 1, 2, 4, 5], 5)
    assert found.option == "0:3,4:6"
    assert found.rows()[:2] == [("keep", "0-2, 4-5", "", "0, 1, 2, 4, 5"), ("cut", "3, 6-7", "", "3, 6, 7")]
    assert (ranges([]), ranges([4])) == ("-", "4")


def test_records_go_through_json_and_back() -> None:
    for found in (recommend(spectra(MEDIUM)), recommend(spectra([5.0, 1.0], blocks=measures([0.1, 0.2], {})))):
        record = json.loads(json.dumps(found.as_json()))
        assert record["keep"] == list(found.keep)
        assert Recommendation.model_validate(record) == found


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({"depth": 4}, "start"),
        ({"depth": 4, "start": 2, "cut": [2, 4], "reason": ""}, r"start 2 and cut \(2, 4\) do not fit a model of 4"),
        ({"depth": 4, "start": 2, "cut": [-1], "reason": ""}, "do not fit"),
        ({"depth": 4, "start": 0, "cut": [], "reason": ""}, "start 0 and cut"),
        ({"depth": 2, "start": 1, "cut": [0, 1], "reason": ""}, "do not fit"),
        ({"depth": 10**15, "start": 1, "cut": [], "reason": ""}, "depth"),
    ],
)
def test_wrong_records(record: object, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Recommendation.model_validate(record)


def test_it_is_layers_and_a_record() -> None:
    found = Recommendation(depth=4, start=2, cut=(2, 3), reason="by hand.")
    assert (found["keep"], found.get("start"), dict(found)["cut"]) == ((0, 1), 2, (2, 3))
    assert 1 in found and "cut" in found and 2 not in found and "kept" not in found


def test_a_recommendation_is_read_from_the_analysis_folder(tmp_path: Path) -> None:
    found = recommend(spectra(MEDIUM))
    path = tmp_path / "spectra.json"
    path.write_text(analysis_of(found))
    assert load_recommendation(tmp_path) == found
    whole = json.loads(analysis_of(found))
    path.write_text(json.dumps(whole | {"schema": 1, "recommendation": None}))
    with pytest.raises(OutputError, match=r"spectra\.json holds no recommendation .*run inheritune analyze again"):
        load_recommendation(tmp_path)
    path.write_text(json.dumps(whole | {"recommendation": {"depth": 4}}))
    with pytest.raises(
        OutputError, match=r"spectra\.json .*recommendation\.start is missing.*run inheritune analyze again"
    ):
        load_recommendation(tmp_path)
    path.write_text(json.dumps(whole | {"recommendation": {"depth": 4, "start": 5, "cut": [], "reason": ""}}))
    with pytest.raises(OutputError, match=r"spectra\.json .*start 5 .* 4 layers\): run inheritune analyze again"):
        load_recommendation(tmp_path)
    with pytest.raises(OutputError, match="no file"):
        load_recommendation(tmp_path / "nowhere")


def test_lazy_layers_that_stay_are_lazy_too_only_beside_lazy_layers_that_go() -> None:
    text = recommend(spectra([1.0, 9.0, 1.0, 9.0, 9.0, 9.0])).reason
    assert "no run of layers at the end is lazy" in text
    assert text.endswith("; of the layers that stay, 0, 2 are lazy under the causal mask.")
    assert "0 is lazy too under" in recommend(spectra([1.0, 9.0, 9.0, 1.0, 1.0, 1.0])).reason


@pytest.mark.parametrize("wrong", [None, "analysis", [1.0]])
def test_what_is_no_result_of_an_analysis_is_refused(wrong: object) -> None:
    with pytest.raises(InherituneError, match=r"cannot recommend from \w+: expected what analyze returns"):
        recommend(wrong)  # type: ignore[arg-type]
