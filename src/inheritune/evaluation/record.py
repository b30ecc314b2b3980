"""One question about one or two models, answered as a record: loss, comparison, speed, tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inheritune.data.readers import BLANK_LINE
from inheritune.decoder import count_parameters, open_decoder
from inheritune.decoder.source import model_identity
from inheritune.errors import InherituneError, OutputError
from inheritune.evaluation.generation import Source, compare_speed, loaded, measure_speed
from inheritune.evaluation.loss import evaluate_windows
from inheritune.evaluation.paired import CONFIDENCE, MARGIN, check_settings, compare
from inheritune.evaluation.tasks import check_tasks, run_tasks
from inheritune.evaluation.windows import common_windows
from inheritune.records.base import environment, now, read_record
from inheritune.records.evaluation import Evaluated, EvaluatedData, EvaluationRecord, EvaluationSettings


class TasksFailedError(InherituneError):
    """The tasks of an evaluation failed after its losses were measured; `record` has all but the tasks."""

    def __init__(self, message: str, record: EvaluationRecord) -> None:
        super().__init__(message)
        self.record = record


def evaluate(
    model: Source,
    data: str | Path | np.ndarray | torch.Tensor,
    against: Source | None = None,
    *,
    separator: str = BLANK_LINE,
    field: str = "text",
    length: int | None = None,
    windows: int | None = None,
    batch: int = 16,
    margin: float = MARGIN,
    confidence: float = CONFIDENCE,
    speed: bool = False,
    tasks: Sequence[str] = (),
    task_limit: int | None = None,
) -> EvaluationRecord:
    """Evaluate a model on fixed windows, and compare it with a reference on the same ones.

    A folder or hub id is loaded in the precision it was saved in and runs on the accelerator if there is one; a model
    that is passed in runs where it is. One model is loaded at a time, two for the comparison of their speed.

    Args:
        model: a model, a local folder or a hub id.
        data: windows (N, T + 1) of tokens, a `.npy` file of them, a folder of prepared shards (their validation split)
            or any source of text (all of it), tokenized by the model's own tokenizer.
        against: the reference to compare with.
        separator: what stands between two documents of a text file.
        field: the field of JSON lines and tables that holds the text.
        length: input tokens of a window, T; by default what an array has, else the smaller of 512 and the context,
            halved (not below 64) while the data make fewer than 8 windows.
        windows: how many windows at most, spread evenly; by default all of an array, 256 of shards and text.
        batch: windows that are run together.
        margin: nats per token by which the model may be worse and still match.
        confidence: level of the confidence interval of the difference.
        speed: measure generation speed and memory as well (128 tokens from a prompt of 128, cut to the context); with
            a reference both in alternation, and the ratio (`compare_speed`).
        tasks: tasks of the lm-evaluation-harness to run as well.
        task_limit: rows per task at most.

    Returns:
        The record, as `inheritune evaluate` writes it.

    Raises:
        ModelError: a model cannot be loaded, or its loss is not finite.
        DataError: the data cannot be used, or not with both models; a task is not known or does not work.
        TasksFailedError: the tasks failed while they were run; it has the record without them.
        MissingHarnessError: tasks are asked for and the harness is not installed.
    """
    sources = [model] if against is None else [model, against]
    if isinstance(data, torch.Tensor):
        data = data.numpy(force=True)
    if tasks:
        check_tasks(tasks, task_limit)
    tokens, documents = common_windows(sources, data, length, windows, separator, field)
    if against is not None:
        check_settings(len(tokens), margin, confidence, documents)
    name = "token windows" if isinstance(data, np.ndarray) else str(data)
    examine = partial(_examine, tokens=tokens, documents=documents, data_name=name, batch=batch)
    losses, part = examine(model)
    measured: dict[str, Any] = dict(part)
    if against is None:
        measured["speed"] = measure_speed(model) if speed else None
    else:
        other_losses, other = examine(against)
        measured["comparison"] = compare(losses, other_losses, margin, confidence, documents)
        if speed:
            measured["speed"], theirs, measured["speed_ratio"] = compare_speed(model, against, confidence=confidence)
            other = other.model_copy(update={"speed": theirs})
        measured["against"] = other
    content = np.ascontiguousarray(tokens, dtype="<i8")  # equal digests mean the same question
    record = EvaluationRecord(
        **measured,
        data=EvaluatedData(source=name, windows_sha256=hashlib.sha256(content.tobytes()).hexdigest()),
        settings=EvaluationSettings(length=length, windows=windows, batch=batch, margin=margin, confidence=confidence),
        environment=environment(),
        created=now(),
    )
    if not tasks:
        return record
    try:
        results = [run_tasks(source, tasks, task_limit, batch) for source in sources]
    except InherituneError as error:
        raise TasksFailedError(str(error), record) from error
    reference = record.against.model_copy(update={"tasks": results[1]}) if record.against else None
    return record.model_copy(update={"tasks": results[0], "against": reference})


def check_output(path: Path, model: str, data: str, against: str | None) -> None:
    """Refuse to write the record of this evaluation over anything but an earlier record of the same one.

    Raises:
        OutputError: `path` is there and holds something else.
    """
    if not path.exists():
        return
    try:
        held = read_record(path, EvaluationRecord)
    except OutputError as error:
        raise OutputError(f"{path} exists and is no record of an evaluation: pass another --out file") from error
    compared = held.against.model if held.against else None
    if (held.model, held.data.source, compared) != (model, data, against):
        held_by = f"{held.model} on {held.data.source}" + (f" against {compared}" if compared else "")
        raise OutputError(f"{path} holds the evaluation of {held_by}: pass another --out file")


def _examine(
    source: Source, tokens: np.ndarray, documents: np.ndarray | None, data_name: str, batch: int
) -> tuple[np.ndarray, Evaluated]:
    """Load a model; return its loss on each window, (N,) float64, and its part of the record."""
    model = loaded(source)
    name = str(source) if isinstance(source, str | Path) else source.name_or_path or type(source).__name__
    evaluation = evaluate_windows(model, tokens, data_name, batch, f"evaluating {Path(name).name}", documents)
    part = Evaluated(
        model=name,
        layers=open_decoder(model).layers,
        parameters=count_parameters(model),
        evaluation=evaluation.summary,
        identity=model_identity(source) if isinstance(source, str | Path) else None,
    )
    return evaluation.losses, part
