"""What `inheritune analyze --ablate` prints: the price of each layer, the cut to each depth, the recommendation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from inheritune.cli.console import print_table
from inheritune.layers import ranges
from inheritune.records.analysis import Recommendation
from inheritune.records.prices import Agreement, Cost, DepthPrice, LayerPrice, PricesRecord
from inheritune.spectra.folder import PRICES


def print_prices(prices: PricesRecord, advice: Recommendation, out: Path) -> None:
    """Print both tables, how the measures agree with the prices, and the recommendation; `out` has the file."""
    price = f"price, {prices.confidence:.0%} interval"
    typer.echo(
        f"What each layer costs, on {prices.windows} windows of {prices.length} tokens of training text: the loss is "
        f"{prices.loss:.3f} nats a token, that of uniform guessing {prices.uniform:.3f}."
    )
    print_table("", ["layer", "loss without", price], [_layer(layer) for layer in prices.layers])
    rules = list(prices.cuts[0].others) if prices.cuts else []
    typer.echo("The cheapest cut found to each depth, before training, beside the loss of other rules' cuts:")
    headers = ["layers: cut", "loss", price, *(rule.replace(" ", "\n") for rule in rules)]
    print_table("", headers, [_depth(cut, rules) for cut in prices.cuts])
    for agreement in prices.agreements:
        typer.echo(_agreement(agreement))
    typer.echo(f"Recommended: {advice}")
    typer.echo(f"Written: {out / PRICES}")


def _layer(layer: LayerPrice) -> list[str]:
    return [str(layer.index), *(["-"] * 2 if layer.cost is None else _cost(layer.cost))]


def _depth(cut: DepthPrice, rules: Sequence[str]) -> list[str]:
    losses = [cut.others[rule].loss for rule in rules]
    rivals = ["-" if loss is None else f"{loss:.3f}" for loss in losses]
    return [f"{cut.depth}: {ranges(sorted(cut.cut))}", *_cost(cut.cost), *rivals]


def _cost(cost: Cost) -> list[str]:
    return [f"{cost.loss:.3f}", f"{cost.difference:+.3f} ±{(cost.ci_high - cost.ci_low) / 2:.3f}"]


def _agreement(agreement: Agreement) -> str:
    what = f"{agreement.measure} and price over {agreement.layers} layers"
    if agreement.correlation is None or agreement.p_value is None:
        return f"{what}: no order to compare."
    return f"{what}: Spearman correlation {agreement.correlation:+.2f}, p = {agreement.p_value:.2g}."
