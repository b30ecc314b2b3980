"""Analyse a decoder: run token sequences through it and measure every head's attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from inheritune.decoder import Decoder
from inheritune.decoder.streaming import StreamedDecoder, load_decoder
from inheritune.errors import InherituneError
from inheritune.progress import progress
from inheritune.records.analysis import Mask
from inheritune.spectra.checks import check_fit, check_mask, check_tokens, check_weights
from inheritune.spectra.gradients import gradient_probe
from inheritune.spectra.measure.blocks import BlockObserver
from inheritune.spectra.measure.heads import HeadTable, measure_heads
from inheritune.spectra.measure.pieces import DEFAULT_MEMORY, Piece, plan_work
from inheritune.spectra.measure.rank import check_fraction, check_taus
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.capture import visit_attention

Model: TypeAlias = "PreTrainedModel | Decoder | str | Path"
Tau: TypeAlias = float | Sequence[float]


class Work(TypedDict, total=False):
    """How the work of `analyze` is done."""

    memory: int
    stream: bool | None
    gradients: int


class Options(Work, total=False):
    """What is measured, too."""

    tau: Tau
    eta: float
    mask: str


@dataclass(frozen=True)
class Prepared:
    """What `analyze` was given, checked and opened; `tokens` are (N, T) int64, on the CPU."""

    decoder: Decoder
    tokens: Tensor
    taus: tuple[float, ...]
    eta: float
    masks: tuple[Mask, ...]
    memory: int
    gradients: int


@overload
def analyze(
    model: Model, tokens: Any, tau: Tau = ..., eta: float = ..., mask: Mask = ..., **options: Unpack[Work]
) -> Spectra: ...
@overload
def analyze(
    model: Model, tokens: Any, tau: Tau = ..., eta: float = ..., *, mask: Literal["both"], **options: Unpack[Work]
) -> BothSpectra: ...
@overload
def analyze(
    model: Model, tokens: Any, tau: Tau = ..., eta: float = ..., mask: str = ..., **options: Unpack[Work]
) -> Spectra | BothSpectra: ...
def analyze(
    model: Model,
    tokens: Any,
    tau: Tau = 0.9,
    eta: float = 0.9,
    mask: str = "causal",
    *,
    memory: int = DEFAULT_MEMORY,
    stream: bool | None = None,
    gradients: int = 0,
) -> Spectra | BothSpectra:
    """Measure every attention head, MLP and block of a decoder, in one forward pass over the tokens.

    Paper (arXiv 2404.08634), section 2, eq. 2 to 4, and appendices C and H; the paper takes N = T = 100 from validation
    text. See `Spectra` and `BlockMeasures` for what is measured. The model is not changed.

    Args:
        model: a model, a folder in Hugging Face format, a hub id, or the decoder that `prepare` has opened.
        tokens: (N, T) integer token ids (NumPy, PyTorch or nested lists), 2 <= T <= the model's context.
        tau: share of the squared singular values for k*, between 0 and 1; with several, the first is the one of `rank`.
        eta: share of the squared column norms for m*, between 0 and 1.
        mask: `"causal"`, the attention that the model computes; `"full"`, the softmax of the same logits without the
            mask; `"both"`.
        memory: bytes that the work on attention may take beside the model's own forward pass, whatever N, T and layers.
        stream: read the checkpoint layer by layer, so that a few blocks of it are in memory at a time; None does so
            when it would fill most of the memory that is free.
        gradients: number of sequences, the first, that the gradient probe runs on too; 0 leaves it out.

    Returns:
        `Spectra`, or `BothSpectra` for `mask="both"`.

    Raises:
        InherituneError: `tau`, `eta`, `mask`, `memory` or `gradients` is not valid.
        DataError: the tokens are not (N, T) integers that the model can read.
        ModelError: no such model, not a decoder, damaged weights, or a model whose attention cannot be observed.
    """
    return measure(prepare(model, tokens, tau, eta, mask, memory=memory, stream=stream, gradients=gradients))


def prepare(
    model: Model,
    tokens: Any,
    tau: Tau = 0.9,
    eta: float = 0.9,
    mask: str = "both",
    *,
    memory: int = DEFAULT_MEMORY,
    stream: bool | None = None,
    gradients: int = 0,
) -> Prepared:
    """Check everything that `analyze` is given, (N, T) tokens among it, cheapest first, and open the model.

    Raises:
        InherituneError: as `analyze`.
    """
    taus = check_taus(tau)
    check_fraction("eta", eta)
    masks = check_mask(mask)
    sequences = check_tokens(tokens)
    if not 0 <= gradients <= len(sequences):
        count = len(sequences)
        raise InherituneError(f"gradients of {gradients} sequences: expected 0 to {count}, the sequences given")
    decoder = load_decoder(model, stream)
    check_fit(decoder, sequences)
    plan_work(sequences.shape[1], memory, decoder.model.get_input_embeddings().weight.device)
    if not isinstance(decoder, StreamedDecoder):
        check_weights(decoder)
    elif gradients:
        raise InherituneError(
            "the gradient probe needs the whole model in memory, which is read layer by layer here: leave out "
            "gradients (--gradients), or pass stream=False (--no-stream)"
        )
    return Prepared(decoder, sequences, taus, eta, masks, memory, gradients)


def measure(prepared: Prepared) -> Spectra | BothSpectra:
    """Do the analysis that `prepare` has made ready; see `analyze`.

    Raises:
        ModelError: the model's attention cannot be observed.
    """
    decoder, tokens, taus, eta = prepared.decoder, prepared.tokens, prepared.taus, prepared.eta
    observer, table = BlockObserver(taus[0], eta), HeadTable(len(tokens), taus)

    def consume(piece: Piece) -> None:
        table.put(piece, measure_heads(piece.probabilities, taus, eta))

    with progress("analysing attention", total=len(tokens) * decoder.layers) as advance:
        visit_attention(decoder, tokens, prepared.masks, consume, advance, [observer], prepared.memory)
    probe = gradient_probe(decoder, tokens[: prepared.gradients]) if prepared.gradients else None
    parts = [_spectra(table, mask, eta, tokens.shape[1]) for mask in prepared.masks]
    parts = [replace(part, blocks=observer.measures(), gradients=probe) for part in parts]
    return parts[0] if len(parts) == 1 else BothSpectra(*parts)


def _spectra(table: HeadTable, mask: Mask, eta: float, length: int) -> Spectra:
    """Return what was measured under one mask."""
    means = table.means(mask)
    first = {"rank": means.rank[..., 0], "sink_column": means.sink_column.astype(np.int64)}
    return Spectra(
        **(means._asdict() | first),
        tau=table.taus[0],
        eta=eta,
        mask=mask,
        sequences=table.sequences,
        length=length,
        layers_index=table.layers(),
        ranks={tau: means.rank[..., index] for index, tau in enumerate(table.taus)},
        rank_error=table.rank_errors(mask)[..., 0],
    )
