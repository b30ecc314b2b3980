"""The closed-form repair of a cut, against NumPy's least squares on states that plain hooks captured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from surgery_families import build, logits, source, tiny_config
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from inheritune import surgery
from inheritune.cli.main import app
from inheritune.decoder import open_decoder
from inheritune.errors import PlanError
from inheritune.records.base import read_record
from inheritune.records.surgery import SurgeryRecord
from inheritune.surgery import LayerPlan, repair
from inheritune.surgery.request import RECORD

WINDOWS = np.random.default_rng(1).integers(3, 97, (24, 32))
KEPT = (0, 3)


def states(model: PreTrainedModel, windows: np.ndarray, *modules: Any) -> list[np.ndarray]:
    """Return what modules give out, (n, D) float64 each."""
    found: dict[Any, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output: found.__setitem__(module, output if torch.is_tensor(output) else output[0])
        )
        for module in modules
    ]
    with torch.no_grad():
        model(torch.from_numpy(windows), use_cache=False)
    for hook in hooks:
        hook.remove()
    return [found[module].double().numpy().reshape(-1, found[module].shape[-1]) for module in modules]


def projection(model: PreTrainedModel, layer: int) -> Any:
    return repair.output_projection(open_decoder(model).blocks[layer], "here")


def test_the_map_is_the_least_squares_solution() -> None:
    """GPT-2, whose projection has a bias: a constant is fitted and not drawn to nothing."""
    model = source("gpt2")
    cut = surgery.inherit(model, KEPT)
    outputs, hidden = states(cut, WINDOWS, projection(cut, 0), cut.transformer.h[0])
    (wanted,) = states(model, WINDOWS, model.transformer.h[2])
    new = surgery.inherit(model, KEPT, repair=WINDOWS)
    (after,) = states(new, WINDOWS, projection(new, 0))

    known = np.column_stack([outputs, np.ones(len(outputs))])
    found = []
    for ridge in repair.RIDGES:
        rows = np.column_stack([np.eye(32) * np.sqrt(ridge * np.square(outputs).sum() / 32), np.zeros(32)])
        linear = np.linalg.lstsq(np.vstack([known, rows]), np.vstack([wanted - hidden, np.zeros((32, 32))]))[0]
        found.append(np.abs(after - (outputs + known @ linear)).max())
    assert min(found) < 1e-4 * np.abs(after).max()
    assert np.square(wanted - hidden - after + outputs).sum() < np.square(wanted - hidden).sum()


def test_the_repaired_model_is_closer_on_other_windows() -> None:
    other = np.random.default_rng(2).integers(3, 97, (8, 32))
    for name in ("llama", "gpt_neox", "opt"):
        model = source(name)
        cut, new = surgery.inherit(model, KEPT), surgery.inherit(model, KEPT, repair=WINDOWS)
        (wanted,) = states(model, other, open_decoder(model).blocks[2])
        gaps = [np.square(states(m, other, open_decoder(m).blocks[0])[0] - wanted).sum() for m in (cut, new)]
        assert gaps[1] < gaps[0], name
        assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in cut.parameters())


def test_only_the_projections_before_gaps_change(capsys: pytest.CaptureFixture[str]) -> None:
    model = source("gpt2")
    cut, new = surgery.inherit(model, (0, 2)), surgery.inherit(model, (0, 2), repair=WINDOWS)
    changed = {key for key, value in new.state_dict().items() if not torch.equal(value, cut.state_dict()[key])}
    assert changed <= {f"transformer.h.{layer}.mlp.c_proj.{name}" for layer in (0, 1) for name in ("weight", "bias")}
    assert "transformer.h.0.mlp.c_proj.weight" in changed
    said = capsys.readouterr().err
    assert "layer 0 stands in for layer 1 of the reference: of what they add" in said and "layer 3" in said


def test_gaps_are_where_layers_are_missing() -> None:
    plan = LayerPlan.from_layers((1, 2, 5, 6, 9), 12)
    assert repair.gaps_of(plan, 12) == [(1, range(3, 5)), (3, range(7, 9)), (4, range(10, 12))]


@pytest.mark.parametrize(
    ("layers", "options", "message"),
    [
        ((2, 3), {}, "nothing to repair: the plan leaves out no layers behind one that it keeps"),
        ((0, 1, 2, 3), {}, "nothing to repair"),
        ((3, 0), {}, "for plans that leave out layers of the reference and keep the others whole, in order"),
        ((0, 3), {"parts": "attention"}, "keep the others whole"),
        ((0, 3), {"width": "1/2"}, "full width: pass repair or width"),
        ((0, 3), {"repair": WINDOWS[:2]}, "2 windows of 64 tokens to fit a repair to: expected at least 16, of 64"),
    ],
)
def test_what_cannot_be_repaired_is_one_line(layers: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        surgery.inherit(source("gpt2"), layers, **({"repair": WINDOWS} | options))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma2", "cannot repair a gap in a gemma2: its MLP's output is not added to the hidden states as it is"),
        ("olmo2", "cannot repair a gap in a olmo2"),
        ("granite", "cannot repair a gap in a granite"),
        ("mixtral", "cannot repair a gap behind layer 0 of MixtralForCausalLM: expected an MLP with one output"),
    ],
)
def test_families_in_which_it_is_not_exact_are_refused(name: str, message: str) -> None:
    model = source(name) if name != "granite" else build(tiny_config(name, residual_multiplier=0.22))
    with pytest.raises(PlanError, match=message):
        surgery.inherit(model, KEPT, repair=WINDOWS)


def test_a_source_is_left_as_it_was() -> None:
    model = source("gpt2")
    before = logits(model)
    surgery.inherit(model, KEPT, repair=WINDOWS)
    assert torch.equal(logits(model), before)


def test_the_command_says_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inheritune.surgery.request.WINDOWS", 16)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"def f{i}(x):\n    return x + {i}" for i in range(200)))
    call = ["inherit", "stdlib", "--layers", "0:9,10:16", "--repair", str(text), "--out", str(tmp_path / "new")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert "repair: a linear map for each gap, fitted to" in result.stdout
    assert "repair: a linear map for each gap, fitted to" in (tmp_path / "new" / "README.md").read_text()
    assert read_record(tmp_path / "new" / RECORD, SurgeryRecord).repair == str(text)
    plain = surgery.inherit("stdlib", (*range(9), *range(10, 16))).state_dict()
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "new").state_dict()
    assert {key for key in new if not torch.equal(new[key], plain[key])} <= {
        f"transformer.h.8.mlp.c_proj.{name}" for name in ("weight", "bias")
    }
    refused = CliRunner().invoke(
        app, ["inherit", "stdlib", "--layers", "4", "--arrange", "last", "--repair", str(text)]
    )
    assert isinstance(refused.exception, PlanError) and "nothing to repair" in str(refused.exception)
