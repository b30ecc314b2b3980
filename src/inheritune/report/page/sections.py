"""The sections of the page: which charts there are, and what stands beside them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

from inheritune.report import charts
from inheritune.report.charts.collapse import WATCHED
from inheritune.report.charts.images import ANCHORS, attention_png, data_uri, quantised
from inheritune.report.page.figures import Figures, short
from inheritune.report.read.load import Analysis, Model, Run, Sources, models
from inheritune.report.rows import measures, series
from inheritune.report.text import findings, tables
from inheritune.spectra.result import COLLAPSED_RANK

_ROLES = {
    "potent": "the head of highest rank",
    "laziest": "the lowest head of the laziest layer",
    "collapsed": "the most collapsed head",
}
_UNLIKE = 3
"""Masks whose highest values differ by more than this factor have a scale each: on one, the lower would be flat."""
_SEEN = 0.02
"""A standard error of a smaller share than this of the axis hides behind its point."""
_BANDS = 2
"""Most models whose spread over the heads can be told apart in one chart."""

Context = dict[str, Any]


def build(sources: Sources) -> tuple[Figures, Context]:
    """Return all charts of the page, and what its template shows beside them."""
    shown, figures = sources.shown, Figures()
    trained = models(sources.runs)
    references = [model.label for model in trained if model.run is None]
    palette = charts.colours(references, [model.label for model in shown if model.label not in references])
    context: Context = {
        "curves": _curves(sources.runs, trained, palette, figures),
        "watched": _watched(sources.runs, figures),
        "analysed": [model.label for model in shown if model.analysis is not None],
        "not_analysed": [model.label for model in shown if model.analysis is None],
        "analyses": findings.analysis_table(shown),
        "conditions": _conditions(shown),
        "caution": findings.unlike_lengths(shown),
        "profiles": _profiles(shown, palette, figures),
        "taus": _taus(shown, figures),
        "heads": _heads(shown, figures),
        "classes": _classes(shown, figures),
        "importance": _importance(shown, palette, figures),
        "mlp": _mlp(shown, palette, figures),
        "gradients": _gradients(shown, figures),
        "advice": [advice for advice in map(findings.recommendation, shown) if advice is not None],
        "maps": _maps(shown),
        "map_colours": ", ".join(ANCHORS),
        "collapsed_below": COLLAPSED_RANK,
    }
    return figures, context


def _curves(runs: Sequence[Run], trained: Sequence[Model], palette: dict[str, str], figures: Figures) -> Context | None:
    """Add the training curves; None when no run has a loss to draw."""
    rows = [row for run in runs for row in series.curve_rows(run)]
    if not rows:
        return None
    references = series.reference_rows(trained)
    losses = series.loss_range(rows, references)
    marks = [row for run in runs for row in series.round_rows(run)]
    figures.add("curves", charts.curves(rows, references, marks, palette, losses), "training-loss")
    return {
        "references": [row["model"] for row in references],
        "rounds": bool(marks),
        "kinds": sorted({row["kind"] for row in rows}),
        "distilled": [run.label for run in runs if run.method == "distill"],
        "bin": max(series.bin_size(run) for run in runs),
        "cut": f"{losses[1]:.2f}" if any(row["loss"] > losses[1] for row in rows) else None,
    }


def _watched(runs: Sequence[Run], figures: Figures) -> list[Context]:
    """Add the heat maps of collapse over training, for each run that was watched."""
    found = []
    for i, run in enumerate(runs):
        groups = [
            _watched_group(run, i, [("max_rank", "causal"), ("max_rank", "full")], figures),
            _watched_group(run, i, [("collapsed", "causal"), ("collapsed", "full")], figures),
            _watched_group(run, i, [("query", None), ("key", None)], figures),
        ]
        if any(groups):
            found.append({"label": run.label, "groups": [group for group in groups if group]})
    return found


def _watched_group(run: Run, i: int, wanted: list[tuple[str, str | None]], figures: Figures) -> list[str]:
    """Add the charts of one kind, which share a colour scale; nothing for what was not recorded."""
    quantities = {}
    for quantity, mask in wanted:
        rows = measures.collapse_rows(run, quantity, mask)
        kept = [row for row in rows if row["value"] > 0 or not WATCHED[quantity].logarithmic]
        if kept:
            quantities[quantity, mask] = kept
    ends = measures.value_range(
        [row for rows in quantities.values() for row in rows], WATCHED[wanted[0][0]].logarithmic
    )
    marks, ids = series.round_rows(run), []
    for (quantity, mask), rows in quantities.items():
        watched = WATCHED[quantity]
        title = f"{run.label[:20]}: {watched.title}{f', {mask} mask' if mask else ''}"
        kind = f"gradient-{quantity}" if mask is None else quantity.replace("_", "")
        name = f"{kind}-over-training-{short(run.label)}" + (f"-{mask}" if mask else "")
        chart = charts.training_map(rows, watched, marks, title, ends)
        ids.append(figures.add(f"watched-{i}-{quantity}{f'-{mask}' if mask else ''}", chart, name))
    return ids


def _masks(shown: Sequence[Model]) -> list[str]:
    return sorted({mask for model in shown if model.analysis for mask in series.masks(model.analysis)})


def _profiles(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add MaxRank and AvgMass per layer: for each quantity a chart for each mask, side by side.

    Models of different depth are also drawn over relative depth; more models than bands can be told apart of get a
    chart each with the spread over their heads.
    """
    analysed = [model for model in shown if model.analysis is not None]
    depths = {series.depth_of(model.analysis) for model in analysed if model.analysis}
    groups: list[Context] = []
    for quantity, name in charts.QUANTITIES.items():
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
    quantity: charts.Quantity,
    palette: dict[str, str],
    figures: Figures,
    heading: str,
    key: str,
    spread: bool,
) -> Context:
    rows = {mask: [row for model in shown for row in series.layer_rows(model, mask)] for mask in _masks(shown)}
    field = quantity if not spread else "rank_high" if quantity == "max_rank" else "mass_high"
    tops = _tops({mask: [row[field] for row in each] for mask, each in rows.items()})
    own, ids = f"-{key}" if key else "", []
    for mask, drawn in rows.items():
        title = f"{charts.QUANTITIES[quantity]}, {mask} mask, {_threshold(shown, quantity)}"
        chart = charts.profile(drawn, quantity, palette, title, tops[mask], spread, relative=key == "depth")
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


