"""The frontier: its points are single runs, what they share is made once, and it goes on where it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_runs import recipe, setting, stable, weights
from typer.testing import CliRunner

import inheritune as it
from inheritune.cli.main import app
from inheritune.decoder.source import resolve_model
from inheritune.errors import InherituneError, ModelError, OutputError, PlanError, RecipeError
from inheritune.experiments.quickstart import ship_frontier
from inheritune.recipes import workspace
from inheritune.recipes.frontier import _tokens_to_match
from inheritune.records.base import read_record
from inheritune.records.prices import PricesRecord
from inheritune.records.runs import CurvePoint, FrontierRecord, RunRecord
from inheritune.report import load, opening, save_figures, write_report
from inheritune.report.charts.frontier import frontier_rows
from inheritune.report.text.frontier import frontier_verdict
from inheritune.spectra.advice import recommend_by_price
from inheritune.surgery.files.checkpoint import inherit_checkpoint
from inheritune.surgery.prices import measure_prices

assert setting  # the fixture
EVALUATION = {"margin": 0.02, "speed": False, "prompt": None}


def wanted(root: Path, **changes: Any) -> dict[str, Any]:
    base = {"layers": None, "frontier": {"depths": ["50%", 5]}, "evaluation": EVALUATION}
    made = recipe(root, **(base | changes))
    made["training"] = {**made["training"], "watch_every": 0}
    return made


@pytest.fixture(scope="module")
def made(setting: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished frontier of 5 and 3 layers of 6."""
    out = tmp_path_factory.mktemp("made") / "f"
    it.frontier(wanted(setting), out)
    return out


def record_of(folder: Path) -> FrontierRecord:
    return read_record(folder / "frontier.json", FrontierRecord)


def test_each_point_is_the_run_of_its_layers(setting: Path, tmp_path: Path, made: Path) -> None:
    record = record_of(made)
    assert [point.layers for point in record.points] == [5, 3]
    prices = read_record(made / "prices.json", PricesRecord)
    for point in record.points:
        layers = recommend_by_price(prices, point.layers).keep
        single = wanted(setting, frontier=None, layers=list(layers), growth={"max_rounds": 1})
        alone = it.run(single, tmp_path / point.run)
        held = read_record(made / point.run / "record.json", RunRecord)
        assert stable(held)["rounds"] == stable(alone)["rounds"] and stable(held)["result"] == stable(alone)["result"]
        ours, theirs = (weights(root / point.run / "round-1" / "model") for root in (made, tmp_path))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
        assert (point.evaluation, point.comparison) == (alone.result.evaluation, alone.result.comparison)
        assert point.untrained == alone.rounds[0].start_evaluation
        assert point.weight_bytes == 4 * sum(value.numel() for key, value in theirs.items() if key != "lm_head.weight")
        assert (point.tokens, point.tokens_to_match) == (6 * 4 * 16, 6 * 4 * 16 if point.comparison.matches else None)
        assert point.run == f"depth-{point.layers}"
    with pytest.raises(ModelError, match=r"is a frontier, not a model: pass .*round-1"):
        resolve_model(made)
    assert (record.reference.layers, record.reference_bytes) == (6, 4 * record.reference.parameters)


