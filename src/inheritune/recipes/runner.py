"""`inheritune.run`: one recipe to one folder with a record; run again, it goes on where it was."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import reduce
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from inheritune.data import sample_windows, tuning_windows
from inheritune.decoder import load_model, open_decoder
from inheritune.decoder.source import locate, model_identity
from inheritune.distributed import from_main, is_main
from inheritune.errors import ModelError, RecipeError
from inheritune.evaluation import compare_speed, generate_sample, measure_speed
from inheritune.progress import note
from inheritune.recipes.depths import with_layers
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import method_of
from inheritune.recipes.preflight import check_recipe
from inheritune.recipes.schema import Recipe, RecommendedLayers
from inheritune.recipes.workspace import DATA, Workspace, open_workspace, save_windows
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import environment, now, read_record
from inheritune.records.prices import LENGTH, PricesRecord
from inheritune.records.runs import ReferenceRecord, ResultRecord, RoundRecord, RunData, RunRecord
from inheritune.records.surgery import ParameterCounts
from inheritune.spectra.advice import depth_of_budget
from inheritune.spectra.flow import analyze_into
from inheritune.spectra.folder import PRICES
from inheritune.storage import RECORD, check_folder, claimed, read_identity, user_path, write_text
from inheritune.surgery import LayerPlan
from inheritune.surgery.card import CARD, LICENCES, model_card, without_paths
from inheritune.surgery.config.target import depth_of
from inheritune.surgery.files.carried import add_older_names, carry_files, fetch_files
from inheritune.surgery.moved import moved_notes
from inheritune.surgery.prices import check_choice, measure_prices
from inheritune.surgery.width import describe_width

SAMPLE_TOKENS = 64
PREPARED = PRICES.removesuffix(".json")
"""What a refused run may have written beside its data."""
LOSSES, DOCUMENTS = "losses.npy", "documents.npy"
"""The result's loss on each window, where its weights were rounded after the last round."""


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path | None = None, changes: Iterable[str] = ()
) -> RunRecord:
    """Run a recipe and return its record, which is also `record.json` in the run's folder.

    A run that was stopped goes on where it was, a run that is done returns its record. On CPU a resumed run gives the
    same numbers as an uninterrupted one (times apart).

    Args:
        recipe: a recipe, its settings as a dict, a YAML file, or the name of a recipe that the package ships.
        out: the run's folder; `runs/NAME` when None.
        changes: `key=value` settings on top, see `load_recipe`.

    Raises:
        InherituneError: the recipe, its models, data or folder cannot be used; one line.
    """
    checked = load_recipe(recipe, changes)
    if checked.frontier is not None:
        raise RecipeError(f"recipe {checked.name} has a frontier, several depths: run it with inheritune frontier")
    folder = user_path(out) if out is not None else Path("runs") / checked.name
    checked = recall_layers(checked, folder)
    identity = {"kind": "run", "recipe": checked.as_json()}
    from_main(lambda: check_folder(folder, identity))
    if (folder / RECORD).is_file():
        return read_record(folder / RECORD, RunRecord)
    config = check_recipe(checked)
    method = method_of(checked)
    for line in method.notes(checked, depth_of(config)):
        note(line)
    # The first process claims for all of them: the others only write where it has been.
    with claimed(folder, identity, preparation=(DATA, PREPARED)) if is_main() else nullcontext():
        return complete(choose_layers(open_workspace(checked, folder, config)))


def complete(workspace: Workspace) -> RunRecord:
    """Do what is left of a run, and return its record."""
    if (workspace.folder / RECORD).is_file():
        return read_record(workspace.folder / RECORD, RunRecord)
    rounds = method_of(workspace.recipe).run(workspace)
    _ = workspace.reference_evaluation  # asked for by all processes, before the first works alone
    return from_main(lambda: _finish(workspace, rounds))


