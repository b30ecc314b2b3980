"""Watch attention collapse while a model is trained: rank, collapsed heads and gradients on a few fixed windows.

Works with any transformers `Trainer`:

    trainer = Trainer(..., callbacks=[WatchCollapse("collapse.jsonl", windows)])

`benchmarks/watch.py` measures what it costs.
"""

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import extract_model_from_parallel
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from inheritune.decoder import Decoder, open_decoder
from inheritune.errors import InherituneError, ModelError
from inheritune.records.analysis import Mask
from inheritune.spectra.checks import check_fit, check_tokens
from inheritune.spectra.gradients import layer_gradients
from inheritune.spectra.measure.heads import HeadRanks, HeadTable
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.measure.rank import approximate_rank, check_fraction
from inheritune.spectra.result import COLLAPSED_RANK
from inheritune.spectra.watch.capture import visit_attention
from inheritune.training.log import StepLog
from inheritune.training.settings import WATCH_EVERY

_LOG = logging.getLogger(__name__)

COLLAPSE = "collapse.jsonl"


class WatchCollapse(TrainerCallback):
    """Writes one line of JSON at step 0, every `every` steps and at the last step.

    Each line has `step`, `tokens`, `layers` (the blocks that have attention), for the masks `causal` and `full` the
    MaxRank of each layer (paper, eq. 3) and its share of collapsed heads, in `gradients` the Frobenius norms of
    dL/dW_Q and dL/dW_K of each layer, all heads together, L being the mean next-token loss on the windows, and
    `seconds`, what the line cost. A family whose unmasked softmax cannot be seen has no `full`, one that does not use
    transformers' attention interface no `gradients`.

    Training is not disturbed: the weights after a watched run are those of an unwatched one, bit for bit. The model
    runs in float32 (or its own dtype) without dropout, gradients are asked for by name so that no `.grad` changes, and
    random states, modes and configuration are put back. Process zero alone watches, without talking to the others.
    A resumed run drops the lines behind its checkpoint and goes on, so the file reads as if nothing had happened.

    A model that cannot be watched at all, or whose weights lie in shards on several devices (FSDP, ZeRO-3), is trained
    without: one warning says why.

    Attributes:
        seconds: time that this process has spent watching.
    """

    def __init__(
        self,
        path: str | Path,
        windows: Any,
        every: int = WATCH_EVERY,
        *,
        tau: float = 0.9,
        tokens_per_step: int | None = None,
    ) -> None:
        """Watch on `windows`.

        Args:
            path: the file, JSON lines; its folder is made if missing.
            windows: (N, T) integer token ids, the same for all runs that are to be compared; 8 of 100 tokens do.
            every: steps between two lines.
            tau: share of the squared singular values that k* must reach.
            tokens_per_step: tokens of one optimiser step, for `tokens` of a line; None takes the count that the Trainer
                keeps with `include_num_input_tokens_seen` (0 without).

        Raises:
            InherituneError: `every` or `tau` is out of range.
            DataError: the windows are not (N, T) integers.
        """
        if every < 1:
            raise InherituneError(f"a line every {every} steps: expected at least 1; to watch nothing, do not add it")
        check_fraction("tau", tau)
        self.log, self.windows, self.every, self.tau = StepLog(Path(path)), check_tokens(windows), every, tau
        self.tokens_per_step = tokens_per_step
        self.seconds = 0.0
        self._watching = False
        self._last: int | None = None
        self._masks: tuple[Mask, ...] = ("causal", "full")
        self._gradients = True

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        self._watching = state.is_world_process_zero
        if not self._watching:
            return
        if _is_sharded(kw["model"], args):
            self._stop("its weights lie in shards on several devices, and one process alone cannot run it")
            return
        last = self.log.cut_behind(state.global_step, keep=lambda step: self._is_due(step, state))
        self._last = last["step"] if last else None
        if state.global_step % self.every == 0:
            self._write(kw["model"], state)

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        if self._is_due(state.global_step, state):
            self._write(kw["model"], state)

    @override
    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        # Training may stop before its last step; the best weights, loaded at the end, are not those of this step.
        if not args.load_best_model_at_end:
            self._write(kw["model"], state)

    def _is_due(self, step: int, state: TrainerState) -> bool:
        return step % self.every == 0 or step == state.max_steps

    def _write(self, model: Any, state: TrainerState) -> None:
        """Measure and append the line of this step, unless it is there."""
        if not self._watching or self._last == state.global_step:
            return
        start = _clock()
        try:
            measured = self._measure(extract_model_from_parallel(model, keep_torch_compile=False))
        except ModelError as error:
            self._stop(str(error))
            return
        seconds = _clock() - start
        self.seconds += seconds
        step, tokens = state.global_step, int(state.num_input_tokens_seen)
        if self.tokens_per_step is not None:
            tokens = step * self.tokens_per_step
        self.log.append({"step": step, "tokens": tokens, **measured, "seconds": round(seconds, 6)})
        self._last = step

    def _stop(self, reason: str) -> None:
        self._watching = False
        _LOG.warning("attention collapse is not watched: %s", reason)

    def _measure(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return what a line says of the model as it is.

        Raises:
            DataError: the windows do not fit the model.
            ModelError: its attention cannot be observed.
        """
        decoder = open_decoder(model)
        check_fit(decoder, self.windows)
        device = model.get_input_embeddings().weight.device
        devices = [device] if device.type == "cuda" else []
        # The random states stay as they are, and the mixed precision of training is left out of it.
        with torch.random.fork_rng(devices), torch.autocast(device.type, enabled=False):
            table = self._ranks(decoder)
            gradients = self._gradient_norms(decoder)
        layers = table.layers()
        line: dict[str, Any] = {"layers": list(layers)}
        for mask in self._masks:
            ranks = table.mean_rank(mask)[..., 0]  # (layers, heads), NaN where a layer has no such head
            share = (ranks < COLLAPSED_RANK).sum(axis=1) / (~np.isnan(ranks)).sum(axis=1)
            line[mask] = {"max_rank": np.nanmax(ranks, axis=1).tolist(), "collapsed": share.tolist()}
        if gradients:
            line["gradients"] = {side: [norms.get(layer) for layer in layers] for side, norms in gradients.items()}
        return line

    def _ranks(self, decoder: Decoder) -> HeadTable:
        """Measure k* of each mask, head and sequence; causal alone where the family shows no more."""
        table = HeadTable(len(self.windows), (self.tau,))

        def consume(piece: Piece) -> None:
            ranks = approximate_rank(piece.probabilities, table.taus).movedim(0, -1)
            table.put(piece, HeadRanks(ranks.double().cpu().numpy()))

        try:
            visit_attention(decoder, self.windows, self._masks, consume)
        except ModelError:
            if self._masks == ("causal",):
                raise
            self._masks = ("causal",)
            return self._ranks(decoder)
        return table

    def _gradient_norms(self, decoder: Decoder) -> dict[str, dict[int, float]]:
        """Return the norms of each layer by its index; nothing where the family's cannot be seen."""
        if not self._gradients:
            return {}
        try:
            gradients = layer_gradients(decoder, self.windows)
        except ModelError as error:
            self._gradients = False
            _LOG.warning("gradients are not watched: %s", error)
            return {}
        sides = {"query": gradients.query, "key": gradients.key}
        return {side: dict(zip(gradients.layers_index, norms.tolist(), strict=True)) for side, norms in sides.items()}


def _clock() -> float:
    """Return the time in seconds, once the device has done what it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def _is_sharded(model: torch.nn.Module, args: TrainingArguments) -> bool:
    """Return whether the weights are in shards: FSDP, DeepSpeed's ZeRO-3 or PyTorch's distributed tensors."""
    return bool(args.fsdp) or any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters())
