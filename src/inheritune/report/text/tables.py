"""The page's tables as plain text cells, made from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.report.read.load import Model, Run
from inheritune.report.text import format as fmt

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
    evaluation, comparison = record.get("evaluation"), record.get("comparison")
    return [
        model.label,
        "reference" if model.run is None else model.run.method,
        str(record["layers"]),
        fmt.count(record["parameters"]),
        evaluated(evaluation),
        fmt.NOTHING if evaluation is None else f"{evaluation['perplexity']:.2f}",
        fmt.difference(comparison),
        fmt.yes_no(None if comparison is None else comparison["matches"]),
        fmt.count(record.get("tokens")),
        fmt.duration(record.get("seconds")),
        fmt.rate((record.get("speed") or {}).get("generate_tokens_per_second")),
    ]


def evaluated(evaluation: dict[str, Any] | None) -> str:
    """Write an Evaluation's loss with its standard error."""
    if evaluation is None:
        return fmt.NOTHING
    return f"{fmt.loss(evaluation['loss'])} ± {fmt.loss(evaluation['standard_error'])}"


def rounds_table(runs: Sequence[Run]) -> Table:
    """Return a row for each round of each run: what was inherited, what training did, and the paired test after it."""
    columns = ["round", "layers", "taken from", "tokens", "loss before → after"]
    columns += ["difference to reference", "matched", "time"]
    rows = [_round_row(run, turn, len(runs) > 1) for run in runs for turn in run.rounds]
    return Table(columns, rows)


def _round_row(run: Run, turn: dict[str, Any], named: bool) -> list[str]:
    before, after = turn.get("start_evaluation"), turn.get("evaluation")
    comparison = turn.get("comparison")
    losses = [fmt.loss(each["loss"] if each else None) for each in (before, after)]
    return [
        f"{run.label}: {turn['name']}" if named else str(turn["name"]),
        str(turn["layers"]),
        plan_text(turn.get("plan") or []),
        fmt.count(turn["tokens"]),
        " → ".join(losses),
        fmt.difference(comparison),
        fmt.yes_no(None if comparison is None else comparison["matches"]),
        fmt.duration(turn.get("seconds")),
    ]


def plan_text(plan: Sequence[dict[str, Any]]) -> str:
    """Write a layer plan briefly: `target 0–7, reference 8–9`; parts are named where a layer takes not all of them."""
    groups: list[tuple[str, list[int]]] = []
    for layer in plan:
        source = _source(layer)
        number = layer["target"] if source == _RANDOM else layer["source"]
        if groups and groups[-1][0] == source and groups[-1][1][-1] + 1 == number:
            groups[-1][1].append(number)
        else:
            groups.append((source, [number]))
    texts = [
        f"{len(numbers)} random" if source == _RANDOM else f"{source} {fmt.ranges(numbers)}"
        for source, numbers in groups
    ]
    return ", ".join(texts) or fmt.NOTHING


def _source(layer: dict[str, Any]) -> str:
    """Return where a layer comes from, with its parts where some are left out."""
    if layer.get("model") is None or layer.get("source") is None:
        return _RANDOM
    parts = layer.get("parts") or []
    whole = not parts or {"attention", "mlp", "norms"} <= set(parts)
    return str(layer["model"]) if whole else f"{layer['model']} ({', '.join(parts)})"


def settings(run: Run) -> list[tuple[str, str]]:
    """Return what it takes to make a run again, as names and values; the recipe is shown beside it as YAML."""
    record = run.record
    environment, data = record.get("environment") or {}, record.get("data") or {}
    pairs: list[tuple[str, Any]] = [
        ("folder", run.path),
        ("method", record["method"]),
        ("seed", record.get("seed")),
        ("created", record.get("created")),
        *_environment(environment),
        *((f"data: {key.replace('_', ' ')}", _plain(value)) for key, value in data.items()),
        *_analysis_settings(run),
    ]
    return [(name, fmt.NOTHING if value is None else str(value)) for name, value in pairs]


def study_settings(model: Model) -> list[tuple[str, str]]:
    """Return what it takes to make an analysis again, as names and values."""
    spectra = model.analysis.spectra if model.analysis else {}
    data = spectra.get("data") or {}
    pairs: list[tuple[str, Any]] = [
        ("model", spectra.get("model")),
        ("τ", ", ".join(f"{tau:g}" for tau in spectra.get("taus") or [spectra.get("tau")] if tau is not None)),
        ("η", spectra.get("eta")),
        ("sequences, N", spectra.get("sequences")),
        ("tokens in each, T", spectra.get("length")),
        ("masks", ", ".join(spectra.get("masks") or [])),
        *((f"data: {key}", _plain(value)) for key, value in data.items() if key != "seed"),
        ("seed", data.get("seed")),
        ("created", spectra.get("created")),
        *_environment(spectra.get("environment") or {}),
    ]
    return [(name, fmt.NOTHING if value is None else str(value)) for name, value in pairs]


def _environment(environment: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the command, the versions and the hardware of a record."""
    return [
        ("command", environment.get("command")),
        ("commit", environment.get("commit")),
        ("python", environment.get("python")),
        ("platform", environment.get("platform")),
        ("processors", environment.get("processor_count")),
        ("memory", _gibibytes(environment.get("memory_bytes"))),
        ("torch threads", environment.get("torch_threads")),
        ("accelerators", ", ".join(environment.get("accelerators") or []) or "none"),
        *((f"version of {name}", version) for name, version in (environment.get("versions") or {}).items()),
    ]


def _analysis_settings(run: Run) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, analysis in (("reference", run.reference_analysis), ("result", run.result_analysis)):
        if analysis is not None:
            s = analysis.spectra
            shown = [
                f"τ = {s['tau']:g}",
                f"η = {s['eta']:g}",
                f"N = {s['sequences']} sequences",
                f"T = {s['length']} tokens",
            ]
            pairs.append((f"analysis of the {name}", f"{', '.join(shown)}, masks: {', '.join(s['masks'])}"))
    return pairs


def _gibibytes(number: float | None) -> str | None:
    return None if number is None else f"{number / 2**30:.1f} GiB"


def _plain(value: Any) -> Any:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