def _tops(values: dict[str, list[float]]) -> dict[str, float]:
    """Return the highest value to draw under each mask: one for all, or each its own where they differ much."""
    tops = {mask: max(each, default=1.0) for mask, each in values.items()}
    highest = max(tops.values(), default=1.0)
    return tops if highest > _UNLIKE * min(tops.values(), default=1.0) else dict.fromkeys(tops, highest)


def _threshold(shown: Sequence[Model], quantity: str) -> str:
    """Return `τ = 0.9` or `η = 0.9`; all values where models were analysed with different ones."""
    key, sign = ("tau", "τ") if quantity == "max_rank" else ("eta", "η")
    values = sorted({model.analysis.spectra[key] for model in shown if model.analysis})
    return f"{sign} = {' or '.join(f'{value:g}' for value in values)}"


def _conditions(shown: Sequence[Model]) -> str:
    """Say how each model was analysed; once where all were analysed alike."""
    found: dict[str, list[str]] = {}
    for model in shown:
        if model.analysis is not None:
            s = model.analysis.spectra
            text = f"τ = {s['tau']:g}, η = {s['eta']:g}, {s['sequences']} sequences of {s['length']} tokens"
            found.setdefault(text, []).append(model.label)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in found.items())


def _each(shown: Sequence[Model], draw: Callable[[int, Model, Analysis], Context | None]) -> list[Context]:
    """Return what `draw` makes of each analysed model, under its label; models without such data are left out."""
    drawn = [(model.label, draw(i, model, model.analysis)) for i, model in enumerate(shown) if model.analysis]
    return [{"label": label} | found for label, found in drawn if found]


