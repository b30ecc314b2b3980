"""Charts of attention: MaxRank and AvgMass over the layers, and the rank and class of every head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inheritune.records.analysis import Mask
from inheritune.report.charts.heads import class_map, rank_map
from inheritune.report.charts.layers import QUANTITIES, Quantity, profile, tau_sweep
from inheritune.report.page.figures import Context, Figures, short
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.models import Model
from inheritune.report.rows import series
from inheritune.report.text import tables

_UNLIKE = 3
"""Masks whose highest values differ by more than this factor have a scale each: on one, the lower would be flat."""
_BANDS = 2
"""Most models whose spread over the heads can be told apart in one chart."""


def profiles(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add MaxRank and AvgMass per layer: for each quantity a chart for each mask, side by side.

    Models of different depth are also drawn over relative depth; more models than bands can be told apart of get a
    chart each with the spread over their heads.
    """
    analysed = [model for model in shown if model.analysis is not None]
    depths = {model.analysis.depth for model in analysed if model.analysis}
    groups: list[Context] = []
    for quantity, name in QUANTITIES.items():
        few = len(analysed) <= _BANDS
        groups.append(_profile_group(analysed, quantity, palette, figures, f"{name} of each layer", "", few))
        if len(depths) > 1:
            heading = f"{name} over relative depth"
            groups.append(_profile_group(analysed, quantity, palette, figures, heading, "depth", False))
        if not few:
            for i, model in enumerate(analysed):
                heading = f"{name} of {model.label}, with its heads"
                groups.append(_profile_group([model], quantity, palette, figures, heading, f"{i}", True))
    return [group for group in groups if group["charts"]]


def _profile_group(
    shown: Sequence[Model],
    quantity: Quantity,
    palette: dict[str, str],
    figures: Figures,
    heading: str,
    key: str,
    spread: bool,
) -> Context:
    masks = sorted({mask for model in shown if model.analysis for mask in model.analysis.masks})
    rows = {mask: [row for model in shown for row in series.layer_rows(model, mask)] for mask in masks}
    field = quantity if not spread else "rank_high" if quantity == "max_rank" else "mass_high"
    tops = _tops({mask: [row[field] for row in each] for mask, each in rows.items()})
    own, ids = f"-{key}" if key else "", []
    for mask, drawn in rows.items():
        title = f"{QUANTITIES[quantity]}, {mask} mask, {threshold(shown, quantity)}"
        chart = profile(drawn, quantity, palette, title, tops[mask], spread, relative=key == "depth")
        name = f"{heading.replace('MaxRank', 'maxrank').replace('AvgMass', 'avgmass')[:60]}-{mask}"
        ids.append(figures.add(f"{quantity}{own}-{mask}", chart, name))
    return {
        "quantity": quantity,
        "heading": heading,
        "charts": ids,
        "spread": spread,
        "first": not key,
        "lazy": any(row["lazy"] for each in rows.values() for row in each),
        "unlike": len(set(tops.values())) > 1,
    }


def _tops(values: dict[Mask, list[float]]) -> dict[Mask, float]:
    """Return the highest value to draw under each mask: one for all, or each its own where they differ much."""
    tops = {mask: max(each, default=1.0) for mask, each in values.items()}
    highest = max(tops.values(), default=1.0)
    return tops if highest > _UNLIKE * min(tops.values(), default=1.0) else dict.fromkeys(tops, highest)


def threshold(shown: Sequence[Model], quantity: str) -> str:
    """Return `τ = 0.9` or `η = 0.9`; all values where models were analysed with different ones."""
    records = [model.analysis.record for model in shown if model.analysis]
    sign, used = (
        ("τ", {each.tau for each in records}) if quantity == "max_rank" else ("η", {each.eta for each in records})
    )
    return f"{sign} = {' or '.join(f'{value:g}' for value in sorted(used))}"


def conditions(shown: Sequence[Model]) -> str:
    """Say how each model was analysed; once where all were analysed alike."""
    alike: dict[str, list[str]] = {}
    for model in shown:
        if model.analysis is not None:
            alike.setdefault(tables.conditions(model.analysis), []).append(model.label)
    if len(alike) == 1:
        return next(iter(alike))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in alike.items())


def each_analysed(shown: Sequence[Model], draw: Callable[[int, Model, Analysis], Context | None]) -> list[Context]:
    """Return what `draw` makes of each analysed model, under its label; models without such data are left out."""
    drawn = [(model.label, draw(i, model, model.analysis)) for i, model in enumerate(shown) if model.analysis]
    return [{"label": label} | context for label, context in drawn if context]


def taus(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add MaxRank for several tau, for each model that was analysed with several."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        rows = {mask: series.tau_rows(analysis, mask) for mask in analysis.masks}
        tops = _tops({mask: [row["max_rank"] for row in each] for mask, each in rows.items() if each})
        ids = []
        for mask, drawn in rows.items():
            if drawn:
                chart = tau_sweep(drawn, f"{model.label[:28]}, {mask} mask", tops[mask])
                ids.append(figures.add(f"tau-{i}-{mask}", chart, f"tau-sweep-{short(model.label)}-{mask}"))
        return {"charts": ids, "unlike": len(set(tops.values())) > 1} if ids else None

    return each_analysed(shown, draw)


def heads(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the heat maps of Rank: for each analysed model a chart for each mask, side by side."""
    highest = series.highest_rank(shown)

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        ids, counts = [], []
        for mask in analysis.masks:
            rows = series.head_rows(analysis, mask)
            title = f"{model.label[:26]}, {mask} mask, τ = {analysis.record.tau:g}"
            chart = rank_map(rows, highest, title)
            ids.append(figures.add(f"heads-{i}-{mask}", chart, f"rank-of-heads-{short(model.label)}-{mask}"))
            counts.append(f"{sum(row['collapsed'] for row in rows)} of {len(rows)} under the {mask} mask")
        return {"charts": ids, "counts": ", ".join(counts)}

    return each_analysed(shown, draw)


def classes(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the heat maps of classes, side by side: one for each model that was analysed under both masks."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        rows = series.class_rows(analysis)
        if not rows:
            return None
        chart = class_map(rows, f"{model.label[:32]}: classes of heads")
        names = [row["class"] for row in rows]
        counts = ", ".join(f"{names.count(name)} {name}" for name in ("sink", "uniform", "potent"))
        return {
            "chart": figures.add(f"classes-{i}", chart, f"classes-of-heads-{short(model.label)}"),
            "counts": counts,
        }

    return each_analysed(shown, draw)
