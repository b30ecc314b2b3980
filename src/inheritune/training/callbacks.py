"""What watches a round: the log on disk, the live line, and the stop at a signal."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from inheritune.errors import DataError
from inheritune.progress import progress
from inheritune.training.settings import TrainingSettings

Validate = Callable[[PreTrainedModel], float]


class MetricsLog(TrainerCallback):
    """Writes `metrics.jsonl`, one line every `log_every` steps, and the validation loss where it is due.

    A resumed round drops the lines behind its checkpoint, so the file reads as if nothing had happened.
    """

    def __init__(
        self,
        path: Path,
        settings: TrainingSettings,
        validate: Validate | None,
        elsewhere: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """Log to `path`.

        Args:
            path: the file.
            settings: how often.
            validate: gives the validation loss of a model.
            elsewhere: gives the seconds that other callbacks have spent so far on what is not training.
        """
        self.path, self.settings, self.validate, self.elsewhere = path, settings, validate, elsewhere
        self.seconds = 0.0

    def _now(self) -> float:
        return time.monotonic() - self.elsewhere()

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            self._cut_behind(state.global_step)
        self._since, self._last_step = self._now(), state.global_step

    def _cut_behind(self, step: int) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        # A line that was being written when the process died has no line end.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        self.path.write_text("".join(kept))
        self.seconds = json.loads(kept[-1])["seconds"] if kept else 0.0

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if "loss" not in logs:
            return  # the Trainer's closing summary
        if not math.isfinite(logs["loss"]):
            raise DataError(
                f"the loss is {logs['loss']} at step {state.global_step}: expected a number; "
                "lower training.learning_rate"
            )
        elapsed = self._now() - self._since
        self.seconds += elapsed
        line = {
            "step": state.global_step,
            "tokens": state.global_step * self.settings.tokens_per_step,
            "loss": logs["loss"],
            "learning_rate": logs["learning_rate"],
            "grad_norm": logs.get("grad_norm"),
            "tokens_per_second": (state.global_step - self._last_step) * self.settings.tokens_per_step / elapsed,
            "seconds": self.seconds,
        }
        every = self.settings.valid_every
        if self.validate and every and state.global_step % every == 0:
            line["valid_loss"] = self.validate(model)
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
        logs["tokens_per_second"] = line["tokens_per_second"]
        # Time spent validating is not time spent training.
        self._since, self._last_step = self._now(), state.global_step


class ProgressLine(TrainerCallback):
    """The live line: steps, time left, loss, tokens a second."""

    def __init__(self, description: str) -> None:
        self.description = description
        self._stack = ExitStack()

    @override
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._advance = self._stack.enter_context(progress(self.description, state.max_steps, state.global_step))

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._advance()

    @override
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "loss" in logs:
            self._advance(0, f"loss {logs['loss']:.3f}  {logs['tokens_per_second']:,.0f} tokens/s")

    def close(self) -> None:
        """Take the line off the screen; also after an error."""
        self._stack.close()


class StopAtSignal(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a checkpoint and an orderly stop; a second Ctrl-C stops at once.

    The stop waits for the next line of the log: a checkpoint between two lines would split the mean that the line
    shows, and the resumed run's log would differ from an uninterrupted one's.
    """

    def __init__(self) -> None:
        self.requested = False

    @override
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.requested and state.global_step % args.logging_steps == 0:
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
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