def test_what_the_depths_share_is_made_once_and_a_frontier_goes_on(
    setting: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made, tmp_path / "f")
    assert it.frontier(wanted(setting), tmp_path / "f") == record_of(made)
    (tmp_path / "f" / "frontier.json").unlink()
    shutil.rmtree(tmp_path / "f" / "depth-3")
    monkeypatch.setattr("inheritune.surgery.prices.ablate", None)
    evaluated: list[int] = []
    evaluate = workspace.evaluate_windows
    monkeypatch.setattr(
        workspace,
        "evaluate_windows",
        lambda model, *a, **k: evaluated.append(model.config.n_layer) or evaluate(model, *a, **k),
    )
    again = it.frontier(wanted(setting), tmp_path / "f")
    assert evaluated == [3, 3]  # before and behind the training of the depth that was lost
    assert stable(again.as_json()) == stable(record_of(made).as_json())
    with pytest.raises(InherituneError, match=r"holds another run \(its recipe.frontier.depths is"):
        it.frontier(wanted(setting, frontier={"depths": [4]}), tmp_path / "f")
    with pytest.raises(RecipeError, match="run it with inheritune frontier"):
        it.run(wanted(setting), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_prices_of_an_analysis_are_kept(setting: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(0, 250, (6, 13))
    prices = measure_prices(tmp_path / "a", str(setting / "reference"), windows, depth=2)
    settings = wanted(setting, layers=str(tmp_path / "a"), frontier={"depths": [2]})
    assert [each.reference_layers for each in it.plan(settings).rounds] == [
        f"{keep[0]}, {keep[1]}" if keep[1] > keep[0] + 1 else f"{keep[0]}-{keep[1]}"
        for keep in [recommend_by_price(prices, 2).keep]
    ]
    first = it.frontier(settings, tmp_path / "f")
    shutil.rmtree(tmp_path / "a")
    for file in ("frontier.json", "depth-2/record.json"):
        (tmp_path / "f" / file).unlink()
    assert stable(it.frontier(settings, tmp_path / "f").as_json()) == stable(first.as_json())


def test_a_method_that_does_not_choose_is_not_priced(setting: Path, tmp_path: Path) -> None:
    record = it.frontier(wanted(setting, method="scratch", frontier=None), tmp_path / "f", ["frontier.depths=[2]"])
    assert (record.prices, record.points[0].kept, (tmp_path / "f" / "prices.json").exists()) == (None, "", False)
    assert [each.layers for each in it.plan(wanted(setting, frontier={})).rounds] == [5, 4, 3]


def test_tokens_to_match_are_those_of_the_first_point_that_does(made: Path) -> None:
    run = read_record(made / "depth-3" / "record.json", RunRecord)
    test = run.result.comparison
    assert test is not None

    def with_matches(*matches: bool) -> RunRecord:
        tests = [test.model_copy(update={"matches": each}) for each in matches]
        curve = tuple(
            CurvePoint(step=i, tokens=90 * i, tokens_spent=100 * i, seconds=0.0, evaluation=run.result.evaluation,
                       comparison=each)
            for i, each in enumerate(tests, 1)
        )  # fmt: skip
        before = run.rounds[0].model_copy(update={"tokens": 7})
        rounds = (before, run.rounds[0].model_copy(update={"curve": curve}))
        return run.model_copy(
            update={"rounds": rounds, "result": run.result.model_copy(update={"comparison": tests[-1]})}
        )

    assert _tokens_to_match(with_matches(False, True, False)) == 207
    assert _tokens_to_match(with_matches(False, False, True)) == 307
    assert _tokens_to_match(with_matches(False, False)) is None


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"frontier": {"depths": [0]}}, "frontier.depths: 0 of 6 layers: expected 1 to 5, or a share such as 80%"),
        ({"frontier": {"depths": [7]}}, "frontier.depths: 7 of 6 layers: expected 1 to 5"),
        ({"frontier": {"depths": [3, 6]}}, "frontier.depths: 6 of 6 layers leaves all of them: expected 1 to 5"),
        ({"frontier": {"depths": ["95%"]}}, "frontier.depths: 95% of 6 layers leaves all of them: expected 1 to 5"),
        ({"frontier": {"depths": [3, "50%"]}}, "frontier.depths: 3 and 50% are both 3 layers: expected each once"),
        ({"frontier": {"depths": []}}, r"frontier.depths: expected at least 1 item, not \[\]$"),
        ({"frontier": {"depth": [3]}}, "unknown key 'frontier.depth': .*did you mean 'depths'"),
        ({"layers": 2}, "layers 2 and frontier are both given: expected frontier.depths alone, or for layers an ana"),
        ({"keep": 2}, "keep 2 and frontier are both given"),
        ({"drop": 2}, "drop 2 and frontier are both given"),
        ({"method": "half-width"}, "method half-width takes no layers, so it has no frontier: expected method inher"),
        ({"method": "stacking"}, "its 5 layers must be even"),
        (
            {"reference": None, "method": "scratch", "architecture": {"model_type": "gpt2", "n_layer": 4}},
            "a frontier compares with a reference and the recipe has none",
        ),
    ],
)
def test_a_frontier_that_cannot_be_is_one_line(
    setting: Path, tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    settings = wanted(setting, **changes)
    if "architecture" in changes:
        settings["data"] = {**settings["data"], "tokenizer": str(setting / "reference"), "folder": None}
    for call in (lambda: it.frontier(settings, tmp_path / "f"), lambda: it.plan(settings)):
        with pytest.raises((RecipeError, PlanError), match=line) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "f").exists()


