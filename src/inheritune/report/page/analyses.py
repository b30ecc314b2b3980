"""Charts of analyses: attention over the layers and of every head, whole blocks and their MLPs, attention maps."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

from inheritune.records.analysis import AttentionMap, Mask
from inheritune.report.charts import analysis as charts
from inheritune.report.charts.analysis import QUANTITIES, Quantity
from inheritune.report.charts.maps import attention_png, data_uri, quantised
from inheritune.report.page.figures import Context, Figures
from inheritune.report.read.folders import Analysis
from inheritune.report.rows import measures, series
from inheritune.report.text import findings, tables
from inheritune.report.text import format as fmt

_UNLIKE = 3
"""Masks whose highest values differ by more than this factor have a scale each: on one, the lower would be flat."""
_BANDS = 2
"""Most models whose spread over the heads can be told apart in one chart."""
_SEEN = 0.02
"""A standard error of a smaller share than this of the axis hides behind its point."""
_MLP = (("mlp_rank", "MLP rank of each layer", "max_rank"), ("mlp_mass", "MLP mass of each layer", "avg_mass"))
_ROLES = {
    "potent": "the head of highest rank",
    "laziest": "the head of lowest rank in the laziest layer",
    "collapsed": "the most collapsed head",
}

Analysed = Mapping[str, Analysis]
"""The analysed models of a page, by their labels."""


def profiles(analysed: Analysed, figures: Figures) -> list[Context]:
    """Add MaxRank and AvgMass per layer: for each quantity a chart for each mask, side by side.

    Models of different depth are also drawn over relative depth; more models than bands can be told apart of get a
    chart each with the spread over their heads.
    """
    few = len(analysed) <= _BANDS
    groups: list[Context] = []
    for quantity, name in QUANTITIES.items() if analysed else ():
        groups.append(_profiles(analysed, quantity, figures, f"{name} of each layer", few))
        if len({analysis.depth for analysis in analysed.values()}) > 1:
            heading = f"{name} over relative depth"
            groups.append(_profiles(analysed, quantity, figures, heading, False, relative=True))
        for label, analysis in () if few else analysed.items():
            heading = f"{name} of {label}, with its heads"
            groups.append(_profiles({label: analysis}, quantity, figures, heading, True))
    return groups


def _profiles(
    analysed: Analysed, quantity: Quantity, figures: Figures, heading: str, spread: bool, relative: bool = False
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
        chart = charts.profile(drawn, quantity, figures.palette, title, tops[mask], spread, relative)
        ids.append(figures.add(chart, heading, mask))
    return {
        "quantity": quantity,
        "heading": heading,
        "charts": ids,
        "spread": spread,
        "lazy": any(row["lazy"] for each in rows.values() for row in each),
        "unlike": len(set(tops.values())) > 1,
    }


def _tops(values: dict[Mask, list[float]]) -> dict[Mask, float]:
    """Return the highest value to draw under each mask: one for all, or each its own where they differ much."""
    tops = {mask: max(each) for mask, each in values.items()}
    highest, lowest = max(tops.values(), default=1.0), min(tops.values(), default=1.0)
    return tops if highest > _UNLIKE * lowest else dict.fromkeys(tops, highest)


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


def each_analysed(
    analysed: Analysed, figures: Figures, draw: Callable[[str, Analysis, Figures], Context | None]
) -> list[Context]:
    """Return what `draw` makes of each analysed model, under its label; models without such data are left out."""
    drawn = {label: draw(label, analysis, figures) for label, analysis in analysed.items()}
    return [{"label": label} | context for label, context in drawn.items() if context]


def taus(label: str, analysis: Analysis, figures: Figures) -> Context | None:
    """Add MaxRank for several tau, for a model that was analysed with several."""
    rows = {mask: each for mask in analysis.masks if (each := series.tau_rows(analysis, mask))}
    tops = _tops({mask: [row["max_rank"] for row in each] for mask, each in rows.items()})
    ids = [
        figures.add(charts.tau_sweep(each, f"{label[:28]}, {mask} mask", tops[mask]), "tau-sweep", label, mask)
        for mask, each in rows.items()
    ]
    return {"charts": ids, "unlike": len(set(tops.values())) > 1} if ids else None


def heads(label: str, analysis: Analysis, figures: Figures, highest: float) -> Context:
    """Add the heat maps of Rank, a chart for each mask, side by side; `highest` is the end of their colour scale."""
    ids, counts = [], []
    for mask in analysis.masks:
        rows = series.head_rows(analysis, mask)
        chart = charts.rank_map(rows, highest, f"{label[:26]}, {mask} mask, τ = {analysis.record.tau:g}")
        ids.append(figures.add(chart, "rank-of-heads", label, mask))
        counts.append(f"{sum(row['collapsed'] for row in rows)} of {len(rows)} under the {mask} mask")
    return {"charts": ids, "counts": ", ".join(counts)}


def classes(label: str, analysis: Analysis, figures: Figures) -> Context | None:
    """Add the heat map of classes, for a model that was analysed under both masks."""
    rows = series.class_rows(analysis)
    if not rows:
        return None
    chart = charts.class_map(rows, f"{label[:32]}: classes of heads")
    counts = ", ".join(f"{count} {name}" for name, count in series.class_counts(analysis).items())
    return {"chart": figures.add(chart, "classes-of-heads", label), "counts": counts}


def prices(label: str, analysis: Analysis, figures: Figures) -> Context | None:
    """Add what each layer costs and the loss of the cut to each depth, for a model whose layers were left out."""
    rows, cuts, held = measures.price_rows(analysis), measures.cut_rows(analysis), analysis.prices
    if held is None or not rows:
        return None
    ids = [figures.add(charts.prices(rows, f"{label[:24]}: price of each layer"), "price-of-layers", label)]
    if len(cuts) > 1:
        chart = charts.cuts(cuts, held.uniform, f"{label[:24]}: loss of cuts before training")
        ids.append(figures.add(chart, "loss-of-cuts", label))
    return {"charts": ids, "agreement": findings.price_sentence(held), "table": tables.cuts(held), "prices": held}


def importance(label: str, analysis: Analysis, figures: Figures) -> Context:
    """Add Block Influence beside MaxRank and the angular distance of spans, for a model that has them."""
    return _influence(label, analysis, figures) | _angles(label, analysis, figures)


def _influence(label: str, analysis: Analysis, figures: Figures) -> Context:
    rows = [row for row in measures.block_rows(label, analysis) if row["influence"] is not None]
    if not rows:
        return {}
    scale = measures.influence_scale([row["influence"] for row in rows])
    chart = charts.influence(rows, figures.palette, "Block Influence of each layer", scale)
    ids = [figures.add(chart, "block-influence", label)]
    pairs = measures.agreement_rows(analysis)
    if pairs:
        chart = charts.agreement(pairs, figures.palette[label], f"{label[:24]}: influence over MaxRank", scale)
        ids.append(figures.add(chart, "block-influence-over-maxrank", label))
    return {"charts": ids, "logarithmic": scale != "linear", "agreement": findings.agreement_sentence(analysis)}


def _angles(label: str, analysis: Analysis, figures: Figures) -> Context:
    spans = measures.angular_rows(analysis)
    if not spans:
        return {}
    depth = max(row["end"] for row in spans) + 1
    return {
        "angular": figures.add(charts.angular_map(spans, f"{label[:24]}: angular distance"), "angular-distance", label),
        "spans": findings.best_spans(spans, sorted({1, 2, 4, depth // 4, depth // 2} - {0})),
    }


def mlp(analysed: Analysed, figures: Figures) -> Context | None:
    """Add rank and mass of the MLPs' outputs, all models in one chart each; None where none was measured."""
    rows = [row for label, analysis in analysed.items() for row in measures.block_rows(label, analysis)]
    ids = [
        figures.add(charts.mlp_profile(rows, name, figures.palette, f"{title}, {threshold(analysed, like)}"), title)
        for name, title, like in _MLP
        if any(row[name] is not None for row in rows)
    ]
    known = [row for row in rows if row["mlp_rank_low"] is not None]
    top = max((row["mlp_rank"] for row in known), default=0.0)
    seen = any(row["mlp_rank_error"] > _SEEN * top for row in known)
    return {"charts": ids, "errors": bool(known), "seen": seen} if ids else None


