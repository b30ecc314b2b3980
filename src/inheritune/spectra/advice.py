"""Which layers to keep: by what cuts cost, where that was measured; else by the paper's rule, from the rank profile.

Of the cuts on the greedy path the deepest is recommended that costs at most `ALLOWANCE` before any training, or the one
to the depth that is asked for.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from inheritune.errors import OutputError, PlanError
from inheritune.layers import plural
from inheritune.records.analysis import AnalysisRecord, Recommendation
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.spectra.folder import PART, PRICES, SPECTRA, from_record, read_analysis
from inheritune.spectra.recommend import recommend as recommend_by_rank
from inheritune.spectra.recommend import rival_cuts
from inheritune.spectra.result import BothSpectra, Spectra

ALLOWANCE = 0.5
"""Nats a token that a recommended cut may cost before training: on our reference distillation healed a cut of 0.44 to
within 0.04."""


def recommend(
    source: Spectra | BothSpectra | PricesRecord | str | Path,
    depth: int | None = None,
    *,
    keep: int | str | None = None,
    drop: int | None = None,
    allowance: float = ALLOWANCE,
) -> Recommendation:
    """Return which layers to keep.

    Args:
        source: what `analyze` returned, a record of prices, or the folder of an analysis, whose prices are used where
            it has them. Prices recommend the cheapest cut that was measured; without them the rule is the paper's,
            from the rank profile (`spectra.recommend`), or its first layers where a budget says how many.
        depth: number of layers of the model, where `source` is a result of `analyze` of a hybrid.
        keep: a number of layers that stay, or a share of them such as `80%`.
        drop: a number of layers to leave out.
        allowance: nats a token that the cut may cost before training, where no budget is given.

    Raises:
        InherituneError: `source` is something else.
        PlanError: the budget is out of range, or deeper than what was measured.
        OutputError: there is no analysis in the folder.
    """
    if isinstance(source, str | Path):
        held = read_measured(Path(source).expanduser())
        source, depth = (held, None) if isinstance(held, PricesRecord) else (from_record(held), held.depth)
    if isinstance(source, PricesRecord):
        return recommend_by_price(source, depth_of_budget(keep, drop, source.depth), allowance)
    advice = recommend_by_rank(source, depth)
    count = depth_of_budget(keep, drop, advice.depth)
    if count is None:
        return advice
    depth, cut = advice.depth, tuple(range(count, advice.depth))  # the paper's choice
    others = rival_cuts(source.parts[0].blocks, len(cut), depth)
    return Recommendation(depth=depth, start=count, cut=cut, reason="the first layers (Algorithm 1)", others=others)


def read_measured(folder: Path) -> PricesRecord | AnalysisRecord:
    """Return the prices in the folder of an analysis or a run, or else the analysis.

    Raises:
        OutputError: there is neither, one is damaged, or the pricing was stopped.
    """
    if folder.is_file():
        raise OutputError(f"{folder} is a file: expected the folder of an analysis, {folder.parent}")
    if (folder / PRICES).is_file():
        return read_record(folder / PRICES, PricesRecord)
    if (folder / PART).is_file():
        raise OutputError(f"{folder} is an analysis with --ablate that was stopped: give the same command again")
    return read_analysis(folder)


def recommend_by_price(prices: PricesRecord, keep: int | None = None, allowance: float = ALLOWANCE) -> Recommendation:
    """Return the measured cut to `keep` layers, or the deepest that costs at most `allowance` nats a token.

    Where not even one layer can go for that, it is the model as it is.

    Raises:
        PlanError: the path that was measured does not lead to `keep` layers.
    """
    fitting = [cut for cut in prices.cuts if (cut.cost.difference <= allowance if keep is None else cut.depth == keep)]
    basis = f"measured on {plural(prices.windows, 'window')} of {plural(prices.length, 'token')}"
    if not fitting and keep not in (None, prices.depth):
        least = min((cut.depth for cut in prices.cuts), default=prices.depth)
        raise PlanError(
            f"{plural(keep or 0, 'layer')} to keep: the deletions that were measured lead from {prices.depth} to "
            f"{least}; measure on with inheritune analyze --ablate --depth {keep}"
        )
    if not fitting:
        why = f"no layer can go for at most {allowance:g} nats a token before training, {basis}"
        return Recommendation(
            depth=prices.depth, start=prices.depth, cut=(), measured=True,
            reason="all layers stay" if keep else why,
        )  # fmt: skip
    chosen = min(fitting, key=lambda cut: cut.depth)
    limit = f"the deepest cut for at most {allowance:g}" if keep is None else "the cheapest cut found to this depth, in"
    cost = chosen.cost
    interval = f"{prices.confidence:.0%} interval {cost.ci_low:+.3f} to {cost.ci_high:+.3f}"
    return Recommendation(
        depth=prices.depth,
        start=chosen.depth,
        cut=tuple(sorted(chosen.cut)),
        reason=f"{limit} nats a token before training, {basis}: {cost.difference:+.3f} ({interval})",
        others={rule: other.cut for rule, other in chosen.others.items()},
        measured=True,
        order=_order(prices, chosen.cut),
        losses={"whole": prices.loss, "keep": cost.loss, **{rule: each.loss for rule, each in chosen.others.items()}},
        uniform=prices.uniform,
    )


def _order(prices: PricesRecord, cut: tuple[int, ...]) -> tuple[int, ...]:
    """Return the layers of a cut, the dearest first: against their deletion, or by what each costs by itself."""
    path = tuple(layer for layer, _ in prices.path[: len(cut)])
    if {*path} == {*cut}:
        return path[::-1]
    costs = {layer.index: layer.cost.difference for layer in prices.layers if layer.cost}
    return tuple(sorted(cut, key=lambda layer: -costs.get(layer, math.inf)))


def load_recommendation(folder: str | Path) -> Recommendation:
    """Read what the analysis in a folder recommends: by its prices where it has them, else as its record says.

    Raises:
        OutputError: there is no analysis, a file is damaged, or it holds no recommendation.
    """
    held = read_measured(Path(folder))
    if isinstance(held, PricesRecord):
        return recommend_by_price(held)
    if held.recommendation is None:
        path = Path(folder) / SPECTRA
        raise OutputError(f"{path} holds no recommendation (an older analysis?): {AnalysisRecord.AGAIN}")
    return held.recommendation


def depth_of_budget(keep: int | str | None, drop: int | None, depth: int) -> int | None:
    """Return how many of `depth` layers a budget keeps; None where there is none.

    Args:
        keep: how many stay, or a share of them with a percent sign: `24`, `"24"`, `"80%"` (to the nearest whole layer).
        drop: how many go, in place of `keep`.
        depth: the number of layers of the model.

    Raises:
        PlanError: both are given, one is no number, or none or more than all of the layers would stay.
    """
    if keep is None and drop is None:
        return None
    if keep is not None and drop is not None:
        raise PlanError(f"keep {keep} and drop {drop} are both given: expected one of them")
    if keep is None:
        count, said = depth - int(drop or 0), f"drop {drop}"
    else:
        found = re.fullmatch(r"\s*(-?\d+(?:\.\d+)?)\s*%\s*|\s*(-?\d+)\s*", str(keep))
        if isinstance(keep, bool) or found is None:
            raise PlanError(f"keep {keep!r}: expected a number of layers such as {depth} or a share such as 80%")
        count, said = (round(depth * float(found[1]) / 100) if found[1] else int(found[2])), f"keep {keep}"
        if found[1] and float(found[1]) > 100:
            raise PlanError(f"keep {keep}: expected a share of at most 100%")
    if not 1 <= count <= depth:
        least = "0" if keep is None else "1"
        most = depth - 1 if keep is None else depth
        or_share = "" if keep is None else ", or a share such as 80%"
        raise PlanError(f"{said} of {depth} layers leaves {count}: expected {least} to {most}{or_share}")
    return count
