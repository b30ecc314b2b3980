"""What analyses show, in sentences: lazy layers, collapsed heads, what is recommended, whether two measures agree.

Every function takes records and returns text; nothing is said of a quantity that a record does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from inheritune.layers import plural
from inheritune.records.analysis import Mask, Recommendation
from inheritune.records.prices import PricesRecord
from inheritune.report.read.folders import Analysis
from inheritune.report.read.models import Model, Sources
from inheritune.report.rows.measures import agreements
from inheritune.report.rows.series import Row, class_counts, head_rows
from inheritune.report.text import format as fmt
from inheritune.report.text import steps
from inheritune.report.text.frontier import frontier_notes, frontier_verdict
from inheritune.report.text.steps import Step
from inheritune.report.text.tables import Table
from inheritune.report.text.verdict import Verdict, verdict

_SIGNIFICANT = 0.05


def opening(sources: Sources) -> Verdict:
    """Return what the page opens with: the verdict on runs, or what analyses alone show."""
    studies, analysed = sources.studies, sources.analysed
    weak = list(dict.fromkeys(line for analysis in analysed.values() for line in steps.weak_analysis(analysis)))
    said = [statement(model.label, analysed[model.label]) for model in studies]
    trained = [pair for pair in sources.frontiers if not pair[1].shipped]
    said += [f"{each.name}: {frontier_verdict(each)}" for _, each in sources.frontiers if each.shipped]
    if trained:
        folder, record = trained[0]
        chosen = folder / (record.smallest or record.points[0]).run
        opened = verdict(sources.runs, next(run for run in sources.runs if run.path == chosen))
        first, *more = [frontier_verdict(each) for _, each in trained]
        notes = [*more, *frontier_notes(record), *opened.notes, *said]
        return replace(opened, sentence=first, cautions=opened.cautions + weak, notes=notes)
    if sources.runs:
        opened = verdict(sources.runs)
        return replace(opened, cautions=opened.cautions + weak, notes=opened.notes + said)
    if not studies:
        return Verdict("alone", said[0], [], [], said[1:])
    advised = [recommendation(model) for model in studies]
    if len(studies) == 1:
        return Verdict("alone", said[0], advised[0].steps if advised[0] else [], weak, [])
    caution = unlike_lengths(analysed)
    notes = [
        f"{text} Recommended: {advice.summary} {advice.reason}" if advice else text
        for text, advice in zip(said, advised, strict=True)
    ]
    title = f"Attention of {len(studies)} models: {', '.join(analysed)}."
    return Verdict("alone", title, [], weak + ([caution] if caution else []), notes)


def statement(label: str, analysis: Analysis) -> str:
    """Say how many layers are lazy and what share of the heads is collapsed, mask by mask."""
    parts = []
    for mask in analysis.masks:
        count, heads, share = _share(analysis, mask)
        collapsed = f"{count} of {plural(heads, 'head')} ({share}) {'is' if count == 1 else 'are'} collapsed"
        parts.append(f"under the {mask} mask {_lazy(analysis, mask)}, and {collapsed}")
    return f"{label} (τ = {analysis.record.tau:g}): {'; '.join(parts)}."


def _lazy(analysis: Analysis, mask: Mask) -> str:
    """Return `2 of 10 layers are lazy (layers 2–3)`; layers without attention are not counted."""
    layers, number = analysis.lazy_layers(mask), len(analysis.record.layers)
    of = f"{plural(number, 'layer')}{'' if number == analysis.depth else ' with attention'}"
    if not layers:
        return f"none of {of} is lazy"
    verb, noun = ("is", "layer") if len(layers) == 1 else ("are", "layers")
    return f"{len(layers)} of {of} {verb} lazy ({noun} {fmt.ranges(layers)})"


def _share(analysis: Analysis, mask: Mask) -> tuple[int, int, str]:
    """Return the numbers of collapsed heads and of all heads, and the share of the former."""
    collapsed = [row["collapsed"] for row in head_rows(analysis, mask)]
    return sum(collapsed), len(collapsed), f"{100 * sum(collapsed) / len(collapsed):.0f} %"


def unlike_lengths(analysed: Mapping[str, Analysis]) -> str | None:
    """Say that models were analysed on sequences of different length, whose ranks have no one scale, or None."""
    lengths = sorted({analysis.record.length for analysis in analysed.values()})
    if len(lengths) < 2:
        return None
    return (
        f"These models were analysed on sequences of different length ({', '.join(map(str, lengths))} tokens): a rank "
        "or mass can be as high as the sequence is long, so their numbers cannot be compared as they stand."
    )


@dataclass(frozen=True)
class Advice:
    """What the recommendation of one model says."""

    label: str
    summary: str
    """One sentence; ranges of layers have both ends in them."""
    reason: str
    facts: list[tuple[str, str]]
    """The layers to start with, to cut, to keep where they are others, and what other papers' measures would cut."""
    steps: list[Step]


