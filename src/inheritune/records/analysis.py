"""`spectra.json` and `maps.json`: what an analysis of a model's attention writes."""

from __future__ import annotations

from typing import Literal

from inheritune.records.base import Document, Environment, Record

Mask = Literal["causal", "full"]
"""`causal`: what the model computes. `full`: the softmax of the very same logits without the mask."""

HeadClass = Literal["sink", "uniform", "potent"]


class LayerMeasures(Record):
    """One layer under one mask; lists have an entry for each head."""

    rank: tuple[float, ...]
    mass: tuple[float, ...]
    max_rank: float
    avg_mass: float
    lazy: bool
    rank_error: tuple[float | None, ...] | None = None
    entropy: tuple[float | None, ...] | None = None
    stable_rank: tuple[float | None, ...] | None = None
    sink_column: tuple[float | None, ...] | None = None
    sink_epsilon: tuple[float | None, ...] | None = None
    ranks: dict[str, tuple[float, ...]] = {}
    """The rank at each tau that was asked for."""


class LayerGradients(Record):
    """Norms of the gradients of one layer's heads, and their bounds (Theorem H.1)."""

    query: tuple[float | None, ...]
    key: tuple[float | None, ...]
    query_bound: tuple[float | None, ...]
    key_bound: tuple[float | None, ...]


class LayerAnalysis(Record):
    """One layer that has attention."""

    index: int
    causal: LayerMeasures | None = None
    full: LayerMeasures | None = None
    classes: tuple[HeadClass, ...] | None = None
    gradients: LayerGradients | None = None


class BlockAnalysis(Record):
    """One whole block; see `BlockMeasures`."""

    index: int
    influence: float | None = None
    mlp_rank: float | None = None
    mlp_rank_error: float | None = None
    mlp_mass: float | None = None


class RecommendationRecord(Record):
    """Which layers to keep; see `Recommendation`."""

    depth: int
    start: int
    cut: tuple[int, ...]
    keep: tuple[int, ...] = ()
    reason: str
    others: dict[str, tuple[int, ...]] = {}


class AnalysedText(Record):
    """Where the analysed tokens are from."""

    source: str | None = None
    tokens: int | None = None
    """In all of the source."""
    seed: int | None = None


class AnalysisRecord(Document):
    """`spectra.json`."""

    KIND = "analysis"
    SCHEMA = 2
    AGAIN = "run inheritune analyze again"

    model: str | None = None
    identity: str | None = None
    depth: int | None = None
    tau: float
    taus: tuple[float, ...] = ()
    eta: float
    sequences: int
    length: int
    masks: tuple[Mask, ...]
    layers: tuple[LayerAnalysis, ...]
    blocks: tuple[BlockAnalysis, ...] | None = None
    angular_distance: tuple[tuple[float | None, ...], ...] | None = None
    """Row l: the distances from the input of block l to that of block l + n, n = 1, 2, ..."""
    recommendation: RecommendationRecord | None = None
    data: AnalysedText | None = None
    environment: Environment = Environment()
    created: str | None = None


class AttentionMap(Record):
    """The attention of one head on one sequence."""

    layer: int
    head: int
    mask: Mask
    role: str
    rank: int | None = None
    mean_rank: float | None = None
    tokens: tuple[str, ...] | None = None
    text: str | None = None
    values: tuple[tuple[float, ...], ...]
    """T x T."""


class MapsRecord(Document):
    """`maps.json`, beside `spectra.json`."""

    KIND = "maps"
    AGAIN = "run inheritune analyze again"

    maps: tuple[AttentionMap, ...]
