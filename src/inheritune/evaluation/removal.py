"""The loss of a decoder without some of its blocks, for many sets of blocks at once.

All sets go through the model together, block by block. Two sets that leave out the same blocks so far have the same
hidden states, so each state is computed once: to leave out each of L blocks by itself, and none, takes L (L + 1) / 2
block runs, where L + 1 forward passes take L * L. Because all states pass one block before any goes on to the next,
a model beyond memory is read once for all sets.

A block that is left out hands on what it was given, so every other block computes what it computed in the whole model:
this is the loss of the model that `inherit` cuts, whose moved layers keep their function.

Shapes: N windows, T predicted tokens of each, D features, L blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from inheritune.decoder import Decoder, count_parameters, evaluating
from inheritune.decoder.replay import Answers, NotByLayerError, Replay, replays, stand_ins
from inheritune.decoder.streaming import StreamedDecoder
from inheritune.errors import ModelError
from inheritune.evaluation.loss import LOGITS_PER_BATCH, check_windows, group_losses

Removed = frozenset[int]
"""Blocks that are left out, by their numbers."""

STATE_BYTES = 256 * 2**20
"""The hidden states of the windows that run together, for all sets, take about as much."""
STREAMED_BYTES = 2**30
"""The same for a model that is read by layer: for so many states its checkpoint is read once."""
_VECTORS = 16
"""What a block holds of a token while it runs, in vectors of D numbers (see `visit_attention`)."""


@dataclass(frozen=True)
class Remover:
    """Runs a decoder without some of its blocks; made by `open_remover`.

    Attributes:
        decoder: the model.
        form: what a block returns, for passes without the first blocks.
        rows: windows that run together.
        group: windows whose states are held at once: `rows`, or a multiple where the model is read by layer.
    """

    decoder: Decoder
    form: Any
    rows: int
    group: int

    def losses(
        self, windows: np.ndarray, removals: Sequence[Removed], advance: Callable[[float], None] = lambda share: None
    ) -> np.ndarray:
        """Return the loss of each window without the blocks of each set.

        Args:
            windows: (n, T + 1) int64, n at most `group`; filled up to a multiple of `rows`, so that a window's loss
                does not depend on how many others there are.
            removals: sets of blocks, none of them all blocks.
            advance: called with the share of the work that is done.

        Returns:
            (sets, n) float64, nats per token.
        """
        filled = np.pad(windows, ((0, -len(windows) % self.rows), (0, 0)), mode="edge")
        chunks = np.split(filled, len(filled) // self.rows)
        passes = [{Removed(): Replay(form=self.form)} for _ in chunks]
        layers, weights = self.decoder.layers, count_parameters(self.decoder.model.get_output_embeddings())
        head = weights * layers / max(1, count_parameters(self.decoder.blocks))  # its work, in runs of a block
        runs = sum(layer not in held for layer in range(layers) for held in _left_out(removals, layer))
        total = len(chunks) * (runs + len(removals) * head)
        step = partial(advance, 1 / total)
        with _stopped(self.decoder) as (blocks, current):
            for layer, block in enumerate(blocks):
                wanted = _left_out(removals, layer)
                with _weights(self.decoder, layer):
                    for number, chunk in enumerate(chunks):
                        run = partial(_forward, self.decoder, chunk)
                        passes[number] = _through(layer, block, current, run, passes[number], wanted, step)
            losses = np.empty((len(removals), len(filled)))
            for number, chunk in enumerate(chunks):
                for row, removed in zip(losses, removals, strict=True):
                    current.answer = passes[number][removed].answer
                    row[number * self.rows :][: self.rows] = group_losses(self.decoder.model, chunk)
                    advance(head / total)
        return losses[:, : len(windows)]


def open_remover(decoder: Decoder, windows: np.ndarray) -> Remover:
    """Find out whether the decoder can be run without some of its blocks, and in which pieces.

    Args:
        decoder: the model.
        windows: (N, T + 1) int64, all that it is going to run on.

    Raises:
        DataError: as `check_windows`.
        ModelError: its blocks use more than the output of the block before, or weights are missing.
    """
    check_windows(windows, decoder.context, decoder.vocabulary)
    try:
        form = _form(decoder, partial(_forward, decoder, windows[:1, :3]))
    except NotByLayerError as error:
        if isinstance(decoder, StreamedDecoder):
            raise  # its line advises to load the model whole
        name = type(decoder.model).__name__
        raise ModelError(
            f"cannot leave out layers of this {name}: its blocks use more than the output of the block before"
        ) from error
    count, length = windows.shape[0], windows.shape[1] - 1
    state, streamed = 4 * length * int(decoder.config.hidden_size), isinstance(decoder, StreamedDecoder)
    held = _VECTORS + (0 if streamed else decoder.layers)
    most = min(count, STATE_BYTES // (state * held), LOGITS_PER_BATCH // (length * decoder.vocabulary))
    rows = -(-count // -(-count // max(1, most)))  # equal pieces, so that little is filled up
    together = max(1, STREAMED_BYTES // (rows * state * decoder.layers)) if streamed else 1
    return Remover(decoder, form, rows, rows * together)


def _form(decoder: Decoder, run: Callable[[], object]) -> Any:
    """Return what a block returns, after confirming that the blocks can be run one by one.

    Raises:
        NotByLayerError: they cannot.
        ModelError: weights are missing, or the model runs a block more than once.
    """
    if isinstance(decoder, StreamedDecoder):
        decoder.weights.load_resident(decoder.model)
    with _stopped(decoder) as (blocks, current):
        if (call := Replay().call_of(0, current, run)) is None:
            raise NotByLayerError
        with decoder.weights.blank(0) if isinstance(decoder, StreamedDecoder) else nullcontext():
            form = blocks[0](*call.args, **call.kwargs)
        if not replays(decoder, current, form, run):
            raise NotByLayerError
    return form


def _through(
    layer: int,
    block: nn.Module,
    current: Answers,
    run: Callable[[], object],
    passes: dict[Removed, Replay],
    wanted: set[Removed],
    step: Callable[[], None],
) -> dict[Removed, Replay]:
    """Take the passes, by what each has left out, through one block; return those that are wanted behind it."""
    after: dict[Removed, Replay] = {}
    for removed, replay in passes.items():
        if removed | {layer} in wanted:
            after[removed | {layer}] = replay.branch()
        if removed in wanted:
            if (call := replay.call_of(layer, current, run)) is not None:
                replay.output = block(*call.args, **call.kwargs)
            del call  # holds the states before the block
            after[removed] = replay
            step()
    return after


def _left_out(removals: Sequence[Removed], layer: int) -> set[Removed]:
    """Return what the sets leave out up to block `layer`, itself included."""
    return {Removed(i for i in removed if i <= layer) for removed in removals}


def _forward(decoder: Decoder, windows: np.ndarray) -> object:
    """Run the model on the inputs of windows, (n, T + 1) int64."""
    inputs = torch.from_numpy(windows[:, :-1]).to(decoder.model.device)
    return decoder.model(input_ids=inputs, use_cache=False)


@contextmanager
def _stopped(decoder: Decoder) -> Iterator[tuple[list[nn.Module], Answers]]:
    """Put stand-ins in the blocks' places; the model runs without gradients, in evaluation mode."""
    with torch.no_grad(), evaluating(decoder.model), stand_ins(decoder.blocks) as given:
        yield given


def _weights(decoder: Decoder, layer: int) -> AbstractContextManager[None]:
    if not isinstance(decoder, StreamedDecoder):
        return nullcontext()
    decoder.weights.read_ahead(layer + 1)
    return decoder.weights.loaded(layer)
