"""Surgery on every family of decoders, with the source model's own blocks, norm and head as the oracle."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_families import (
    DEPTH,
    FAMILIES,
    HYBRIDS,
    assert_same_weights,
    build,
    logits,
    logits_after,
    own_blocks_outputs,
    source,
    tiny_config,
    tokens,
    trace,
)
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune import surgery
from inheritune.decoder import count_parameters, open_decoder
from inheritune.errors import ModelError, PlanError
from inheritune.surgery import LayerPlan, LayerRow
from inheritune.surgery.config.blueprint import Draft

ALL = sorted(FAMILIES)


def skip_where_lenders_are_numbered() -> None:
    if hasattr(open_decoder(source("gemma3n_text")).blocks[-1].self_attn, "kv_shared_layer_index"):
        pytest.skip("transformers before 5.23 numbers the layer that lends keys in each block: such moves are refused")


@functools.cache
def inherited(name: str, layers: tuple[int, ...]) -> PreTrainedModel:
    return surgery.inherit(source(name), layers)


def test_there_are_enough_families() -> None:
    assert len(set(ALL) - set(HYBRIDS)) >= 60 and len(HYBRIDS) >= 8


@pytest.mark.parametrize("name", ALL)
def test_all_layers_give_the_same_logits_to_the_bit(name: str) -> None:
    new = surgery.inherit(source(name), DEPTH)
    assert type(new) is type(source(name))
    assert torch.equal(logits(new), logits(source(name)))


@pytest.mark.parametrize("name", ALL)
def test_first_layers_give_the_sources_hidden_state_through_its_norm_and_head(name: str) -> None:
    assert torch.equal(logits(inherited(name, (0, 1))), logits_after(source(name), 2))


@pytest.mark.parametrize("name", ALL)
def test_a_permuted_and_repeated_plan_does_what_it_says(name: str) -> None:
    if name == "gemma3n_text":
        skip_where_lenders_are_numbered()
    layers = FAMILIES[name].mixed
    assert sorted(set(layers)) != list(layers) and len(set(layers)) < len(layers)
    entering, leaving = trace(inherited(name, layers))
    for expected, found in zip(own_blocks_outputs(source(name), layers, entering), leaving, strict=True):
        assert torch.equal(found, expected)
    for left, entered in zip(leaving, entering[1:], strict=False):
        assert torch.equal(left, entered)


@pytest.mark.parametrize("name", ALL)
def test_growing_back_to_full_depth_gives_the_source(name: str) -> None:
    plan, small = LayerPlan.append(2, DEPTH), inherited(name, (0, 1))
    if name == "zamba2":
        with pytest.raises(PlanError, match="expected the first ones in order, all of one model"):
            surgery.inherit(source(name), plan=plan, target=small)
        return
    grown = surgery.inherit(source(name), plan=plan, target=small)
    assert torch.equal(logits(grown), logits(source(name)))


@pytest.mark.parametrize("name", ALL)
def test_cached_generation_saving_and_size(name: str, tmp_path: Path) -> None:
    model, layers = source(name), FAMILIES[name].kept
    new = inherited(name, layers)
    if FAMILIES[name].cached:
        settings = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "return_dict_in_generate": True}
        cached = new.generate(tokens(7), use_cache=True, output_logits=True, **settings)
        plain = new.generate(tokens(7), use_cache=False, output_logits=True, **settings)
        assert torch.equal(cached.sequences, plain.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-4)

    new.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(again), logits(new))
    assert again.config.num_hidden_layers == len(layers)

    counts = Draft.of(LayerPlan.from_layers(layers, DEPTH), model.config).parameters
    assert counts.before == count_parameters(model)
    assert counts.after == count_parameters(new) == parameters_left(model, layers)

    assert new.generation_config.to_dict() == model.generation_config.to_dict()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) is tied
    numbers = [m.layer_idx for m in new.modules() if isinstance(getattr(m, "layer_idx", None), int)]
    numbers = [number for number in numbers if number >= 0]  # Zamba 2 numbers attention blocks that are shared -1
    assert numbers == sorted(numbers) and set(numbers) <= set(range(len(layers)))


def parameters_left(model: PreTrainedModel, layers: tuple[int, ...]) -> int:
    """Return what the model's other blocks leave: the parameters that are not theirs alone, nor inputs for them."""
    config, blocks = model.config, open_decoder(model).blocks
    kept = {id(p) for layer in layers for p in blocks[layer].parameters()}
    dropped = {id(p): p for block in blocks for p in block.parameters() if id(p) not in kept}
    width = getattr(config, "hidden_size_per_layer_input", 0)  # of the input that Gemma 3n and 4 look up and project
    inputs = width and width * (config.vocab_size_per_layer_input + config.hidden_size) * (DEPTH - len(layers))
    return count_parameters(model) - sum(p.numel() for p in dropped.values()) - inputs