def _taus(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add MaxRank for several tau, for each model that was analysed with several."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        rows = {mask: series.tau_rows(analysis, mask) for mask in series.masks(analysis)}
        tops = _tops({mask: [row["max_rank"] for row in each] for mask, each in rows.items() if each})
        ids = []
        for mask, drawn in rows.items():
            if drawn:
                chart = charts.tau_sweep(drawn, f"{model.label[:28]}, {mask} mask", tops[mask])
                ids.append(figures.add(f"tau-{i}-{mask}", chart, f"tau-sweep-{short(model.label)}-{mask}"))
        return {"charts": ids, "unlike": len(set(tops.values())) > 1} if ids else None

    return _each(shown, draw)


def _heads(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the heat maps of Rank: for each analysed model a chart for each mask, side by side."""
    highest = series.highest_rank(shown)

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        ids, counts = [], []
        for mask in series.masks(analysis):
            rows = series.head_rows(analysis, mask)
            title = f"{model.label[:26]}, {mask} mask, τ = {analysis.spectra['tau']:g}"
            chart = charts.rank_map(rows, highest, title)
            ids.append(figures.add(f"heads-{i}-{mask}", chart, f"rank-of-heads-{short(model.label)}-{mask}"))
            counts.append(f"{sum(row['collapsed'] for row in rows)} of {len(rows)} under the {mask} mask")
        return {"charts": ids, "counts": ", ".join(counts)}

    return _each(shown, draw)


def _classes(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the heat maps of classes, side by side: one for each model that was analysed under both masks."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        rows = series.class_rows(analysis)
        if not rows:
            return None
        chart = charts.class_map(rows, f"{model.label[:32]}: classes of heads")
        names = [row["class"] for row in rows]
        counts = ", ".join(f"{names.count(name)} {name}" for name in ("sink", "uniform", "potent"))
        return {
            "chart": figures.add(f"classes-{i}", chart, f"classes-of-heads-{short(model.label)}"),
            "counts": counts,
        }

    return _each(shown, draw)


def _importance(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> list[Context]:
    """Add Block Influence beside MaxRank and the angular distance of spans, for each model that has them."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        found: Context = {}
        rows = [row for row in measures.block_rows(model) if row["influence"] is not None]
        pairs = measures.agreement_rows(model)
        if rows:
            scale = measures.influence_scale([row["influence"] for row in rows])
            found["logarithmic"] = scale != "linear"
            chart = charts.influence(rows, palette, "Block Influence of each layer", scale)
            found["charts"] = [figures.add(f"influence-{i}", chart, f"block-influence-{short(model.label)}")]
            found["agreement"] = findings.agreement_sentence(model)
        if pairs:
            title = f"{model.label[:24]}: influence over MaxRank"
            chart = charts.agreement(pairs, palette[model.label], title, scale)
            found["charts"].append(
                figures.add(f"agreement-{i}", chart, f"block-influence-over-maxrank-{short(model.label)}")
            )
        spans = measures.angular_rows(analysis)
        if spans:
            chart = charts.angular_map(spans, f"{model.label[:24]}: angular distance")
            found["angular"] = figures.add(f"angular-{i}", chart, f"angular-distance-{short(model.label)}")
            depth = max(row["end"] for row in spans) + 1
            found["spans"] = findings.best_spans(spans, sorted({1, 2, 4, depth // 4, depth // 2} - {0}))
        return found or None

    return _each(shown, draw)


def _mlp(shown: Sequence[Model], palette: dict[str, str], figures: Figures) -> Context | None:
    """Add rank and mass of the MLPs' outputs, all models in one chart each; None where none was measured."""
    rows = [row for model in shown for row in measures.block_rows(model)]
    ids = []
    if any(row["mlp_rank"] is not None for row in rows):
        tau = _threshold(shown, "max_rank")
        chart = charts.mlp_profile(rows, "mlp_rank", palette, f"MLP rank of each layer, {tau}")
        ids.append(figures.add("mlp-rank", chart, "mlp-rank-of-each-layer"))
    if any(row["mlp_mass"] is not None for row in rows):
        eta = _threshold(shown, "avg_mass")
        chart = charts.mlp_profile(rows, "mlp_mass", palette, f"MLP mass of each layer, {eta}")
        ids.append(figures.add("mlp-mass", chart, "mlp-mass-of-each-layer"))
    known = [row for row in rows if row["mlp_rank_low"] is not None]
    top = max((row["mlp_rank"] for row in known), default=0.0)
    seen = any(row["mlp_rank_error"] > _SEEN * top for row in known)
    return {"charts": ids, "errors": bool(known), "seen": seen} if ids else None


def _gradients(shown: Sequence[Model], figures: Figures) -> list[Context]:
    """Add the gradient probe beside the bounds of Theorem H.1, for each model that was probed."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        ids, bounded, over = [], False, "layer"
        for weight, letter in (("query", "Q"), ("key", "K")):
            rows = measures.gradient_rows(analysis, weight)
            rows = [row for row in rows if row["gradient"] is not None]
            if rows:
                bounded = bounded or any(row["bound"] is not None for row in rows)
                over = measures.gradient_axis(rows)
                chart = charts.gradient_scatter(rows, f"{model.label[:24]}: ‖dL/dW_{letter}‖ of each head", over)
                ids.append(figures.add(f"gradient-{i}-{weight}", chart, f"gradient-{weight}-{short(model.label)}"))
        return {"charts": ids, "bounded": bounded, "over": over} if ids else None

    return _each(shown, draw)


def _maps(shown: Sequence[Model]) -> list[Context]:
    """Return the attention maps of each model that has any: pictures, captions and the weights under the pointer."""

    def draw(i: int, model: Model, analysis: Analysis) -> Context | None:
        maps = analysis.maps
        tokens = next((each["tokens"] for each in maps if each.get("tokens")), None)
        text = next((each["text"] for each in maps if each.get("text")), "".join(tokens or []))
        return {"maps": [_map(f"map-{i}-{j}", each) for j, each in enumerate(maps)], "text": text} if maps else None

    return _each(shown, draw)


def _map(name: str, drawn: Context) -> Context:
    return {
        "id": name,
        "picture": data_uri(attention_png(drawn["values"])),
        "bytes": base64.b64encode(quantised(drawn["values"])).decode("ascii"),
        "tokens": drawn.get("tokens"),
        "place": f"layer {drawn['layer']}, head {drawn['head']}",
        "role": _ROLES.get(drawn["role"], str(drawn["role"])),
        "mask": f"{drawn['mask']} mask",
        "rank": f"k* = {drawn['rank']} here, Rank {drawn['mean_rank']:.2f}",
        "size": len(drawn["values"]),
    }


def lenses(maps: Sequence[Context]) -> Context:
    """Return what the page's script reads a map's weights from: its bytes, and its tokens, each list of tokens once."""
    names: list[list[str] | None] = []
    places: Context = {}
    for model in maps:
        for each in model["maps"]:
            if each["tokens"] not in names:
                names.append(each["tokens"])
            places[each["id"]] = {
                "size": each["size"],
                "bytes": each["bytes"],
                "tokens": names.index(each["tokens"]),
            }
    return {"maps": places, "tokens": names}


def settings(sources: Sources) -> list[Context]:
    """Return what it takes to make each run and each analysis again."""
    import yaml

    found: list[Context] = []
    for run in sources.runs:
        recipe = run.record.get("recipe")
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "not in the record"
        found.append({"label": run.label, "pairs": tables.settings(run), "recipe": text})
    found += [
        {"label": model.label, "pairs": tables.study_settings(model), "recipe": None} for model in sources.studies
    ]
    return found
