"""What layers cost, in the report: rows, words and the page, against a price list made by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from inheritune.records.prices import Agreement, Cost, DepthPrice, LayerPrice, OtherCut, PricesRecord
from inheritune.report import write_report
from inheritune.report.read.folders import load_analysis
from inheritune.report.read.models import load
from inheritune.report.rows.measures import cut_rows, price_rows
from inheritune.report.text import findings, tables


def cost(extra: float) -> Cost:
    return Cost(loss=2 + extra, difference=extra, ci_low=extra - 0.05, ci_high=extra + 0.05)


@pytest.fixture
def priced(study: Callable[..., Path]) -> Path:
    """The folder of an analysis of six layers, the first of which the model cannot do without."""
    folder = study()
    singles = [LayerPrice(index=0, refused="the others need it")]
    singles += [LayerPrice(index=i, cost=cost(i / 10)) for i in range(1, 6)]
    first = OtherCut(cut=(5,), loss=9.5)
    PricesRecord(
        depth=6, loss=2.0, uniform=7.0, windows=32, length=128, digest="", least=4, beam=1, confidence=0.95,
        layers=tuple(singles),
        cuts=(
            DepthPrice(depth=5, cut=(1,), cost=cost(0.1), others={"first layers": first}),
            DepthPrice(depth=4, cut=(2, 1), cost=cost(0.4), others={"first layers": OtherCut(cut=(4, 5), loss=None)}),
        ),
        path=((1, 2.1), (2, 2.4)),
        agreements=(
            Agreement(measure="MaxRank, causal mask", layers=5, correlation=-0.5, p_value=0.39),
            Agreement(measure="Block Influence", layers=5),
        ),
    ).write(folder / "prices.json")  # fmt: skip
    return folder


def test_rows_are_what_the_list_holds(priced: Path) -> None:
    analysis = load_analysis(priced)
    rows = price_rows(analysis)
    assert [(row["layer"], row["price"]) for row in rows] == [(i, i / 10) for i in range(1, 6)]
    assert rows[0]["causal"] == dict(analysis.under("causal"))[1].max_rank
    assert [(row["rule"], row["depth"], row["loss"], row["cut"]) for row in cut_rows(analysis)] == [
        ("cheapest found", 6, 2.0, "none"), ("cheapest found", 5, 2.1, "1"), ("first layers", 5, 9.5, "5"),
        ("cheapest found", 4, 2.4, "1, 2"),
    ]  # fmt: skip
    assert analysis.prices is not None
    assert tables.cuts(analysis.prices).rows[1] == ["4", "1–2", "2.400", "+0.400", "+0.350 to +0.450", "–"]
    assert findings.price_sentence(analysis.prices) == (
        "Spearman rank correlation with the price over 5 layers: MaxRank, causal mask −0.50 (p = 0.39)."
    )


def test_the_measured_cut_is_what_the_page_recommends(priced: Path, tmp_path: Path) -> None:
    advice = findings.recommendation(load([priced]).studies[0])
    assert advice is not None
    assert advice.summary == "keep 4 layers of 6 (0, 3–5); leave out 2 layers (1–2)."
    assert advice.facts[0] == ("cut", "layers 1–2 (2 of 6): loss 2.400 before training")
    assert advice.facts[-1] == ("for comparison", "the whole model's loss 2.000, uniform guessing 7.000")
    assert "--layers 0,3,4,5" in str(advice.steps[0])
    assert "'layers=[0,3,4,5]'" in str(advice.steps[1])
    write_report([priced], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "What each layer costs" in page
    assert 'id="loss-of-cuts-' in page
    (priced / "prices.json").unlink()
    write_report([priced], tmp_path / "plain.html")
    assert "What each layer costs" not in (tmp_path / "plain.html").read_text()
