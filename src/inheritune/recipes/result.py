"""What a run ends with: its last model, saved as its reference is stored, measured, and described in the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inheritune.data import sample_windows
from inheritune.decoder import load_model, open_decoder
from inheritune.decoder.source import locate, model_identity
from inheritune.distributed import from_main
from inheritune.errors import ModelError
from inheritune.evaluation import compare_speed, generate_sample, measure_speed
from inheritune.progress import note
from inheritune.recipes.workspace import Workspace, save_losses
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import environment, now
from inheritune.records.runs import ReferenceRecord, ResultRecord, RoundRecord, RunData, RunRecord
from inheritune.records.surgery import ParameterCounts
from inheritune.spectra import analyze_into
from inheritune.storage import RECORD, write_text
from inheritune.surgery import LayerPlan
from inheritune.surgery.card import CARD, LICENCES, model_card, without_paths
from inheritune.surgery.files.carried import add_older_names, carry_files, fetch_files
from inheritune.surgery.plan.row import LayerRow
from inheritune.surgery.width import describe_width

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_TOKENS = 64
LOSSES = "losses.npy"
"""The result's loss on each window, where its weights were rounded after the last round."""


def finish_run(workspace: Workspace, rounds: Sequence[RoundRecord]) -> RunRecord:
    """Save the last round's model as the run's result, measure it, and write the run's record, last.

    All processes have to call this; the first one does the work.
    """
    _ = workspace.reference_evaluation  # asked for by all processes, before the first works alone
    return from_main(lambda: _finish(workspace, rounds))


def _finish(workspace: Workspace, rounds: Sequence[RoundRecord]) -> RunRecord:
    recipe, shards = workspace.recipe, workspace.shards
    result, reference = _result(workspace, rounds), None
    ours = _measured(workspace, workspace.load_round(rounds[-1]), "result")
    saved = workspace.folder / rounds[-1].model
    if recipe.reference is not None:
        theirs = _measured(workspace, workspace.reference, "reference")
        if recipe.evaluation.speed:  # as `inheritune evaluate --speed` does
            level = recipe.evaluation.confidence
            ours["speed"], theirs["speed"], ours["speed_ratio"] = compare_speed(
                saved, recipe.reference, confidence=level
            )
        reference = workspace.reference_record().model_copy(update=theirs)
    elif recipe.evaluation.speed:
        ours["speed"] = measure_speed(saved)
    result = result.model_copy(update=ours)
    add_older_names(saved / "config.json")
    if reference is not None:
        _add_card(workspace, rounds, reference, result)
    return RunRecord(
        name=recipe.name,
        method=recipe.method,
        recipe=recipe.as_json(),
        seed=recipe.seed,
        environment=environment(),
        created=now(),
        data=RunData(
            source=recipe.data.source,
            tokenizer=recipe.data.tokenizer or recipe.reference,
            vocabulary=shards.vocabulary,
            train_tokens=shards.tokens("train"),
            valid_tokens=shards.tokens("valid"),
            digest=shards.digest,
        ),
        reference=reference,
        rounds=tuple(rounds),
        result=result,
    ).write(workspace.folder / RECORD)


def _result(workspace: Workspace, rounds: Sequence[RoundRecord]) -> ResultRecord:
    """Save the result and return its part of the record: the loss is that of the weights as they are saved.

    Weights of another dtype than float32 are rounded, so that model is evaluated again.
    """
    last, dtype = rounds[-1], workspace.save_dtype
    tokens = sum(record.tokens for record in rounds)
    losses, evaluation, comparison = last.losses, last.evaluation, last.comparison
    if dtype != "float32":
        folder = workspace.folder / last.model
        workspace.save(load_model(folder, dtype=dtype), folder, tokens)
        rounded = workspace.evaluate(workspace.load_round(last))
        save_losses(workspace.folder / LOSSES, rounded.losses)
        losses, evaluation, comparison = LOSSES, rounded.summary, workspace.compare(rounded)
    return ResultRecord(
        model=last.model,
        losses=losses,
        layers=last.layers,
        parameters=last.parameters,
        dtype=dtype,
        tokens=tokens,
        seconds=sum(record.seconds for record in rounds),
        evaluation=evaluation,
        comparison=comparison,
        matched=None if comparison is None else comparison.matches,
    )


