"""`inheritune.run`: one recipe to one folder with a record; run again, it goes on where it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data import sample_windows
from inheritune.decoder import open_decoder
from inheritune.decoder.source import model_identity
from inheritune.distributed import from_main
from inheritune.errors import InherituneError
from inheritune.evaluation import generate_sample, measure_speed
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import METHODS
from inheritune.recipes.rounds import load_round
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import Workspace, open_workspace, recall_layers
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import environment, now
from inheritune.spectra import analyze_into
from inheritune.storage import RECORD, claim_folder, read_json, release_folder, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLE_TOKENS = 64


def run(
    recipe: Recipe | Mapping[str, Any] | str | Path, out: str | Path | None = None, changes: Iterable[str] = ()
) -> dict[str, Any]:
    """Run a recipe and return its record, which is also `record.json` in the run's folder.

    A run that was stopped goes on where it was, a run that is done returns its record. On CPU a resumed run gives the
    same numbers as an uninterrupted one (times apart).

    Args:
        recipe: a recipe, its settings as a dict, or a YAML file.
        out: the run's folder; `runs/NAME` when None.
        changes: `key=value` settings on top, see `load_recipe`.

    Raises:
        InherituneError: the recipe, its models, data or folder cannot be used; one line.
    """
    checked = load_recipe(recipe, changes)
    folder = Path(out) if out is not None else Path("runs") / checked.name
    checked = recall_layers(checked, folder)
    if (folder / RECORD).is_file() and (record := read_json(folder / RECORD)).get("recipe") == _settings(checked):
        return dict(record)
    from_main(lambda: claim_folder(folder, {"kind": "run", "recipe": _settings(checked)}))
    try:
        workspace = open_workspace(checked, folder)
    except InherituneError:
        from_main(lambda: release_folder(folder))  # so that the corrected recipe can have it
        raise
    rounds = METHODS[checked.method](workspace)
    record = from_main(lambda: _record(workspace, rounds))
    from_main(lambda: write_json(folder / RECORD, record))
    return record


def _settings(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _record(workspace: Workspace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    recipe, shards = workspace.recipe, workspace.shards
    reference = workspace.reference_record()
    if reference is not None:
        reference |= _portrait(workspace, workspace.reference, "reference")
    return {
        "kind": "run",
        "schema": 1,
        "name": recipe.name,
        "method": recipe.method,
        "recipe": _settings(recipe),
        "seed": recipe.seed,
        "environment": environment().as_json(),
        "created": now(),
        "data": {
            "source": recipe.data.source,
            "tokenizer": recipe.data.tokenizer or recipe.reference,
            "vocabulary": shards.vocabulary,
            "train_tokens": shards.tokens("train"),
            "valid_tokens": shards.tokens("valid"),
            "digest": shards.digest,
        },
        "reference": reference,
        "rounds": rounds,
        "result": _result(workspace, rounds),
    }


def _result(workspace: Workspace, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    last = rounds[-1]
    comparison = last["comparison"]
    return {
        "model": last["model"],
        "losses": last.get("losses"),
        "layers": last["layers"],
        "parameters": last["parameters"],
        "tokens": sum(record["tokens"] for record in rounds),
        "seconds": sum(record["seconds"] for record in rounds),
        "evaluation": last["evaluation"],
        "comparison": comparison,
        "matched": None if comparison is None else comparison["matches"],
    } | _portrait(workspace, load_round(workspace, last), "result")


def _portrait(workspace: Workspace, model: PreTrainedModel, role: str) -> dict[str, Any]:
    """Return how fast a model generates, a sample of what it writes, and where its attention spectra are."""
    recipe = workspace.recipe
    prompt = recipe.evaluation.prompt
    length = recipe.training.length
    speed = measure_speed(model, prompt_length=length // 2, new_tokens=length // 2) if recipe.evaluation.speed else None
    sample = generate_sample(model, workspace.tokenizer, prompt, SAMPLE_TOKENS, recipe.seed) if prompt else None
    return {"speed": speed and speed.as_json(), "sample": sample, "analysis": _analysis(workspace, model, role)}


def _analysis(workspace: Workspace, model: PreTrainedModel, role: str) -> str | None:
    settings = workspace.recipe.analysis
    if settings is None or role not in settings.of:
        return None
    place = f"analysis/{role}"
    context = open_decoder(model).context
    length = min(settings.length, context or settings.length)
    tokens = sample_windows(
        workspace.shards, workspace.tokenizer, settings.sequences, length, seed=workspace.recipe.seed
    )
    recipe = workspace.recipe
    analyze_into(
        workspace.folder / place,
        model,
        tokens,
        tau=settings.tau,
        eta=settings.eta,
        tokenizer=workspace.tokenizer,
        name=f"{recipe.name}: {role}",
        identity=model_identity(workspace.reference_path) if role == "reference" else None,
        data=AnalysedText(
            source=recipe.data.validation or recipe.data.source,
            tokens=workspace.shards.tokens("valid"),
            seed=recipe.seed,
        ),
    )
    return place