@pytest.mark.parametrize("name", ALL)
def test_types_and_buffers_are_those_of_a_half_precision_source(name: str, tmp_path: Path) -> None:
    source(name).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    new = surgery.inherit(model, DEPTH)
    assert_same_weights(new.state_dict(), model.state_dict())
    assert_same_weights(dict(new.named_buffers()), dict(model.named_buffers()))
    assert torch.equal(logits(new), logits(model))


@pytest.mark.parametrize("name", ALL)
def test_files_equal_the_in_memory_path(name: str, tmp_path: Path) -> None:
    source(name).save_pretrained(tmp_path / "source")
    if not FAMILIES[name].in_files:
        with pytest.raises(PlanError, match="use inherit"):
            surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "new", FAMILIES[name].kept)
        return
    surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "new", FAMILIES[name].kept)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "new", attn_implementation="eager")
    assert_same_weights(loaded.state_dict(), inherited(name, FAMILIES[name].kept).state_dict())


REFUSED = {
    "deepseek_v3": (tiny_config("deepseek_v3"), (2, 0), "deepseek_v3 keeps its dense layers in front"),
    "ernie4_5_moe": (tiny_config("ernie4_5_moe"), (3, 0, 1), "ernie4_5_moe has its sparse layers at a fixed interval"),
    "gemma3n_text": (
        tiny_config("gemma3n_text"),
        (1, 2),
        "layer 2 of the gemma3n_text uses what layer 0 computed: keep",
    ),
    "gemma3n_text, order": (tiny_config("gemma3n_text"), (0, 3, 1), "share keys and values at the end"),
    "gemma4_text": (tiny_config("gemma4_text"), (1, 0), "a saved gemma4_text configuration would lose 'layer_types'"),
    "glm_moe_dsa": (
        tiny_config("glm_moe_dsa"),
        (0, 2, 1),
        "layer 1 of the glm_moe_dsa uses what layer 0 computed: keep",
    ),
    "gpt_neox_japanese": (tiny_config("gpt_neox_japanese"), (0, 1), "attention.dense_bias shape is absent there and"),
    "jamba": (tiny_config("jamba"), (2, 0, 3, 3, 1), "jamba repeats its kinds of layers with a period"),
    "longcat_flash": (
        tiny_config("longcat_flash", head_dim=4, qk_head_dim=12, num_key_value_heads=4),
        (0,),
        "longcat_flash has 4 blocks and counts 8 layers in them",
    ),
    "modernbert-decoder": (
        tiny_config("modernbert-decoder"),
        (1, 0),
        "attn_norm class is LayerNorm there and Identity",
    ),
    "zamba2": (tiny_config("zamba2"), (3, 1), "zamba2 shares its attention blocks among layers .1, 3. in turn"),
}
if "beam" in CONFIG_MAPPING:
    REFUSED["beam"] = (tiny_config("beam"), (0, 2), "attn_residual_add_idx is 6 there and 4 here")


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_family_cannot_express_is_refused_in_one_line(name: str) -> None:
    config, layers, message = REFUSED[name]
    with pytest.raises(PlanError, match=message) as caught:
        Draft.of(LayerPlan.from_layers(layers, DEPTH), config)
    assert "\n" not in str(caught.value)


