"""`inheritune evaluate`: how good is a model, and does it match a reference?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.console import print_table
from inheritune.cli.options import SEPARATOR, Field, Model, PathOption, Separator, SourceOption

if TYPE_CHECKING:
    from inheritune.records.evaluation import Comparison, EvaluationRecord, Speed, SpeedRatio

NAME_WIDTH = 26


def evaluate(
    model: Model,
    data: Annotated[
        str,
        SourceOption(help="A text source, a folder of prepared shards (validation split), or windows.npy (N, T + 1)."),
    ],
    against: Annotated[str | None, SourceOption(help="The reference, named as MODEL is.")] = None,
    field: Field = "text",
    separator: Separator = SEPARATOR,
    length: Annotated[
        int | None, typer.Option(help="Input tokens of a window (by default 512 or the context; less for little data).")
    ] = None,
    windows: Annotated[
        int | None, typer.Option(help="Windows at most, spread evenly (by default 256, or all of an array).")
    ] = None,
    batch: Annotated[int, typer.Option(help="Windows run together.")] = 16,
    margin: Annotated[float, typer.Option(help="Nats per token by which MODEL may be worse and still match.")] = 0.01,
    confidence: Annotated[float, typer.Option(help="Level of the interval of the difference.")] = 0.95,
    speed: Annotated[bool, typer.Option("--speed", help="Measure generation speed and memory too.")] = False,
    tasks: Annotated[str | None, typer.Option(help="Tasks of the lm-evaluation-harness: a,b or a task.yaml.")] = None,
    task_limit: Annotated[int | None, typer.Option(help="Rows per task at most, to try tasks out.")] = None,
    out: Annotated[Path, PathOption(help="The record (JSON).")] = Path("evaluation.json"),
) -> None:
    """Loss on fixed windows, and the paired comparison with a reference on the same windows.

    MODEL matches when the whole confidence interval of its loss minus the reference's lies below the margin.
    """
    from inheritune.evaluation import TasksFailedError, check_output
    from inheritune.evaluation import evaluate as evaluate_model

    check_output(out, model, data, against)
    failure = None
    try:
        record = evaluate_model(
            model,
            data,
            against,
            separator=separator,
            field=field,
            length=length,
            windows=windows,
            batch=batch,
            margin=margin,
            confidence=confidence,
            speed=speed,
            tasks=[name.strip() for name in tasks.split(",")] if tasks is not None else (),
            task_limit=task_limit,
        )
    except TasksFailedError as error:
        record, failure = error.record, error
    _print(record.write(out))
    typer.echo(f"record: {out}" + (", without the tasks" if failure else ""))
    if failure:
        raise failure


def _print(record: EvaluationRecord) -> None:
    from inheritune.report.text.format import counted, how

    losses, speeds, tasks = [], [], []
    for part in (record, *([] if record.against is None else [record.against])):
        name, shown, used = _short(part.model), part.evaluation, part.speed
        perplexity = "-" if shown.perplexity is None else f"{shown.perplexity:.3f}"
        loss = _measured(shown.loss, shown.standard_error)
        losses.append((name, part.layers, f"{part.parameters:,}", loss, perplexity))
        if used:
            rates = (f"{used.generate_tokens_per_second:,.0f}", f"{used.prefill_tokens_per_second:,.0f}")
            sizes = (f"{used.parameter_bytes / 1e6:,.1f} MB", f"{used.kv_cache_bytes_per_token:,.0f} B")
            speeds.append((name, *rates, *sizes))
        for row in part.tasks.results if part.tasks else ():
            tasks.append((name, row.task, row.metric, _measured(row.value, row.standard_error), row.samples))
    shown = record.evaluation
    title = f"nats per token on {counted(shown)}, {shown.length} tokens each, of {shown.data}"
    print_table(title, ("model", "layers", "parameters", "loss", "perplexity"), losses)
    if record.comparison is not None:
        typer.echo(comparison_line(record.comparison))
    if used := record.speed:
        title = f"generation, batch {used.batch} on {used.device} ({how(used)})"
        print_table(title, ("model", "tokens/s", "prefill/s", "weights", "cache/token"), speeds)
    if record.speed_ratio is not None and record.speed is not None:
        typer.echo(speed_line(record.speed_ratio, record.speed))
    if record.tasks is not None:
        print_table("tasks", ("model", "task", "metric", "value", "rows"), tasks)


def _short(name: str) -> str:
    """Return the end of a long path, so that the numbers beside it fit on a line of 80 characters."""
    return name if len(name) <= NAME_WIDTH else f"…{name[1 - NAME_WIDTH :]}"


def _measured(value: float | None, standard_error: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if standard_error is None else f"{value:.4f} ± {standard_error:.4f}"


def comparison_line(comparison: Comparison) -> str:
    """Say in one line what the paired comparison shows."""
    from inheritune.evaluation.paired import few_documents
    from inheritune.report.text.format import counted

    interval = f"{comparison.ci_low:+.4f} to {comparison.ci_high:+.4f}"
    few = few_documents(comparison.clusters, comparison.freedom)
    verdict = "matches" if comparison.matches else "does not match"
    return (
        f"difference {comparison.difference:+.4f} nats/token ({comparison.confidence:.0%} interval {interval}, "
        f"p = {comparison.p_value:.2g}, {counted(comparison)}): {verdict} the reference within {comparison.margin:g}"
    ) + (f"; weak evidence: {few}" if few else "")


def speed_line(ratio: SpeedRatio, speed: Speed) -> str:
    """Say in one line how the speeds compare, and how both were measured."""
    from inheritune.report.text.format import how

    interval = f"{ratio.ci_low:.2f} to {ratio.ci_high:.2f}"
    return (
        f"generates {ratio.ratio:.2f} times as fast as the reference ({ratio.confidence:.0%} interval {interval}, "
        f"{ratio.turns} turns, the two in alternation; {how(speed)})"
    )
