"""Recipes: what is accepted, what is refused, and how."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from inheritune.errors import PlanError, RecipeError
from inheritune.recipes import Recipe, load_recipe, schema
from inheritune.recipes.loading import LIBRARY
from inheritune.recipes.methods import method_of
from inheritune.recipes.reference import reference_page
from inheritune.recipes.runner import recall_layers
from inheritune.recipes.schema import RecipeTraining, RecommendedLayers
from inheritune.spectra.recommend import Recommendation
from inheritune.storage import claimed
from inheritune.training import TrainingSettings
from tiny import analysis_of

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = {"name": "x", "method": "inheritune", "reference": "stdlib", "training": {"steps": 10}}


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_example_recipes_parse_and_survive_a_round_trip(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json")))) == recipe


def test_there_are_example_recipes() -> None:
    assert len(list(LIBRARY.glob("*.yaml"))) >= 3


def test_set_changes_nested_keys_and_reads_yaml() -> None:
    recipe = load_recipe(
        MINIMAL,
        ["training.steps=7", "growth.mode=restart", "layers=[0,2]", "analysis=null", "training.learning_rate=1e-3"],
    )
    assert (recipe.training.steps, recipe.growth.mode, recipe.layers, recipe.analysis) == (7, "restart", (0, 2), None)
    assert recipe.training.learning_rate == 1e-3
    assert MINIMAL["training"] == {"steps": 10}


def test_all_problems_are_said_together_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: x\nmetod: 1\nmethod: inheritun\nreference: a\ntraining: {steps: -3, lenght: 1, batch: foo}\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    line = str(caught.value)
    assert "\n" not in line
    for part in (
        "unknown key 'metod'",
        "did you mean 'method'?",
        "method: unknown method 'inheritun': expected one of distill, half-width",
        "did you mean 'inheritune'?",
        "training.steps: input should be greater than 0, not -3",
        "unknown key 'training.lenght'",
        "did you mean 'length'?",
        "training.batch: input should be a valid integer",
        "not 'foo'",
    ):
        assert part in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reference": None}, "neither reference nor architecture"),
        ({"architecture": {"model_type": "gpt2"}}, "method inheritune takes no architecture: expected method scratch"),
        ({"method": "scratch", "architecture": {"model_type": "gpt2"}}, "both given"),
        ({"method": "scratch", "parts": "mlp"}, "parts: method scratch takes no parts: expected method inheritune"),
        ({"method": "stacking", "growth": {"by": 1}}, "growth: method stacking takes no growth"),
        ({"distill_alpha": 0.5}, "distill_alpha: method inheritune takes no distill_alpha: expected method distill"),
        ({"width": 0.5}, "width: method inheritune takes no width: expected method half-width"),
        ({"training": {"steps": 1, "learning_rate": 1e-6}}, "min_learning_rate 1e-05 is above learning_rate 1e-06"),
        ({"training": {"steps": 1, "checkpoint_every": 15}}, "checkpoint_every 15 is not a multiple of log_every 10"),
        ({"name": "a/b"}, "name: string should match pattern"),
        ({"frontier": {"depths": 4}}, "frontier.depths: expected a list, not 4$"),
        ({"frontier": {"depths": [None]}}, "recipe: frontier.depths.0: input should be a valid string, not None$"),
        ({"frontier": 4}, "frontier: expected a mapping, not 4$"),
        ({"int": 4}, "unknown key 'int': expected one of name, "),
        ({"layers": 1.5}, "layers: expected a list, not 1.5; layers: expected a mapping, not 1.5$"),
        ({"objective": 4}, "objective: expected a name or a mapping, not 4$"),
        (
            {"objective": {"kl": 1, "hidden": 1, "hidden_pairs": []}},
            r"objective.hidden_pairs: expected at least 1 item, not \[\]$",
        ),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe({**MINIMAL, **changes})


@pytest.mark.parametrize(
    ("change", "message"),
    [("training.steps", "expected key=value"), ("=3", "expected key=value"), ("layers=[", "value is not YAML")],
)
def test_a_malformed_set_is_one_line(change: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(MINIMAL, [change])


def test_a_missing_or_broken_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="the recipe is a NoneType: expected a file, a name, a dict or a Recipe"):
        load_recipe(None)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"cannot read .* as YAML: .*Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "heal.yaml").write_text("a: [")
    with pytest.raises(
        RecipeError, match=r"no recipe .*hael\.yaml: expected a YAML file or one of .*; did you mean .*heal\.yaml"
    ):
        load_recipe(tmp_path / "hael.yaml")
    with pytest.raises(RecipeError, match=r"cannot read .*heal\.yaml as YAML") as caught:
        load_recipe(tmp_path / "heal.yaml")
    assert "\n" not in str(caught.value)


def test_a_recipe_is_itself() -> None:
    recipe = load_recipe(MINIMAL)
    assert isinstance(recipe, Recipe)
    assert load_recipe(recipe) == recipe


KEPT = Recommendation(depth=16, start=6, cut=tuple(range(6, 16)), reason="by hand.")


def analysis(folder: Path, found: Recommendation = KEPT) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "spectra.json").write_text(analysis_of(found))
    return str(folder)


def test_layers_may_be_a_recommendation_or_name_an_analysis(tmp_path: Path) -> None:
    named = analysis(tmp_path / "analysis")
    for given, source in ((KEPT, None), (named, named), (Path(named), named)):
        layers = load_recipe({**MINIMAL, "layers": given}).layers
        assert isinstance(layers, RecommendedLayers)
        assert (layers.depth, layers.keep, layers.reason, layers.analysis) == (16, KEPT.keep, "by hand.", source)
    from_yaml = tmp_path / "recipe.yaml"
    from_yaml.write_text(yaml.safe_dump({**MINIMAL, "layers": named}))
    assert load_recipe(from_yaml).layers == load_recipe(MINIMAL, [f"layers={named}"]).layers == layers


def test_the_record_of_a_recipe_holds_the_layers_and_needs_no_analysis(tmp_path: Path) -> None:
    recipe = load_recipe({**MINIMAL, "layers": analysis(tmp_path / "analysis")})
    (tmp_path / "analysis" / "spectra.json").unlink()
    record = json.loads(json.dumps(recipe.model_dump(mode="json")))
    assert record["layers"]["keep"] == [0, 1, 2, 3, 4, 5]
    assert load_recipe(record) == load_recipe(recipe) == recipe
    assert [row.source for row in method_of(recipe).first_plan(recipe, 16)] == [0, 1, 2, 3, 4, 5]
    with pytest.raises(PlanError, match="the recommendation is for a model of 16 layers, this model has 8"):
        method_of(recipe).first_plan(recipe, 8)


def test_a_run_that_goes_on_keeps_the_layers_it_began_with(tmp_path: Path) -> None:
    named, out = analysis(tmp_path / "analysis"), tmp_path / "run"
    began = load_recipe({**MINIMAL, "layers": named})
    assert recall_layers(began, out) == began
    with claimed(out, {"kind": "run", "recipe": began.model_dump(mode="json")}):
        pass
    analysis(
        tmp_path / "analysis", Recommendation(depth=16, start=8, cut=tuple(range(8, 16)), reason="another outcome.")
    )
    again = load_recipe({**MINIMAL, "layers": named})
    assert again != began and recall_layers(again, out) == began
    (tmp_path / "analysis" / "spectra.json").unlink()
    gone = load_recipe({**MINIMAL, "layers": named})
    assert gone.layers == named and recall_layers(gone, out) == began
    for other in ({"layers": "0:4"}, {"layers": 4}, {}):
        recipe = load_recipe({**MINIMAL, **other})
        assert recall_layers(recipe, out) == recipe


def test_layers_that_cannot_be_read_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "spectra.json").write_text(analysis_of(None))
    with pytest.raises(RecipeError, match=r"layers: .*holds no recommendation .*run inheritune analyze again"):
        load_recipe({**MINIMAL, "layers": str(tmp_path)})
    with pytest.raises(RecipeError, match=r"layers: depth is missing: expected a count, .* or what a recipe recorded"):
        load_recipe({**MINIMAL, "layers": {"deph": 4}})


def test_a_shipped_recipe_goes_by_its_name_unless_a_file_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("inheritune") == load_recipe(LIBRARY / "inheritune.yaml")
    Path("inheritune").write_text(yaml.safe_dump(MINIMAL))
    assert load_recipe("inheritune").name == "x"
    with pytest.raises(RecipeError, match=r"one of distill, .*; did you mean 'half-width'\?"):
        load_recipe("half-widht")


def test_the_reference_page_is_what_the_code_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "recipes.md").read_text()
    assert page == reference_page(), "run python -m inheritune.recipes.reference > docs/recipes.md"
    for part in (Recipe, *(kind for kind in vars(schema).values() if isinstance(kind, type))):
        if issubclass(part, schema.Settings) and part not in (schema.Settings, schema.RecommendedLayers):
            assert all(f"`{name}`" in page or f".{name}`" in page for name in part.model_fields), part


def test_what_is_null_is_taken_from_the_model_and_the_text() -> None:
    open_ended = RecipeTraining(steps=None, batch=None, length=None)
    # 300,000 tokens are 585 windows of 512, 11 of them a step so that a pass has 50 steps.
    settings = open_ended.resolved(context=2048, train_tokens=300_000, valid_tokens=10_000)
    assert (settings.length, settings.batch, settings.steps) == (512, 11, 54)
    # 1,000 validation tokens make 8 windows of 64 at least only where windows are of 64 or 124 tokens.
    assert open_ended.resolved(1024, 100_000, 1_000).length == 64
    assert open_ended.resolved(100, 100_000, 10_000).length == 100
    assert open_ended.resolved(None, 10_000_000, 1_000_000).batch == 16
    least = open_ended.resolved(512, 10, 10)
    assert (least.batch, least.steps) == (4, 50)
    with pytest.raises(RecipeError, match=r"^training: average 51: expected 0 to 50, the steps$"):
        RecipeTraining(steps=None, batch=None, length=None, average=51).resolved(512, 10, 10)
    fixed = RecipeTraining(steps=7, batch=3, length=9)
    assert fixed.resolved(1024, 10, 10) == TrainingSettings(steps=7, batch=3, length=9)
