"""inherit and scratch: tiny models of many families, with Hugging Face's own forward pass as the oracle."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from surgery_families import assert_same_weights, digest, logits, source
from torch import nn
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

import inheritune.surgery as surgery
from inheritune.decoder import open_decoder
from inheritune.errors import ModelError, PlanError
from inheritune.surgery import LayerPlan, LayerRow


def rearranged(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """Rearrange a copy by hand, as users do: a new list of blocks, and the fields the forward pass reads."""
    model = copy.deepcopy(model)
    decoder = open_decoder(model)
    parent, _, name = decoder.blocks_path.rpartition(".")
    blocks = nn.ModuleList(copy.deepcopy(decoder.blocks[layer]) for layer in layers)
    model.get_submodule(parent).register_module(name, blocks)
    config = model.config
    config.num_hidden_layers = len(layers)
    for field in ("layer_types", "attention_layers", "no_rope_layers"):
        if getattr(config, field, None):
            setattr(config, field, [getattr(config, field)[layer] for layer in layers])
    return model


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neo", "qwen2_moe"])
def test_source_and_random_state_are_left_alone(name: str) -> None:
    model = source(name)
    before, config = digest(model), model.config.to_dict()
    state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    new = surgery.inherit(model, 2, "mlp", seed=5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    new.config.num_hidden_layers = 77
    new.generation_config.max_new_tokens = 77
    assert digest(model) == before
    assert model.config.to_dict() == config
    assert model.generation_config.max_new_tokens != 77
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state


def hugging_face_init(like: PreTrainedModel, layers: int, seed: int) -> dict[str, torch.Tensor]:
    """Return what transformers itself initialises for this architecture at this depth."""
    config = copy.deepcopy(like.config)
    config.num_hidden_layers = layers
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(like)(config).state_dict()


def test_scratch_is_transformers_own_initialisation(tiny_gpt2: PreTrainedModel) -> None:
    expected = hugging_face_init(tiny_gpt2, 6, seed=3)
    assert_same_weights(surgery.scratch(tiny_gpt2, 6, seed=3).state_dict(), expected)
    assert_same_weights(surgery.scratch(tiny_gpt2.config, 6, seed=3).state_dict(), expected)
    other = surgery.scratch(tiny_gpt2, 6, seed=4).state_dict()
    assert not torch.equal(other["transformer.h.5.attn.c_proj.weight"], expected["transformer.h.5.attn.c_proj.weight"])
    assert len(open_decoder(surgery.scratch(tiny_gpt2)).blocks) == 4
    # GPT-2 scales c_proj down by sqrt(2 * depth): 6 layers * 32 * 32 draws put the sample within a few per cent.
    drawn = torch.cat([expected[f"transformer.h.{i}.attn.c_proj.weight"].flatten() for i in range(6)])
    assert drawn.std().item() == pytest.approx(0.02 / 12**0.5, rel=0.05)


ATTENTION = {"gpt2": "attn.", "llama": "self_attn."}
NORMS = {"gpt2": ("ln_1.", "ln_2."), "llama": ("input_layernorm.", "post_attention_layernorm.")}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("parts", ["attention", "mlp", "attention,norms", "mlp,norms", "attention,mlp", "all"])
def test_parts_copy_exactly_what_they_name(
    family: str, parts: str, tiny_gpt2: PreTrainedModel, tiny_llama: PreTrainedModel
) -> None:
    model = {"gpt2": tiny_gpt2, "llama": tiny_llama}[family]
    path = open_decoder(model).blocks_path
    new = surgery.inherit(model, [3, 1], parts, seed=9).state_dict()
    old, drawn = model.state_dict(), hugging_face_init(model, 2, seed=9)
    for key, value in new.items():
        if not key.startswith(path):
            assert torch.equal(value, old[key]), key
            continue
        index, name = key.removeprefix(f"{path}.").split(".", 1)
        norm, attention = name.startswith(NORMS[family]), name.startswith(ATTENTION[family])
        part = "norms" if norm else "attention" if attention else "mlp"
        copied = parts == "all" or part in parts.split(",")
        origin = old[f"{path}.{[3, 1][int(index)]}.{name}"] if copied else drawn[key]
        assert torch.equal(value, origin), key


def test_random_layers_and_layers_kept_in_place(tiny_gpt2: PreTrainedModel) -> None:
    new = surgery.inherit(tiny_gpt2, plan=LayerPlan.in_place([2, 3], 4), seed=1).state_dict()
    old, drawn = tiny_gpt2.state_dict(), hugging_face_init(tiny_gpt2, 4, seed=1)
    for key, value in new.items():
        is_random = key.startswith(("transformer.h.0.", "transformer.h.1."))
        assert torch.equal(value, drawn[key] if is_random else old[key]), key


def trained(model: PreTrainedModel) -> PreTrainedModel:
    """Move all weights, as training would."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.25)
    return model


