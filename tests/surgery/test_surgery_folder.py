"""What a cut folder says is true of what is in it: code, tokenizer, names for older readers, ties, NaN, records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgery_families import DEPTH, FAMILIES, logits, source
from test_surgery_cli import call, refusal
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.errors import InherituneWarning, ModelError
from inheritune.records.base import read_record
from inheritune.records.surgery import SurgeryRecord
from inheritune.surgery import LayerPlan
from inheritune.surgery.files.carried import code_files, finish_folder
from tiny import make_llama

OLD = Path(__file__).parent / "version_0_1" / "inherit.json"


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))


def change_weight(folder: Path, **values: torch.Tensor) -> None:
    weights = load_file(folder / "model.safetensors")
    weights |= {name.replace("__", "."): value for name, value in values.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_shipped_reference_is_a_source(tmp_path: Path) -> None:
    out = surgery.inherit_checkpoint("stdlib", tmp_path / "out", 2)
    assert AutoConfig.from_pretrained(out).num_hidden_layers == 2
    assert "made from `stdlib` with" in (out / "README.md").read_text()


def test_a_record_of_version_0_1_is_read() -> None:
    record = read_record(OLD, SurgeryRecord)
    made = LayerPlan.from_layers([0, 2], 5, "attention,norms").with_moved("as-is")
    assert LayerPlan.from_records(record.plan) == made
    assert (record.parameters.before, record.parameters.after, record.identity) == (260032, 123712, None)


@pytest.mark.parametrize("parts", ["all", "mlp"])
def test_the_code_of_model_and_tokenizer_comes_along(parts: str, folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "their_config.Config", "AutoModel": "a/b--far.Model"})
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "their_tokens.Tokenizer"]})
    (folder / "their_config.py").write_text("from .their_parts import part\n")
    (folder / "their_parts.py").write_text("part = 1\n")
    (folder / "their_tokens.py").write_text("import json\n")
    (folder / "train.py").write_text("no part of the model\n")
    assert code_files(folder) == ["their_config.py", "their_parts.py", "their_tokens.py"]
    result = call(folder, "--layers", 2, "--parts", parts, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "out").glob("*.py")) == code_files(folder)
    assert "without a tokenizer" not in result.stderr


@pytest.mark.parametrize("parts", ["all", "mlp"])
def test_a_damaged_tokenizer_is_copied_as_it_is_and_a_missing_one_is_said(
    parts: str, folder: Path, tmp_path: Path
) -> None:
    result = call(folder, "--layers", 2, "--parts", parts, "--out", tmp_path / "none")
    assert result.stderr.splitlines()[-1] == f"note: saved without a tokenizer: {folder} has none"
    (folder / "tokenizer.json").write_text("{damaged")
    result = call(folder, "--layers", 2, "--parts", parts, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "without a tokenizer" not in result.stderr
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{damaged"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_names_for_older_readers_change_nothing_for_this_one(name: str, tmp_path: Path) -> None:
    config = source(name).config
    config.save_pretrained(tmp_path)
    before = AutoConfig.from_pretrained(tmp_path).to_dict()
    finish_folder(tmp_path, tmp_path / "source", "# A card")
    after = AutoConfig.from_pretrained(tmp_path).to_dict()
    assert {key: after[key] for key in before} == before
    assert after.keys() - before.keys() <= {"partial_rotary_factor"}  # Phi-3 keeps it beside rope_parameters


@pytest.mark.parametrize("parts", ["all", "mlp"])
def test_transformers_4_finds_its_names(parts: str, tmp_path: Path) -> None:
    scaled = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 2.0, "low_freq_factor": 1.0}
    scaled |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    model = make_llama(rope_parameters=scaled).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    assert call(tmp_path / "source", "--layers", 3, "--parts", parts, "--out", tmp_path / "out").exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["rope_theta"] == 500.0 and config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["rope_scaling"] == {name: value for name, value in scaled.items() if name != "rope_theta"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert torch.equal(logits(again), logits(surgery.inherit(model, 3, parts)))


def test_gemma_3_keeps_both_of_its_older_names(tmp_path: Path) -> None:
    source("gemma3_text").save_pretrained(tmp_path / "source")
    out = surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 2)
    config = json.loads((out / "config.json").read_text())
    rope = config["rope_parameters"]
    assert config["rope_theta"] == rope["full_attention"]["rope_theta"]
    assert config["rope_local_base_freq"] == rope["sliding_attention"]["rope_theta"]


def test_layers_that_predict_further_tokens_are_neither_there_nor_counted(tmp_path: Path) -> None:
    source("deepseek_v3").save_pretrained(tmp_path / "source")
    folder = tmp_path / "source"
    change(folder / "config.json", num_nextn_predict_layers=1)
    change_weight(folder, mtp__fc__weight=torch.ones(2, 2), model__layers__4__eh_proj__weight=torch.ones(2, 2))
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    assert json.loads((out / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert not [name for name in load_file(out / "model.safetensors") if "mtp" in name or "eh_proj" in name]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert surgery.inherit(model, 2).config.num_nextn_predict_layers == 0


def test_a_stored_head_is_the_embedding_that_the_configuration_says_it_is(tmp_path: Path) -> None:
    make_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "source")
    folder = tmp_path / "source"
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    change_weight(folder, lm_head__weight=table.clone())
    out = surgery.inherit_checkpoint(folder, tmp_path / "equal", 2)
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    change_weight(folder, lm_head__weight=table + 1)
    line = 'two different weights.*set "tie_word_embeddings": false in its config.json'
    with pytest.raises(ModelError, match=line):
        surgery.inherit_checkpoint(folder, tmp_path / "other", 2)
    assert "tie_word_embeddings" in str(refusal(folder, "--width", "1/2", "--out", tmp_path / "narrow"))
    change(folder / "config.json", tie_word_embeddings=False)
    out = surgery.inherit_checkpoint(folder, tmp_path / "mended", 2)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out).lm_head.weight, table + 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_is_not_finite_is_said(value: float, dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    weight = load_file(folder / "model.safetensors")[name].to(dtype)
    weight[-1, -1] = value
    change_weight(folder, **{name.replace(".", "__"): weight})
    with pytest.warns(InherituneWarning, match=rf"^{name} hold NaN or infinity, as in the source") as caught:
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
        surgery.inherit(folder, 2, "mlp")
    assert len(caught) == 2
    surgery.inherit_checkpoint(folder, tmp_path / "without", [0, 2])  # what is left out is not looked at
    assert f"note: {name} hold NaN" in call(folder, "--layers", 2, "--out", tmp_path / "cli").stderr


def test_large_finite_numbers_are_no_infinity(folder: Path, tmp_path: Path) -> None:
    change_weight(folder, model__layers__0__mlp__up_proj__weight=torch.full((64, 32), torch.finfo(torch.float32).max))
    surgery.inherit_checkpoint(folder, tmp_path / "out", 2)


def test_a_hybrid_without_attention_and_output_at_zero_are_said_in_the_plan(folder: Path, tmp_path: Path) -> None:
    source("granitemoehybrid").save_pretrained(tmp_path / "hybrid")
    said = "no attention layer is left; transformers' generate fails here unless use_cache=False"
    assert said in call(tmp_path / "hybrid", "--layers", "0,2", "--plan-only").stdout
    assert said not in call(tmp_path / "hybrid", "--layers", "0,1", "--plan-only").stdout
    options = ["--grow-from", folder, "--layers", "3,", "--plan-only"]
    assert "whether llama can start layers without output" in call(folder, *options, "--zero-output").stdout
    assert "whether" not in call(folder, *options).stdout


def test_growth_of_a_cut_model_goes_on_behind_what_it_was_cut_to(folder: Path, tmp_path: Path) -> None:
    """The target's record says which layers of the reference it has."""
    assert call(folder, "--layers", "0,2", "--out", tmp_path / "cut").exit_code == 0
    grow = ["--grow-from", tmp_path / "cut"]
    result = call(folder, *grow, "--layers", 3, "--plan-only")
    assert "2       <-  reference 3" in result.stdout
    assert "cannot grow to 4 layers: the plan starts with layers 0, 2" in str(refusal(folder, *grow, "--layers", 4))
    other = make_llama(attention_bias=False, seed=1)
    other.config.rope_parameters["rope_theta"] = 77.0
    other.save_pretrained(tmp_path / "other")
    assert "2       <-  reference 2" in call(tmp_path / "other", *grow, "--layers", 3, "--plan-only").stdout


def test_a_model_that_names_attention_that_is_not_installed_is_cut(folder: Path, tmp_path: Path) -> None:
    change(folder / "config.json", _attn_implementation="flash_attention_2")
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", DEPTH - 1)
    assert "attn" not in (out / "config.json").read_text().replace("_attn_heads", "")
    AutoModelForCausalLM.from_pretrained(out)