def test_what_is_a_formula_of_the_place_follows_the_place() -> None:
    """A stacked layer is scaled as its new place is, 1 / (3 + 1), and not as its weights were trained, 1 / (1 + 1)."""
    gpt2, diffllama = (
        build(config)
        for config in (tiny_config("gpt2", scale_attn_by_inverse_layer_idx=True), tiny_config("diffllama"))
    )
    for model in (gpt2, diffllama):
        assert torch.equal(logits(surgery.inherit(model, 2)), logits_after(model, 2))
    stacked = surgery.inherit(gpt2, plan=LayerPlan.stacking(2))
    by_hand = build(tiny_config("gpt2", scale_attn_by_inverse_layer_idx=False))
    by_hand.load_state_dict(stacked.state_dict())
    assert (logits(stacked) - logits(by_hand)).abs().max() > 1e-2
    with torch.no_grad():
        for layer, block in enumerate(by_hand.transformer.h):
            block.attn.c_attn.weight[:, :32] /= layer + 1
            block.attn.c_attn.bias[:32] /= layer + 1
    torch.testing.assert_close(logits(stacked), logits(by_hand), rtol=0, atol=2e-5)
    mixed = surgery.inherit(diffllama, [1, 0])
    assert [block.self_attn.lambda_init for block in mixed.model.layers] == [
        block.self_attn.lambda_init for block in diffllama.model.layers[:2]
    ]


def test_fields_that_derive_the_kinds_of_layers() -> None:
    def config(name: str, *layers: int) -> Any:
        return inherited(name, layers).config

    jamba = config("jamba", 1, 0, 3, 0, 3)
    assert (jamba.attn_layer_period, jamba.attn_layer_offset) == (2, 0)
    assert (jamba.expert_layer_period, jamba.expert_layer_offset) == (2, 0)
    ernie = config("ernie4_5_moe", 0, 2, 3, 3, 1)
    assert (ernie.moe_layer_interval, ernie.moe_layer_start_index, ernie.moe_layer_end_index) == (1, 1, 4)
    assert config("bamba", 3, 0, 1).attn_layer_indices == [0, 2]
    assert config("recurrent_gemma", 2, 0, 1).block_types == ["attention", "recurrent", "recurrent"]
    assert [config("gemma3n_text", *layers).num_kv_shared_layers for layers in ((0, 1), (0, 1, 3))] == [0, 1]
    scale = source("minicpm3").config.scale_depth
    assert config("minicpm3", 0, 1).scale_depth == pytest.approx(scale / math.sqrt(2), rel=1e-12)


def test_settings_keyed_by_layer_numbers_move_with_the_layers() -> None:
    full = inherited("gemma4_text", (0, 1, 3)).config.per_layer_config
    wide = build(tiny_config("gemma4_text", global_head_dim=24))
    new = surgery.inherit(wide, (1, 0, 2, 3))
    assert [config.head_dim for config in full] == [8, 16, 16]
    assert [config.head_dim for config in new.config.per_layer_config] == [24, 8, 8, 24]


def test_random_layers_keep_their_own_slice_of_the_inputs_for_each_layer() -> None:
    skip_where_lenders_are_numbered()
    plan = LayerPlan((*LayerPlan.from_layers((1, 0, 2), DEPTH), LayerRow(None, None, ())))
    model, name = source("gemma3n_text"), "model.embed_tokens_per_layer.weight"
    old = model.state_dict()[name].chunk(DEPTH, 1)
    new = surgery.inherit(model, plan=plan, seed=5).state_dict()[name].chunk(DEPTH, 1)
    drawn = surgery.scratch(model, DEPTH, seed=5).state_dict()[name]
    assert all(torch.equal(one, old[layer]) for one, layer in zip(new, (1, 0, 2), strict=False))
    assert not torch.equal(new[3], old[3]) and not torch.equal(new[3], drawn.chunk(DEPTH, 1)[0])


