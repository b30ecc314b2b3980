"""Attention maps worth looking at: the most potent head and the most collapsed ones (paper, Fig. 9 and 12)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from inheritune.decoder import Decoder
from inheritune.errors import PlanError
from inheritune.records.analysis import AttentionMap, Mask
from inheritune.spectra.analysis import Prepared
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.measure.rank import approximate_rank
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.capture import visit_attention

MAP_TOKENS = 128
"""Longest map, in tokens: a longer one shows nothing more on a page and its file grows with the square."""


def draw_maps(
    prepared: Prepared,
    spectra: Spectra | BothSpectra,
    tokenizer: PreTrainedTokenizerBase | None,
    heads: Sequence[tuple[int, int]],
) -> tuple[AttentionMap, ...]:
    """Return the attention matrices, on the first sequence, of a few heads for each mask and of others asked for.

    Args:
        prepared: the model and the tokens that were analysed; a map is of the first `MAP_TOKENS` of the first sequence.
        spectra: the result, which chooses the heads: `potent`, the head of the highest rank; `laziest`, the head of
            the lowest rank in the layer with the least MaxRank; and, where a collapsed head of another layer has a
            rank lower still, that head, `collapsed`. Each mask chooses its own.
        tokenizer: names the tokens; without one they have no names.
        heads: (layer, head) of more heads to show, 0-based, under every mask that was analysed.

    Returns:
        The maps of each mask in turn, (T, T), rounded to 4 decimals.

    Raises:
        PlanError: a layer or head of `heads` was not analysed.
    """
    tokens = prepared.tokens[:1, :MAP_TOKENS]
    first, more = spectra.parts[0], check_heads(heads, spectra.parts[0])
    shown = [(part, *item) for part in spectra.parts for item in (choose_heads(part) | more).items()]
    places = {(part.mask, first.layers_index[row], head) for part, _, (row, head) in shown}
    matrices: dict[tuple[Mask, int, int], Tensor] = {}

    def keep(piece: Piece) -> None:
        for mask, layer, head in places:
            local = head - piece.head
            if (mask, layer) == (piece.mask, piece.layer) and 0 <= local < piece.probabilities.shape[1]:
                matrices[mask, layer, head] = piece.probabilities[0, local].cpu().clone()

    visit_attention(prepared.decoder, tokens, [part.mask for part in spectra.parts], keep)
    ids = tokens[0].tolist()
    names = None if tokenizer is None else tuple(tokenizer.decode([token]) for token in ids)
    text = None if tokenizer is None else tokenizer.decode(ids)
    return tuple(
        AttentionMap(
            layer=(layer := first.layers_index[row]),
            head=head,
            mask=part.mask,
            role=role,
            rank=int(approximate_rank(matrices[part.mask, layer, head], part.tau)),
            mean_rank=float(part.rank[row, head]),
            tokens=names,
            text=text,
            values=tuple(tuple(round(value, 4) for value in row) for row in matrices[part.mask, layer, head].tolist()),
        )
        for part, role, (row, head) in shown
    )


def choose_heads(spectra: Spectra) -> dict[str, tuple[int, int]]:
    """Return (row of `spectra.rank`, head) of the `potent`, the `laziest` and perhaps a `collapsed` head."""
    row, heads = int(np.argmin(spectra.max_rank)), spectra.rank.shape[1]
    potent, lowest = divmod(int(np.nanargmax(spectra.rank)), heads), divmod(int(np.nanargmin(spectra.rank)), heads)
    chosen = {"potent": potent, "laziest": (row, int(np.nanargmin(spectra.rank[row])))}
    if spectra.collapsed_heads[lowest] and spectra.rank[lowest] < spectra.rank[chosen["laziest"]]:
        chosen["collapsed"] = lowest
    return chosen


def check_heads(heads: Sequence[tuple[int, int]], spectra: Spectra) -> dict[str, tuple[int, int]]:
    """Return (row of `spectra.rank`, head) of each (layer, head) asked for, by its name; PlanError if there is none."""
    chosen, known = {}, spectra.layers_index
    for layer, head in heads:
        if layer not in known:
            attending = ", ".join(map(str, known))
            raise PlanError(f"a map of layer {layer}: expected a layer that has attention, one of {attending}")
        row = known.index(layer)
        count = int((~np.isnan(spectra.rank[row])).sum())
        if not 0 <= head < count:
            raise PlanError(f"a map of head {head} of layer {layer}: expected 0 to {count - 1}")
        chosen[f"layer {layer}, head {head}"] = (row, head)
    return chosen


def check_heads_of(heads: Sequence[tuple[int, int]], decoder: Decoder) -> None:
    """Refuse by a PlanError, before an analysis, a (layer, head) that the model does not have.

    Where the heads differ from layer to layer, the configuration has no one number: `check_heads` refuses them later.
    """
    count = getattr(decoder.config, "num_attention_heads", None)
    for layer, head in heads:
        if layer >= decoder.layers:
            depth = f"{decoder.layers} (0-{decoder.layers - 1})"
            raise PlanError(f"a map of layer {layer} (--maps): the model has {depth}")
        if isinstance(count, int) and head >= count:
            raise PlanError(f"a map of head {head} of layer {layer} (--maps): it has {count} (0-{count - 1})")
