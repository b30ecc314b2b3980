"""Zero-shot and few-shot tasks (paper, Tables 1 and 7) by the lm-evaluation-harness, an optional extra."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.decoder import load_model, load_tokenizer
from inheritune.errors import DataError, InherituneError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

YAML = (".yaml", ".yml")
_TASK_LINE = re.compile(r"^(?:task|group):\s*['\"]?([\w.-]+)", re.MULTILINE)


class MissingHarnessError(InherituneError):
    """The optional lm-evaluation-harness is not installed."""


def run_tasks(
    model_path: str | Path | PreTrainedModel,
    tasks: Sequence[str],
    limit: int | None = None,
    batch: int = 16,
) -> dict[str, Any]:
    """Run tasks of the lm-evaluation-harness on a model.

    The harness sets the global random seeds (Python, NumPy, torch) to its own fixed values.

    Args:
        model_path: a folder or hub id with its tokenizer, or a model that was loaded from one.
        tasks: names that the harness knows, or paths of YAML task files.
        limit: rows per task at most; None for all. A limit is for trying out, not for results.
        batch: requests that are run together.

    Returns:
        `harness` (its version), `limit`, and `results`: a row per task and metric with `task`, `metric`, `value`,
        `standard_error` (None where the harness has none), `shots` and `samples`.

    Raises:
        MissingHarnessError: the harness is not installed.
        DataError: a task is not known, or its rows cannot be read.
        ModelError: the model or its tokenizer cannot be loaded.
    """
    names, manager = find_tasks(tasks)
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows: expected at least 1")
    model = load_model(model_path)
    tokenizer = load_tokenizer(model_path if isinstance(model_path, str | Path) else model_path.name_or_path)

    import lm_eval
    from lm_eval.models.huggingface import HFLM

    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch)
    try:
        output = lm_eval.simple_evaluate(
            wrapped, tasks=names, limit=limit, task_manager=manager, log_samples=False, confirm_run_unsafe_code=False
        )
    except (OSError, ConnectionError) as error:  # the rows come from the hub or from files
        raise DataError(f"cannot read the rows of {', '.join(names)}: {_first_line(error)}") from error
    return {"harness": lm_eval.__version__, "limit": limit, "results": _rows(output)}


def find_tasks(tasks: Sequence[str]) -> tuple[list[str], Any]:
    """Return the harness's names of `tasks` and its task manager.

    Raises:
        MissingHarnessError: the harness is not installed.
        DataError: none is asked for, a file is not a task file, or a name is not known; the nearest is offered.
    """
    try:
        import lm_eval.tasks  # noqa: F401 - asked for before anything else, so that a missing extra is said first
    except ImportError as error:
        raise MissingHarnessError("tasks need the evaluation harness: pip install 'inheritune[eval]'") from error
    if not tasks:
        raise DataError("no task: expected names such as arc_easy,piqa")
    files = [Path(task) for task in tasks if task.endswith(YAML)]
    manager = _task_manager(tuple(sorted({str(file.resolve().parent) for file in files})))
    names = [_file_task(Path(task)) if task.endswith(YAML) else task for task in tasks]
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            hint = nearest(name, known)
            raise DataError(f"unknown task {name!r}: expected one of the {len(known)} tasks of the harness{hint}")
    return names, manager


@functools.cache
def _task_manager(folders: tuple[str, ...]) -> Any:
    """Return the harness's index of its own tasks and those in `folders`; making it reads thousands of files."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=list(folders) or None)


def _file_task(path: Path) -> str:
    """Return the name that the YAML task file at `path` gives its task."""
    if not path.is_file():
        siblings = [str(item) for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        raise DataError(f"no task file {path}: expected a YAML file of the harness{nearest(str(path), siblings)}")
    # The harness's own YAML tags (`!function`) stop a plain YAML reader, and only the name is needed.
    found = _TASK_LINE.search(path.read_text(encoding="utf-8"))
    if found is None:
        raise DataError(f"{path} names no task: expected a line such as 'task: my_task'")
    return found[1]


def _rows(output: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each task and metric of the harness's results, whose keys look like `acc,none`."""
    rows = []
    for task, metrics in output["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = metrics.get(f"{metric}_stderr,{filtered}")
            rows.append(
                {
                    "task": task,
                    "metric": metric if filtered == "none" else f"{metric} ({filtered})",
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None,
                    "shots": output["n-shot"].get(task),
                    "samples": output["n-samples"].get(task, {}).get("effective"),
                }
            )
    return rows


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
