"""Push all sequences through a model block by block, so that only one block's weights are in memory at a time.

For each block and each chunk of sequences the model's own forward pass is taken up at the block (`decoder.replay`),
which is called while its weights are in memory. Whether the model can be run so is tried out before any weight is read.

What stays in memory: one block's output, N * T * D elements, and the dictionaries that blocks share.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from inheritune.decoder.replay import NotByLayerError, Replay, replays, stand_ins
from inheritune.decoder.streaming import StreamedDecoder


def run_by_layer(
    decoder: StreamedDecoder,
    chunks: int,
    run_chunk: Callable[[int], object],
    at_block: Callable[[int, int], None] = lambda chunk, layer: None,
    trial: bool = False,
) -> None:
    """Run a forward pass for each chunk, all of them through one block before any goes on to the next.

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
