"""The page's tables as plain text cells, made from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.records.base import Environment
from inheritune.records.evaluation import LossSummary, Speed
from inheritune.records.runs import ResultRecord, RoundRecord
from inheritune.records.surgery import PlanRow
from inheritune.report.read.analyses import Analysis
from inheritune.report.read.models import Model
from inheritune.report.read.runs import Run
from inheritune.report.text import format as fmt
from inheritune.report.text import speed

_RANDOM = "random"


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: the heads of the columns; the first column names the row.
        rows: the cells, a list for each row.
    """

    columns: list[str]
    rows: list[list[str]]


def model_table(models: Sequence[Model]) -> Table:
    """Return a row for each model: its size, loss, test against its reference, cost and speed."""
    columns = ["model", "method", "layers", "parameters", "valid loss ± SE", "perplexity"]
    columns += ["difference to reference", "matched", "training tokens", "training time", "generation, tokens/s"]
    return Table(columns, [_model_row(model) for model in models])


def _model_row(model: Model) -> list[str]:
    record = model.record
    if record is None:
        return [model.label, *[fmt.NOTHING] * 10]
    comparison, perplexity = model.comparison, record.evaluation.perplexity
    return [
        model.label,
        "reference" if model.run is None else model.run.record.method,
        str(record.layers),
        fmt.count(record.parameters),
        evaluated(record.evaluation),
        fmt.NOTHING if perplexity is None else f"{perplexity:.2f}",
        fmt.difference(comparison),
        fmt.yes_no(None if comparison is None else comparison.matches),
        fmt.count(record.tokens),
        fmt.duration(record.seconds if isinstance(record, ResultRecord) else None),
        _generation(record.speed),
    ]


def _generation(measured: Speed | None) -> str:
    return (
        fmt.NOTHING if measured is None else f"{fmt.rate(measured.generate_tokens_per_second)}\n{speed.how(measured)}"
    )


def evaluated(evaluation: LossSummary) -> str:
    """Write a loss with its standard error."""
    return f"{fmt.loss(evaluation.loss)} ± {fmt.loss(evaluation.standard_error)}"


def rounds_table(runs: Sequence[Run]) -> Table:
    """Return a row for each round of each run: what was inherited, what training did, and the paired test after it."""
    columns = ["round", "layers", "taken from", "tokens", "loss before → after"]
    columns += ["difference to reference", "matched", "time"]
    return Table(columns, [_round_row(run, each, len(runs) > 1) for run in runs for each in run.record.rounds])


def _round_row(run: Run, each: RoundRecord, named: bool) -> list[str]:
    before, comparison = each.start_evaluation, each.comparison
    return [
        f"{run.label}: {each.name}" if named else each.name,
        str(each.layers),
        plan_text(each.plan or ()),
        fmt.count(each.tokens),
        f"{fmt.loss(before.loss if before else None)} → {fmt.loss(each.evaluation.loss)}",
        fmt.difference(comparison),
        fmt.yes_no(None if comparison is None else comparison.matches),
        fmt.duration(each.seconds),
    ]


def plan_text(plan: Sequence[PlanRow]) -> str:
    """Write a layer plan briefly: `target 0–7, reference 8–9`; parts are named where a layer takes not all of them."""
    groups: list[tuple[str, list[int]]] = []
    for row in plan:
        source = _source(row)
        number = row.target if row.source is None else row.source
        if groups and groups[-1][0] == source and groups[-1][1][-1] + 1 == number:
            groups[-1][1].append(number)
        else:
            groups.append((source, [number]))
    texts = [
        f"{len(numbers)} random" if source == _RANDOM else f"{source} {fmt.ranges(numbers)}"
        for source, numbers in groups
    ]
    return ", ".join(texts) or fmt.NOTHING


def _source(row: PlanRow) -> str:
    """Return where a layer comes from, with its parts where some are left out."""
    if row.model is None or row.source is None:
        return _RANDOM
    whole = not row.parts or {"attention", "mlp", "norms"} <= set(row.parts)
    return row.model if whole else f"{row.model} ({', '.join(row.parts)})"


Pairs = list[tuple[str, object]]
"""Names and values as they stand in a record."""


def settings(run: Run) -> list[tuple[str, str]]:
    """Return what it takes to make a run again, as names and values; the recipe is shown beside it as YAML."""
    record = run.record
    data = record.data.as_json() if record.data else {}
    pairs: Pairs = [("folder", run.path), ("method", record.method), ("seed", record.seed), ("created", record.created)]
    pairs += _environment(record.environment)
    pairs += [(f"data: {key.replace('_', ' ')}", value) for key, value in data.items()]
    for name, analysis in (("reference", run.reference_analysis), ("result", run.result_analysis)):
        if analysis is not None:
            pairs.append((f"analysis of the {name}", f"{conditions(analysis)}, masks: {', '.join(analysis.masks)}"))
    return _texts(pairs)


def study_settings(analysis: Analysis) -> list[tuple[str, str]]:
    """Return what it takes to make an analysis again, as names and values."""
    record, data = analysis.record, analysis.record.data
    pairs: Pairs = [
        ("model", record.model),
        ("τ", ", ".join(f"{tau:g}" for tau in record.taus or (record.tau,))),
        ("η", f"{record.eta:g}"),
        ("sequences, N", record.sequences),
        ("tokens in each, T", record.length),
        ("masks", ", ".join(record.masks)),
        ("data: source", data.source if data else None),
        ("data: tokens", data.tokens if data else None),
        ("seed", data.seed if data else None),
        ("created", record.created),
        *_environment(record.environment),
    ]
    return _texts(pairs)


def conditions(analysis: Analysis) -> str:
    """Say how a model was analysed: `τ = 0.9, η = 0.9, 100 sequences of 100 tokens`."""
    record = analysis.record
    return f"τ = {record.tau:g}, η = {record.eta:g}, {record.sequences} sequences of {record.length} tokens"


def _environment(environment: Environment) -> Pairs:
    """Return the command, the versions and the hardware of a record."""
    memory = environment.memory_bytes
    return [
        ("command", environment.command),
        ("commit", environment.commit),
        ("python", environment.python),
        ("platform", environment.platform),
        ("processors", environment.processor_count),
        ("memory", None if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("torch threads", environment.torch_threads),
        ("accelerators", ", ".join(environment.accelerators) or "none"),
        *((f"version of {name}", version) for name, version in environment.versions.items()),
    ]


def _texts(pairs: Pairs) -> list[tuple[str, str]]:
    """Write the values: counts with their thousands separated, a dash for what the record does not say."""
    written = []
    for name, value in pairs:
        text = f"{value:,}" if isinstance(value, int) and name.startswith("data") else str(value)
        written.append((name, fmt.NOTHING if value in (None, "") else text))
    return written
