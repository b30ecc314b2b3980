"""Train one round on transformers' Trainer: one process or many (DDP through torchrun), stopped and resumed at will."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, TrainerCallback, TrainerControl, TrainerState
from typing_extensions import override

from inheritune.data import TrainingWindows
from inheritune.distributed import WAIT, any_process, from_main
from inheritune.errors import OutputError, RecipeError, library_errors
from inheritune.storage import system_errors
from inheritune.training.checkpoints import FOLDER, keep_trunk, mark_complete, newest_checkpoint
from inheritune.training.collapse import COLLAPSE, WatchCollapse
from inheritune.training.log import METRICS, RoundLog, StepLog, Validate
from inheritune.training.losses import Loss, next_token_loss
from inheritune.training.optimizer import make_optimizer
from inheritune.training.settings import TrainingSettings

AVERAGE = "average.safetensors"
"""The file of a checkpoint that holds the mean of the last weights so far."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished round says of itself: optimiser steps done, predicted tokens trained on, time spent training."""

    steps: int
    tokens: int
    seconds: float


def train(
    model: PreTrainedModel,
    data: TrainingWindows,
    settings: TrainingSettings,
    folder: Path,
    *,
    seed: int,
    loss: Loss = next_token_loss,
    validate: Validate | None = None,
    watch: np.ndarray | None = None,
    description: str = "training",
    branches: bool = False,
) -> TrainingOutcome:
    """Train `model` in place for `settings.steps` steps, writing `metrics.jsonl` and checkpoints into `folder`.

    With windows to watch, `collapse.jsonl` holds the attention's rank and gradients meanwhile (`WatchCollapse`).

    When `folder` holds a complete checkpoint of the same round, training goes on from it; on CPU the result equals an
    uninterrupted run's bit for bit. A first Ctrl-C or SIGTERM stops at the next line of the log, after a checkpoint.
    The last checkpoints stay until `delete_checkpoints`, so that no training is lost before the model is saved.

    Args:
        model: float32 weights; trained in place.
        data: `settings.steps * settings.batch` samples.
        settings: see `TrainingSettings`.
        folder: made if missing.
        seed: of dropout, where the model has any; the data carries its own.
        loss: what is minimised.
        validate: gives the validation loss of a model, in nats a token.
        watch: (N, T) int64, fixed windows to watch the attention on every `settings.watch_every` steps.
        description: what the progress line calls this round.
        branches: whether the checkpoint before the learning rate falls is kept for `branch_off`.

    Raises:
        RecipeError: the batch cannot be shared out to the devices.
        DataError: the loss is not finite any more.
        KeyboardInterrupt: stopped by a signal, after a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / FOLDER
    start = from_main(lambda: newest_checkpoint(checkpoints))
    watching = []
    if watch is not None and (every := settings.watch_every):
        watching = [WatchCollapse(folder / COLLAPSE, watch, every, tokens_per_step=settings.tokens_per_step)]
    average = TailAverage(max(settings.steps - settings.average, 0), start) if settings.average else None
    log = RoundLog(
        StepLog(folder / METRICS), settings, validate, description, lambda: sum(each.seconds for each in watching)
    )
    stop, kept = StopAtSignal(), settings.trunk(settings.steps) if branches else None
    own = [each for each in (average, log, stop, None if kept is None else SaveAt(kept)) if each is not None]
    with stop.listening(), contextlib.closing(log):
        trainer = _RoundTrainer(
            model=model,
            args=_arguments(settings, checkpoints, seed),
            train_dataset=data,
            callbacks=[*watching, *own],
            optimizers=make_optimizer(model, settings),
            loss=loss,
            average=average,
            trunk=kept,
        )
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    if any_process(stop.requested):
        raise KeyboardInterrupt
    if average is not None:
        average.apply(model)
    model.eval()
    return TrainingOutcome(settings.steps, settings.steps * settings.tokens_per_step, log.seconds)


class StopAtSignal(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a checkpoint and an orderly stop; a second Ctrl-C stops at once.

    A second SIGTERM changes nothing: torchrun and a scheduler may each send one. The stop waits for the next line of
    the log: a checkpoint between two lines would split the mean that the line shows, and the resumed run's log would
    differ from an uninterrupted one's. There all processes ask whether any of them got a signal, so that they stop at
    one step.
    """

    def __init__(self) -> None:
        self.requested = False

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % args.logging_steps == 0 and any_process(self.requested):
            control.should_save = True
            control.should_training_stop = True

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs; the handlers that were there before are put back."""
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread only
            return
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that was not set by Python

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


class SaveAt(TrainerCallback):
    """Saves a checkpoint at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step == self.step:
            control.should_save = True


