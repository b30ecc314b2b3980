"""One question about one or two models, answered as a record: loss, comparison, speed, tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from inheritune.data import NamedTokenizer, check_same_vocabulary
from inheritune.data.readers import BLANK_LINE
from inheritune.decoder import count_parameters, load_config, load_model, open_decoder
from inheritune.decoder.device import on_accelerator
from inheritune.decoder.source import model_identity
from inheritune.errors import InherituneError, ModelError, OutputError
from inheritune.evaluation.loss import check_windows, evaluate_windows
from inheritune.evaluation.paired import CONFIDENCE, MARGIN, check_settings, compare
from inheritune.evaluation.speed import compare_speed, measure_speed
from inheritune.evaluation.tasks import check_tasks, run_tasks
from inheritune.evaluation.windows import open_tokenizer, resolve_windows
from inheritune.records.base import environment, now, read_record
from inheritune.records.evaluation import (
    Evaluated,
    EvaluatedData,
    EvaluationRecord,
    EvaluationSettings,
    Speed,
    SpeedRatio,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Source: TypeAlias = "str | Path | PreTrainedModel"


class TasksFailedError(InherituneError):
    """The tasks of an evaluation failed after its losses were measured; `record` has all but the tasks."""

    def __init__(self, message: str, record: EvaluationRecord) -> None:
        super().__init__(message)
        self.record = record


def evaluate(
    model: Source,
    data: str | Path | np.ndarray,
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
            a reference both in alternation, and the ratio (`speed.compare_speed`).
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
    if tasks:
        check_tasks(tasks, task_limit)
    tokens = _common_windows(sources, data, length, windows, separator, field)
    if against is not None:
        check_settings(len(tokens), margin, confidence)
    name = "token windows" if isinstance(data, np.ndarray) else str(data)
    losses, parts = zip(*(_examine(source, tokens, name, batch) for source in sources), strict=True)
    ratio = None
    if speed:
        speeds, ratio = _speeds(sources, confidence)
        parts = tuple(part.model_copy(update={"speed": each}) for part, each in zip(parts, speeds, strict=True))
    record = EvaluationRecord(
        **dict(parts[0]),
        against=parts[1] if against is not None else None,
        comparison=compare(losses[0], losses[1], margin, confidence) if against is not None else None,
        speed_ratio=ratio,
        data=EvaluatedData(source=name, windows_sha256=_digest(tokens)),
        settings=EvaluationSettings(length=length, windows=windows, batch=batch, margin=margin, confidence=confidence),
        environment=environment(),
        created=now(),
    )
    return _with_tasks(record, sources, tasks, task_limit, batch) if tasks else record


def check_output(path: Path, model: str, data: str, against: str | None) -> None:
    """Refuse to write the record of this evaluation over anything but an earlier record of the same one.

    Raises:
        OutputError: `path` is a folder, or a file that holds something else.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder: expected the name of a file, for example {path / 'evaluation.json'}")
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


def _common_windows(
    sources: Sequence[Source],
    data: str | Path | np.ndarray,
    length: int | None,
    limit: int | None,
    separator: str,
    field: str,
) -> np.ndarray:
    """Return windows of `data`, (N, T + 1) integers, for all models; only their configurations are loaded for it."""
    limits = [_limits(source) for source in sources]
    tokenizers = [tokenizer for tokenizer in map(_tokenizer, sources) if tokenizer is not None]
    check_same_vocabulary(tokenizers)
    context = min((context for context, _ in limits if context is not None), default=None)
    windows = resolve_windows(data, tokenizers, context, length, limit, separator, field)
    check_windows(windows, context, min(vocabulary for _, vocabulary in limits))
    return windows


def _limits(source: Source) -> tuple[int | None, int]:
    """Return the context (None: no limit) and the number of token ids of a model, from its configuration."""
    config = load_config(source) if isinstance(source, str | Path) else source.config
    text = config.get_text_config(decoder=True)
    context = getattr(text, "max_position_embeddings", None)
    return int(context) if context else None, int(text.vocab_size)


def _tokenizer(source: Source) -> NamedTokenizer | None:
    if isinstance(source, str | Path):
        return open_tokenizer(str(source))
    name = source.name_or_path  # where the model once came from; nobody passed it, so it may be gone
    try:
        return open_tokenizer(name) if name else None
    except ModelError:
        if Path(name).is_dir():
            raise
        return None


def _loaded(source: Source) -> PreTrainedModel:
    return on_accelerator(load_model(source)) if isinstance(source, str | Path) else source


def _name(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else source.name_or_path or type(source).__name__


def _examine(source: Source, tokens: np.ndarray, data_name: str, batch: int) -> tuple[np.ndarray, Evaluated]:
    """Load a model; return its loss on each window, (N,) float64, and its part of the record."""
    model = _loaded(source)
    evaluation = evaluate_windows(model, tokens, data_name, batch, f"evaluating {Path(_name(source)).name}")
    part = Evaluated(
        model=_name(source),
        layers=open_decoder(model).layers,
        parameters=count_parameters(model),
        evaluation=evaluation.summary,
        identity=model_identity(source) if isinstance(source, str | Path) else None,
    )
    return evaluation.losses, part


def _speeds(sources: Sequence[Source], confidence: float) -> tuple[list[Speed], SpeedRatio | None]:
    """Return the speed of each model and, of two, their ratio."""
    models = [_loaded(source) for source in sources]
    if len(models) == 1:
        return [measure_speed(models[0])], None
    ours, theirs, ratio = compare_speed(models[0], models[1], confidence=confidence)
    return [ours, theirs], ratio


def _with_tasks(
    record: EvaluationRecord, sources: Sequence[Source], tasks: Sequence[str], limit: int | None, batch: int
) -> EvaluationRecord:
    """Return `record` with the results of tasks; a failure leaves it as it is."""
    try:
        results = [run_tasks(_loaded(source), tasks, limit, batch) for source in sources]
    except InherituneError as error:
        raise TasksFailedError(str(error), record) from error
    against = record.against.model_copy(update={"tasks": results[1]}) if record.against else None
    return record.model_copy(update={"tasks": results[0], "against": against})


def _digest(windows: np.ndarray) -> str:
    """Return the SHA-256 of the windows as little-endian int64: equal digests mean the same question."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()
