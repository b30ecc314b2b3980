"""The page's tables as plain text cells, made from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inheritune.layers import runs
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import Environment
from inheritune.records.prices import PricesRecord
from inheritune.records.runs import ReferenceRecord, ResultRecord, RoundRecord
from inheritune.records.surgery import PlanRow
from inheritune.report.read.folders import Analysis, Run
from inheritune.report.read.models import Model
from inheritune.report.text import format as fmt


@dataclass(frozen=True)
class Table:
    """A table of text; its first column names the row."""

    columns: list[str]
    rows: list[list[str]]


def model_table(models: Sequence[Model]) -> Table:
    """Return a row for each model: its size, loss, test against its reference, cost and speed."""
    columns = ["model", "method", "layers", "parameters", "valid loss ± SE", "perplexity"]
    columns += ["difference to reference", "matched", "training tokens", "training time", "generation, tokens/s"]
    return Table(columns, [_model_row(model, model.record) for model in models if model.record])


def _model_row(model: Model, record: ReferenceRecord | ResultRecord) -> list[str]:
    evaluation, own = record.evaluation, record.speed
    return [
        model.label,
        "reference" if model.run is None else model.run.record.trained,
        str(record.layers),
        fmt.count(record.parameters),
        f"{fmt.loss(evaluation.loss)} ± {fmt.loss(evaluation.standard_error)}",
        fmt.NOTHING if evaluation.perplexity is None else f"{evaluation.perplexity:.2f}",
        *fmt.tested(model.comparison),
        fmt.count(record.tokens),
        fmt.duration(record.seconds if isinstance(record, ResultRecord) else None),
        fmt.NOTHING if own is None else f"{fmt.rate(own.generate_tokens_per_second)}\n{fmt.how(own)}",
    ]


def rounds_table(made: Sequence[Run]) -> Table:
    """Return a row for each round of each run: what was inherited, what training did, and the paired test after it."""
    columns = ["round", "layers", "taken from", "tokens", "loss before → after"]
    columns += ["difference to reference", "matched", "time"]
    return Table(
        columns,
        [_round_row(run, each, len(made) > 1) for run in made for held in run.record.rounds for each in held.ends],
    )


def _round_row(run: Run, each: RoundRecord, named: bool) -> list[str]:
    before = each.start_evaluation
    return [
        f"{run.label}: {each.name}" if named else each.name,
        str(each.layers),
        plan_text(each.plan or ()),
        fmt.count(each.tokens),
        f"{fmt.loss(before.loss if before else None)} → {fmt.loss(each.evaluation.loss)}",
        *fmt.tested(each.comparison),
        fmt.duration(each.seconds),
    ]


def plan_text(plan: Sequence[PlanRow]) -> str:
    """Write a layer plan briefly: `target 0–7, reference 8–9`; parts are named where a layer takes not all of them."""

    def follows(one: PlanRow, two: PlanRow) -> bool:
        return _source(one) == _source(two) and (one.source is None or one.source + 1 == two.source)

    texts = []
    for group in runs(plan, follows):
        numbers = [row.source for row in group if row.source is not None]
        texts.append(f"{_source(group[0])} {fmt.ranges(numbers)}" if numbers else f"{len(group)} random")
    return ", ".join(texts) or fmt.NOTHING


def _source(row: PlanRow) -> str | None:
    """Return the model that a layer comes from, with its parts where some are left out; None for a random one."""
    whole = not row.parts or {"attention", "mlp", "norms"} <= set(row.parts)
    return row.model if whole or row.model is None else f"{row.model} ({', '.join(row.parts)})"


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
    record, data = analysis.record, analysis.record.data or AnalysedText()
    pairs: Pairs = [("model", record.model), ("τ", ", ".join(f"{tau:g}" for tau in record.taus or (record.tau,)))]
    pairs += [("η", f"{record.eta:g}"), ("sequences, N", record.sequences), ("tokens in each, T", record.length)]
    pairs += [("masks", ", ".join(record.masks)), ("data: source", data.source), ("data: tokens", data.tokens)]
    pairs += [("seed", data.seed), ("created", record.created)]
    return _texts(pairs + _environment(record.environment))


def conditions(analysis: Analysis) -> str:
    """Say how a model was analysed: `τ = 0.9, η = 0.9, 100 sequences of 100 tokens`."""
    record = analysis.record
    return f"τ = {record.tau:g}, η = {record.eta:g}, {record.sequences} sequences of {record.length} tokens"


def _environment(environment: Environment) -> Pairs:
    """Return the command, the versions and the hardware of a record."""
    memory = environment.memory_bytes
    pairs: Pairs = [(name, environment[name]) for name in ("command", "commit", "python", "platform")]
    pairs.append(("processors", environment.processor_count))
    pairs.append(("memory", None if memory is None else f"{memory / 2**30:.1f} GiB"))
    pairs.append(("torch threads", environment.torch_threads))
    pairs.append(("accelerators", ", ".join(environment.accelerators) or "none"))
    return pairs + [(f"version of {name}", version) for name, version in environment.versions.items()]


def _texts(pairs: Pairs) -> list[tuple[str, str]]:
    """Write the values: counts with their thousands separated, a dash for what the record does not say."""
    texts = []
    for name, value in pairs:
        text = f"{value:,}" if isinstance(value, int) and name.startswith("data") else str(value)
        texts.append((name, fmt.NOTHING if value in (None, "") else text))
    return texts


def cuts(prices: PricesRecord) -> Table:
    """Return a row for the cheapest cut found to each depth, beside the losses of other rules' cuts."""
    rules = list(prices.cuts[0].others) if prices.cuts else []
    level = f"{prices.confidence:.0%} interval"
    rows = []
    for price in prices.cuts:
        cost = price.cost
        others = [price.others[rule].loss for rule in rules]
        rows.append(
            [str(price.depth), fmt.ranges(sorted(price.cut)), f"{cost.loss:.3f}", f"{cost.difference:+.3f}"]
            + [f"{cost.ci_low:+.3f} to {cost.ci_high:+.3f}"]
            + [fmt.NOTHING if loss is None else f"{loss:.3f}" for loss in others]
        )
    return Table(["layers", "cut", "loss", "price", level, *rules], rows)