class TailAverage(TrainerCallback):
    """Keeps the mean of the weights, float32, over all steps behind step `first`.

    It does what a falling learning rate does to the noise, without waiting.
    """

    def __init__(self, first: int, checkpoint: Path | None) -> None:
        """Begin behind step `first`, or go on from what a checkpoint holds."""
        self.first, self.means = first, dict[str, torch.Tensor]()
        if checkpoint is not None and (checkpoint / AVERAGE).is_file():
            self.means = load_file(checkpoint / AVERAGE)

    @override
    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kw: Any) -> None:
        count = state.global_step - self.first
        for name, weight in kw["model"].named_parameters() if count > 0 else ():
            mean = weight.float() if count == 1 else self.means[name].to(weight.device)
            self.means[name] = mean.clone() if count == 1 else mean.lerp_(weight.float(), 1 / count)

    def save(self, checkpoint: Path) -> None:
        """Write the mean so far into a checkpoint."""
        if self.means:
            save_file(self.means, checkpoint / AVERAGE)

    @torch.no_grad()
    def apply(self, model: PreTrainedModel) -> None:
        """Give the model the mean of its weights."""
        for name, weight in model.named_parameters():
            weight.copy_(self.means[name])


class _RoundTrainer(Trainer):
    """Trainer with our loss, data order and checkpoint marker."""

    def __init__(
        self, model: PreTrainedModel, *, loss: Loss, average: TailAverage | None, trunk: int | None, **settings: Any
    ) -> None:
        fields = vars(model.config)
        own = fields.copy()
        super().__init__(model, **settings)
        fields.clear()  # the Trainer turns `use_cache` off in the configuration; not every model has it
        fields.update(own)
        self.loss, self.average, self.trunk = loss, average, trunk
        # Our loss is a mean over one micro-batch, so the Trainer has to divide by the number of them.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the data set itself is in training order

    @override
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        """Return the scalar loss of `tokens`, (micro-batch, T + 1) int64."""
        return self.loss(model, inputs["tokens"])

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        failure = f"cannot save a checkpoint into {self.args.output_dir}"
        with library_errors(failure, kind=OutputError), system_errors():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
            with system_errors():
                if self.average is not None:
                    self.average.save(checkpoint)
                if step == self.trunk:
                    keep_trunk(checkpoint, step)
            mark_complete(checkpoint, step)


def _arguments(settings: TrainingSettings, checkpoints: Path, seed: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        max_grad_norm=settings.clip,
        use_cpu=not torch.accelerator.is_available(),
        bf16=_in_bfloat16(settings),
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.checkpoint_every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        seed=seed,
        ddp_timeout=int(WAIT.total_seconds()),
    )
    micro, accumulate = share_batch(settings, arguments.world_size)
    arguments.per_device_train_batch_size = micro
    arguments.gradient_accumulation_steps = accumulate
    return arguments


def _in_bfloat16(settings: TrainingSettings) -> bool:
    able = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return settings.precision == "bfloat16" or (settings.precision == "auto" and able)


def teaches_in_bfloat16(settings: TrainingSettings) -> bool:
    """Return whether a teacher runs in bfloat16: on an accelerator, where the training does."""
    return torch.accelerator.is_available() and _in_bfloat16(settings)


def share_batch(settings: TrainingSettings, devices: int) -> tuple[int, int]:
    """Return (sequences of a micro-batch, micro-batches of a step) for one of `devices` devices.

    Raises:
        RecipeError: the batch is no multiple of what they take at once.
    """
    micro = settings.micro_batch or settings.batch // devices
    if micro < 1 or settings.batch % (micro * devices):
        raise RecipeError(
            f"a batch of {settings.batch} sequences cannot be shared by {devices} devices in micro-batches of "
            f"{max(micro, 1)}: expected a multiple of {max(micro, 1) * devices}"
        )
    return micro, settings.batch // (micro * devices)
