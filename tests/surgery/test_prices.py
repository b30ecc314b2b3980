"""The price list as a record, and the cut that follows from it; plain ablation and hand-made lists are the oracle."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr, ttest_1samp
from test_ablation import llama, losses_of_cut, windows
from typer.testing import CliRunner, Result

from inheritune.cli.inherit import Budget
from inheritune.cli.main import app
from inheritune.decoder import save_model
from inheritune.errors import DataError, InherituneError, OutputError, PlanError
from inheritune.records.prices import Cost, DepthPrice, LayerPrice, PricesRecord
from inheritune.spectra.advice import depth_of_budget, load_recommendation, recommend, recommend_by_price
from inheritune.spectra.analysis import analyze
from inheritune.surgery.ablation import ablate
from inheritune.surgery.prices import PART, measure_prices


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


def prices(costs: dict[int, tuple[tuple[int, ...], float]], depth: int = 6) -> PricesRecord:
    """Return a price list with these cuts by their depth: the layers left out and what that costs."""

    def cost(extra: float) -> Cost:
        return Cost(loss=3 + extra, difference=extra, ci_low=extra - 0.1, ci_high=extra + 0.1)

    cuts = tuple(DepthPrice(depth=kept, cut=cut, cost=cost(extra)) for kept, (cut, extra) in costs.items())
    return PricesRecord(
        depth=depth, loss=3.0, uniform=4.5, windows=9, length=10, digest="", least=min(costs), beam=1, confidence=0.95,
        layers=tuple(LayerPrice(index=i) for i in range(depth)), cuts=cuts, path=(),
    )  # fmt: skip


def test_the_record_holds_what_ablation_and_plain_cuts_give(tmp_path: Path) -> None:
    model, data = llama(5), windows(6)
    spectra = analyze(model, data[:, :-1], mask="both")
    record = measure_prices(tmp_path, model, data, depth=2, spectra=spectra)
    found = ablate(model, data, depth=2)
    assert (record.depth, record.least, record.loss) == (5, 2, found.loss)
    assert record.uniform == np.log(97)
    assert [each.cost.loss for each in record.layers if each.cost] == found.losses.tolist()
    assert list(record.path) == found.path
    for price, cut in zip(record.cuts, found.cuts, strict=True):
        rivals = {rule: losses_of_cut(model, other.cut, data).mean() for rule, other in price.others.items()}
        assert {rule: other.loss for rule, other in price.others.items()} == pytest.approx(rivals, abs=1e-6)
        assert price.others["first layers"].cut == tuple(range(price.depth, 5))
        assert set(rivals) == {"first layers", "Block Influence", "angular distance"}
        best = min([cut.loss, *rivals.values()])
        assert price.cost.loss == pytest.approx(best, abs=1e-6)
        difference = losses_of_cut(model, price.cut, data) - losses_of_cut(model, (), data)
        interval = ttest_1samp(difference, 0).confidence_interval(0.95)
        assert (price.cost.ci_low, price.cost.ci_high) == pytest.approx(tuple(interval), abs=1e-5)
    by_measure = {agreement.measure: agreement for agreement in record.agreements}
    expected = spearmanr(spectra.causal.max_rank, found.prices)
    assert by_measure["MaxRank, causal mask"].correlation == pytest.approx(expected.statistic)
    assert by_measure["Block Influence"].layers == 5
    assert not (tmp_path / PART).exists()


def test_the_same_prices_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = llama(4), windows()
    first = measure_prices(tmp_path, model, data, depth=2)
    monkeypatch.setattr("inheritune.surgery.prices.ablate", None)
    assert measure_prices(tmp_path, model, data, depth=3) == first
    monkeypatch.undo()
    assert measure_prices(tmp_path, model, data, depth=1).least == 1
    assert measure_prices(tmp_path, model, windows(4), depth=3).windows == 4
    (tmp_path / "prices.json").write_text("{}")
    with pytest.raises(OutputError, match=r"prices.json is damaged .* run inheritune analyze --ablate again"):
        measure_prices(tmp_path, model, data)


def test_the_deepest_cut_under_the_allowance_is_recommended() -> None:
    listed = prices({5: ((2,), 0.1), 4: ((2, 4), 0.4), 3: ((2, 4, 1), 0.9)})
    advice = recommend_by_price(listed)
    assert (advice.keep, advice.start, advice.measured) == ((0, 1, 3, 5), 4, True)
    assert advice.losses == {"whole": 3.0, "keep": 3.4}
    assert advice.reason == (
        "the deepest cut for at most 0.5 nats a token before training, measured on 9 windows of 10 tokens: +0.400 "
        "(95% interval +0.300 to +0.500)"
    )
    assert recommend(listed, allowance=1.0).keep == (0, 3, 5)
    assert recommend(listed, allowance=0.05).keep == (0, 1, 2, 3, 4, 5)
    assert recommend(listed, keep=3).keep == recommend(listed, drop=3).keep == recommend(listed, keep="50%").keep
    assert recommend(listed, keep=6).cut == ()
    with pytest.raises(PlanError, match=r"2 layers to keep: .* lead from 6 to 3; measure on with .* --depth 2"):
        recommend(listed, keep=2)


def test_a_cut_above_uniform_guessing_is_said_to_be_one() -> None:
    listed = prices({5: ((2,), 1.6)})
    assert "above that of uniform guessing, 4.50" in recommend(listed, keep=5).table()
    assert "uniform guessing, 4.50" not in recommend(prices({5: ((2,), 1.4)}), keep=5).table()


@pytest.mark.parametrize(
    ("keep", "drop", "expected"),
    [(None, None, None), (24, None, 24), ("24", None, 24), ("80%", None, 24), ("33.3 %", None, 10), (None, 6, 24),
     (None, 0, 30), ("100%", None, 30)],
)  # fmt: skip
def test_a_budget_is_a_number_of_layers(keep: Any, drop: int | None, expected: int | None) -> None:
    assert depth_of_budget(keep, drop, 30) == expected


@pytest.mark.parametrize(
    ("keep", "drop", "line"),
    [
        (0, None, "keep 0 of 30 layers leaves 0: expected 1 to 30, or a share such as 80%"),
        ("1%", None, "keep 1% of 30 layers leaves 0: expected 1 to 30, or a share such as 80%"),
        ("-4", None, "keep -4 of 30 layers leaves -4: expected 1 to 30, or a share such as 80%"),
        (None, 30, "drop 30 of 30 layers leaves 0: expected 0 to 29"),
        (None, -1, "drop -1 of 30 layers leaves 31: expected 0 to 29"),
        ("most", None, "keep 'most': expected a number of layers such as 30 or a share such as 80%"),
        (0.8, None, "keep 0.8: expected a number of layers such as 30 or a share such as 80%"),
        (True, None, "keep True: expected a number of layers such as 30 or a share such as 80%"),
        (3, 4, "keep 3 and drop 4 are both given: expected one of them"),
    ],
)
def test_a_budget_that_cannot_be_is_one_line(keep: Any, drop: int | None, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        depth_of_budget(keep, drop, 30)
    assert str(caught.value) == line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(llama(4), tmp_path / "model")
    np.save(tmp_path / "windows.npy", windows(8))
    return tmp_path


def test_the_command_measures_and_later_commands_use_it(folder: Path) -> None:
    command = ("analyze", folder / "model", "--tokens", folder / "windows.npy", "--out")
    assert "note: the paper's rule of thumb, unmeasured" in invoke(*command, folder / "plain").output
    assert not (folder / "plain" / "prices.json").exists()
    held = json.loads((folder / "plain" / "spectra.json").read_text())["recommendation"]
    first = losses_of_cut(llama(4), tuple(held["cut"]), windows(8)).mean()
    assert held["losses"]["keep"] == pytest.approx(first, abs=1e-6)
    done = invoke(*command, folder / "priced", "--ablate", "--depth", 2)
    assert "MaxRank, causal mask and price over 4 layers: Spearman correlation" in done.output
    assert "rule of thumb" not in done.output
    assert load_recommendation(folder / "priced").measured
    cheapest = min(recommend(folder / "priced", keep=2).losses.items(), key=lambda each: each[1] or 99)
    assert cheapest[0] in ("keep", "whole")
    again = invoke(*command, folder / "priced", "--ablate", "--depth", 3)
    assert "has this analysis already" in again.output
    assert "has these prices already" in again.output


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--depth", "0"], "depth 0: expected 1 to 4, the layers of the model"),
        (["--depth", "5"], "depth 5: expected 1 to 4, the layers of the model"),
        (["--beam", "0"], "beam 0: expected at least 1"),
        (["--ablate-windows", "1"], "1 window to choose layers on: expected at least 2, for their spread"),
        (["--ablate-length", "8"], "--ablate-length and --tokens are both given: the windows are those of --tokens"),
    ],
)
def test_a_mistake_is_said_before_the_analysis(options: list[str], line: str, folder: Path) -> None:
    command = ("analyze", folder / "model", "--tokens", folder / "windows.npy", "--ablate", *options)
    done = invoke(*command, "--out", folder / "out")
    assert str(done.exception) == line
    assert not (folder / "out").exists()


@pytest.mark.parametrize("value", [0, 2])
@pytest.mark.parametrize("option", ["--depth", "--beam", "--ablate-windows", "--ablate-length"])
def test_options_of_the_prices_want_prices(option: str, value: int, folder: Path) -> None:
    command = ("analyze", folder / "model", "--tokens", folder / "windows.npy", option, value)
    done = invoke(*command, "--out", folder / "out")
    assert str(done.exception) == f"{option} is given without --ablate, which it belongs to"
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (("cuts", 0, "cut"), [9], "cuts[0].cut is [9], expected 1 different layers of 4"),
        (("cuts", 1, "cut"), [2, 2], "cuts[1].cut is [2, 2], expected 2 different layers of 4"),
        (("path",), [[1, 2.0], [1, 3.0]], "path is [1, 1], expected 2 different layers of 4"),
        (("layers",), [], "layers has not an entry for each of the 4 layers"),
    ],
)
def test_prices_that_contradict_themselves_are_damaged(
    place: tuple[Any, ...], value: Any, line: str, tmp_path: Path
) -> None:
    measure_prices(tmp_path, llama(4), windows(), depth=2)
    held = json.loads((tmp_path / "prices.json").read_text())
    inner = held
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (tmp_path / "prices.json").write_text(json.dumps(held))
    with pytest.raises(OutputError, match=f"prices.json is damaged or was changed by hand .{re.escape(line)}"):
        recommend(tmp_path, keep=2)


def test_numbers_that_are_none_are_refused_in_python() -> None:
    model, data = llama(4), windows()
    for options in ({"depth": 2.5}, {"depth": "3"}, {"depth": True}, {"beam": 2.0}):
        name, value = next(iter(options.items()))
        with pytest.raises(InherituneError, match=re.escape(f"{name} {value!r}: expected a whole number")):
            ablate(model, data, **options)  # type: ignore[arg-type]
    found = ablate(model, data, depth=None)
    assert len(found.kept(2)) == 2
    with pytest.raises(PlanError, match="'x' is not a layer"):
        found.kept("x")  # type: ignore[arg-type]
    with pytest.raises(InherituneError, match=r"cannot recommend from Ablation: .* kept\(depth\) says"):
        recommend(found, keep=2)  # type: ignore[arg-type]


def test_one_window_is_refused() -> None:
    from inheritune.surgery.prices import check_choice

    with pytest.raises(DataError, match="1 window to choose layers on"):
        check_choice(windows(1), llama(2).config)


def test_a_budget_of_inherit_keeps_the_measured_layers(folder: Path) -> None:
    model, analysis = folder / "model", folder / "priced"
    command = ("analyze", model, "--tokens", folder / "windows.npy", "--out", analysis, "--ablate", "--depth", 2)
    assert invoke(*command).exit_code == 0
    done = invoke("inherit", model, "--keep", "50%", "--analysis", analysis, "--out", folder / "small")
    kept = recommend(analysis, keep=2).keep
    assert "keep 2 layers of 4" in done.output
    record = json.loads((folder / "small" / "inherit.json").read_text())
    assert [row["source"] for row in record["plan"]] == list(kept)
    first = invoke("inherit", model, "--drop", 1, "--plan-only")
    assert "the first 3 layers are the paper's rule of thumb, unmeasured" in first.output
    assert "reference 0-2" in first.output
    spread = invoke("inherit", model, "--keep", 2, "--arrange", "evenly-spaced", "--plan-only")
    assert "reference 3" in spread.output
    assert "unmeasured" not in spread.output


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--keep", "2", "--layers", "2"], "--keep and --layers are both given: expected one of them"),
        (["--drop", "2", "--grow-from", "MODEL"], "--drop and --grow-from are both given: expected one of them"),
        (["--analysis", "PRICED"], "--analysis says which layers stay, not how many: pass --keep or --drop too"),
        (["--keep", "2", "--data", "T", "--arrange", "last"], "--data and --arrange both say which layers stay"),
        (["--keep", "101%"], "keep 101%: expected a share of at most 100%"),
        (["--keep", "2", "--data", "T", "--analysis", "PRICED"], "--analysis and --data both say which layers stay"),
        (
            ["--keep", "2", "--analysis", "PRICED/prices.json"],
            "PRICED/prices.json is a file: expected the folder",
        ),
        (
            ["--keep", "2", "--analysis", "STOPPED"],
            "STOPPED is an analysis with --ablate that was stopped",
        ),
        (
            ["--keep", "2", "--data", "T", "--out", "PRICED"],
            "PRICED exists and is not empty",
        ),
        (["--keep", "5"], "keep 5 of 4 layers leaves 5: expected 1 to 4, or a share such as 80%"),
        (["--keep", "2", "--analysis", "A"], "no file A/spectra.json: expected a record written by inheritune"),
    ],
)
def test_a_budget_of_inherit_that_cannot_be_is_one_line(options: list[str], line: str, folder: Path) -> None:
    model, priced, stopped = folder / "model", folder / "priced", folder / "stopped"
    invoke("analyze", model, "--tokens", folder / "windows.npy", "--out", priced, "--ablate", "--depth", 2)
    shutil.copytree(priced, stopped)
    (stopped / "prices.json").rename(stopped / "prices.part.npz")
    names = {"MODEL": str(model), "PRICED": str(priced), "STOPPED": str(stopped)}

    def named(text: str) -> str:
        return re.sub("|".join(names), lambda found: names[found[0]], text)

    out = () if "--out" in options else ("--out", folder / "small")
    done = invoke("inherit", model, *map(named, options), *out)
    assert str(done.exception).startswith(named(line))
    assert not (folder / "small").exists()


def test_a_revision_is_not_measured_as_another() -> None:
    budget = Budget("2", None, None, "text.txt", "", "text", "R")
    with pytest.raises(PlanError, match="--data measures hub/model as it is now, not --revision R: pass --analysis"):
        budget.choose("hub/model", llama(4).config, None, "first", None)
