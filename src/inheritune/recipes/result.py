"""What a run ends with: its last model, saved as its reference is stored, measured, and described in the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inheritune.data import sample_windows
from inheritune.decoder import load_model, open_decoder
from inheritune.decoder.source import model_identity
from inheritune.distributed import from_main
from inheritune.evaluation import compare_speed, generate_sample, measure_speed
from inheritune.recipes.card import add_card
from inheritune.recipes.rounds import load_round, save_trained
from inheritune.recipes.workspace import REFERENCE_RECORD, Workspace, save_losses
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import environment, now, read_record
from inheritune.records.runs import ReferenceRecord, ResultRecord, RoundRecord, RunData, RunRecord
from inheritune.spectra import analyze_into
from inheritune.storage import RECORD

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
    result = _result(workspace, rounds)
    measured: dict[str, Any] = _measured(workspace, load_round(workspace, rounds[-1]), "result")
    reference = None
    if recipe.reference is not None:
        reference = read_record(workspace.folder / REFERENCE_RECORD, ReferenceRecord)
        reference = reference.model_copy(update=_measured(workspace, workspace.reference, "reference"))
    if recipe.evaluation.speed and reference is None:
        measured["speed"] = measure_speed(workspace.folder / rounds[-1].model)
    elif recipe.evaluation.speed and reference is not None:  # as `inheritune evaluate --speed` does
        saved, level = workspace.folder / rounds[-1].model, recipe.evaluation.confidence
        measured["speed"], speed, measured["speed_ratio"] = compare_speed(saved, reference.model, confidence=level)
        reference = reference.model_copy(update={"speed": speed})
    result = result.model_copy(update=measured)
    if reference is not None:
        add_card(workspace, workspace.folder / rounds[-1].model, rounds, reference, result)
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
    result = ResultRecord(
        model=last.model,
        losses=last.losses,
        layers=last.layers,
        parameters=last.parameters,
        dtype=dtype,
        tokens=sum(record.tokens for record in rounds),
        seconds=sum(record.seconds for record in rounds),
        evaluation=last.evaluation,
        comparison=last.comparison,
        matched=None if last.comparison is None else last.comparison.matches,
    )
    if dtype == "float32":
        return result
    folder = workspace.folder / last.model
    save_trained(workspace, load_model(folder, dtype=dtype), folder, result.tokens)
    evaluation = workspace.evaluate_here(load_round(workspace, last))
    save_losses(workspace.folder / LOSSES, evaluation.losses)
    comparison = workspace.compare(evaluation)
    matched = None if comparison is None else comparison.matches
    update = {"evaluation": evaluation.summary, "losses": LOSSES, "comparison": comparison, "matched": matched}
    return result.model_copy(update=update)


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
        name=f"{recipe.name}: {role}",
        identity=model_identity(str(recipe.reference)) if role == "reference" else None,
        data=AnalysedText(
            source=recipe.data.validation or recipe.data.source,
            tokens=workspace.shards.tokens("valid"),
            seed=recipe.seed,
        ),
    )
    return place