def _measured(workspace: Workspace, model: PreTrainedModel, role: str) -> dict[str, Any]:
    """Return a sample of what a model writes and where the analysis of its attention is, as fields of its record."""
    recipe = workspace.recipe
    prompt = recipe.evaluation.prompt
    sample = generate_sample(model, workspace.tokenizer, prompt, SAMPLE_TOKENS, recipe.seed) if prompt else None
    return {"sample": sample, "analysis": _analysis(workspace, model, role)}


def _analysis(workspace: Workspace, model: PreTrainedModel, role: str) -> str | None:
    """Analyse a model's attention where the recipe wants it; return the folder, relative to the run's."""
    recipe, settings = workspace.recipe, workspace.recipe.analysis
    if settings is None or role not in settings.of:
        return None
    length = min(settings.length, open_decoder(model).context or settings.length)
    tokens = sample_windows(workspace.shards, workspace.tokenizer, settings.sequences, length, seed=recipe.seed)
    place = f"analysis/{role}"
    analyze_into(
        workspace.folder / place,
        model,
        tokens,
        tau=settings.tau,
        eta=settings.eta,
        tokenizer=workspace.tokenizer,
        name=str(recipe.reference if role == "reference" else workspace.folder),  # what a command takes for it
        identity=model_identity(str(recipe.reference)) if role == "reference" else None,
        data=AnalysedText(
            source=recipe.data.validation or recipe.data.source,
            tokens=workspace.shards.tokens("valid"),
            seed=recipe.seed,
        ),
    )
    return place


def _add_card(
    workspace: Workspace, rounds: Sequence[RoundRecord], reference: ReferenceRecord, result: ResultRecord
) -> None:
    """Write the result's model card, and the licence files of its reference, into the result's folder."""
    recipe, folder = workspace.recipe, workspace.folder / rounds[-1].model
    try:
        place = locate(str(recipe.reference))
        fetch_files(place)
    except ModelError as error:  # the training is done: a hub that cannot be reached now must not lose it
        note(f"the result has no model card: {error}")
        return
    card = model_card(
        name=recipe.name,
        plan=_origins(rounds),
        places={"reference": place},
        parameters=ParameterCounts(before=reference.parameters, after=result.parameters),
        command=environment().command or f"inheritune run {recipe.name}",
        width="" if recipe.width is None else describe_width(workspace.config, recipe.width),
        figures=_figures(reference, result),
        address=f"{workspace.folder.resolve().name}/{rounds[-1].model}",  # from beside the run's folder
    )
    carry_files(place.folder, folder, LICENCES)
    write_text(folder / CARD, card)


def _origins(rounds: Sequence[RoundRecord]) -> LayerPlan:
    """Return where the layers of the last round were first taken from."""
    before: tuple[LayerRow, ...] = ()
    for record in rounds:
        plan = LayerPlan.from_records(record.plan or ())
        before = tuple(before[row.source or 0] if row.model == "target" else row for row in plan)
    return LayerPlan(before)


def _figures(reference: ReferenceRecord, result: ResultRecord) -> dict[str, str]:
    """Return what was measured, in words."""
    rows = {
        f"loss on {without_paths(result.evaluation.data)}": f"{result.evaluation.loss:.4f} nats a token",
        "the reference's loss there": f"{reference.evaluation.loss:.4f} nats a token",
        "trained on": f"{result.tokens:,} tokens",
    }
    if (test := result.comparison) is not None:
        interval = f"{test.confidence:.0%} interval {test.ci_low:+.4f} to {test.ci_high:+.4f}"
        rows["difference"] = f"{test.difference:+.4f} nats a token ({interval}, {test.windows} windows)"
    if (speed := result.speed_ratio) is not None:
        times = f"{speed.ratio:.2f} times the reference's ({speed.ci_low:.2f} to {speed.ci_high:.2f})"
        rows["speed of generation"] = times
    return rows
