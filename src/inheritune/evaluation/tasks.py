"""Zero-shot and few-shot tasks (paper, Tables 1 and 7) by the lm-evaluation-harness, an optional extra."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError, InherituneError, library_errors, nearest, nearest_path, reason
from inheritune.evaluation.generation import Source, loaded
from inheritune.records.evaluation import TaskResult, TaskResults

YAML = (".yaml", ".yml")


class MissingHarnessError(InherituneError):
    """The optional lm-evaluation-harness is not installed."""


def run_tasks(model: Source, tasks: Sequence[str], limit: int | None = None, batch: int = 16) -> TaskResults:
    """Run tasks of the lm-evaluation-harness on a model.

    The harness sets the global random seeds (Python, NumPy, torch) to its own fixed values.

    Args:
        model: a folder or hub id with its tokenizer, see `loaded`, or a model that was loaded from one.
        tasks: names that the harness knows, or paths of YAML task files.
        limit: rows per task at most; None for all. A limit is for trying out, not for results.
        batch: requests that are run together.

    Raises:
        MissingHarnessError: the harness is not installed.
        DataError: a task is not known or does not work: its YAML file, its rows, or code of its own is wrong.
        ModelError: the model or its tokenizer cannot be loaded.
    """
    names, manager = _find_tasks(tasks, limit)
    loaded_model = loaded(model)
    tokenizer = load_tokenizer(model if isinstance(model, str | Path) else model.name_or_path)

    import lm_eval
    from lm_eval.models.huggingface import HFLM

    output = _run(HFLM(pretrained=loaded_model, tokenizer=tokenizer, batch_size=batch), names, limit, manager)
    return TaskResults(harness=lm_eval.__version__, limit=limit, results=_results(output))


def check_tasks(tasks: Sequence[str], limit: int | None = None) -> None:
    """Try tasks out without a model, so that what is wrong with them is said before anything is evaluated.

    Every row that will be asked is made into requests, answered at random, and scored; of the harness's own tasks, some
    of which have many thousands of rows, only the first row is.

    Raises:
        MissingHarnessError: the harness is not installed.
        DataError: a task is not known or does not work.
    """
    names, manager = _find_tasks(tasks, limit)

    from lm_eval.models.dummy import DummyLM

    for task, name in zip(tasks, names, strict=True):
        output = _run(DummyLM(), [name], limit if task.endswith(YAML) else 1, manager, bootstrap_iters=0)
        if not _results(output):  # the harness passes over metrics that it does not know
            raise DataError(f"the task {name} measures nothing: expected a metric_list of the harness's metrics")


def _run(model: Any, names: list[str], limit: int | None, manager: Any, **settings: Any) -> dict[str, Any]:
    import lm_eval

    settings |= {"log_samples": False, "confirm_run_unsafe_code": False}
    fault = f"cannot run {', '.join(names)}, whose output_type, doc_to_ fields and metrics have to fit its rows"
    with library_errors(fault, kind=DataError):  # templates, rows and code of a task raise whatever they stumble over
        return lm_eval.simple_evaluate(model, tasks=names, limit=limit, task_manager=manager, **settings)


def _find_tasks(tasks: Sequence[str], limit: int | None) -> tuple[list[str], Any]:
    """Return the harness's names of `tasks` and its task manager; a name that is not known gets the nearest."""
    try:
        import lm_eval.tasks  # noqa: F401 - asked for before anything else, so that a missing extra is said first
    except ImportError as error:
        raise MissingHarnessError("tasks need the evaluation harness: pip install 'inheritune[eval]'") from error
    if not tasks:
        raise DataError("no task: expected names such as arc_easy,piqa")
    if limit is not None and limit < 1:
        raise DataError(f"a limit of {limit} rows: expected at least 1")
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
        hint = nearest_path(path, pattern="*.y*ml")
        raise DataError(f"no task file {path}: expected a YAML file of the harness{hint}")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=_TaskLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        place = getattr(error, "problem_mark", None)
        line = "" if place is None else f" at line {place.line + 1}"
        problem = getattr(error, "problem", None) or reason(error)
        raise DataError(f"cannot read {path} as YAML{line}: {problem}") from error
    for key in ("group", "task") if isinstance(config, dict) else ():
        if config.get(key) and isinstance(config[key], str):
            return config[key]
    raise DataError(f"{path} names no task: expected a line such as 'task: my_task' or 'group: my_group'")


class _TaskLoader(yaml.SafeLoader):
    """Reads a task file without its code: the harness's own tags (`!function`) stop a plain YAML reader."""


_TaskLoader.add_multi_constructor("!", lambda loader, tag, node: None)


def _results(output: dict[str, Any]) -> tuple[TaskResult, ...]:
    """Return one row for each task and metric of the harness's results, whose keys look like `acc,none`."""
    rows = []
    for task, metrics in output["results"].items():
        for key, value in metrics.items():
            metric, _, filtered = key.partition(",")
            shots = output["n-shot"].get(task)
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            rows.append(
                TaskResult(
                    task=task,
                    metric=metric if filtered == "none" else f"{metric} ({filtered})",
                    value=_finite(value),
                    standard_error=_finite(metrics.get(f"{metric}_stderr,{filtered}")),
                    shots=shots if isinstance(shots, int) else None,  # of a group it is a blank
                    samples=output["n-samples"].get(task, {}).get("effective"),
                )
            )
    return tuple(rows)


def _finite(value: Any) -> float | None:
    """Return a number of the harness, which writes "N/A" or NaN where it has none, as in a metric of no rows."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