def test_a_source_that_has_run_or_trains_with_checkpointing_is_as_good_as_a_new_one() -> None:
    model = build(tiny_config("recurrent_gemma"))
    logits(model)  # leaves its recurrent states in the blocks
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = True
    assert torch.equal(logits(surgery.inherit(model, DEPTH)), logits(model))


def test_weights_that_rwkv_has_divided_for_inference_are_refused() -> None:
    model = build(tiny_config("rwkv"))
    surgery.inherit(model, 2)
    logits(model)
    with pytest.raises(PlanError, match="RwkvForCausalLM has divided its weights for inference: load it anew"):
        surgery.inherit(model, 2)


@pytest.mark.parametrize("layers", [(0, 1, 2, 3), (1, 0, 3)])
def test_the_text_decoder_of_a_model_that_sees(layers: tuple[int, ...]) -> None:
    text = tiny_config("gemma3_text", layer_types=["sliding_attention", "full_attention"] * 2).to_dict()
    vision: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    vision |= {"image_size": 16, "patch_size": 8, "model_type": "siglip_vision_model"}
    model = build(CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision, mm_tokens_per_image=4))
    new = surgery.inherit(model, layers)
    assert new.config.get_text_config().layer_types == [text["layer_types"][layer] for layer in layers]
    entering, leaving = trace(new)
    for expected, found in zip(own_blocks_outputs(model, layers, entering), leaving, strict=True):
        assert torch.equal(found, expected)


QUANTISED: dict[str, dict[str, Any]] = {
    "awq": {"bits": 4, "group_size": 128, "version": "gemm", "zero_point": True},
    "bitsandbytes": {"load_in_4bit": True},
    "compressed-tensors": {"format": "pack-quantized"},
    "fp8": {"weight_block_size": [128, 128]},
    "gptq": {"bits": 4, "group_size": 128},
    "mxfp4": {},
}


@pytest.mark.parametrize("method", QUANTISED)
def test_quantised_models_are_refused_with_the_way_out(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    source("llama").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **QUANTISED[method]}
    (folder / "config.json").write_text(json.dumps(config))
    message = (
        rf"quantised \({method}\): expected full-precision weights; use the original checkpoint, or call model.deq"
    )
    with pytest.raises(ModelError, match=message):
        surgery.inherit(folder, 2)
    with pytest.raises(ModelError, match=message):
        surgery.inherit_checkpoint(folder, tmp_path / "new", 2)


def test_a_quantised_text_decoder_is_refused() -> None:
    config = CONFIG_MAPPING["gemma3"](text_config=tiny_config("gemma3_text").to_dict())
    config.text_config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(ModelError, match=r"the model is quantised \(gptq\)"):
        Draft.of(LayerPlan.first(2, DEPTH), config)


def test_slices_of_another_vocabulary_are_refused() -> None:
    other = tiny_config("gemma3n_text", vocab_size_per_layer_input=89)
    small = surgery.inherit(build(other), 2)
    with pytest.raises(PlanError, match=r"embed_tokens_per_layer.weight has slices of .97, 8. in the reference"):
        surgery.inherit(source("gemma3n_text"), plan=LayerPlan.append(2, 4), target=small)


def test_growth_joins_the_slices_of_both_models() -> None:
    model, key = source("gemma3n_text"), "model.per_layer_model_projection.weight"
    small = surgery.inherit(model, 2)
    with torch.no_grad():
        small.get_parameter(key).mul_(2)
    grown = surgery.inherit(model, plan=LayerPlan.append(2, 4), target=small)
    assert torch.equal(grown.get_parameter(key)[:16], small.get_parameter(key))
    assert torch.equal(grown.get_parameter(key)[16:], model.get_parameter(key)[16:])
