"""Analyse a decoder: run token sequences through it and measure every head's attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np

from inheritune.decoder import Decoder, load_model, open_decoder
from inheritune.errors import ModelError
from inheritune.progress import progress
from inheritune.spectra.capture import visit_attention
from inheritune.spectra.checks import check_fit, check_mask, check_tokens, check_weights
from inheritune.spectra.probe import Mask, Piece
from inheritune.spectra.rank import approximate_rank, check_fraction, column_mass
from inheritune.spectra.result import BothSpectra, Spectra

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import PreTrainedModel

Quantity = Callable[["Tensor"], "Tensor"]
"""A number for each matrix: (..., T, T) float32 to (...,)."""


@overload
def analyze(
    model: PreTrainedModel | str | Path,
    tokens: Any,
    tau: float = 0.9,
    eta: float = 0.9,
    mask: Literal["causal", "full"] = "causal",
) -> Spectra: ...
@overload
def analyze(
    model: PreTrainedModel | str | Path, tokens: Any, tau: float = 0.9, eta: float = 0.9, *, mask: Literal["both"]
) -> BothSpectra: ...
@overload
def analyze(
    model: PreTrainedModel | str | Path, tokens: Any, tau: float = 0.9, eta: float = 0.9, mask: str = "causal"
) -> Spectra | BothSpectra: ...
def analyze(
    model: PreTrainedModel | str | Path, tokens: Any, tau: float = 0.9, eta: float = 0.9, mask: str = "causal"
) -> Spectra | BothSpectra:
    """Measure the approximate rank and the column mass of every attention head of a decoder.

    Paper (arXiv 2404.08634), section 2, eq. 2 to 4, and appendix C; the paper takes N = T = 100 from validation text.
    The model is not changed. Attention exists for a few heads at a time, whatever N, T and the depth.

    Args:
        model: a model, a folder in Hugging Face format, or a hub id.
        tokens: (N, T) integer token ids (NumPy, PyTorch or nested lists), 2 <= T <= the model's context.
        tau: share of the squared singular values for k*, between 0 and 1.
        eta: share of the squared column norms for m*, between 0 and 1.
        mask: `"causal"`, the attention that the model computes; `"full"`, the softmax of the same logits without the
            mask; `"both"`.

    Returns:
        `Spectra`, or `BothSpectra` for `mask="both"`.

    Raises:
        InherituneError: `tau`, `eta` or `mask` is not valid.
        DataError: the tokens are not (N, T) integers that the model can read.
        ModelError: no such model, not a decoder, damaged weights, or a model whose attention cannot be observed.
    """
    decoder, sequences, masks = prepare(model, tokens, tau, eta, mask)
    quantities: dict[str, Quantity] = {
        "rank": lambda matrices: approximate_rank(matrices, tau),
        "mass": lambda matrices: column_mass(matrices, eta),
    }
    tables = measure(decoder, sequences, masks, quantities)
    found = [_spectra(tables, name, tau, eta, sequences) for name in masks]
    return found[0] if len(found) == 1 else BothSpectra(*found)


def prepare(
    model: PreTrainedModel | str | Path, tokens: Any, tau: float, eta: float, mask: str
) -> tuple[Decoder, Tensor, tuple[Mask, ...]]:
    """Check everything that `analyze` is given, cheapest first, and return it ready for use.

    Raises:
        InherituneError: as `analyze`.
    """
    from transformers import PreTrainedModel

    check_fraction("tau", tau)
    check_fraction("eta", eta)
    masks = check_mask(mask)
    sequences = check_tokens(tokens)
    if not isinstance(model, PreTrainedModel | str | Path):
        raise ModelError(f"the model is a {type(model).__name__}: expected a PreTrainedModel, a folder or a hub id")
    decoder = open_decoder(load_model(model))
    check_fit(decoder, sequences)
    check_weights(decoder)
    return decoder, sequences, masks


@dataclass
class Table:
    """The values of some quantities for every head and sequence, filled in piece by piece.

    Attributes:
        sequences: number of sequences N.
        values: for each (quantity, mask, layer, head) the N values, NaN until they are measured.
    """

    sequences: int
    values: dict[tuple[str, Mask, int, int], NDArray[np.float64]] = field(default_factory=dict)

    def put(self, quantity: str, piece: Piece, numbers: Tensor) -> None:
        """Store (sequences, heads) `numbers` measured on a piece."""
        rows = slice(piece.sequence, piece.sequence + len(numbers))
        for head, column in enumerate(numbers.cpu().numpy().T, start=piece.head):
            key = (quantity, piece.mask, piece.layer, head)
            self.values.setdefault(key, np.full(self.sequences, np.nan))[rows] = column

    def means(self, quantity: str, mask: Mask) -> tuple[NDArray[np.float64], tuple[int, ...]]:
        """Return the means over the sequences, (layers, heads) float64, and the index of each row's layer."""
        wanted = {key[2:]: value for key, value in self.values.items() if key[:2] == (quantity, mask)}
        layers = sorted({layer for layer, _ in wanted})
        means = np.full((len(layers), 1 + max(head for _, head in wanted)), np.nan)
        for (layer, head), value in wanted.items():
            means[layers.index(layer), head] = value.mean()
        return means, tuple(layers)


def measure(
    decoder: Decoder, tokens: Tensor, masks: tuple[Mask, ...], quantities: dict[str, Quantity], show: bool = True
) -> Table:
    """Measure every quantity on every attention matrix of the decoder.

    Args:
        decoder: the model.
        tokens: (N, T) int64, valid for the model.
        masks: which softmaxes to measure.
        quantities: what to measure, by name.
        show: whether to show progress.

    Raises:
        ModelError: the model's attention cannot be observed.
    """
    table = Table(len(tokens))

    def consume(piece: Piece) -> None:
        for name, quantity in quantities.items():
            table.put(name, piece, quantity(piece.probabilities))

    if not show:
        visit_attention(decoder, tokens, masks, consume)
        return table
    with progress("analysing attention", total=len(tokens) * decoder.layers) as advance:
        visit_attention(decoder, tokens, masks, consume, advance)
    return table


def _spectra(table: Table, mask: Mask, tau: float, eta: float, tokens: Tensor) -> Spectra:
    rank, layers = table.means("rank", mask)
    mass, _ = table.means("mass", mask)
    return Spectra(rank, mass, tau, eta, mask, tokens.shape[0], tokens.shape[1], layers)
