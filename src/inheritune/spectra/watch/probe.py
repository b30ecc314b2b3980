"""Where a watched forward pass is, and what it hands out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from inheritune.decoder import Decoder
from inheritune.errors import ModelError
from inheritune.records.analysis import Mask
from inheritune.spectra.measure.pieces import DEFAULT_MEMORY, Consumer, Piece

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass
class Probe:
    """One watched forward pass.

    Attributes:
        decoder: the model.
        masks: which softmaxes are wanted; none in a trial run.
        consumer: who gets the pieces.
        sequence: index of the chunk's first sequence.
        layer: the block that is running, or None between blocks.
        head: number of heads that the block's attention modules have had so far.
        heads: the most heads that a block has had.
        memory: bytes that the work on the pieces may take.
        entered: for each chunk, by its first sequence, the blocks that have run on it.
        queries: the modules that have attended in the running block, with their queries.
    """

    decoder: Decoder
    masks: Sequence[Mask]
    consumer: Consumer
    sequence: int = 0
    layer: int | None = None
    head: int = 0
    heads: int = 0
    memory: int = DEFAULT_MEMORY
    entered: dict[int, set[int]] = field(default_factory=dict)
    queries: list[tuple[nn.Module, Tensor]] = field(default_factory=list)

    @property
    def family(self) -> str:
        """The model's class, for messages."""
        return type(self.decoder.model).__name__

    @property
    def first_chunk(self) -> bool:
        """Whether this is the forward pass in which each layer is checked."""
        return self.sequence == 0 and bool(self.masks)

    def begin_chunk(self, sequence: int) -> None:
        """Note that what runs next is the chunk whose first sequence is number `sequence`."""
        self.sequence = sequence

    def enter(self, layer: int) -> None:
        """Note that block `layer` begins.

        Raises:
            ModelError: the model is recurrent in depth; one matrix per layer and head would not describe it.
        """
        entered = self.entered.setdefault(self.sequence, set())
        if layer in entered:
            raise ModelError(f"cannot analyse {self.family}: it runs layer {layer} more than once in a forward pass")
        entered.add(layer)
        self.layer, self.head = layer, 0
        self.queries.clear()

    def is_new(self, module: nn.Module, query: Tensor) -> bool:
        """Return whether the running block has not attended with these queries (n, H, T, d) before.

        DiffLlama mixes two halves of its values by the same probabilities, in two calls: they are one set of heads.
        """
        new = not any(owner is module and old.data_ptr() == query.data_ptr() for owner, old in self.queries)
        self.queries.append((module, query))  # holds the queries, so that no others get their place in memory
        return new

    def leave(self) -> None:
        """Note that the block has ended."""
        self.layer = None
        self.queries.clear()

    def pass_heads(self, heads: int) -> None:
        """Note that an attention module of the running block with so many heads is done."""
        if self.layer is not None:
            self.head += heads
            self.heads = max(self.heads, self.head)

    def emit(self, mask: Mask, sequence: int, head: int, probabilities: Tensor) -> None:
        """Hand one piece of the running block to the consumer, if its mask is wanted.

        Args:
            mask: which softmax it is.
            sequence: index of its first sequence, counted from the chunk's first.
            head: index of its first head, counted from the attention module's first.
            probabilities: (sequences, heads, T, T).

        Raises:
            ModelError: the probabilities are not finite, not square or not causal.
        """
        if self.layer is None or mask not in self.masks:
            return
        rows, columns = probabilities.shape[-2:]
        if rows != columns:
            raise ModelError(
                f"cannot analyse {self.family}: layer {self.layer} attends from {rows} tokens to {columns} keys, "
                "expected a square attention matrix"
            )
        if not probabilities.sum().isfinite():
            raise ModelError(f"the attention of layer {self.layer} of {self.family} is not finite (NaN or overflow)")
        if mask == "causal" and _looks_ahead(probabilities[0, 0]):
            raise ModelError(f"{self.family} attends to later tokens: expected a decoder with causal attention")
        self.consumer(Piece(self.layer, mask, self.sequence + sequence, self.head + head, probabilities))


def _looks_ahead(matrix: Tensor) -> bool:
    """Return whether a row of a (T, T) matrix attends to a later token, a band of rows at a time."""
    bands = enumerate(matrix.split(BAND))
    return any(bool(band[:, number * BAND :].triu(1).any()) for number, band in bands)


BAND = 256
