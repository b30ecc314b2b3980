"""Charts of attention: MaxRank and AvgMass over the layers, and the rank and class of every head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from inheritune.records.analysis import Mask
from inheritune.report.charts.heads import class_map, rank_map
from inheritune.report.charts.layers import QUANTITIES, Quantity, profile, tau_sweep
from inheritune.report.page.figures import Context, Figures
from inheritune.report.read.analyses import Analysis
from inheritune.report.rows import series
from inheritune.report.text import tables

_UNLIKE = 3
"""Masks whose highest values differ by more than this factor have a scale each: on one, the lower would be flat."""
_BANDS = 2
"""Most models whose spread over the heads can be told apart in one chart."""

Analysed = Mapping[str, Analysis]
"""The analysed models of a page, by their labels."""


def profiles(analysed: Analysed, palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add MaxRank and AvgMass per layer: for each quantity a chart for each mask, side by side.

    Models of different depth are also drawn over relative depth; more models than bands can be told apart of get a
    chart each with the spread over their heads.
    """
    few = len(analysed) <= _BANDS
    groups: list[Context] = []
    for quantity, name in QUANTITIES.items() if analysed else ():
        made = [_profiles(analysed, quantity, palette, figures, f"{name} of each layer", few)]
        if len({analysis.depth for analysis in analysed.values()}) > 1:
            heading = f"{name} over relative depth"
            made.append(_profiles(analysed, quantity, palette, figures, heading, False, relative=True))
        for label, analysis in () if few else analysed.items():
            heading = f"{name} of {label}, with its heads"
            made.append(_profiles({label: analysis}, quantity, palette, figures, heading, True))
        made[0]["first"] = True
        groups += made
    return groups


def _profiles(
    analysed: Analysed,
    quantity: Quantity,
    palette: dict[str, str],
    figures: Figures,
    heading: str,
    spread: bool,
    relative: bool = False,
) -> Context:
    masks = sorted({mask for analysis in analysed.values() for mask in analysis.masks})
    rows = {
        mask: [row for label, analysis in analysed.items() for row in series.layer_rows(label, analysis, mask)]
        for mask in masks
    }
    field = f"{quantity[4:]}_high" if spread else quantity
    tops = _tops({mask: [row[field] for row in each] for mask, each in rows.items()})
    ids = []
    for mask, drawn in rows.items():
        title = f"{QUANTITIES[quantity]}, {mask} mask, {threshold(analysed, quantity)}"
        chart = profile(drawn, quantity, palette, title, tops[mask], spread, relative)
        ids.append(figures.add(chart, heading, mask))
    return {
        "quantity": quantity,
        "heading": heading,
        "charts": ids,
        "spread": spread,
        "first": False,
        "lazy": any(row["lazy"] for each in rows.values() for row in each),
        "unlike": len(set(tops.values())) > 1,
    }


def _tops(values: dict[Mask, list[float]]) -> dict[Mask, float]:
    """Return the highest value to draw under each mask: one for all, or each its own where they differ much."""
    tops = {mask: max(each, default=1.0) for mask, each in values.items()}
    highest = max(tops.values(), default=1.0)
    return tops if highest > _UNLIKE * min(tops.values(), default=1.0) else dict.fromkeys(tops, highest)


def threshold(analysed: Analysed, quantity: str) -> str:
    """Return `τ = 0.9` or `η = 0.9`; all values where models were analysed with different ones."""
    sign, name = ("τ", "tau") if quantity == "max_rank" else ("η", "eta")
    used = sorted({analysis.record[name] for analysis in analysed.values()})
    return f"{sign} = {' or '.join(f'{value:g}' for value in used)}"


def conditions(analysed: Analysed) -> str:
    """Say how each model was analysed; once where all were analysed alike."""
    alike: dict[str, list[str]] = {}
    for label, analysis in analysed.items():
        alike.setdefault(tables.conditions(analysis), []).append(label)
    if len(alike) == 1:
        return next(iter(alike))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in alike.items())


def each_analysed(analysed: Analysed, draw: Callable[[str, Analysis], Context | None]) -> list[Context]:
    """Return what `draw` makes of each analysed model, under its label; models without such data are left out."""
    drawn = {label: draw(label, analysis) for label, analysis in analysed.items()}
    return [{"label": label} | context for label, context in drawn.items() if context]


def taus(analysed: Analysed, figures: Figures) -> list[Context]:
    """Add MaxRank for several tau, for each model that was analysed with several."""

    def draw(label: str, analysis: Analysis) -> Context | None:
        rows = {mask: each for mask in analysis.masks if (each := series.tau_rows(analysis, mask))}
        tops = _tops({mask: [row["max_rank"] for row in each] for mask, each in rows.items()})
        ids = [
            figures.add(tau_sweep(each, f"{label[:28]}, {mask} mask", tops[mask]), "tau-sweep", label, mask)
            for mask, each in rows.items()
        ]
        return {"charts": ids, "unlike": len(set(tops.values())) > 1} if ids else None

    return each_analysed(analysed, draw)


def heads(analysed: Analysed, figures: Figures) -> list[Context]:
    """Add the heat maps of Rank: for each analysed model a chart for each mask, side by side."""
    highest = series.highest_rank(analysed.values())

    def draw(label: str, analysis: Analysis) -> Context:
        ids, counts = [], []
        for mask in analysis.masks:
            rows = series.head_rows(analysis, mask)
            chart = rank_map(rows, highest, f"{label[:26]}, {mask} mask, τ = {analysis.record.tau:g}")
            ids.append(figures.add(chart, "rank-of-heads", label, mask))
            counts.append(f"{sum(row['collapsed'] for row in rows)} of {len(rows)} under the {mask} mask")
        return {"charts": ids, "counts": ", ".join(counts)}

    return each_analysed(analysed, draw)


def classes(analysed: Analysed, figures: Figures) -> list[Context]:
    """Add the heat maps of classes, side by side: one for each model that was analysed under both masks."""

    def draw(label: str, analysis: Analysis) -> Context | None:
        rows = series.class_rows(analysis)
        if not rows:
            return None
        chart = class_map(rows, f"{label[:32]}: classes of heads")
        counts = ", ".join(f"{count} {name}" for name, count in series.class_counts(analysis).items())
        return {"chart": figures.add(chart, "classes-of-heads", label), "counts": counts}

    return each_analysed(analysed, draw)
