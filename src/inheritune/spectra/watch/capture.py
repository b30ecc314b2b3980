"""Watch a decoder compute its attention, one layer at a time, and hand out the probabilities in bounded pieces.

Most families call the function that transformers' AttentionInterface holds under the name in their configuration
(`interface.py`); the others are watched by hooks (`hooks.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial

import torch
from torch import Tensor

from inheritune.decoder import Decoder, evaluating
from inheritune.decoder.replay import NotByLayerError, Replay, replays, stand_ins
from inheritune.decoder.streaming import StreamedDecoder
from inheritune.errors import ModelError
from inheritune.records.analysis import Mask
from inheritune.spectra.measure.pieces import DEFAULT_MEMORY, Consumer, plan_work
from inheritune.spectra.watch.hooks import watched_modules
from inheritune.spectra.watch.interface import Probe, watched_interface

CHUNK_BYTES = 96 * 2**20
"""Memory for the activations of the model's own forward pass: it decides how many sequences run at a time."""

Observer = Callable[[Decoder], AbstractContextManager[None]]


def visit_attention(
    decoder: Decoder,
    tokens: Tensor,
    masks: Sequence[Mask],
    consumer: Consumer,
    advance: Callable[[int], None] = lambda count: None,
    observers: Sequence[Observer] = (),
    memory: int = DEFAULT_MEMORY,
) -> None:
    """Run `tokens` through the decoder and hand every layer's attention probabilities to `consumer`, piece by piece.

    The probabilities are those the model mixes its values with, computed in float32: grouped and single key heads,
    rotary and ALiBi positions, soft-caps, sliding windows and attention sinks included. The model runs without
    gradients in evaluation mode and comes back as it was, also on error.

    Args:
        decoder: the model.
        tokens: (N, T) int64, valid for the model, T >= 2.
        masks: which softmaxes are wanted.
        consumer: called with each piece, from several threads at once; the layers of one chunk of sequences in order,
            then the next chunk. A streamed model does all chunks of one layer before the next layer.
        advance: called with the number of sequences that have passed one more block.
        observers: called with the decoder, each gives a context that is open during the forward passes, for hooks of
            its own on the blocks.
        memory: bytes that the attention probabilities and the work of `consumer` on them may take, beside the forward
            pass itself; `consumer` is taken to need ten times the memory of the piece it is handed.

    Raises:
        ModelError: the model cannot be probed, by name and reason.
        InherituneError: `memory` is too small for one attention matrix.
    """
    tokens = tokens.to(decoder.model.get_input_embeddings().weight.device)
    plan_work(tokens.shape[1], memory, tokens.device)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluating(decoder.model))
        probe = Probe(decoder, masks, consumer, memory)
        watch, heads = _way_to_watch(decoder, tokens[:1, :2])
        whole_heads = heads if watch is watched_modules else 0
        stack.enter_context(watch(probe))
        for observer in observers:
            stack.enter_context(observer(decoder))
        size = CHUNK_BYTES // _bytes_per_sequence(decoder, tokens.shape[1], whole_heads)
        _run_chunks(probe, tokens, max(1, size), advance)


def _way_to_watch(decoder: Decoder, tokens: Tensor) -> tuple[Callable[[Probe], AbstractContextManager[None]], int]:
    """Find out by trial runs on (1, 2) tokens how the model can be watched; return the most heads of a block too."""
    trial = Probe(decoder, (), lambda piece: None)
    for watch in (watched_interface, watched_modules):
        trial.entered.clear()
        with watch(trial):
            _run_chunks(trial, tokens, 1, lambda count: None)
        if trial.heads > 0:
            return watch, trial.heads
    raise ModelError(f"{trial.cannot}: none of its layers computes or returns attention weights")


def _run_chunks(probe: Probe, tokens: Tensor, size: int, advance: Callable[[int], None]) -> None:
    """Run the base model, without its head, on tokens (N, T) int64, `size` sequences at a time."""
    decoder, chunks = probe.decoder, tokens.split(size)

    def begin(number: int, layer: int = 0) -> None:
        probe.sequence = number * size

    def run(number: int) -> None:
        decoder.model.base_model(input_ids=chunks[number], use_cache=False)

    with probe.blocks(lambda: advance(len(chunks[probe.sequence // size]))):
        if isinstance(decoder, StreamedDecoder):
            run_by_layer(decoder, len(chunks), run, begin, trial=not probe.masks)
        else:
            for number in range(len(chunks)):
                begin(number)
                run(number)


def run_by_layer(
    decoder: StreamedDecoder,
    chunks: int,
    run_chunk: Callable[[int], object],
    at_block: Callable[[int, int], None] = lambda chunk, layer: None,
    trial: bool = False,
) -> None:
    """Run a forward pass for each chunk, all of them through one block before any goes on to the next.

    Only one block's weights are in memory at a time, and one block's output, N * T * D elements, with the dictionaries
    that blocks share. The model's own forward pass is taken up at each block (`decoder.replay`); whether the model can
    be run so is tried out before any weight is read.

    Args:
        decoder: the model.
        chunks: number of chunks.
        run_chunk: runs the base model on one chunk, given its number, without changing anything; it is called once for
            each block, and like all else here without gradients.
        at_block: called with the chunk's number and the block's before the block runs on the chunk.
        trial: give the blocks zeros for weights, which reads no file, and check that blocks can run one by one.

    Raises:
        ModelError: weights are missing or damaged; in a trial: the model runs its blocks in a way of its own.
    """
    weights, last = decoder.weights, [Replay() for _ in range(chunks)]
    with torch.no_grad(), stand_ins(decoder.blocks) as (blocks, current):
        for layer, block in enumerate(blocks):
            with weights.blank(layer) if trial else weights.loaded(layer):
                if not trial:
                    weights.read_ahead(layer + 1)
                for chunk, replay in enumerate(last):
                    call = replay.call_of(layer, current, partial(run_chunk, chunk))
                    if call is not None:
                        at_block(chunk, layer)
                        replay.output = block(*call.args, **call.kwargs)
                    del call  # holds the states before the block
        if trial and not replays(decoder, current, last[0].output, partial(run_chunk, 0)):
            raise NotByLayerError


def _bytes_per_sequence(decoder: Decoder, length: int, whole_heads: int) -> int:
    """Return a rough size of what one sequence of `length` tokens holds in a forward pass.

    That is 16 float32 vectors a token (residual, norms, queries, keys, values, two MLP layers of four times the width),
    the mask, and, where the model itself computes the weights of `whole_heads` heads at once, three matrices for each.
    """
    return length * (16 * 4 * int(decoder.config.hidden_size) + 8 * length + 12 * length * whole_heads)
