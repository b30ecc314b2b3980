"""What `inheritune analyze` prints: the record of an analysis, and that of prices, as tables and lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import typer

from inheritune.cli.console import print_table
from inheritune.layers import ranges
from inheritune.records.analysis import AnalysisRecord, AttentionMap, LayerAnalysis, MapsRecord, Recommendation
from inheritune.records.prices import Cost, PricesRecord
from inheritune.spectra.folder import MAPS, PRICES, SPECTRA
from inheritune.spectra.result import COLLAPSED_RANK
from inheritune.storage import IDENTITY


def print_analysis(model: str, record: AnalysisRecord, drawn: MapsRecord, out: Path, recommended: bool) -> None:
    """Print the table of layers, what it comes to, a line on each further thing that was asked for, and the files.

    Args:
        model: what the user called it.
        record: what `spectra.json` holds.
        drawn: what `maps.json` holds.
        out: their folder.
        recommended: whether the cut that the ranks recommend is printed.
    """
    columns = ["layer", *(f"{mask}\n{name}" for mask in record.masks for name in ("MaxRank", "AvgMass", "coll."))]
    columns += ["block\ninfluence", "MLP\nrank"]
    title = f"{model}: {record.sequences} sequences of {record.length} tokens, tau {record.tau}, eta {record.eta}"
    layers = {layer.index: layer for layer in record.layers}
    print_table(title, columns, [_row(record, layers.get(i), i) for i in range(record.depth or 0)])
    for mask in record.masks:
        typer.echo(_summary(mask, {layer.index: layer[mask].rank for layer in record.layers}))
    classes = [name for layer in record.layers for name in layer.classes or ()]
    if classes:
        counts = ", ".join(f"{classes.count(name)} {name}" for name in ("sink", "uniform", "potent"))
        typer.echo(f"Heads: {counts}.")
    if recommended:
        typer.echo(f"Recommended: {record.recommendation}")
    _print_more(record, drawn, out)


def _row(record: AnalysisRecord, layer: LayerAnalysis | None, index: int) -> list[str]:
    """Return a line of the table: what was measured of a block, a dash for what it does not have."""
    cells = [str(index)]
    for mask in record.masks:
        if layer is None:
            cells += ["-"] * 3
            continue
        part = layer[mask]
        cells += [f"{part.max_rank:.2f}{' lazy' if part.lazy else ''}", f"{part.avg_mass:.1f}"]
        cells.append(f"{_collapsed(part.rank)}/{len(part.rank)}")
    if record.blocks is not None:
        influence, rank = record.blocks[index].influence, record.blocks[index].mlp_rank
        cells += ["-" if influence is None else f"{influence:.3f}", "-" if rank is None else f"{rank:.1f}"]
    return cells


def _collapsed(ranks: Sequence[float]) -> int:
    return sum(rank < COLLAPSED_RANK for rank in ranks)


def _summary(mask: str, ranks: dict[int, tuple[float, ...]]) -> str:
    """Return one line on a mask from the ranks of each layer's heads: its lazy layers and its collapsed heads."""
    lazy = [layer for layer, heads in ranks.items() if max(heads) == 1]
    nearly = [layer for layer, heads in ranks.items() if 1 < max(heads) < 2]
    also = f"; nearly lazy (MaxRank below 2): {', '.join(map(str, nearly))}" if nearly else ""
    heads = [rank for layer in ranks.values() for rank in layer]
    collapsed = f"{_collapsed(heads)} of {len(heads)} heads collapsed ({_collapsed(heads) / len(heads):.0%})"
    listed = ", ".join(map(str, lazy)) or "none"
    return f"{mask.capitalize()}: lazy layers (MaxRank 1): {listed}{also}; {collapsed}."


