"""The view of a decoder against the model's own structure, and loading with every mistake in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    GPT2Model,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from inheritune.data import train_tokenizer
from inheritune.decoder import count_parameters, load_config, load_model, load_tokenizer, open_decoder, save_model
from inheritune.errors import ModelError, OutputError
from tiny import make_gpt2, make_llama


def test_the_parts_are_where_the_families_keep_them(tiny_gpt2: PreTrainedModel, tiny_llama: PreTrainedModel) -> None:
    gpt2, llama = open_decoder(tiny_gpt2), open_decoder(tiny_llama)
    assert (gpt2.blocks_path, gpt2.layers_field) == ("transformer.h", "n_layer")
    assert gpt2.blocks is tiny_gpt2.transformer.h
    assert (llama.blocks_path, llama.layers_field) == ("model.layers", "num_hidden_layers")
    assert (llama.layers, llama.heads, llama.context, llama.vocabulary) == (4, 4, 64, 97)
    prefix = llama.block_prefix(3)
    assert {key for key in tiny_llama.state_dict() if key.startswith(prefix)} == {
        prefix + key for key in tiny_llama.model.layers[3].state_dict()
    }


def tiny(model_type: str, **settings: object) -> PreTrainedModel:
    small = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**small | settings))


def test_blocks_with_two_attention_sublayers_are_counted_as_one_layer_each() -> None:
    latent = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
    experts = {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "n_routed_experts": 4, "moe_topk": 2}
    model = tiny("longcat_flash", num_layers=3, zero_expert_num=2, head_dim=4, **latent, **experts)
    decoder = open_decoder(model)
    assert model.config.num_hidden_layers == 6
    assert (decoder.blocks_path, decoder.layers, decoder.layers_field) == ("model.layers", 3, "num_layers")
    assert decoder.blocks is model.model.layers


def test_a_model_that_calls_its_head_its_decoder_is_opened() -> None:
    model = tiny("modernbert-decoder", num_hidden_layers=3, cls_token_id=0, sep_token_id=0)
    assert model.get_decoder() is model.get_output_embeddings()
    assert open_decoder(model).blocks is model.model.layers


def test_a_model_that_runs_two_stacks_in_turns_is_refused_by_name() -> None:
    model = tiny("hrm_text", num_hidden_layers=2, H_cycles=2, L_cycles=3)
    message = (
        r"^HrmTextForCausalLM keeps its blocks in 2 lists of modules \(model.L_module.layers, model.H_module.layers\) "
        "for 16 layers: expected one list$"
    )
    with pytest.raises(ModelError, match=message):
        open_decoder(model)


def test_tied_weights_are_counted_once(tiny_gpt2: PreTrainedModel) -> None:
    # Embeddings, positions, 4 blocks of 12 D^2 + 13 D, and the final norm; D = 32. The head is the embedding.
    assert count_parameters(tiny_gpt2) == 97 * 32 + 64 * 32 + 4 * (12 * 32**2 + 13 * 32) + 2 * 32


def test_a_saved_model_loads_with_plain_transformers(tmp_path: Path) -> None:
    model = make_llama()
    save_model(model, tmp_path / "m", train_tokenizer(["some text"], 257))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    assert len(load_tokenizer(tmp_path / "m")) == 257
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*m: .*file is a file"):
        save_model(make_gpt2(1), tmp_path / "file" / "m")


def test_the_real_model_loads(stories: Path) -> None:
    decoder = open_decoder(load_model(stories))
    assert (decoder.layers, decoder.heads, decoder.context, decoder.vocabulary) == (5, 8, 512, 512)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
"""What git leaves in place of a large file that was not fetched."""


def mistakes(root: Path) -> dict[str, tuple[Path, str]]:
    """Make a folder of each wrong kind; return it with what the error has to say."""
    (root / "empty").mkdir()
    (root / "file.txt").write_text("")
    bert = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertForMaskedLM(bert).save_pretrained(root / "bert")
    t5 = T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(t5).save_pretrained(root / "t5")
    GPT2Model(make_gpt2(1).config).save_pretrained(root / "headless")
    for name in ("corrupt", "lacking", "shape", "pointer", "index"):
        make_gpt2(2).save_pretrained(root / name, max_shard_size="50KB" if name == "index" else "5GB")
    corrupt = root / "corrupt" / "model.safetensors"
    corrupt.write_bytes(corrupt.read_bytes()[:1000])
    weights = load_file(root / "lacking" / "model.safetensors")
    del weights["transformer.h.1.mlp.c_fc.weight"]
    save_file(weights, root / "lacking" / "model.safetensors", metadata={"format": "pt"})
    weights = load_file(root / "shape" / "model.safetensors")
    weights["transformer.ln_f.bias"] = torch.ones(5)
    save_file(weights, root / "shape" / "model.safetensors", metadata={"format": "pt"})
    (root / "pointer" / "model.safetensors").write_text(POINTER)
    (root / "index" / "model.safetensors.index.json").write_text("{")
    return {
        "nothing there": (
            root / "emty",
            r"no folder .*emty: expected a model folder, .*, a hub id, stdlib or stdlib-small; did you mean .*empty",
        ),
        "empty": (root / "empty", r"^no config\.json in .*empty: expected a model in Hugging Face format"),
        "file": (root / "file.txt", r"is a file: expected a model folder"),
        "encoder": (root / "bert", r"not a decoder language model \(BertForMaskedLM\): expected a \.\.\.ForCausalLM"),
        "encoder-decoder": (root / "t5", r"is an encoder-decoder \(t5\)"),
        "headless": (root / "headless", r"not a decoder language model \(GPT2Model\)"),
        "corrupt": (root / "corrupt", r"corrupt.model\.safetensors is damaged or not a safetensors file: "),
        "shape": (root / "shape", r"shape stores transformer\.ln_f\.bias as \[5\]: its config.json asks for \[32\]$"),
        "pointer": (root / "pointer", r"model\.safetensors is a git-lfs pointer, .*: run git lfs pull in .*pointer$"),
        "index": (root / "index", r"index\.json is damaged or not JSON: "),
        "lacking": (root / "lacking", r"lacks 1 of the model's weights, 'transformer\.h\.1\.mlp\.c_fc\.weight' first"),
    }


def test_every_wrong_model_is_one_line(tmp_path: Path) -> None:
    for name, (folder, message) in mistakes(tmp_path).items():
        with pytest.raises(ModelError, match=message) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value), name


def test_the_configuration_alone_is_enough_to_refuse(tmp_path: Path) -> None:
    folder, message = mistakes(tmp_path)["encoder"]
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=message):
        load_config(folder)


CONFIGS = {
    "text": ('{"model_type": "llama", "num_hidden_layers": "four"}', r"'num_hidden_layers' expected int, got str"),
    "strict": (
        '{"model_type": "llama", "hidden_size": 2.5}',
        r"m.config\.json is wrong: Field 'hidden_size' ",
    ),
    "heads": (
        '{"model_type": "llama", "hidden_size": 32, "num_attention_heads": 3}',
        r"is wrong: The hidden size \(32\) is not a multiple of the number of attention heads \(3\)",
    ),
    "cut": ('{"model_type": ', r"m.config\.json is damaged or not JSON: Expecting value"),
    "list": ("[1]", r"m.config\.json holds a JSON list: expected an object$"),
    "pointer": (POINTER, r"m.config\.json is a git-lfs pointer, not the file itself: run git lfs pull in .*m$"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_wrong_configuration_is_one_line(case: str, tmp_path: Path) -> None:
    text, message = CONFIGS[case]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_config(tmp_path / "m")
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_configuration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ModelError, match=r"^no config.json in .*: expected a model in Hugging Face format$"):
        load_config(tmp_path)


def test_a_pointer_to_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(POINTER)
    with pytest.raises(ModelError, match=r"tokenizer\.json is a git-lfs pointer, .*: run git lfs pull in "):
        load_tokenizer(tmp_path)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path: Path) -> None:
    make_gpt2(1).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match=r"no tokenizer in .*m: ") as caught:
        load_tokenizer(tmp_path / "m")
    assert "\n" not in str(caught.value)