def test_a_reference_of_one_layer_is_refused_before_anything(setting: Path, tmp_path: Path) -> None:
    inherit_checkpoint(setting / "reference", tmp_path / "one", layers=1)
    for depths in (None, ["1"], ["50%"]):
        settings = wanted(setting, reference=str(tmp_path / "one"), frontier={"depths": depths})
        settings["data"] = {**settings["data"], "folder": str(tmp_path / "data")}
        with pytest.raises(PlanError, match="the reference has one layer: a frontier needs at least 2"):
            it.frontier(settings, tmp_path / "f")
    assert not (tmp_path / "f").exists() and not (tmp_path / "data").exists()


def test_a_damaged_record_is_said_to_be(made: Path, tmp_path: Path) -> None:
    held = json.loads((made / "frontier.json").read_text())
    first = held["points"][0]
    for points, line in (
        ([], r"points is \[\], expected at least 1 item"),
        ([{**first, "layers": 0}], r"points\[0\].layers is 0, input should be greater than or equal to 1"),
        ([first, {**first, "layers": 7}], "a point has 7 layers: expected at most the reference's 6"),
        ([{**first, "parameters": 0}], r"points\[0\].parameters is 0"),
    ):
        (tmp_path / "frontier.json").write_text(json.dumps({**held, "points": points}))
        with pytest.raises(OutputError, match=f"is damaged or was changed by hand .*{line}.*frontier again"):
            load([tmp_path])


def test_one_that_matches_nothing_says_whether_that_is_shown(made: Path) -> None:
    record = record_of(made)

    def said(*bounds: tuple[float, float]) -> str:
        points = [
            point.model_copy(
                update={
                    "comparison": point.comparison.model_copy(update={"ci_low": low, "ci_high": high, "matches": False})
                }
            )
            for point, (low, high) in zip(record.points, bounds, strict=True)
        ]
        return frontier_verdict(record.model_copy(update={"points": tuple(points)}))

    assert said((0.1, 0.3), (0.2, 0.3)).startswith("No smaller model matches the reference of 6 layers (margin 0.02)")
    assert said((-0.1, 0.3), (0.2, 0.3)).startswith("No smaller model is shown to match the reference of 6 layers (")


def test_the_page_has_the_chart_the_table_and_the_verdict(made: Path, tmp_path: Path) -> None:
    record = record_of(made)
    text = " ".join(write_report(made, tmp_path / "page.html").read_text().split())
    assert 'id="frontier-tiny"' in text and "What each size costs" in text
    sentence = opening(load([made])).sentence
    best = record.smallest
    start = f"has {best.layers} of 6 layers" if best else "No smaller model "
    assert start in sentence and sentence.replace("'", "&#39;") in text
    files = {path.name for path in save_figures([made], tmp_path / "figures")}
    assert {"frontier-tiny.svg", "frontier-tiny.png"} <= files
    drawn = (tmp_path / "figures" / "frontier-tiny.svg").read_text()
    assert "5 layers" in drawn and "times fewer parameters" in drawn
    rows = frontier_rows(record)
    assert [row["layers"] for row in rows] == [6, 5, 3]
    assert rows[2]["gain"] == record.reference.parameters / record.points[1].parameters


def test_speed_is_measured_in_turns_and_the_command_prints_what_each_costs(
    setting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inheritune.evaluation.generation.MOST_TURNS", 4)
    settings = wanted(setting, frontier={"depths": [5, 2]}, evaluation={**EVALUATION, "speed": True})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    done = CliRunner().invoke(app, ["frontier", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "f")])
    assert done.exit_code == 0, done.output
    record, lines = record_of(tmp_path / "f"), done.stdout.splitlines()
    assert all(point.speed_ratio and point.speed_ratio.turns == 4 for point in record.points)
    assert [point.speed.kv_cache_bytes_per_token for point in record.points if point.speed] == [5 * 128, 2 * 128]
    assert all(point.speed and point.speed.parameter_bytes == point.weight_bytes for point in record.points)
    table = lines[: next(i for i, line in enumerate(lines) if "matches the reference" in line)]
    assert max(map(len, table)) <= 80 and f"{record.points[1].comparison.difference:+.4f}" in done.stdout
    assert "times as fast" in (tmp_path / "f" / "frontier.svg").read_text()


def test_a_shipped_frontier_stands_alone(made: Path, tmp_path: Path) -> None:
    ship_frontier(made, tmp_path)
    record = record_of(tmp_path / "frontier")
    assert record.points == record_of(made).points
    write_report([tmp_path / "frontier"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "Not trained here: shipped with the package; inheritune frontier stdlib-frontier trains it again" in page
    assert 'id="frontier-tiny"' in page