def _print_more(record: AnalysisRecord, drawn: MapsRecord, out: Path) -> None:
    for tau in record.taus[1:]:
        ranks = {mask: {each.index: each[mask].ranks[f"{tau:g}"] for each in record.layers} for mask in record.masks}
        lines = " ".join(_summary(mask, ranks[mask]) for mask in record.masks)
        typer.echo(f"At tau {tau:g}: {lines} Ranks: `ranks` in {out / SPECTRA}.")
    if record.gradients is not None:
        sides = "; ".join(_gradients(record, side) for side in ("query", "key"))
        run = record.gradients
        typer.echo(f"Gradients on {run.sequences} sequences, loss {run.loss:.3f} nats a token: {sides}.")
    masks = [f"{mask} {', '.join(_place(each) for each in drawn.maps if each.mask == mask)}" for mask in record.masks]
    typer.echo(f"Maps (layer.head): {'; '.join(masks)}.")
    size, data = f"{record.sequences} sequences of {record.length} tokens", record.data
    if data is not None and data.tokens is not None:
        size = f"{data.tokens:,} tokens; {size} drawn with seed {data.seed}"
    typer.echo(f"Text: {data and data.source}, {size}.")
    typer.echo(f"Written: {', '.join(str(out / name) for name in (SPECTRA, MAPS, IDENTITY))}")


def _place(drawn: AttentionMap) -> str:
    place = f"{drawn.layer}.{drawn.head}"
    return place if drawn.role.startswith("layer") else f"{place} ({drawn.role})"


def _gradients(record: AnalysisRecord, side: str) -> str:
    """Return how far the gradients of the heads' queries or keys lie under the bounds of Theorem H.1."""
    layers = [layer.gradients for layer in record.layers if layer.gradients is not None]
    pairs = [pair for layer in layers for pair in zip(layer[side], layer[f"{side}_bound"], strict=True)]
    times = [bound / norm for norm, bound in pairs if norm and bound]
    if not times:
        return f"{side} of 0 heads without the bound of Theorem H.1"
    least, middle, most = (_rounded(value) for value in np.quantile(times, [0, 0.5, 1]))
    spread = f"{least} to {most} times (median {middle}) under"
    return f"{side} of {len(times)} heads {spread} the bound of Theorem H.1"


def _rounded(value: float) -> str:
    """Return three significant digits, thousands separated: `8,720`, `3.14`."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


def print_prices(prices: PricesRecord, advice: Recommendation, out: Path) -> None:
    """Print both tables, how the measures agree with the prices, and the recommendation; `out` has the file."""
    price = f"price, {prices.confidence:.0%} interval"
    typer.echo(
        f"What each layer costs, on {prices.windows} windows of {prices.length} tokens of training text: the loss is "
        f"{prices.loss:.3f} nats a token, that of uniform guessing {prices.uniform:.3f}."
    )
    print_table(
        "", ["layer", "loss without", price], [[str(layer.index), *_cost(layer.cost)] for layer in prices.layers]
    )
    rules = list(prices.cuts[0].others) if prices.cuts else []
    typer.echo("The cheapest cut found to each depth, before training, beside the loss of other rules' cuts:")
    headers = ["layers: cut", "loss", price, *(rule.replace(" ", "\n") for rule in rules)]
    rows = []
    for cut in prices.cuts:
        losses = (cut.others[rule].loss for rule in rules)
        rivals = ("-" if loss is None else f"{loss:.3f}" for loss in losses)
        rows.append([f"{cut.depth}: {ranges(sorted(cut.cut))}", *_cost(cut.cost), *rivals])
    print_table("", headers, rows)
    for each in prices.agreements:
        said = "no order to compare"
        if each.correlation is not None and each.p_value is not None:
            said = f"Spearman correlation {each.correlation:+.2f}, p = {each.p_value:.2g}"
        typer.echo(f"{each.measure} and price over {each.layers} layers: {said}.")
    typer.echo(f"Recommended: {advice}")
    typer.echo(f"Written: {out / PRICES}")


def _cost(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["-", "-"]
    return [f"{cost.loss:.3f}", f"{cost.difference:+.3f} ±{(cost.ci_high - cost.ci_low) / 2:.3f}"]