def recall_layers(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe of the run in `folder` with the layers that the run began with, where an analysis chose them.

    A run that goes on does not ask the analysis again, which may be gone or say something else by then.
    """
    began = (read_identity(folder) or {}).get("recipe")
    held = began.get("layers") if isinstance(began, dict) else None
    named = recipe.layers.analysis if isinstance(recipe.layers, RecommendedLayers) else recipe.layers
    if not isinstance(held, dict) or named is None or held.get("analysis") != named:
        return recipe
    return load_recipe({**recipe.as_json(), "layers": held})


def choose_layers(workspace: Workspace) -> Workspace:
    """Measure which layers a budget keeps, where the method needs to know and nothing says it yet.

    Raises:
        InherituneError: as `measure_prices`.
    """
    recipe = workspace.recipe
    depth = depth_of_budget(recipe.keep, recipe.drop, workspace.depth)
    if depth is None or recipe.layers is not None or not method_of(recipe).chooses:
        return workspace
    settled = with_layers(recipe, measured_prices(workspace, depth), depth)
    note(f"{recipe.name}: {settled.layers}")
    return workspace.branch(settled, workspace.folder)


def measured_prices(workspace: Workspace, depth: int) -> PricesRecord:
    """Measure on training text what layers cost, down to `depth` of them.

    `prices.json` in the run's folder holds what was measured; a run that goes on reads it.

    Raises:
        InherituneError: as `measure_prices`.
    """
    recipe, settings = workspace.recipe, workspace.recipe.ablation
    length = settings.length or min(LENGTH, workspace.training.length)
    windows = tuning_windows(workspace.shards, workspace.tokenizer, length, settings.windows)
    check_choice(windows, workspace.config)
    return from_main(
        lambda: measure_prices(
            workspace.folder,
            workspace.reference,
            windows,
            depth=depth,
            beam=settings.beam,
            name=str(recipe.reference),
            identity=model_identity(str(recipe.reference)),
            data=AnalysedText(source=recipe.data.source),
        )
    )


def _finish(workspace: Workspace, rounds: Sequence[RoundRecord]) -> RunRecord:
    """Save the last round's model as the result, as its reference is stored, measure it, and write the record, last."""
    recipe, shards = workspace.recipe, workspace.shards
    result, reference = _result(workspace, rounds), None
    ours = _measured(workspace, workspace.load_round(rounds[-1]), "result")
    saved, level = workspace.folder / rounds[-1].model, recipe.evaluation.confidence
    if recipe.reference is not None:
        theirs = _measured(workspace, workspace.reference, "reference")
        if recipe.evaluation.speed:  # as `inheritune evaluate --speed` does
            speeds = compare_speed(saved, recipe.reference, confidence=level)
            ours["speed"], theirs["speed"], ours["speed_ratio"] = speeds
        reference = workspace.reference_record().model_copy(update=theirs)
    elif recipe.evaluation.speed:
        ours["speed"] = measure_speed(saved)
    result = result.model_copy(update=ours)
    add_older_names(saved / "config.json")
    if reference is not None:
        _add_card(workspace, rounds, reference, result)
    save_windows(workspace.folder / DOCUMENTS, workspace.documents)
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
            documents=DOCUMENTS,
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
        save_windows(workspace.folder / LOSSES, rounded.losses)
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
    """Sample what a model writes and analyse its attention, as the recipe wants it; return these fields of its record.

    The analysis is in a folder below the run's.
    """
    recipe, tokenizer, settings = workspace.recipe, workspace.tokenizer, workspace.recipe.analysis
    prompt = recipe.evaluation.prompt
    sample = generate_sample(model, tokenizer, prompt, SAMPLE_TOKENS, recipe.seed) if prompt else None
    if settings is None or role not in settings.of:
        return {"sample": sample, "analysis": None}
    length = min(settings.length, open_decoder(model).context or settings.length)
    tokens = sample_windows(workspace.shards, tokenizer, settings.sequences, length, seed=recipe.seed)
    place = f"analysis/{role}"
    analyze_into(
        workspace.folder / place,
        model,
        tokens,
        tau=settings.tau,
        eta=settings.eta,
        tokenizer=tokenizer,
        name=str(recipe.reference if role == "reference" else workspace.folder),  # what a command takes for it
        identity=model_identity(str(recipe.reference)) if role == "reference" else None,
        data=AnalysedText(
            source=recipe.data.validation or recipe.data.source,
            tokens=workspace.shards.tokens("valid"),
            seed=recipe.seed,
        ),
    )
    return {"sample": sample, "analysis": place}


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
    plans = [LayerPlan.from_records(record.plan or ()) for record in rounds]
    plan = reduce(lambda target, plan: plan.traced(target), plans)  # where the last round's layers first came from
    card = model_card(
        name=recipe.name,
        plan=plan,
        places={"reference": place},
        parameters=ParameterCounts(before=reference.parameters, after=result.parameters),
        command=environment().command or f"inheritune run {recipe.name}",
        width="" if recipe.width is None else describe_width(workspace.config, recipe.width),
        figures=_figures(reference, result),
        address=f"{workspace.folder.resolve().name}/{rounds[-1].model}",  # from beside the run's folder
        notes=moved_notes(workspace.config, plan),
    )
    carry_files(place.folder, folder, LICENCES)
    write_text(folder / CARD, card)


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
        interval = f"{speed.ci_low:.2f} to {speed.ci_high:.2f}"
        rows["speed of generation"] = f"{speed.ratio:.2f} times the reference's ({interval})"
    return rows
