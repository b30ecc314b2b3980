"""inherit_checkpoint writes only what loads: weights that lack, of other shapes or kinds are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgery_families import assert_same_weights, source
from transformers import AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.errors import ModelError
from inheritune.surgery import LayerPlan


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def _drop(*names: str) -> Any:
    return lambda weights: [weights.pop(name) for name in names]


def _change(name: str, change: Any) -> Any:
    return lambda weights: weights.update({name: change(weights[name])})


NORM, GATE = "model.norm.weight", "model.layers.3.mlp.gate_proj.weight"
UNLOADABLE = {
    "embeddings": ("llama", _drop("model.embed_tokens.weight"), "lacks 1 .*, 'model.embed_tokens.weight' first"),
    "head": ("llama", _drop("lm_head.weight"), "lacks 1 of the weights asked for, 'lm_head.weight' first"),
    "norms": (
        "llama",
        _drop(NORM, "model.layers.3.input_layernorm.weight"),
        "lacks 2 .*, 'model.layers.3.input_layernorm.weight' first",
    ),
    "tied, neither stored": ("gpt2", _drop("transformer.wte.weight"), "lacks .*, 'transformer.wte.weight' first"),
    "shape": ("llama", _change(NORM, lambda t: t[:5].clone()), rf"source stores {NORM} as \[5\]: its .* for \[32\]"),
    "transposed": (
        "llama",
        _change(GATE, lambda t: t.T.contiguous()),
        rf"stores {GATE} as \[32, 48\]: its config.json asks for \[48, 32\]",
    ),
    "kind": (
        "llama",
        _change(GATE, lambda t: t.to(torch.int8)),
        rf"stores {GATE} as I8: expected floating-point numbers",
    ),
    "one expert's": (
        "mixtral",
        _drop("model.layers.3.block_sparse_moe.experts.1.w2.weight"),
        r"stores model.layers.3.mlp.experts.down_proj as \[\d, 32, \d+\]: its config.json asks for",
    ),
    "all experts'": (
        "mixtral",
        lambda weights: [weights.pop(name) for name in list(weights) if ".layers.3." in name and ".w2." in name],
        "lacks 1 .*, 'model.layers.3.mlp.experts.down_proj' first",
    ),
    "an expert's kind": (
        "mixtral",
        _change("model.layers.3.block_sparse_moe.experts.1.w3.weight", lambda t: t.to(torch.int32)),
        "stores model.layers.3.block_sparse_moe.experts.1.w3.weight as I32: expected floating-point numbers",
    ),
}


@pytest.mark.parametrize("case", UNLOADABLE)
def test_what_would_not_load_is_not_written(case: str, tmp_path: Path) -> None:
    name, damage, line = UNLOADABLE[case]
    source(name).save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    weights = load_file(path)
    damage(weights)
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=line) as caught:
        surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", [0, 3, 1])
    assert "\n" not in str(caught.value)
    assert [each.name for each in tmp_path.iterdir()] == ["source"]


def test_weights_of_another_width_than_the_configuration_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    with pytest.raises(ModelError, match=r"source stores .* as .*32.*: its config.json asks for .*64.*$"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)


@pytest.mark.parametrize(
    ("there", "said"), [((0, 1, 2), "of layers 0-2 "), ((0, 2), "of layers 0, 2 "), ((), "of no layer")]
)
def test_layers_that_are_not_in_the_files(there: tuple[int, ...], said: str, folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    kept = {k: v for k, v in weights.items() if ".layers." not in k or int(k.split(".")[2]) in there}
    save_file(kept, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"source has weights {said}.*: its config.json says it has layers 0-3$"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)


def test_of_two_sources_the_one_that_lacks_a_weight_is_named(
    folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel
) -> None:
    surgery.inherit(tiny_llama, 2).save_pretrained(tmp_path / "target")
    for lacking, weight in (("source", "model.layers.2.input_layernorm.weight"), ("target", "lm_head.weight")):
        path = tmp_path / lacking / "model.safetensors"
        whole = path.read_bytes()
        weights = load_file(path)
        del weights[weight]
        save_file(weights, path, {"format": "pt"})
        with pytest.raises(ModelError, match=rf"the checkpoint .*{lacking} lacks 1 .*, '{weight}' first$"):
            plan = LayerPlan.append(2, 4)
            surgery.inherit_checkpoint(folder, tmp_path / "out", plan=plan, target=tmp_path / "target")
        path.write_bytes(whole)


def test_what_transformers_does_without_and_other_precisions_are_copied(tmp_path: Path) -> None:
    model = source("gpt2")
    model.save_pretrained(tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    weights = load_file(path)
    weights["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"].double()
    weights["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)  # of older versions
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone()  # tied, and stored all the same
    save_file(weights, path, {"format": "pt"})
    out = surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 2)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert_same_weights(loaded.state_dict(), surgery.inherit(model, 2).state_dict())
