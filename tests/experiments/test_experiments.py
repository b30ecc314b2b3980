"""The quickstart on a small text, the paper's tables as recipes, and the model that the package ships."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inheritune as it
from inheritune.decoder import open_decoder
from inheritune.decoder.source import resolve_model
from inheritune.errors import DataError, OutputError, PlanError, RecipeError
from inheritune.experiments import EXPERIMENTS, quickstart, reproduce
from inheritune.experiments.quickstart import inheritune_recipe, scratch_recipe
from inheritune.recipes import load_recipe
from inheritune.records.runs import RunRecord

V01 = Path(__file__).resolve().parents[1] / "records" / "v01"
TEXTS = [
    f"def f{i}(x):\n    return " + " + ".join(f"x * {(i * 89 + j * 31) % 97}" for j in range(40)) for i in range(40)
]


@pytest.fixture
def changes(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    return [
        f"data.source={tmp_path / 'text.txt'}", "data.valid_fraction=0.2", "training.steps=4", "training.batch=2",
        "training.length=32", "training.log_every=2", "training.valid_every=2", "training.checkpoint_every=2",
        "growth.max_rounds=2", "analysis.sequences=2", "analysis.length=16", "evaluation.windows=20",
    ]  # fmt: skip


def test_the_quickstart_tells_the_whole_story(tmp_path: Path, changes: list[str]) -> None:
    out = tmp_path / "q"
    record = quickstart(out, changes)
    runs = {name: json.loads((out / name / "record.json").read_text()) for name in ("inheritune", "scratch")}
    assert [item["layers"] for item in runs["inheritune"]["rounds"]] == [8, 10]
    assert runs["scratch"]["result"]["layers"] == 10
    assert runs["scratch"]["result"]["tokens"] == runs["inheritune"]["result"]["tokens"] == 2 * 4 * 2 * 32
    assert runs["inheritune"]["reference"]["tokens"] == 24_576_000
    page = (out / "report.html").read_text()
    assert "10 layers against 16" in record["verdict"]
    assert "10 layers against 16" in page
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
    with pytest.raises(OutputError, match=r"holds another run \(its recipe\.training\.steps is 4, yours is 6\)"):
        quickstart(out, [*changes, "training.steps=6"])


def test_the_quickstart_is_about_inheritune(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="method scratch takes no growth: expected method inheritune"):
        quickstart(tmp_path / "q", ["method=scratch"])
    assert not (tmp_path / "q").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("training.length=4096", RecipeError, "windows of 4096 tokens: expected at most the model's context, 128"),
        ("layers=99", PlanError, "99 layers"),
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


def test_the_baseline_has_the_same_depth_and_tokens(tmp_path: Path) -> None:
    ours = load_recipe(inheritune_recipe(tmp_path)).model_dump(mode="json")
    held = json.loads((V01 / "run" / "record.json").read_text())
    baseline = load_recipe(scratch_recipe(RunRecord.model_validate({**held, "recipe": ours})))
    assert (baseline.method, baseline.layers, baseline.training.steps) == ("scratch", 10, 8)
    assert baseline.data == load_recipe(inheritune_recipe(tmp_path)).data


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
