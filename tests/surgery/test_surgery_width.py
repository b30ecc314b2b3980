"""narrow: what stays of every weight, written out by name for each family, and Hugging Face's forward pass."""

from __future__ import annotations

import copy
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from surgery_families import assert_same_weights, digest, logits, source, tokens
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import count_parameters
from inheritune.errors import ModelError, PlanError
from inheritune.surgery import blueprint, inherit
from inheritune.surgery.width import FAMILIES, describe_width, narrow, narrow_config, narrow_sizes, parse_width
from tiny import perturbed

TOKENS = {"vocab_size": 97, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLAMA: dict[str, Any] = {
    **TOKENS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
OWN_HEADS = {**LLAMA, "head_dim": 6}
WINDOWS = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
SETTINGS: dict[str, dict[str, Any]] = {
    "gemma": OWN_HEADS,
    "gemma2": {**OWN_HEADS, **WINDOWS},
    "gemma3_text": {**OWN_HEADS, **WINDOWS},
    "gpt2": {**TOKENS, "n_embd": 32, "n_layer": 3, "n_head": 8, "n_positions": 64},
    "granite": {**LLAMA, "embedding_multiplier": 3.0, "attention_multiplier": 0.4, "residual_multiplier": 0.7},
    "llama": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "mistral": {**OWN_HEADS, "sliding_window": 5},
    "olmo": {**LLAMA, "clip_qkv": 1.0},
    "olmo2": LLAMA,
    "olmo3": {**LLAMA, **WINDOWS},
    "qwen2": {**LLAMA, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {**OWN_HEADS, **WINDOWS, "use_sliding_window": True},
    "smollm3": {**LLAMA, "no_rope_layers": [1, 0, 1]},
    "starcoder2": {**LLAMA, "sliding_window": 5},
}
HEAD = {name: settings.get("head_dim", 4) for name, settings in SETTINGS.items()}
SCALED_EMBEDDING = ("gemma", "gemma2", "gemma3_text")
ALL = sorted(SETTINGS)

AXES = {
    "embed_tokens.weight": "vocabulary hidden+",
    "lm_head.weight": "vocabulary hidden-",
    "q_proj.weight": "heads hidden-",
    "k_proj.weight": "kv hidden-",
    "v_proj.weight": "kv hidden-",
    "o_proj.weight": "hidden+ heads-",
    "gate_proj.weight": "mlp hidden-",
    "up_proj.weight": "mlp hidden-",
    "down_proj.weight": "hidden+ mlp-",
    "q_proj.bias": "heads",
    "k_proj.bias": "kv",
    "v_proj.bias": "kv",
    "o_proj.bias": "hidden+",
    "gate_proj.bias": "mlp",
    "up_proj.bias": "mlp",
    "down_proj.bias": "hidden+",
    "mlp.c_fc.weight": "mlp hidden-",
    "mlp.c_fc.bias": "mlp",
    "mlp.c_proj.weight": "hidden+ mlp-",
    "mlp.c_proj.bias": "hidden+",
    "layernorm.weight": "hidden+",
    "layernorm.bias": "hidden+",
    "model.norm.weight": "hidden+",
    "model.norm.bias": "hidden+",
    "q_norm.weight": "head",
    "k_norm.weight": "head",
}
"""The axes of each weight. With `+` it writes hidden units (or is added to, or scales, them), with `-` it reads."""

OLMO = {
    **AXES,
    "q_proj.weight": "heads+ hidden-",
    "k_proj.weight": "kv+ hidden-",
    "q_norm.weight": "heads+",
    "k_norm.weight": "kv+",
}
"""OLMo-2 and 3 norm all queries of a token together, and all keys."""

GPT2 = {
    "wte.weight": "vocabulary hidden+",
    "wpe.weight": "positions hidden+",
    "lm_head.weight": "vocabulary hidden-",
    "attn.c_attn.weight": "hidden- qkv heads",
    "attn.c_attn.bias": "qkv heads",
    "attn.c_proj.weight": "heads- hidden+",
    "attn.c_proj.bias": "hidden+",
    "mlp.c_fc.weight": "hidden- mlp",
    "mlp.c_fc.bias": "mlp",
    "mlp.c_proj.weight": "mlp- hidden+",
    "mlp.c_proj.bias": "hidden+",
    "ln_1.weight": "hidden+",
    "ln_1.bias": "hidden+",
    "ln_2.weight": "hidden+",
    "ln_2.bias": "hidden+",
    "ln_f.weight": "hidden+",
    "ln_f.bias": "hidden+",
}


def make(name: str, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(7)
    config = CONFIG_MAPPING[name](**{**SETTINGS[name], **changes})
    return perturbed(AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager"))


def axes_of(name: str, key: str) -> list[str]:
    table = {"gpt2": GPT2, "olmo2": OLMO, "olmo3": OLMO}.get(name, AXES)
    return next(axes for suffix, axes in table.items() if key.endswith(suffix)).split()


def kept(name: str, width: Fraction) -> dict[str, int]:
    """Return how many entries of each kind of axis stay."""
    mlp = 4 * 32 if name == "gpt2" else 48
    heads, kv = int(8 * width) * HEAD[name], int(4 * width) * HEAD[name]
    return {"hidden": int(32 * width), "heads": heads, "kv": kv, "mlp": int(mlp * width), "qkv": 3, "head": HEAD[name]}


def unfused(weight: torch.Tensor, axes: list[str]) -> torch.Tensor:
    return weight.unflatten(axes.index("qkv"), (3, -1)) if "qkv" in axes else weight


def test_every_family_is_tested() -> None:
    assert tuple(ALL) == FAMILIES


@pytest.mark.parametrize("width", [Fraction(1, 2), Fraction(3, 4)])
@pytest.mark.parametrize("name", ALL)
def test_every_weight_keeps_the_first_part_of_its_axes(name: str, width: Fraction) -> None:
    model, sizes = make(name), kept(name, width)
    new = narrow(model, width)
    assert type(new) is type(model)
    assert new.state_dict().keys() == model.state_dict().keys()
    for key, weight in model.state_dict().items():
        axes = axes_of(name, key)
        expected = unfused(weight, axes)
        for axis, kind in enumerate(axes):
            entries = range(sizes.get(kind.rstrip("+-"), expected.shape[axis]))
            expected = expected.index_select(axis, torch.tensor(entries))
        assert torch.equal(unfused(new.state_dict()[key], axes), expected), key
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert (new.get_input_embeddings().weight is new.get_output_embeddings().weight) is tied


def disconnect(name: str, model: PreTrainedModel, width: Fraction) -> None:
    """Change a wide model so that the parts that `narrow` drops have no effect on what it computes.

    Hidden units behind the first part repeat it, so that norms take the same statistics over all of them; what reads
    hidden units, heads or MLP units reads zero of those behind the first part. Dropped heads and units stay random.
    """
    sizes = kept(name, width)
    for key, weight in model.state_dict().items():
        axes = axes_of(name, key)
        view = unfused(weight, axes)
        for axis, kind in enumerate(axes):
            if kind.endswith("-"):
                view.narrow(axis, sizes[kind[:-1]], view.shape[axis] - sizes[kind[:-1]]).zero_()
            elif kind.endswith("+"):
                first = view.narrow(axis, 0, sizes[kind[:-1]])
                view.copy_(torch.cat([first] * int(1 / width), axis))


@pytest.mark.parametrize("width", [Fraction(1, 2), Fraction(1, 4)])
@pytest.mark.parametrize("name", ALL)
def test_a_wide_model_whose_dropped_parts_do_nothing_says_the_same(name: str, width: Fraction) -> None:
    model = make(name, tie_word_embeddings=False)
    plain = logits(model)
    disconnect(name, model, width)
    new = narrow(model, width)
    if name in SCALED_EMBEDDING:  # by the root of the hidden size, which is smaller now
        new.get_input_embeddings().weight.data *= float(1 / width) ** 0.5
    expected = logits(model)
    torch.testing.assert_close(logits(new), expected, atol=2e-5, rtol=1e-5)
    assert (plain - expected).abs().max() > 0.1  # the dropped parts did something before


@pytest.mark.parametrize("name", ALL)
def test_cached_generation_saving_and_size(name: str, tmp_path: Path) -> None:
    model = make(name)
    new = narrow(model)
    settings = {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "return_dict_in_generate": True}
    cached = new.generate(tokens(7), use_cache=True, output_logits=True, **settings)
    plain = new.generate(tokens(7), use_cache=False, output_logits=True, **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(plain.logits), atol=1e-4, rtol=1e-4)

    new.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert torch.equal(logits(again), logits(new))
    assert count_parameters(blueprint(narrow_config(model.config))) == count_parameters(new)
    assert count_parameters(new) == sum(weight.numel() for weight in dict(again.named_parameters()).values())


def test_only_the_width_changes_in_the_configuration() -> None:
    config = make("gemma3_text").config
    before, after = config.to_dict(), narrow_config(config, "1/2").to_dict()
    changed = {name: (value, after[name]) for name, value in before.items() if after[name] != value}
    assert changed == {
        "hidden_size": (32, 16),
        "num_attention_heads": (8, 4),
        "num_key_value_heads": (4, 2),
        "intermediate_size": (48, 24),
    }
    assert config.to_dict() == before
    given = narrow_config(make("gpt2", n_inner=40).config, "1/2")
    assert (given.n_head, given.n_embd, given.n_inner) == (4, 16, 20)


def test_gpt2_medium_as_the_paper_halves_it() -> None:
    """Half of 16 heads and 1,024 hidden units: 24 blocks of 12 D^2 + 13 D, embeddings, positions and the last norm."""
    config = CONFIG_MAPPING["gpt2"](n_embd=1024, n_head=16, n_layer=24)
    assert describe_width(config) == "heads 16 -> 8, hidden units 1024 -> 512, MLP units 4096 -> 2048"
    expected = 24 * (12 * 512**2 + 13 * 512) + (50257 + 1024 + 2) * 512
    assert count_parameters(blueprint(narrow_config(config))) == expected


def test_cross_attention_of_gpt2_is_sliced_inside_keys_and_values() -> None:
    model = make("gpt2", add_cross_attention=True)
    new, old = (m.transformer.h[1].crossattention.c_attn.weight for m in (narrow(model), model))
    assert torch.equal(new, torch.cat([old[:16, :16], old[:16, 32:48]], 1))


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_the_source_and_the_random_state_are_left_alone(name: str) -> None:
    model = make(name)
    before, config, state = digest(model), model.config.to_dict(), torch.get_rng_state()
    new = narrow(model, 0.5)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    new.generation_config.max_new_tokens = 77
    assert digest(model) == before
    assert model.config.to_dict() == config
    assert model.generation_config.max_new_tokens != 77
    assert torch.equal(torch.get_rng_state(), state)


def test_dtype_mode_and_generation_settings_carry_over() -> None:
    model = make("llama").to(torch.bfloat16).train()
    model.model.norm.weight.data = model.model.norm.weight.data.float()
    model.generation_config.temperature = 0.5
    new = narrow(model)
    assert new.dtype == torch.bfloat16 and new.config.dtype == torch.bfloat16
    assert new.model.norm.weight.dtype == torch.float32
    assert new.generation_config.temperature == 0.5
    assert not new.training and model.training
    assert all(parameter.is_contiguous() for parameter in new.parameters())


def test_a_folder_is_as_good_as_a_model_and_its_weights_are_read_last(tmp_path: Path) -> None:
    model = make("qwen2")
    model.save_pretrained(tmp_path)
    assert_same_weights(narrow(tmp_path, "1/2").state_dict(), narrow(model, "1/2").state_dict())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(PlanError, match=r"1/3 of 8 heads is 2\.66667"):
        narrow(tmp_path, "1/3")


@pytest.mark.parametrize(
    ("given", "share"),
    [("1/2", "1/2"), (" 3/4 ", "3/4"), ("0.25", "1/4"), (0.1, "1/10"), (1 / 3, "1/3"), (Fraction(5, 16), "5/16")],
)
def test_a_width_is_read_as_it_is_meant(given: Any, share: str) -> None:
    assert str(parse_width(given)) == share


@pytest.mark.parametrize(
    "width", [0, 1, -0.5, 1.5, "2/1", "1/0", "half", "", "50%", float("nan"), float("inf"), "nan", None, [1, 2], True]
)
def test_what_is_no_fraction_is_one_line(width: Any) -> None:
    with pytest.raises(PlanError, match=r"^width .*: expected a fraction between 0 and 1, for example '1/2' or 0\.75$"):
        parse_width(width)


def test_a_width_that_leaves_no_whole_parts_names_the_nearest() -> None:
    def refusal(width: Any, name: str = "llama", **changes: Any) -> str:
        with pytest.raises(PlanError) as caught:
            narrow_sizes(CONFIG_MAPPING[name](**{**SETTINGS[name], **changes}), width)
        return str(caught.value)

    gpt2 = {"n_embd": 1024, "n_head": 16}
    assert refusal("3/10", "gpt2", **gpt2) == "3/10 of 16 heads is 4.8: expected a fraction such as 1/4 or 5/16"
    assert refusal(0.01, "gpt2", **gpt2) == "1/100 of 16 heads is 0.16: expected a fraction such as 1/16"
    assert refusal("99/100", "gpt2", **gpt2) == "99/100 of 16 heads is 15.84: expected a fraction such as 15/16"
    assert refusal("3/8") == "3/8 of 4 KV heads is 1.5: expected a fraction such as 1/4 or 1/2"
    assert refusal("1/4", intermediate_size=50) == "1/4 of 50 MLP units is 12.5: expected a fraction such as 1/2"
    assert refusal("1/2", intermediate_size=49) == (
        "1/2 of 49 MLP units is 24.5: no fraction leaves whole parts of this model"
    )


def test_a_single_key_value_head_stays() -> None:
    model = make("gemma", num_key_value_heads=1)
    old, new = model.state_dict(), narrow(model).state_dict()
    size = HEAD["gemma"]
    for side, rows in (("q", 4 * size), ("k", size), ("v", size)):
        key = f"model.layers.1.self_attn.{side}_proj.weight"
        assert torch.equal(new[key], old[key][:rows, :16]), side


def test_other_families_and_models_are_refused() -> None:
    with pytest.raises(
        PlanError, match=r"cannot narrow a gpt_neox model: expected one of gemma, .*gpt2.*, starcoder2$"
    ):
        narrow(source("gpt_neox"))
    with pytest.raises(PlanError, match="cannot narrow a qwen2_moe model"):
        narrow_config(source("qwen2_moe").config)
    quantised = copy.deepcopy(make("llama").config)
    quantised.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ModelError, match="quantised"):
        narrow_config(quantised)
    with pytest.raises(ModelError, match="no language-model head"):
        narrow(make("llama").model)


def test_a_model_that_was_changed_by_hand_is_refused() -> None:
    pruned = make("llama")
    pruned.model.layers[1].mlp.gate_proj.weight.data = torch.zeros(46, 32)
    with pytest.raises(PlanError, match=r"does not say that 'model\.layers\.1\.mlp\.gate_proj\.weight' is as it is"):
        narrow(pruned)
    gated = make("llama")
    gated.model.layers[0].register_parameter("gate", nn.Parameter(torch.ones(1)))
    with pytest.raises(PlanError, match=r"'model\.layers\.0\.gate'"):
        narrow(gated)
    untied = make("gpt2")
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach() + 1.0)
    with pytest.raises(PlanError, match=r"lm_head\.weight and transformer\.wte\.weight are two .*tie_word_emb"):
        narrow(untied)
    untied.config.tie_word_embeddings = False
    assert torch.equal(narrow(untied).lm_head.weight, untied.lm_head.weight[:, :16])


def test_inherit_narrows_what_it_cut(tiny_llama: PreTrainedModel) -> None:
    both = inherit(tiny_llama, [2, 0], width="1/2").state_dict()
    one_by_one = narrow(inherit(tiny_llama, [2, 0])).state_dict()
    whole, all_layers = inherit(tiny_llama, width="1/2").state_dict(), narrow(tiny_llama).state_dict()
    assert both.keys() == one_by_one.keys() and all(torch.equal(both[key], one_by_one[key]) for key in both)
    assert whole.keys() == all_layers.keys() and all(torch.equal(whole[key], all_layers[key]) for key in whole)
    with pytest.raises(PlanError, match="got both target= and width="):
        inherit(tiny_llama, 2, target=tiny_llama, width="1/2")
    with pytest.raises(PlanError, match="2/3 of 4 heads"):
        inherit(tiny_llama, 2, width="2/3")