@pytest.mark.parametrize("mode", ["continue", "restart"])
def test_growth(tiny_llama: PreTrainedModel, mode: str) -> None:
    small = trained(surgery.inherit(tiny_llama, 2))
    grown = surgery.inherit(tiny_llama, plan=LayerPlan.append(2, 4, mode), target=small).state_dict()
    old, new = tiny_llama.state_dict(), small.state_dict()
    for key, value in grown.items():
        kept = mode == "continue" and not key.startswith(("model.layers.2.", "model.layers.3."))
        assert torch.equal(value, new[key] if kept else old[key]), key


def test_growth_slices_layer_kinds_from_both_models() -> None:
    reference = source("gemma2")
    small = surgery.inherit(reference, [0, 1])
    grown = surgery.inherit(reference, plan=LayerPlan.append(2, 4), target=small)
    assert grown.config.layer_types == reference.config.layer_types
    assert torch.equal(logits(grown), logits(reference))


def test_stacking_a_model_on_itself(tiny_gpt2: PreTrainedModel) -> None:
    half = surgery.inherit(tiny_gpt2, 2)
    stacked = surgery.inherit(half, plan=LayerPlan.stacking(2))
    assert torch.equal(logits(stacked), logits(rearranged(half, [0, 1, 0, 1])))
    given = surgery.inherit(tiny_gpt2, plan=LayerPlan.stacking(2), target=half)
    assert_same_weights(stacked.state_dict(), given.state_dict())


def test_layer_fields_of_the_configuration() -> None:
    layers = [3, 1, 2]
    assert surgery.inherit(source("qwen3"), layers).config.layer_types == [
        "sliding_attention",
        "full_attention",
        "full_attention",
    ]
    assert surgery.inherit(source("qwen2"), layers).config.max_window_layers == 1
    assert surgery.inherit(source("gpt_neo"), layers).config.attention_layers == ["local", "local", "global"]
    assert surgery.inherit(source("smollm3"), layers).config.no_rope_layers == [0, 0, 1]
    moe = surgery.inherit(source("qwen2_moe"), layers)  # layers 1 and 3 are sparse: decoder_sparse_step is 2
    assert (moe.config.decoder_sparse_step, moe.config.mlp_only_layers) == (1, [2])
    assert surgery.inherit(source("deepseek_v3"), [1, 2]).config.first_k_dense_replace == 1


def test_dtype_device_mode_and_generation_settings_carry_over(tiny_llama: PreTrainedModel) -> None:
    model = tiny_llama.to(torch.bfloat16).train()
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    model.generation_config.temperature = 0.5
    new = surgery.inherit(model, 2)
    assert new.dtype == torch.bfloat16 and new.config.dtype == torch.bfloat16
    assert new.model.norm.weight.dtype == torch.float32
    assert new.generation_config.temperature == 0.5
    assert not new.training and model.training


def test_a_folder_is_as_good_as_a_model(tiny_llama: PreTrainedModel, tmp_path: object) -> None:
    tiny_llama.save_pretrained(tmp_path)
    expected = surgery.inherit(tiny_llama, 2, "attention").state_dict()
    assert_same_weights(surgery.inherit(tmp_path, 2, "attention").state_dict(), expected)
    assert len(open_decoder(surgery.scratch(tmp_path, 3)).blocks) == 3


