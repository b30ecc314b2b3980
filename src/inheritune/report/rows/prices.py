"""Rows of what layers cost: each by itself, beside other measures, and the cut to each depth."""

from __future__ import annotations

from inheritune.report.read.analyses import Analysis
from inheritune.report.rows.series import Row

MEASURED = "cheapest found"
"""What the chart calls the cut of lowest loss."""


def price_rows(analysis: Analysis) -> list[Row]:
    """Return the price of each layer with its interval, MaxRank under each mask, Block Influence; none unmeasured."""
    if analysis.prices is None:
        return []
    ranks = {mask: {index: part.max_rank for index, part in analysis.under(mask)} for mask in analysis.masks}
    influence = {block.index: block.influence for block in analysis.record.blocks or ()}
    rows: list[Row] = []
    for layer in analysis.prices.layers:
        if (cost := layer.cost) is not None:
            row: Row = {"layer": layer.index, "price": cost.difference, "low": cost.ci_low, "high": cost.ci_high}
            rows.append(row | {"influence": influence.get(layer.index)} | {m: ranks[m].get(layer.index) for m in ranks})
    return rows


def cut_rows(analysis: Analysis) -> list[Row]:
    """Return the loss of the cut to each depth before training: the cheapest found, and those of other rules."""
    if analysis.prices is None:
        return []
    rows: list[Row] = [{"rule": MEASURED, "depth": analysis.prices.depth, "loss": analysis.prices.loss, "cut": "none"}]
    for price in analysis.prices.cuts:
        found = {MEASURED: (sorted(price.cut), price.cost.loss)}
        found |= {
            rule: (sorted(other.cut), other.loss) for rule, other in price.others.items() if other.loss is not None
        }
        rows += [
            {"rule": rule, "depth": price.depth, "loss": loss, "cut": ", ".join(map(str, cut))}
            for rule, (cut, loss) in found.items()
        ]
    return rows
