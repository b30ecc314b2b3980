"""From the rank profile: with how many first layers to start Inheritune, and which layers to cut.

The rule, which a person can follow on the chart of MaxRank:

1. The lazy tail is the longest run of layers up to the last one that is a lazy group (Definition G.1: floor(AvgRank)
   is 1, so AvgRank is below 2) and that begins with a layer whose own MaxRank is below 2.
2. Start with half of the layers, Algorithm 1's default, or, where the lazy tail begins before the half, with the layers
   before it; but with no fewer than a third, the smallest share in the paper (4 of 12 layers, Table 4).
3. Cut all layers behind. Inheritune inherits a prefix, and growth appends the next layers where the cut was too deep.

The start is never above the half: growth can add layers and cannot take any away. A lazy tail that lies in the deeper
half changes no start; the reason says where it begins, because there is little to gain from growing into it.

The causal mask is considered first: it is what the model computes, and rank 1 means a sink there. Where it shows no
lazy tail that begins by the half, the full mask is considered, whose collapse the paper's figures show: rank 1 there is
a sink or near-even averaging. Where there is no lazy tail, or all layers are lazy, the start is the half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from inheritune.errors import InherituneError, PlanError
from inheritune.layers import plural, ranges
from inheritune.records.analysis import Recommendation as Recommendation
from inheritune.spectra.result import BlockMeasures, BothSpectra, Spectra

LAZY_BELOW = 2.0
"""floor(AvgRank) = 1 (Definition G.1): AvgRank is at least 1, so below 2."""
LEAST_SHARE = 3
"""No fewer than depth / 3 layers: the shallowest target in the paper has 4 of 12 (Fig. 2, Table 4)."""


def recommend(spectra: Spectra | BothSpectra, depth: int | None = None) -> Recommendation:
    """Return with how many first layers to start Inheritune and which to cut (the rule is this file's docstring).

    Args:
        spectra: what `analyze` returned. Blocks without attention (hybrid models) have no rank: they are neither lazy
            nor potent, and stay or go with the layers beside them.
        depth: number of blocks of the model; where it is None, as many as `spectra.blocks` has, or else as the last
            analysed layer says (a hybrid's blocks behind it are then not known of).

    Raises:
        InherituneError: `spectra` is something else.
        PlanError: `depth` is less than the analysed layers need.
    """
    if not isinstance(spectra, Spectra | BothSpectra):
        raise InherituneError(
            f"cannot recommend from {type(spectra).__name__}: expected what analyze returns or the folder of an "
            "analysis; of an ablation, kept(depth) says which layers stay"
        )
    first, needed = spectra.parts[0], 1 + max(spectra.parts[0].layers_index, default=0)
    if depth is None:
        depth = max(needed, first.blocks.depth if first.blocks is not None else 0)
    elif depth < needed:
        raise PlanError(f"depth is {depth}: expected at least {needed}, layer {needed - 1} was analysed")
    start, reason, profile = _decide([_Profile.of(part, depth) for part in spectra.parts])
    return Recommendation(
        depth=depth,
        start=start,
        cut=tuple(range(start, depth)),
        reason=f"{reason}{_remarks(profile, start)}.",
        others=rival_cuts(first.blocks, depth - start, depth),
    )


@dataclass(frozen=True)
class _Profile:
    """MaxRank under one mask of the layers that have one, by their index, and the model's depth."""

    ranks: dict[int, float]
    mask: str
    depth: int

    @classmethod
    def of(cls, spectra: Spectra, depth: int) -> _Profile:
        known = {
            layer: float(np.nanmax(row))
            for layer, row in zip(spectra.layers_index, spectra.rank, strict=True)
            if not np.isnan(row).all()
        }
        return cls(dict(sorted(known.items())), spectra.mask, depth)

    def average(self, start: int, end: int) -> float:
        """Return AvgRank of the layers from `start` to before `end` that have a rank."""
        return float(np.mean([rank for layer, rank in self.ranks.items() if start <= layer < end]))

    @property
    def tail(self) -> int | None:
        """Where the lazy tail begins, or None."""
        for layer, rank in self.ranks.items():
            if rank < LAZY_BELOW and self.average(layer, self.depth) < LAZY_BELOW:
                return layer
        return None

    @property
    def all_lazy(self) -> bool:
        """Whether the lazy tail holds every layer that has a rank."""
        return self.tail is not None and self.tail == min(self.ranks)


def _decide(profiles: list[_Profile]) -> tuple[int, str, _Profile]:
    """Return the start, the reason without its remarks, and the profile that decided."""
    first, depth = profiles[0], profiles[0].depth
    half = max(depth // 2, 1)
    if depth == 1:
        return 1, "the model has one layer, so there is nothing to cut", first
    default = f"so the start is Algorithm 1's default, half of the {depth} layers"
    tailed = [(profile, tail) for profile in profiles if (tail := profile.tail) is not None]
    for profile, tail in tailed:
        if tail <= half and not profile.all_lazy:
            return *_from_tail(profile, tail), profile
    for profile, tail in tailed:
        if profile.all_lazy:
            return half, f"all layers are one lazy group ({_evidence(profile, tail)}), {default}", profile
    for profile, tail in tailed:
        lazy = f"{_are(tail, depth)} lazy ({_evidence(profile, tail)}), fewer than half"
        return half, f"{lazy}, {default}, and growth beyond {plural(tail, 'layer')} would only reach into them", profile
    if not any(profile.ranks for profile in profiles):
        return half, f"no layer has a rank, {default}", first
    masks = " or the ".join(profile.mask for profile in profiles)
    return half, f"no run of layers at the end is lazy (AvgRank below 2) under the {masks} mask, {default}", first


def _from_tail(profile: _Profile, tail: int) -> tuple[int, str]:
    """Return the start and the reason where the lazy tail begins by the half."""
    before = f"{profile.average(0, tail):.2f} for the layers before"
    lazy = f"{_are(tail, profile.depth)} lazy ({_evidence(profile, tail)}; {before})"
    least = -(-profile.depth // LEAST_SHARE)
    if tail >= least:
        return tail, lazy
    return least, f"{lazy}, and a third of the {profile.depth} layers is the least that the paper starts with"


def _evidence(profile: _Profile, start: int) -> str:
    meaning = "a sink" if profile.mask == "causal" else "a sink or even averaging"
    average = profile.average(start, profile.depth)
    return f"AvgRank {average:.2f} under the {profile.mask} mask, where rank 1 is {meaning}"


def _remarks(profile: _Profile, start: int) -> str:
    """Return what the decision leaves out: lazy layers among those that stay, and layers without attention."""
    lazy = [layer for layer, rank in profile.ranks.items() if layer < start and rank == 1.0]
    without = profile.depth - len(profile.ranks)
    remarks = ""
    if lazy and not profile.all_lazy:
        verb, too = "is" if len(lazy) == 1 else "are", "" if profile.tail is None else " too"
        remarks += f"; of the layers that stay, {ranges(lazy)} {verb} lazy{too} under the {profile.mask} mask"
    if without and profile.ranks:
        remarks += f"; {plural(without, 'layer')} without attention {'has' if without == 1 else 'have'} no rank"
    return remarks


def rival_cuts(blocks: BlockMeasures | None, count: int, depth: int) -> dict[str, tuple[int, ...]]:
    """Return which `count` of `depth` layers the measures of other papers would cut, where they are known."""
    others: dict[str, tuple[int, ...]] = {}
    if blocks is None or count == 0 or blocks.depth != depth:
        return others
    if not np.isnan(blocks.influence).any():
        others["Block Influence"] = tuple(blocks.least_influential(count))
    if not np.isnan(blocks.angular_distance[: depth - count + 1, count]).any():
        others["angular distance"] = tuple(blocks.nearest_span(count))
    return others


def _are(start: int, depth: int) -> str:
    return f"layer {start} is" if start == depth - 1 else f"layers {start}-{depth - 1} are"