def gradients(label: str, analysis: Analysis, figures: Figures) -> Context | None:
    """Add the gradient probe beside the bounds of Theorem H.1, for a model that was probed."""
    ids, bounded, over = [], False, "layer"
    for weight in ("query", "key"):
        rows = [row for row in measures.gradient_rows(analysis, weight) if row["gradient"] is not None]
        if rows:
            bounded = bounded or any(row["bound"] is not None for row in rows)
            over = measures.gradient_axis(rows)
            title = f"{label[:24]}: ‖dL/dW_{weight[0].upper()}‖ of each head"
            ids.append(figures.add(charts.gradient_scatter(rows, title, over), f"gradient-{weight}", label))
    return {"charts": ids, "bounded": bounded, "over": over} if ids else None


def maps(analysed: Analysed) -> list[Context]:
    """Return the attention maps of each model that has any, with the text they are of."""
    made: list[Context] = []
    for i, (label, analysis) in enumerate(analysed.items()):
        tokens = next((each.tokens for each in analysis.maps if each.tokens), ())
        text = next((each.text for each in analysis.maps if each.text), "".join(tokens))
        pictures = [_map(f"map-{i}-{j}", each) for j, each in enumerate(analysis.maps)]
        made += [{"label": label, "maps": pictures, "text": text}] if pictures else []
    return made


def _map(name: str, drawn: AttentionMap) -> Context:
    own = fmt.NOTHING if drawn.rank is None else f"{drawn.rank:g}"
    mean = fmt.NOTHING if drawn.mean_rank is None else f"{drawn.mean_rank:.2f}"
    return {
        "id": name,
        "picture": data_uri(attention_png(drawn.values)),
        "bytes": base64.b64encode(quantised(drawn.values).tobytes()).decode("ascii"),
        "tokens": drawn.tokens,
        "place": f"layer {drawn.layer}, head {drawn.head}",
        "role": _ROLES.get(drawn.role, drawn.role),
        "mask": f"{drawn.mask} mask",
        "rank": f"k* = {own} here, Rank {mean}",
        "size": len(drawn.values),
    }


def weights(shown: Sequence[Context]) -> Context:
    """Return what the page's script reads a map's weights from: its bytes, and its tokens, each list of tokens once."""
    drawn = [each for model in shown for each in model["maps"]]
    tokens = list(dict.fromkeys(each["tokens"] for each in drawn))
    by_id = {
        each["id"]: {"size": each["size"], "bytes": each["bytes"], "tokens": tokens.index(each["tokens"])}
        for each in drawn
    }
    return {"maps": by_id, "tokens": tokens}
