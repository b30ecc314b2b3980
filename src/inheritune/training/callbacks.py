"""What accompanies a round: its log, on disk and live, and the stop at a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from inheritune.distributed import any_process
from inheritune.errors import DataError
from inheritune.progress import progress
from inheritune.training.collapse import WatchCollapse
from inheritune.training.log import StepLog
from inheritune.training.settings import TrainingSettings

METRICS = "metrics.jsonl"
"""What the log of a round is called."""
Validate = Callable[[PreTrainedModel], float]


@dataclass(eq=False)
class RoundLog(TrainerCallback):
    """Writes `metrics.jsonl`, one line every `log_every` steps, with the validation loss where it is due.

    The same is shown live: steps, time left, loss, tokens a second. A resumed round drops the lines behind its
    checkpoint, so the file reads as if nothing had happened.

    Attributes:
        log: the file.
        settings: how often.
        validate: gives the validation loss of a model.
        description: what the live line calls the round.
        watching: other callbacks, whose seconds are not spent training.
        seconds: time spent training so far, over all the processes that worked on the round one after the other.
    """

    log: StepLog
    settings: TrainingSettings
    validate: Validate | None
    description: str
    watching: Sequence[WatchCollapse] = ()
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self._live = ExitStack()

    @override
    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance = self._live.enter_context(progress(self.description, state.max_steps, state.global_step))
        if state.is_world_process_zero:
            last = self.log.cut_behind(state.global_step)
            self.seconds = last["seconds"] if last else 0.0
        self._since, self._last_step = self._now(), state.global_step

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._advance()

    @override
    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, float], **rest: Any
    ) -> None:
        if "loss" not in logs:
            return  # the Trainer's closing summary
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise DataError(f"the loss is {loss} at step {step}: expected a number; lower training.learning_rate")
        elapsed = self._now() - self._since
        self.seconds += elapsed
        speed = (step - self._last_step) * self.settings.tokens_per_step / elapsed
        line = {
            "step": step,
            "tokens": step * self.settings.tokens_per_step,
            "loss": loss,
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": speed,
            "seconds": self.seconds,
        }
        every = self.settings.valid_every
        if self.validate and every and step % every == 0:
            line["valid_loss"] = self.validate(rest["model"])
        if state.is_world_process_zero:
            self.log.append(line)
        self._advance(0, f"loss {loss:.3f}  {speed:,.0f} tokens/s")
        # Time spent validating is not time spent training.
        self._since, self._last_step = self._now(), step

    def close(self) -> None:
        """Take the live line off the screen; also after an error."""
        self._live.close()

    def _now(self) -> float:
        return time.monotonic() - sum(each.seconds for each in self.watching)


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

    @contextmanager
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