def test_errors(tiny_llama: PreTrainedModel, tiny_gpt2: PreTrainedModel) -> None:
    with pytest.raises(PlanError, match=r"asked for 20 layers, the model has 4 \(0-3\)"):
        surgery.inherit(tiny_llama, 20)
    with pytest.raises(PlanError, match=r"no layers given: pass layers= \(for example 2\) or plan="):
        surgery.inherit(tiny_llama)
    with pytest.raises(PlanError, match="got both layers= and plan="):
        surgery.inherit(tiny_llama, 2, plan=LayerPlan.first(2, 4))
    with pytest.raises(PlanError, match="pass parts= only with layers="):
        surgery.inherit(tiny_llama, parts="mlp", plan=LayerPlan.first(2, 4))
    with pytest.raises(PlanError, match="layer 0 of the plan comes from the target model: pass target="):
        surgery.inherit(tiny_llama, plan=LayerPlan.append(2, 4))
    with pytest.raises(PlanError, match=r"takes layer 4, the reference has 4 \(0-3\)"):
        surgery.inherit(tiny_llama, plan=LayerPlan((LayerRow("reference", 4),)))
    with pytest.raises(PlanError, match=r"different families \(gpt2 and llama\): expected the same"):
        surgery.inherit(tiny_gpt2, plan=LayerPlan.append(2, 4), target=surgery.inherit(tiny_llama, 2))
    with pytest.raises(PlanError, match=r"does not fit|outside its blocks that depend"):
        surgery.inherit(tiny_llama, plan=LayerPlan.append(2, 4), target=surgery.inherit(source("llama"), 2))
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    )
    with pytest.raises(ModelError, match="T5ForConditionalGeneration is an encoder-decoder: expected a decoder-only"):
        surgery.inherit(encoder_decoder, 1)
    with pytest.raises(PlanError, match="unknown part 'heads'"):
        surgery.inherit(tiny_llama, 2, "heads")
    tiny_llama.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(
        ModelError, match=r"quantised .bitsandbytes.: expected full-precision weights; use the original"
    ):
        surgery.inherit(tiny_llama, 2)


def test_the_plan_is_checked_before_weights_are_read(tiny_llama: PreTrainedModel, tmp_path: object) -> None:
    tiny_llama.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PlanError, match=r"asked for 9 layers, the model has 4 \(0-3\)"):
        surgery.inherit(tmp_path, 9)


def test_blocks_that_differ_beyond_the_configuration_are_refused() -> None:
    with pytest.raises(PlanError, match="deepseek_v3 keeps its dense layers in front"):
        surgery.inherit(source("deepseek_v3"), [2, 0])
    wide = copy.deepcopy(source("llama"))
    wide.model.layers[1].mlp.gate_proj.weight.data = torch.zeros(50, 32)
    with pytest.raises(
        PlanError, match=r"layer 1 of the reference does not fit as layer 1: mlp.gate_proj.weight shape is"
    ):
        surgery.inherit(wide, 2)
    sliding = copy.deepcopy(source("qwen3"))
    sliding.model.layers[1].self_attn.sliding_window = 3
    with pytest.raises(PlanError, match=r"self_attn.sliding_window is 3 there and absent here"):
        surgery.inherit(sliding, 2)
    gated = copy.deepcopy(source("llama"))
    gated.model.layers[0].register_parameter("gate", nn.Parameter(torch.ones(1)))
    with pytest.raises(PlanError, match=r"gate shape is .1,. there and absent here"):
        surgery.inherit(gated, 1)


def test_a_head_that_was_untied_by_hand_is_not_overwritten_in_silence(tiny_gpt2: PreTrainedModel) -> None:
    tiny_gpt2.lm_head.weight = nn.Parameter(tiny_gpt2.lm_head.weight.detach() + 1.0)
    line = r"lm_head.weight and transformer.wte.weight are two different weights.*set .tie_word_embeddings.: false"
    with pytest.raises(PlanError, match=line):
        surgery.inherit(tiny_gpt2, 2)


def test_a_configuration_that_would_not_load_again_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inheritune.surgery.config import target as config

    target = copy.deepcopy(source("qwen3").config)
    monkeypatch.setattr(type(target), "to_dict", lambda self: {**self.__dict__, "layer_types": ["full_attention"] * 4})
    with pytest.raises(PlanError, match="a saved qwen3 configuration would lose 'layer_types' of this plan"):
        config._check_reload(target, ["layer_types"])
    monkeypatch.setattr(type(target), "to_dict", lambda self: {**self.__dict__, "layer_types": ["full_attention"] * 3})
    with pytest.raises(PlanError, match=r"no qwen3 configuration can say this plan: .*layer_types"):
        config.target_config({"reference": target}, LayerPlan.first(4, 4))


def test_gpt_neo_expands_its_saved_field_to_the_layers_of_the_plan() -> None:
    config = surgery.inherit(source("gpt_neo"), [1, 2, 3]).config
    assert config.attention_layers == ["local", "global", "local"]
    assert config.expand_attention_types_params(config.attention_types) == config.attention_layers


def test_lists_that_are_as_long_as_the_model_is_deep_by_chance() -> None:
    model = copy.deepcopy(source("llama"))
    model.config.eos_token_id = [1, 5, 7, 9]
    assert surgery.inherit(model, 2).config.eos_token_id == [1, 5, 7, 9]
