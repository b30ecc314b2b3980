"""Blocks read one at a time against the model that transformers loads whole; and all that can be wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import load_model, open_decoder, streaming
from inheritune.decoder.streaming import StreamedDecoder, StreamError, load_decoder, open_streamed
from inheritune.errors import ModelError
from tiny import VOCABULARY, make_gpt2, make_llama, perturbed

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "minimax": {"num_local_experts": 4, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"] * 2},
}
ZAMBA2 = {
    "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
    "hybrid_layer_ids": [1, 3],
    "mamba_d_state": 8,
    "mamba_ngroups": 1,
    "mamba_headdim": 8,
    "n_mamba_heads": 8,
    "num_mem_blocks": 1,
    "adapter_rank": 4,
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
}


def build(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**COMMON | FAMILIES.get(family, {}) | settings)
    return perturbed(AutoModelForCausalLM.from_config(config))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2 (tied, Conv1D)": make_gpt2,
    "llama in bf16": lambda: make_llama().to(torch.bfloat16),
    "llama in fp16, tied": lambda: make_llama(tie_word_embeddings=True).to(torch.float16),
    "gptj in bf16": lambda: build("gptj", rotary_dim=4).to(torch.bfloat16),
    **{family: lambda family=family: build(family) for family in FAMILIES},
}


def save(model: PreTrainedModel, folder: Path, shard: str = "20KB") -> Path:
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(path)), path, {"format": "pt"})


def assert_blocks_equal(streamed: StreamedDecoder, model: PreTrainedModel) -> None:
    """Compare each block's weights, and all that the base model has outside the blocks, with `model`'s, bit for bit."""
    expected, prefix = model.state_dict(), f"{streamed.blocks_path}."
    for layer in range(streamed.layers):
        with streamed.weights.loaded(layer):
            found = streamed.model.state_dict()
            inside = [name for name in expected if name.startswith(streamed.block_prefix(layer))]
            for name in inside:
                assert found[name].dtype == expected[name].dtype, name
                assert torch.equal(found[name], expected[name]), name
            others = [name for name in found if name.startswith(prefix) and name not in inside]
            buffers = dict(streamed.model.named_buffers())
            assert all(found[name].is_meta for name in others if name not in buffers)
    for name, buffer in streamed.model.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name
    for name, weight in streamed.model.base_model.named_parameters(prefix=model.base_model_prefix):
        assert weight.is_meta == name.startswith(prefix), name
        assert weight.is_meta or torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("name", MODELS)
def test_every_block_is_what_transformers_loads(name: str, tmp_path: Path) -> None:
    save(MODELS[name](), tmp_path)
    assert len(shards(tmp_path)) > 1
    assert_blocks_equal(open_streamed(tmp_path), load_model(tmp_path))


def test_one_file_without_an_index(tmp_path: Path) -> None:
    save(make_llama(), tmp_path, "1GB")
    assert [path.name for path in shards(tmp_path)] == ["model.safetensors"]
    assert_blocks_equal(open_streamed(tmp_path), load_model(tmp_path))


def test_names_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    save(make_gpt2(), tmp_path, "1GB")  # the names of OpenAI's own checkpoint: h.0.attn..., not transformer.h.0.attn...
    cut = "transformer."
    rewrite(shards(tmp_path)[0], lambda tensors: {key.removeprefix(cut): value for key, value in tensors.items()})
    assert_blocks_equal(open_streamed(tmp_path), load_model(tmp_path))


def test_the_head_is_read_only_where_it_is_the_embedding(tmp_path: Path) -> None:
    untied = open_streamed(save(make_llama(), tmp_path / "untied")).model
    assert untied.lm_head.weight.is_meta
    assert not untied.model.embed_tokens.weight.is_meta
    tied = save(make_llama(tie_word_embeddings=True), tmp_path / "tied", "1GB")
    whole = load_model(tied)
    # Saved under the head's name, as some trainers do.
    rewrite(shards(tied)[0], lambda t: {k.replace("model.embed_tokens", "lm_head"): v for k, v in t.items()})
    assert torch.equal(open_streamed(tied).model.model.embed_tokens.weight, whole.lm_head.weight)


def test_the_type_is_that_of_the_files_where_the_configuration_names_none(tmp_path: Path) -> None:
    save(make_llama().to(torch.bfloat16), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert_blocks_equal(open_streamed(tmp_path), load_model(tmp_path))


def test_blank_weights_have_the_shapes_and_are_taken_away(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    for path in shards(tmp_path):
        path.unlink()  # no file is read
    with decoder.weights.blank(1):
        weights = dict(decoder.blocks[1].named_parameters())
        assert {name: w.shape for name, w in weights.items()} == {
            name: w.shape for name, w in make_llama().model.layers[1].named_parameters()
        }
        assert not any(weight.is_meta or weight.any() for weight in weights.values())
    assert all(weight.is_meta for weight in decoder.blocks.parameters())


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    save(make_llama(), tmp_path)
    shards(tmp_path)[2].unlink()
    with pytest.raises(ModelError, match=r"the shard .*model-00003-of-.* is missing: model.safetensors.index.json"):
        open_streamed(tmp_path)


@pytest.mark.parametrize("keep", [-5, 40, 3, 0])
def test_a_file_cut_short_is_named(tmp_path: Path, keep: int) -> None:
    save(make_llama(), tmp_path)
    path = shards(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=rf"{path.name} is damaged") as caught:
        open_streamed(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path, "1GB"))
    shards(tmp_path)[0].write_bytes(b"")
    with pytest.raises(ModelError, match="ends early: it changed"), decoder.weights.loaded(1):
        pass
    shards(tmp_path)[0].unlink()
    with pytest.raises(ModelError, match=r"cannot read layer 1 of .*No such file"), decoder.weights.loaded(1):
        pass
    assert all(weight.is_meta for weight in decoder.blocks.parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_layer(tmp_path: Path, value: float) -> None:
    model, name = make_llama(), "model.layers.2.mlp.up_proj.weight"
    with torch.no_grad():
        model.get_parameter(name)[3, 5] = value
    decoder = open_streamed(save(model, tmp_path))
    with decoder.weights.loaded(1):
        pass
    message = rf"layer 2 \({name}\) holds NaN or infinity: the checkpoint is damaged"
    with pytest.raises(ModelError, match=message), decoder.weights.loaded(2):
        pass
    assert all(weight.is_meta for weight in decoder.blocks.parameters())


def test_an_embedding_that_is_not_finite_is_named_at_once(tmp_path: Path) -> None:
    model = make_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"the weight model.embed_tokens.weight holds NaN or infinity"):
        open_streamed(save(model, tmp_path))


def test_missing_weights_are_found_before_any_block_is_read(tmp_path: Path) -> None:
    save(make_llama(), tmp_path, "1GB")
    lost = "model.layers.3.self_attn.q_proj.weight"
    rewrite(shards(tmp_path)[0], lambda tensors: {key: value for key, value in tensors.items() if key != lost})
    with pytest.raises(ModelError, match=f"lacks 1 of the model's weights, '{lost}' first"):
        open_streamed(tmp_path)


def test_a_missing_expert_is_found(tmp_path: Path) -> None:
    save(build("mixtral"), tmp_path, "1GB")
    lost = "layers.2.block_sparse_moe.experts.1.w1.weight"
    rewrite(shards(tmp_path)[0], lambda tensors: {k: v for k, v in tensors.items() if not k.endswith(lost)})
    decoder = open_streamed(tmp_path)
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.experts"), decoder.weights.loaded(2):
        pass


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    save(make_llama(), tmp_path, "1GB")
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(shards(tmp_path)[0], lambda tensors: tensors | {name: torch.zeros(16, 32)})
    decoder = open_streamed(tmp_path)
    message = rf"stores {name} as \(16, 32\): expected \(32, 32\)"
    with pytest.raises(ModelError, match=message), decoder.weights.loaded(1):
        pass


def test_quantised_checkpoints_are_refused_with_the_way_out(tmp_path: Path) -> None:
    save(make_llama(), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(StreamError, match=r"is quantised \(gptq\).*load it whole \(stream=False\)"):
        open_streamed(tmp_path)


def test_tensors_of_a_quantised_type_are_refused(tmp_path: Path) -> None:
    save(make_llama(), tmp_path, "1GB")
    name = "model.layers.1.self_attn.q_proj.weight"
    rewrite(shards(tmp_path)[0], lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn)})
    with pytest.raises(StreamError, match=r"type F8_E4M3, .*stream=False"):
        open_streamed(tmp_path)


def test_blocks_that_share_weights_are_refused(tmp_path: Path) -> None:
    save(build("zamba2", **ZAMBA2), tmp_path)
    with pytest.raises(StreamError, match=r"model\.layers\.1\..* and model\.layers\.3\..* are one weight"):
        open_streamed(tmp_path)


def only_bin(folder: Path) -> Path:
    model = save(make_llama(), folder, "1GB")
    torch.save(load_file(shards(folder)[0]), folder / "pytorch_model.bin")
    shards(folder)[0].unlink()
    return model


def test_a_checkpoint_without_safetensors_streams_only_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = only_bin(tmp_path)
    with pytest.raises(StreamError, match=r"holds only \.bin files: expected model\.safetensors"):
        load_decoder(folder, stream=True)
    monkeypatch.setattr(streaming, "available_memory", lambda: 0)
    assert not isinstance(load_decoder(folder), StreamedDecoder)


def test_what_exceeds_half_of_the_memory_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(make_llama(), tmp_path)
    size = sum(path.stat().st_size for path in shards(folder))
    for memory, expected in ((2 * size, False), (2 * size - 1, True)):
        monkeypatch.setattr(streaming, "available_memory", lambda memory=memory: memory)
        assert isinstance(load_decoder(folder), StreamedDecoder) == expected
    assert not isinstance(load_decoder(folder, stream=False), StreamedDecoder)


def test_a_model_in_memory_cannot_be_streamed(tiny_llama: PreTrainedModel) -> None:
    assert load_decoder(tiny_llama) == open_decoder(tiny_llama)
    with pytest.raises(ModelError, match="in memory already: pass a folder or a hub id"):
        load_decoder(tiny_llama, stream=True)


def test_the_available_memory_heeds_the_limit_on_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    used = psutil.Process().memory_info().rss
    monkeypatch.setattr(streaming, "_limits", lambda: [used + 10**9])
    assert 0 < streaming.available_memory() <= 10**9 + 10**8
    monkeypatch.setattr(streaming, "_limits", lambda: [used + 10**9, used // 2])
    assert streaming.available_memory() == 0


def test_a_folder_that_is_not_there_is_refused_as_ever(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no folder"):
        load_decoder(tmp_path / "nothing")
