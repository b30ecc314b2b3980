"""What analyses show, in sentences: lazy layers, collapsed heads, what is recommended, whether two measures agree.

Every function takes records and returns text; nothing is said of a quantity that a record does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.records.analysis import Mask
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.models import Model, Sources
from inheritune.report.rows.measures import Agreement, agreements
from inheritune.report.rows.series import Row, class_rows, head_rows
from inheritune.report.text import evidence
from inheritune.report.text import format as fmt
from inheritune.report.text.steps import Step, after_analysis
from inheritune.report.text.tables import Table
from inheritune.report.text.verdict import Verdict, verdict

_SIGNIFICANT = 0.05


def opening(sources: Sources) -> Verdict:
    """Return what the page opens with: the verdict on runs, or what analyses alone show."""
    studies = sources.studies
    weak = list(dict.fromkeys(line for model in sources.shown for line in evidence.of_analysis(model.analysis)))
    if sources.runs:
        opened = verdict(sources.runs)
        notes = [*opened.notes, *map(statement, studies)]
        return Verdict(opened.outcome, opened.sentence, opened.steps, opened.cautions + weak, notes)
    advised = [(model, recommendation(model)) for model in studies]
    if len(studies) == 1:
        advice = advised[0][1]
        return Verdict("alone", statement(studies[0]), advice.steps if advice else [], weak, [])
    caution = unlike_lengths(studies)
    notes = [
        f"{statement(model)} Recommended: {advice.summary} {advice.reason}" if advice else statement(model)
        for model, advice in advised
    ]
    title = f"Attention of {len(studies)} models: {', '.join(model.label for model in studies)}."
    return Verdict("alone", title, [], weak + ([caution] if caution else []), notes)


def statement(model: Model) -> str:
    """Say how many layers are lazy and what share of the heads is collapsed, mask by mask."""
    if model.analysis is None:
        return f"{model.label} was not analysed."
    analysis = model.analysis
    parts = [
        f"under the {mask} mask {_lazy(analysis, mask)}, and {_collapsed(analysis, mask)}" for mask in analysis.masks
    ]
    return f"{model.label} (τ = {analysis.record.tau:g}): {'; '.join(parts)}."


def _lazy(analysis: Analysis, mask: Mask) -> str:
    """Return `2 of 10 layers are lazy (layers 2–3)`; layers without attention are not counted."""
    layers, number = analysis.lazy_layers(mask), len(analysis.record.layers)
    of = f"{fmt.plural(number, 'layer')}{'' if number == analysis.depth else ' with attention'}"
    if not layers:
        return f"none of {of} is lazy"
    verb, noun = ("is", "layer") if len(layers) == 1 else ("are", "layers")
    return f"{len(layers)} of {of} {verb} lazy ({noun} {fmt.ranges(layers)})"


def _collapsed(analysis: Analysis, mask: Mask) -> str:
    rows = head_rows(analysis, mask)
    count = sum(row["collapsed"] for row in rows)
    share = f"({100 * count / len(rows):.0f} %)"
    return f"{count} of {fmt.plural(len(rows), 'head')} {share} {'is' if count == 1 else 'are'} collapsed"


def unlike_lengths(models: Sequence[Model]) -> str | None:
    """Say that models were analysed on sequences of different length, whose ranks have no one scale, or None."""
    lengths = sorted({model.analysis.record.length for model in models if model.analysis is not None})
    if len(lengths) < 2:
        return None
    return (
        f"These models were analysed on sequences of different length ({', '.join(map(str, lengths))} tokens): a rank "
        "or mass can be as high as the sequence is long, so their numbers cannot be compared as they stand."
    )


@dataclass(frozen=True)
class Advice:
    """What the recommendation of one model says.

    Attributes:
        label: the model's name on the page.
        summary: one sentence; ranges of layers have both ends in them.
        reason: why, one sentence of the record.
        facts: names and values: the layers to start with, to cut, to keep where they are others, and what the
            neighbours' measures would cut.
        steps: what to do with it.
    """

    label: str
    summary: str
    reason: str
    facts: list[tuple[str, str]]
    steps: list[Step]


def recommendation(model: Model) -> Advice | None:
    """Return the recommendation that the record of an analysis holds, or None."""
    held = None if model.analysis is None else model.analysis.record.recommendation
    if held is None:
        return None
    start, cut, depth = range(held.start), held.cut, held.depth
    keep = [layer for layer in range(depth) if layer not in cut]
    words = f"start Inheritune with the first {fmt.plural(held.start, 'layer')} ({fmt.ranges(start)})"
    if cut:
        words += f"; to cut without growing, leave out {fmt.plural(len(cut), 'layer')} ({fmt.ranges(cut)})"
    facts = [("start with", _layers(start, depth)), ("cut", _layers(cut, depth))]
    if keep != list(start):
        facts.append(("keep", _layers(keep, depth)))
    facts += [(f"{name} would cut", _layers(layers, depth)) for name, layers in held.others.items()]
    reason = held.reason[:1].upper() + held.reason[1:]
    return Advice(
        model.label, f"{words}.", reason, facts, after_analysis(model.label, model.name, depth, held.start, keep)
    )


def _layers(layers: Sequence[int], depth: int) -> str:
    return f"layers {fmt.ranges(layers)} ({len(layers)} of {depth})" if layers else "none"


def analysis_table(models: Sequence[Model]) -> Table:
    """Return a row for each analysed model: its lazy layers, collapsed heads and recommended start."""
    analysed = [(model, model.analysis) for model in models if model.analysis is not None]
    shown = sorted({mask for _, analysis in analysed for mask in analysis.masks})
    columns = ["model", "layers", "heads", *(f"lazy layers, {mask}" for mask in shown)]
    columns += [*(f"collapsed heads, {mask}" for mask in shown), "sink / uniform / potent"]
    rows = [_analysis_row(model, analysis, shown) for model, analysis in analysed]
    advised = [analysis.record.recommendation for _, analysis in analysed]
    if any(advised):
        columns.append("start with")
        for row, advice in zip(rows, advised, strict=True):
            row.append(fmt.plural(advice.start, "layer") if advice else fmt.NOTHING)
    return Table(columns, rows)


def _analysis_row(model: Model, analysis: Analysis, shown: Sequence[Mask]) -> list[str]:
    own = analysis.masks
    lazy = {mask: analysis.lazy_layers(mask) for mask in own}
    classes = [row["class"] for row in class_rows(analysis)]
    counts = " / ".join(str(classes.count(name)) for name in ("sink", "uniform", "potent"))
    return [
        model.label,
        str(analysis.depth),
        str(len(head_rows(analysis, own[0]))),
        *((fmt.ranges(lazy[mask]) if lazy[mask] else "none") if mask in own else fmt.NOTHING for mask in shown),
        *(_share(analysis, mask) if mask in own else fmt.NOTHING for mask in shown),
        counts if classes else fmt.NOTHING,
    ]


def _share(analysis: Analysis, mask: Mask) -> str:
    rows = head_rows(analysis, mask)
    count = sum(row["collapsed"] for row in rows)
    return f"{count} ({100 * count / len(rows):.0f} %)"


def agreement_sentence(model: Model) -> str:
    """Say whether MaxRank and Block Influence order the layers alike, with the number of layers."""
    measured = agreements(model)
    if not measured:
        return "Too few layers have both measures to compare their orders."
    few = any(each.layers < evidence.FEW_LAYERS for each in measured)
    caution = "Correlation over so few layers is weak evidence" if few else "This is weak evidence"
    said: dict[str, list[str]] = {}
    for each in measured:
        words, numbers = _agreement(each)
        said.setdefault(words, []).append(numbers)
    sentence = "; ".join(f"{words} {' and '.join(numbers)}" for words, numbers in said.items())
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


def best_spans(rows: Sequence[Row], lengths: Sequence[int]) -> str:
    """Say which span of each of some lengths is the closest: `n = 4: layers 8–11 (0.1234)`; rows of `angular_rows`."""
    best = {row["span"]: row for row in rows if row["best"]}
    return "; ".join(
        f"n = {n}: {_named(best[n]['start'], best[n]['end'])} ({best[n]['distance']:.3f})" for n in lengths if n in best
    )


def _named(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}–{last}"
