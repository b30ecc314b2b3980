"""What analyses show, in sentences: lazy layers, collapsed heads, what is recommended, whether two measures agree.

Every function takes records and returns text; nothing is said of a quantity that a record does not have.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.report.read.load import Analysis, Model, Sources
from inheritune.report.rows.measures import Agreement, agreements
from inheritune.report.rows.series import class_rows, depth_of, head_rows, masks
from inheritune.report.text import format as fmt
from inheritune.report.text.tables import Table
from inheritune.report.text.verdict import Verdict, lazy_layers, verdict

_SIGNIFICANT = 0.05
_FEW_LAYERS = 30


def opening(sources: Sources) -> Verdict:
    """Return what the page opens with: the verdict on runs, or what analyses alone show."""
    if sources.runs:
        found = verdict(sources.runs)
        return Verdict(found.outcome, found.sentence, [*found.notes, *map(statement, sources.studies)])
    if len(sources.studies) == 1:
        return Verdict("alone", statement(sources.studies[0]), _recommended(sources.studies[0]))
    labels = ", ".join(model.label for model in sources.studies)
    notes = [" ".join([statement(model), *_recommended(model)]) for model in sources.studies]
    caution = unlike_lengths(sources.studies)
    notes += [caution] if caution else []
    return Verdict("alone", f"Attention of {len(sources.studies)} models: {labels}.", notes)


def statement(model: Model) -> str:
    """Say how many layers are lazy and what share of the heads is collapsed, mask by mask."""
    if model.analysis is None:
        return f"{model.label} was not analysed."
    analysis = model.analysis
    found = "; ".join(
        f"under the {mask} mask {_lazy(analysis, mask)}, and {_collapsed(analysis, mask)}" for mask in masks(analysis)
    )
    return f"{model.label} (τ = {analysis.spectra['tau']:g}): {found}."


def _lazy(analysis: Analysis, mask: str) -> str:
    """Return `2 of 10 layers are lazy (2–3)`; layers without attention are not counted."""
    layers, number = lazy_layers(analysis, mask), len(analysis.spectra["layers"])
    noun = "layer" if len(layers) == 1 else "layers"
    of = f"{fmt.plural(number, 'layer')}{'' if number == depth_of(analysis) else ' with attention'}"
    if not layers:
        return f"none of {of} is lazy"
    return f"{len(layers)} of {of} {'is' if len(layers) == 1 else 'are'} lazy ({noun} {fmt.ranges(layers)})"


def _collapsed(analysis: Analysis, mask: str) -> str:
    rows = head_rows(analysis, mask)
    count = sum(row["collapsed"] for row in rows)
    verb = "is" if count == 1 else "are"
    return f"{count} of {fmt.plural(len(rows), 'head')} ({100 * count / len(rows):.0f} %) {verb} collapsed"


def unlike_lengths(models: Sequence[Model]) -> str | None:
    """Say that models were analysed on sequences of different length, whose ranks have no one scale, or None."""
    lengths = sorted({model.analysis.spectra["length"] for model in models if model.analysis is not None})
    if len(lengths) < 2:
        return None
    return (
        f"These models were analysed on sequences of different length ({', '.join(map(str, lengths))} tokens): a rank "
        "or mass can be as high as the sequence is long, so their numbers cannot be compared as they stand."
    )


def _recommended(model: Model) -> list[str]:
    advice = recommendation(model)
    return [] if advice is None else [f"Recommended: {advice.summary} {advice.reason}"]


@dataclass(frozen=True)
class Advice:
    """What the recommendation of one model says.

    Attributes:
        label: the model's name on the page.
        summary: one sentence; ranges of layers have both ends in them.
        reason: why, one sentence of the record.
        facts: names and values: the layers to start with, to cut, to keep where they are others, and what the
            neighbours' measures would cut.
        commands: what to run, each with what it does.
    """

    label: str
    summary: str
    reason: str
    facts: list[tuple[str, str]]
    commands: list[tuple[str, str]]


def recommendation(model: Model) -> Advice | None:
    """Return the recommendation that the record of an analysis holds, or None."""
    held = None if model.analysis is None else model.analysis.recommendation
    if held is None:
        return None
    start, cut, keep, depth = held.start, held.cut, held.keep, held.depth
    words = f"start Inheritune with the first {fmt.plural(start, 'layer')} ({fmt.ranges(range(start))})"
    if cut:
        words += f"; to cut without growing, leave out {fmt.plural(len(cut), 'layer')} ({fmt.ranges(cut)})"
    facts = [("start with", _layers(range(start), depth)), ("cut", _layers(cut, depth))]
    if keep != tuple(range(start)):
        facts.append(("keep", _layers(keep, depth)))
    facts += [(f"{name} would cut", _layers(layers, depth)) for name, layers in held.others.items()]
    reason = held.reason[:1].upper() + held.reason[1:]
    return Advice(model.label, f"{words}.", reason, facts, _commands(model, start, cut, keep))


def _layers(layers: Sequence[int], depth: int) -> str:
    return f"layers {fmt.ranges(layers)} ({len(layers)} of {depth})" if layers else "none"


def _commands(model: Model, start: int, cut: Sequence[int], keep: Sequence[int]) -> list[tuple[str, str]]:
    """Return commands; a count and a list of layers are used, since a range there has its end excluded."""
    name = shlex.quote(model.name or "MODEL")
    reference = shlex.quote(f"reference={model.name or 'MODEL'}")
    found = [("grow from the first layers", f"inheritune run RECIPE.yaml --set {reference} --set layers={start}")]
    if cut and keep:
        chosen = str(len(keep)) if list(keep) == list(range(len(keep))) else ",".join(map(str, keep))
        found.append(("cut", f"inheritune inherit {name} --layers {chosen} --out DIR"))
    return found


def analysis_table(models: Sequence[Model]) -> Table:
    """Return a row for each analysed model: its lazy layers, collapsed heads and recommended start."""
    analysed = [model for model in models if model.analysis is not None]
    shown = sorted({mask for model in analysed if model.analysis for mask in masks(model.analysis)})
    columns = ["model", "layers", "heads", *(f"lazy layers, {mask}" for mask in shown)]
    columns += [*(f"collapsed heads, {mask}" for mask in shown), "sink / uniform / potent"]
    rows = [_analysis_row(model, model.analysis, shown) for model in analysed if model.analysis]
    advised = [(model.analysis.recommendation if model.analysis else None) for model in analysed]
    if any(advised):
        columns.append("start with")
        for row, advice in zip(rows, advised, strict=True):
            row.append(fmt.plural(advice.start, "layer") if advice else fmt.NOTHING)
    return Table(columns, rows)


def _analysis_row(model: Model, analysis: Analysis, shown: Sequence[str]) -> list[str]:
    own = masks(analysis)
    return [
        model.label,
        str(depth_of(analysis)),
        str(len(head_rows(analysis, own[0]))),
        *((fmt.ranges(lazy_layers(analysis, mask)) or "none") if mask in own else fmt.NOTHING for mask in shown),
        *(_share(analysis, mask) if mask in own else fmt.NOTHING for mask in shown),
        _class_counts(analysis),
    ]


def _share(analysis: Analysis, mask: str) -> str:
    rows = head_rows(analysis, mask)
    count = sum(row["collapsed"] for row in rows)
    return f"{count} ({100 * count / len(rows):.0f} %)"


def _class_counts(analysis: Analysis) -> str:
    names = [row["class"] for row in class_rows(analysis)]
    return " / ".join(str(names.count(name)) for name in ("sink", "uniform", "potent")) if names else fmt.NOTHING


def agreement_sentence(model: Model) -> str:
    """Say whether MaxRank and Block Influence order the layers alike, with the number of layers."""
    found = agreements(model)
    if not found:
        return "Too few layers have both measures to compare their orders."
    few = any(each.layers < _FEW_LAYERS for each in found)
    caution = "Correlation over so few layers is weak evidence" if few else "This is weak evidence"
    said: dict[str, list[str]] = {}
    for each in found:
        words, evidence = _agreement(each)
        said.setdefault(words, []).append(evidence)
    sentence = "; ".join(f"{words} {' and '.join(evidence)}" for words, evidence in said.items())
    return (
        f"MaxRank and Block Influence {sentence}. {caution}: neighbouring layers are alike, "
        "so that p is smaller than it should be."
    )


def _agreement(each: Agreement) -> tuple[str, str]:
    """Return what to say of two orders, and under which mask with which numbers."""
    where = f"under the {each.mask} mask"
    if each.correlation is None or each.p_value is None:
        return "cannot be compared", f"{where}, since one of them is the same for all {each.layers} layers"
    clear = each.p_value < _SIGNIFICANT
    words = "show no clear agreement" if not clear else "agree" if each.correlation > 0 else "disagree"
    rho = f"{each.correlation:.2f}".replace("-", "−")
    p = "p < 0.001" if each.p_value < 0.001 else f"p = {each.p_value:.2g}"
    return words, f"{where} (Spearman rank correlation {rho}, n = {each.layers} layers, {p})"


def best_spans(rows: Sequence[dict[str, Any]], lengths: Sequence[int]) -> str:
    """Say which span of each of some lengths is the closest: `n = 4: layers 8–11 (0.1234)`; rows of `angular_rows`."""
    best = {row["span"]: row for row in rows if row["best"]}
    return "; ".join(
        f"n = {n}: {_named(best[n]['start'], best[n]['end'])} ({best[n]['distance']:.3f})" for n in lengths if n in best
    )


def _named(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}–{last}"