def recommendation(model: Model) -> Advice | None:
    """Return the recommendation that the record of an analysis holds, or None."""
    held = None if model.analysis is None else model.analysis.advice
    if held is None:
        return None
    start, cut, depth = range(held.start), held.cut, held.depth
    words = f"start Inheritune with the first {plural(held.start, 'layer')} ({fmt.ranges(start)})"
    if held.measured:
        words = f"keep {plural(len(held), 'layer')} of {depth} ({fmt.ranges(held.keep)})"
    if cut:
        verb = "leave out" if held.measured else "to cut without growing, leave out"
        words += f"; {verb} {plural(len(cut), 'layer')} ({fmt.ranges(cut)})"
    facts = [] if held.measured else [("start with", _layers(start, depth))]
    facts.append(("cut", _layers(cut, depth) + _loss(held, "keep")))
    if held.keep != tuple(start):
        facts.append(("keep", _layers(held.keep, depth)))
    facts += [(f"{name} would cut", _layers(cut, depth) + _loss(held, name)) for name, cut in held.others.items()]
    if (whole := held.losses.get("whole")) is not None and held.uniform is not None:
        facts.append(("for comparison", f"the whole model's loss {whole:.3f}, uniform guessing {held.uniform:.3f}"))
    reason = ". ".join(text[:1].upper() + text[1:].rstrip(".") for text in (held.reason, *held.warnings())) + "."
    return Advice(model.label, f"{words}.", reason, facts, steps.after_analysis(model))


def _loss(advice: Recommendation, name: str) -> str:
    loss = advice.losses.get(name)
    return "" if loss is None else f": loss {loss:.3f} before training"


def _layers(layers: Sequence[int], depth: int) -> str:
    return f"layers {fmt.ranges(layers)} ({len(layers)} of {depth})" if layers else "none"


def analysis_table(analysed: Mapping[str, Analysis]) -> Table:
    """Return a row for each analysed model: its lazy layers, collapsed heads and recommended start."""
    shown = sorted({mask for analysis in analysed.values() for mask in analysis.masks})
    columns = ["model", "layers", "heads", *(f"lazy layers, {mask}" for mask in shown)]
    columns += [*(f"collapsed heads, {mask}" for mask in shown), "sink / uniform / potent"]
    rows = [_analysis_row(label, analysis, shown) for label, analysis in analysed.items()]
    advised = [analysis.advice for analysis in analysed.values()]
    if any(advised):
        columns.append("start with")
        for row, advice in zip(rows, advised, strict=True):
            row.append(plural(advice.start, "layer") if advice else fmt.NOTHING)
    return Table(columns, rows)


def _analysis_row(label: str, analysis: Analysis, shown: Sequence[Mask]) -> list[str]:
    lazy, collapsed = dict.fromkeys(shown, fmt.NOTHING), dict.fromkeys(shown, fmt.NOTHING)
    for mask in analysis.masks:
        lazy[mask] = fmt.ranges(layers) if (layers := analysis.lazy_layers(mask)) else "none"
        count, heads, share = _share(analysis, mask)
        collapsed[mask] = f"{count} ({share})"
    counts = " / ".join(map(str, class_counts(analysis).values())) or fmt.NOTHING
    return [label, str(analysis.depth), str(heads), *lazy.values(), *collapsed.values(), counts]


def agreement_sentence(analysis: Analysis) -> str:
    """Say whether MaxRank and Block Influence order the layers alike, with the number of layers."""
    measured = agreements(analysis)
    if not measured:
        return "Too few layers have both measures to compare their orders."
    said: dict[str, list[str]] = {}
    for mask, layers, correlation, p_value in measured:
        if correlation is None or p_value is None:
            words, numbers = "cannot be compared", f", since one of them is the same for all {layers} layers"
        else:
            words = "agree" if correlation > 0 else "disagree"
            words = words if p_value < _SIGNIFICANT else "show no clear agreement"
            rho, p = _spearman(correlation, p_value)
            numbers = f" (Spearman rank correlation {rho}, n = {layers} layers, {p})"
        said.setdefault(words, []).append(f"under the {mask} mask{numbers}")
    few = any(layers < steps.FEW_LAYERS for _, layers, *_ in measured)
    caution = "Correlation over so few layers is weak evidence" if few else "This is weak evidence"
    sentence = "; ".join(f"{words} {' and '.join(numbers)}" for words, numbers in said.items())
    return (
        f"MaxRank and Block Influence {sentence}. {caution}: neighbouring layers are alike, "
        "so that p is smaller than it should be."
    )


def _spearman(correlation: float, p_value: float) -> tuple[str, str]:
    """Return a rank correlation and its p value in words: `−0.50`, `p = 0.39`."""
    return f"{correlation:.2f}".replace("-", "−"), "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def price_sentence(prices: PricesRecord) -> str:
    """Say whether each measure orders the layers as their prices do."""
    said = []
    for each in prices.agreements:
        if each.correlation is None or each.p_value is None:
            continue
        rho, p = _spearman(each.correlation, each.p_value)
        said.append(f"{each.measure} {rho} ({p})")
    if not said:
        return ""
    most = max(each.layers for each in prices.agreements)
    return f"Spearman rank correlation with the price over {plural(most, 'layer')}: {', '.join(said)}."


def best_spans(rows: Sequence[Row], lengths: Sequence[int]) -> str:
    """Say which span of each of some lengths is the closest: `n = 4: layers 8–11 (0.1234)`; rows of `angular_rows`."""
    best = {row["span"]: row for row in rows if row["best"]}
    parts = []
    for n in lengths:
        if n in best:
            layers = range(best[n]["start"], best[n]["end"] + 1)
            parts.append(f"n = {n}: layer{'s'[: n > 1]} {fmt.ranges(layers)} ({best[n]['distance']:.3f})")
    return "; ".join(parts)
