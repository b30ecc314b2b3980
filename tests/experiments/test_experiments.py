"""The quickstart on a small text, the paper's tables as recipes, and the model that the package ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inheritune as it
from inheritune.decoder import load_model, open_decoder
from inheritune.decoder.source import resolve_model
from inheritune.errors import DataError, OutputError, PlanError, RecipeError
from inheritune.experiments import EXPERIMENTS, quickstart, reproduce
from inheritune.experiments.quickstart import measured_recipe, paper_recipe, scratch_recipe, ship_baselines, ship_run
from inheritune.recipes import load_recipe
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.records.runs import RunRecord
from inheritune.report import load_runs, verdict
from inheritune.spectra.advice import recommend_by_price

V01 = Path(__file__).resolve().parents[1] / "records" / "v01"
TEXTS = [
    f"def f{i}(x):\n    return " + " + ".join(f"x * {(i * 89 + j * 31) % 97}" for j in range(40)) for i in range(40)
]


@pytest.fixture
def changes(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    return [
        f"data.source={tmp_path / 'text.txt'}", "data.valid_fraction=0.2", "training.steps=6", "training.batch=2",
        "training.length=32", "training.log_every=2", "training.valid_every=2", "training.checkpoint_every=2",
        "ablation.windows=2", "analysis.sequences=2", "analysis.length=16", "evaluation.windows=20",
    ]  # fmt: skip


def test_the_quickstart_tells_the_whole_story(tmp_path: Path, changes: list[str]) -> None:
    out = tmp_path / "q"
    record = quickstart(out, changes)
    names = ("measured", "inheritune", "scratch")
    runs = {name: json.loads((out / name / "record.json").read_text()) for name in names}
    assert [item["layers"] for item in runs["measured"]["rounds"]] == [12]
    grown = [item["layers"] for item in runs["inheritune"]["rounds"]]  # it stops where it matches
    assert grown == [8, 10, 12][: len(grown)]
    assert runs["scratch"]["result"]["layers"] == 12
    tokens = [runs[name]["result"]["tokens"] for name in names]
    assert tokens == [6 * 2 * 32, len(grown) * 2 * 2 * 32, 6 * 2 * 32]
    kept = [row["source"] for row in runs["measured"]["rounds"][0]["plan"]]
    prices = read_record(out / "measured" / "prices.json", PricesRecord)
    assert kept == list(recommend_by_price(prices, 12).keep)
    assert runs["measured"]["reference"]["tokens"] == 24_576_000
    page = (out / "report.html").read_text()
    assert "12 layers against 16" in record["verdict"]
    assert "12 layers against 16" in page
    for name, run in runs.items():
        folder = out / name / run["result"]["model"]
        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        prompt = tokenizer("def f", return_tensors="pt")
        assert model.generate(**prompt, max_new_tokens=3, min_new_tokens=3, pad_token_id=0).shape[1] == 3 + len(
            prompt["input_ids"][0]
        )
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = quickstart(out, changes)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before
    assert again["result"] == record["result"]
    with pytest.raises(OutputError, match=r"holds another run \(its recipe\.training\.steps is 6, yours is 8\)"):
        quickstart(out, [*changes, "training.steps=8"])
    shipped_baselines_are_read_and_said_to_be_shipped(out, tmp_path / "assets")


def test_the_quickstart_is_about_inheritune(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="method scratch takes no growth"):
        quickstart(tmp_path / "q", ["method=scratch"])
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("training.length=4096", RecipeError, "windows of 4096 tokens: expected at most the model's context, 128"),
        ("keep=99", PlanError, "keep 99 of 16 layers leaves 99: expected 1 to 16"),
        ("data.source=/nowhere.txt", DataError, "nowhere"),
        ("data.tokenizer=train:300", DataError, "expected models and data of one vocabulary"),
    ],
)
def test_a_refused_quickstart_leaves_no_folder(
    tmp_path: Path, changes: list[str], change: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        quickstart(tmp_path / "q", [*changes, change])
    assert not (tmp_path / "q").exists()


def test_the_baselines_have_the_same_depth_and_tokens(tmp_path: Path) -> None:
    ours = load_recipe(measured_recipe(tmp_path)).model_dump(mode="json")
    held = RunRecord.model_validate({**json.loads((V01 / "run" / "record.json").read_text()), "recipe": ours})
    result = held.result.model_copy(update={"layers": 12})
    steps = ours["training"]["steps"]
    rounds = (held.rounds[0].model_copy(update={"steps": steps}),)
    record = held.model_copy(update={"result": result, "rounds": rounds})
    scratch, paper = load_recipe(scratch_recipe(record)), load_recipe(paper_recipe(record))
    assert (scratch.method, scratch.layers, scratch.training.steps) == ("scratch", 12, steps)
    assert [item.layers for item in it.plan(paper).rounds] == [8, 10, 12]
    assert it.plan(paper).tokens == it.plan(scratch).tokens == it.plan(measured_recipe(tmp_path)).tokens
    assert scratch.objective is paper.objective is None
    assert scratch.data == paper.data == load_recipe(measured_recipe(tmp_path)).data


def shipped_baselines_are_read_and_said_to_be_shipped(out: Path, assets: Path) -> None:
    ship_baselines(out, assets)
    runs = load_runs([out / "measured", assets / "inheritune", assets / "scratch"])
    assert [run.absent for run in runs] == [()] * 3
    assert not [*assets.rglob("*.safetensors")]
    notes = verdict(runs).notes
    assert sum("was not trained here: shipped with the package" in note for note in notes) == 2
    live, shipped = load_runs([out / "scratch"])[0], runs[2]
    assert live.losses is not None and shipped.losses is not None
    assert (live.losses == shipped.losses).all()
    # A run that is shipped with its model is a MODEL, as it was where it was made.
    ship_run(out / "measured", assets / "small", "run small", model=True)
    small, made = (load_model(str(folder)).state_dict() for folder in (assets / "small", out / "measured"))
    assert all(torch.equal(small[key], made[key]) for key in made)


def test_the_shipped_small_model_is_half_the_reference() -> None:
    small = Path(resolve_model("stdlib-small"))
    record = read_record(small.parents[1] / "record.json", RunRecord)
    assert open_decoder(load_model("stdlib-small")).layers == record.result.layers == 8
    assert 2 * sum(each.tokens for each in record.rounds) == 24_576_000
    assert sum(file.stat().st_size for file in small.parents[1].rglob("*") if file.is_file()) < 4 << 20


RACE = Path(__file__).resolve().parents[2] / "recipes" / "race"


@pytest.mark.parametrize("name", sorted({path.stem for path in RACE.glob("*.yaml")} - {"revive"}))
def test_a_recipe_of_the_race_fits_the_reference(name: str) -> None:
    recipe = load_recipe(RACE / f"{name}.yaml")
    tokens = 400 * 16 * 128 if name.startswith("cut-") else 1200 * 16 * 128
    assert (recipe.name, it.plan(recipe).tokens) == (name, tokens)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_table_is_recipes_that_fit_the_reference(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS[name]
    recipes = [load_recipe(recipe) for recipe in experiment.recipes(tmp_path)]
    assert {recipe.name for recipe in recipes} == set(experiment.columns)
    assert {recipe.layers for recipe in recipes if recipe.method != "half-width"} == {10}
    tokens = {recipe.name: it.plan(recipe).tokens for recipe in recipes}
    # Every column has as many tokens, over however many rounds; scratch-2x is the one that is to have twice as many.
    assert tokens.pop("scratch-2x", 2 * tokens["inheritune"]) == 2 * tokens["inheritune"]
    assert set(tokens.values()) == {tokens["inheritune"]}


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("tabel5", "tiny", "unknown experiment 'tabel5'.*did you mean 'table5'"),
        ("table5", "tini", "unknown scale 'tini'.*did you mean 'tiny'"),
        ("table5", "paper", "unknown scale 'paper': expected one of tiny"),
    ],
)
def test_an_unknown_table_or_scale_is_one_line(name: str, scale: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        reproduce(name, scale, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_shipped_reference_is_the_one_its_recipe_makes() -> None:
    folder = Path(resolve_model("stdlib"))
    record = json.loads((folder / "record.json").read_text())
    assert load_recipe(record["recipe"]) == load_recipe("stdlib-reference")
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 5_000_000
    assert json.loads((folder / "training.json").read_text())["tokens"] == record["result"]["tokens"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (open_decoder(model).layers, model.num_parameters()) == (16, record["result"]["parameters"])
    assert len(AutoTokenizer.from_pretrained(folder)) == record["data"]["vocabulary"] == 2048


def test_the_shipped_reference_has_learned_python() -> None:
    """About 2.9 nats a token on its own validation text; 7.6 would be a uniform guess over 2,048 tokens."""
    folder = resolve_model("stdlib")
    text = "def __init__(self, name):\n        self.name = name\n\n    def __repr__(self):\n        return self.name\n"
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert AutoModelForCausalLM.from_pretrained(folder)(tokens, labels=tokens).loss < 3.0
    assert it.evaluate(folder, tokens.numpy())["evaluation"]["loss"] < 3.0


def test_the_public_names_are_there_and_a_report_is_a_call_away(tmp_path: Path) -> None:
    assert set(it.__all__) <= set(dir(it))
    assert all(callable(getattr(it, name)) for name in it.__all__)
    page = it.report([V01 / "run"], tmp_path / "report.html")
    assert page == tmp_path / "report.html" and "inheritune" in page.read_text()
    from inheritune.report import write_report  # the package of that name is still one

    assert it.report.write_report is write_report
