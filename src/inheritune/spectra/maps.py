"""Attention maps worth looking at: the most potent head and the most collapsed ones (paper, Fig. 9 and 12)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inheritune.decoder import Decoder
from inheritune.errors import PlanError
from inheritune.records.analysis import Mask
from inheritune.spectra.analysis import prepare
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.measure.rank import approximate_rank
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.capture import visit_attention

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAP_TOKENS = 128
"""Longest map, in tokens: a longer one shows nothing more on a page and its file grows with the square."""


def attention_maps(
    model: PreTrainedModel | Decoder | str | Path,
    tokens: Any,
    spectra: Spectra | BothSpectra,
    tokenizer: PreTrainedTokenizerBase | None = None,
    heads: Sequence[tuple[int, int]] = (),
) -> list[dict[str, Any]]:
    """Return the attention matrices, on the first sequence, of a few heads for each mask and of others asked for.

    Args:
        model: the model that was analysed.
        tokens: the tokens that were analysed; the map is of the first `MAP_TOKENS` tokens of the first sequence.
        spectra: the result, which chooses the heads: `potent`, the head of the highest rank; `laziest`, the head of
            the lowest rank in the layer with the least MaxRank; and, where a collapsed head of another layer has a
            rank lower still, that head, `collapsed`. Each mask chooses its own.
        tokenizer: names the tokens; without one they have no names.
        heads: (layer, head) of more heads to show, 0-based, under every mask that was analysed.

    Returns:
        For each map `layer`, `head`, `mask`, `role`, `rank` (k* of this very matrix), `mean_rank` (over the
        sequences), `tokens`, `text` (of the tokens together: a character may be split over several) and `values`
        (T x T, rounded to 4 decimals).

    Raises:
        PlanError: a layer or head of `heads` was not analysed.
    """
    parts = [spectra.causal, spectra.full] if isinstance(spectra, BothSpectra) else [spectra]
    decoder, checked, _ = prepare(model, tokens, parts[0].tau, parts[0].eta, "causal")
    first = checked[:1, :MAP_TOKENS]
    more = check_heads(heads, parts[0])
    wanted = {(part.mask, role): place for part in parts for role, place in (choose_heads(part) | more).items()}
    matrices: dict[tuple[Mask, int, int], Tensor] = {}

    def keep(piece: Piece) -> None:
        for (mask, _), (row, head) in wanted.items():
            layer, local = parts[0].layers_index[row], head - piece.head
            if (mask, layer) == (piece.mask, piece.layer) and 0 <= local < piece.probabilities.shape[1]:
                matrices[mask, layer, head] = piece.probabilities[0, local].cpu().clone()

    visit_attention(decoder, first, [part.mask for part in parts], keep)
    ids = first[0].tolist()
    names = None if tokenizer is None else [tokenizer.decode([token]) for token in ids]
    text = None if tokenizer is None else tokenizer.decode(ids)
    maps = []
    for part in parts:
        for role, (row, head) in (choose_heads(part) | more).items():
            matrix = matrices[part.mask, part.layers_index[row], head]
            read = {"tokens": names, "text": text, "values": _rounded(matrix)}
            maps.append(_entry(part, role, row, head, matrix) | read)
    return maps


def choose_heads(spectra: Spectra) -> dict[str, tuple[int, int]]:
    """Return (row of `spectra.rank`, head) of the `potent`, the `laziest` and perhaps a `collapsed` head."""
    row = int(np.argmin(spectra.max_rank))
    potent, lowest = (
        tuple(map(int, np.unravel_index(int(place), spectra.rank.shape)))
        for place in (np.nanargmax(spectra.rank), np.nanargmin(spectra.rank))
    )
    laziest = (row, int(np.nanargmin(spectra.rank[row])))
    chosen = {"potent": (potent[0], potent[1]), "laziest": laziest}
    if spectra.collapsed_heads[lowest] and spectra.rank[lowest] < spectra.rank[laziest]:
        chosen["collapsed"] = (lowest[0], lowest[1])
    return chosen


def check_heads(heads: Sequence[tuple[int, int]], spectra: Spectra) -> dict[str, tuple[int, int]]:
    """Return (row of `spectra.rank`, head) of each (layer, head) that was asked for, by its name.

    Raises:
        PlanError: there is no such layer or head.
    """
    chosen = {}
    for layer, head in heads:
        if layer not in spectra.layers_index:
            known = ", ".join(map(str, spectra.layers_index))
            raise PlanError(f"a map of layer {layer}: expected a layer that has attention, one of {known}")
        row = spectra.layers_index.index(layer)
        count = int((~np.isnan(spectra.rank[row])).sum())
        if not 0 <= head < count:
            raise PlanError(f"a map of head {head} of layer {layer}: expected 0 to {count - 1}")
        chosen[f"layer {layer}, head {head}"] = (row, head)
    return chosen


def _entry(part: Spectra, role: str, row: int, head: int, matrix: Tensor) -> dict[str, Any]:
    return {
        "layer": part.layers_index[row],
        "head": head,
        "mask": part.mask,
        "role": role,
        "rank": int(approximate_rank(matrix, part.tau)),
        "mean_rank": float(part.rank[row, head]),
    }


def _rounded(matrix: Tensor) -> list[list[float]]:
    return [[round(value, 4) for value in row] for row in matrix.tolist()]
