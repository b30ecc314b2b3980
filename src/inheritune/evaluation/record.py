"""One question about one or two models, answered as a record: loss, comparison, speed, tasks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from inheritune.data import NamedTokenizer, check_same_vocabulary
from inheritune.data.readers import BLANK_LINE
from inheritune.decoder import count_parameters, load_config, load_model, open_decoder
from inheritune.decoder.device import on_accelerator
from inheritune.errors import ModelError, OutputError
from inheritune.evaluation.loss import Evaluation, check_windows, evaluate_windows
from inheritune.evaluation.paired import CONFIDENCE, MARGIN, check_settings, compare
from inheritune.evaluation.speed import measure_speed
from inheritune.evaluation.tasks import find_tasks, run_tasks
from inheritune.evaluation.windows import open_tokenizer, resolve_windows
from inheritune.records.base import environment, now

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    Source: TypeAlias = "str | Path | PreTrainedModel"

SCHEMA = 1
PROMPT_LENGTH = 128
NEW_TOKENS = 128


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
) -> dict[str, Any]:
    """Evaluate a model on fixed windows, and compare it with a reference on the same ones.

    A folder or hub id is loaded in the precision it was saved in and runs on the accelerator if there is one; a model
    that is passed in runs where it is. One model is loaded at a time.

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
        speed: measure generation speed and memory as well (128 tokens from a prompt of 128, cut to the context).
        tasks: tasks of the lm-evaluation-harness to run as well.
        task_limit: rows per task at most.

    Returns:
        A record: `kind` "evaluate", `model`, `layers`, `parameters`, `evaluation` (and `speed`, `tasks`); `against`,
        the same of the reference, or None; `comparison` (see `paired.Comparison`), or None; `data`, `settings`,
        `environment` and `created`.

    Raises:
        ModelError: a model cannot be loaded, or its loss is not finite.
        DataError: the data cannot be used, or not with both models.
        InherituneError: tasks are asked for and the harness is not installed.
    """
    sources = [model] if against is None else [model, against]
    if tasks:
        find_tasks(tasks)
    tokens = _common_windows(sources, data, length, windows, separator, field)
    if against is not None:
        check_settings(len(tokens), margin, confidence)
    name = "token windows" if isinstance(data, np.ndarray) else str(data)
    answers = [_examine(source, tokens, name, batch, speed, tasks, task_limit) for source in sources]
    losses = [evaluation.losses for evaluation, _ in answers]
    comparison = compare(losses[0], losses[1], margin, confidence).as_record() if against is not None else None
    return {
        "kind": "evaluate",
        "schema": SCHEMA,
        **answers[0][1],
        "against": answers[1][1] if against is not None else None,
        "comparison": comparison,
        "data": {"source": name, "windows_sha256": _digest(tokens)},
        "settings": {"length": length, "windows": windows, "batch": batch, "margin": margin, "confidence": confidence},
        "environment": environment().as_json(),
        "created": now(),
    }


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
        held = json.loads(path.read_text(encoding="utf-8"))
        compared = held["against"]["model"] if held["against"] else None
        asked = (held["kind"], held["model"], held["data"]["source"], compared)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} exists and is no record of an evaluation: pass another --out file") from error
    if asked != ("evaluate", model, data, against):
        held_by = f"{asked[1]} on {asked[2]}" + (f" against {compared}" if compared else "")
        raise OutputError(f"{path} holds the evaluation of {held_by}: pass another --out file")


def _common_windows(
    sources: Sequence[Source],
    data: str | Path | np.ndarray,
    length: int | None,
    limit: int | None,
    separator: str,
    field: str,
) -> np.ndarray:
    """Return windows of `data` that all models can be evaluated on; nothing but configurations is loaded for it."""
    limits = [_limits(source) for source in sources]
    tokenizers = [found for found in map(_tokenizer, sources) if found is not None]
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


def _examine(
    source: Source,
    tokens: np.ndarray,
    data_name: str,
    batch: int,
    speed: bool,
    tasks: Sequence[str],
    task_limit: int | None,
) -> tuple[Evaluation, dict[str, Any]]:
    """Load one model and measure all that is asked; return its evaluation and its part of the record."""
    name = str(source) if isinstance(source, str | Path) else source.name_or_path or type(source).__name__
    model = on_accelerator(load_model(source)) if isinstance(source, str | Path) else source
    evaluation = evaluate_windows(model, tokens, data_name, batch, f"evaluating {Path(name).name}")
    part: dict[str, Any] = {
        "model": name,
        "layers": open_decoder(model).layers,
        "parameters": count_parameters(model),
        "evaluation": evaluation.as_record(),
    }
    if speed:
        part["speed"] = measure_speed(model, PROMPT_LENGTH, NEW_TOKENS)
    if tasks:
        part["tasks"] = run_tasks(model, tasks, task_limit, batch)
    return evaluation, part


def _digest(windows: np.ndarray) -> str:
    """Return the SHA-256 of the windows as little-endian int64: equal digests mean the same question."""
    return hashlib.sha256(np.ascontiguousarray(windows, dtype="<i8").tobytes()).hexdigest()
