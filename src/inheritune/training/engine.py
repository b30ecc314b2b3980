"""Train one round on transformers' Trainer: one process or many (DDP through torchrun), stopped and resumed at will.

Only what the method needs is ours: the order of the data (a pure function of seed and step), the loss, the parameter
groups, the schedule, the log, and that an incomplete or damaged checkpoint is never loaded.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments
from typing_extensions import override

from inheritune.data import TrainingWindows
from inheritune.distributed import WAIT, any_process, from_main, has_accelerator
from inheritune.errors import RecipeError
from inheritune.training.callbacks import METRICS, MetricsLog, ProgressLine, StopAtSignal, Validate
from inheritune.training.checkpoints import FOLDER, mark_complete, newest_checkpoint
from inheritune.training.collapse import COLLAPSE, WatchCollapse
from inheritune.training.losses import Loss, next_token_loss
from inheritune.training.schedule import cosine_with_warmup
from inheritune.training.settings import TrainingSettings


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished round says of itself.

    Attributes:
        steps: optimiser steps done.
        tokens: predicted tokens trained on.
        seconds: time spent training, over all the processes that worked on the round one after the other.
    """

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
) -> TrainingOutcome:
    """Train `model` in place for `settings.steps` steps, writing `metrics.jsonl` and checkpoints into `folder`.

    With windows to watch, `collapse.jsonl` tells how the attention fares meanwhile (`WatchCollapse`).

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

    Raises:
        RecipeError: the batch cannot be shared out to the devices.
        DataError: the loss is not finite any more.
        KeyboardInterrupt: stopped by a signal, after a checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / FOLDER
    start = from_main(lambda: newest_checkpoint(checkpoints))
    watching = _watch(folder / COLLAPSE, watch, settings)
    log = MetricsLog(folder / METRICS, settings, validate, lambda: sum(item.seconds for item in watching))
    stop, line = StopAtSignal(), ProgressLine(description)
    with _own_use_cache(model), stop.listening(), contextlib.closing(line):
        trainer = _RoundTrainer(
            model=model,
            args=_arguments(settings, checkpoints, seed),
            train_dataset=data,
            callbacks=[*watching, log, line, stop],
            settings=settings,
            loss=loss,
        )
        trainer.train(resume_from_checkpoint=None if start is None else str(start))
    if any_process(stop.requested):
        raise KeyboardInterrupt
    model.eval()
    return TrainingOutcome(settings.steps, settings.steps * settings.tokens_per_step, log.seconds)


@contextmanager
def _own_use_cache(model: PreTrainedModel) -> Iterator[None]:
    """Put back `use_cache`, which the Trainer turns off in the model's configuration; not every model has it."""
    own = vars(model.config).get("use_cache")
    try:
        yield
    finally:
        if own is None:
            vars(model.config).pop("use_cache", None)
        else:
            model.config.use_cache = own


class _RoundTrainer(Trainer):
    """Trainer with our loss, data order, parameter groups, schedule and checkpoint marker."""

    def __init__(self, *args: Any, settings: TrainingSettings, loss: Loss, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.loss = settings, loss
        # Our loss is a mean over one micro-batch, so the Trainer has to divide by the number of them.
        self.model_accepts_loss_kwargs = False
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)  # the data set itself is in training order

    @override
    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], **_: Any) -> torch.Tensor:
        return self.loss(model, inputs["tokens"])

    @override
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        self.optimizer: torch.optim.Optimizer = self.optimizer or make_optimizer(model or self.model, self.settings)
        return self.optimizer

    @override
    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        s = self.settings
        # LambdaLR multiplies the optimiser's rate, which is the peak.
        factor = functools.partial(
            cosine_with_warmup,
            steps=num_training_steps,
            warmup=s.warmup_steps,
            peak=1.0,
            floor=s.min_learning_rate / s.learning_rate,
        )
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            step = self.state.global_step
            mark_complete(Path(self.args.output_dir) / f"checkpoint-{step}", step)


def _watch(path: Path, windows: np.ndarray | None, settings: TrainingSettings) -> list[WatchCollapse]:
    """Return the callback that watches the attention, or nothing when it is not wanted."""
    if windows is None or not settings.watch_every:
        return []
    return [WatchCollapse(path, windows, settings.watch_every, tokens_per_step=settings.tokens_per_step)]


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """Return AdamW with weight decay on matrices and embeddings, none on norms and biases (paper, App. F)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (settings.beta1, settings.beta2)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)


def _arguments(settings: TrainingSettings, checkpoints: Path, seed: int) -> TrainingArguments:
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        max_grad_norm=settings.clip,
        use_cpu=not has_accelerator(),
        bf16=_use_bfloat16(settings.precision),
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
    micro, accumulate = _share(settings, arguments.world_size)
    arguments.per_device_train_batch_size = micro
    arguments.gradient_accumulation_steps = accumulate
    return arguments


def _share(settings: TrainingSettings, devices: int) -> tuple[int, int]:
    """Return (sequences of a micro-batch, micro-batches of a step) for one of `devices` devices."""
    micro = settings.micro_batch or settings.batch // devices
    if micro < 1 or settings.batch % (micro * devices):
        raise RecipeError(
            f"a batch of {settings.batch} sequences cannot be shared by {devices} devices in micro-batches of "
            f"{max(micro, 1)}: expected a multiple of {max(micro, 1) * devices}"
        )
    return micro, settings.batch // (micro * devices)


def _use_bfloat16(precision: str) -> bool:
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"
