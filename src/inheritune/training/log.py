"""The log of a round: JSON lines on disk, one for each step that is worth one, with which a resumed round goes on."""

import json
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from inheritune.errors import DataError
from inheritune.progress import progress
from inheritune.storage import write_text
from inheritune.training.settings import TrainingSettings

METRICS = "metrics.jsonl"
Validate = Callable[[PreTrainedModel], float]
Line = dict[str, Any]


@dataclass(frozen=True)
class StepLog:
    """A file of JSON lines, each an object with its `step`. Numbers that are not finite are written as null."""

    path: Path

    def append(self, line: Line) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_json(line))

    def cut_behind(self, step: int, keep: Callable[[int], bool] = lambda step: True) -> Line | None:
        """Keep the lines that an uninterrupted round would have at `step`, and return the last of them.

        Lines of later steps go, and of steps at which it has none, as `keep` says; so does a line that cannot be read:
        one that was being written when the process died, or a damaged one.
        """
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.is_file() else ""
        lines = [line for line in map(_parsed, text.splitlines()) if line is not None]
        kept = [line for line in lines if line["step"] <= step and keep(line["step"])]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, "".join(map(_json, kept)))
        return kept[-1] if kept else None


def _parsed(text: str) -> Line | None:
    line = None
    with suppress(ValueError):
        line = json.loads(text)
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def _json(line: Line) -> str:
    return json.dumps(to_jsonable_python(line, inf_nan_mode="null"), allow_nan=False) + "\n"


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
        watching_seconds: time that other callbacks have taken so far, which is not spent training.
        seconds: time spent training so far, over all the processes that worked on the round one after the other.
    """

    log: StepLog
    settings: TrainingSettings
    validate: Validate | None
    description: str
    watching_seconds: Callable[[], float]
    seconds: float = 0.0
    _live: ExitStack = field(default_factory=ExitStack, init=False)

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
        return time.monotonic() - self.watching_seconds()
