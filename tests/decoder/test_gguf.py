"""A GGUF file in the place of a model: the same logits as the model that its weights came from, everywhere."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import inheritune as it
from inheritune.cli.main import app
from inheritune.decoder import load_config, load_model, load_tokenizer
from inheritune.decoder.source import model_identity, resolve_model
from inheritune.errors import ModelError
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.preflight import check_recipe
from tiny import perturbed

LAYERS = 3
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
WORDS = ["<|end|>", *LETTERS, "de", "def", "in"]
MERGES = ["d e", "de f", "i n"]


def make_model() -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=64, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )  # fmt: skip
    torch.manual_seed(0)
    return perturbed(LlamaForCausalLM(config))


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Return query or key weights in llama.cpp's order: the two halves that RoPE turns together, alternating."""
    rows = weight.reshape(heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(path: Path, model: PreTrainedModel, kind: Kind = Kind.F32, words: bool = True) -> PreTrainedModel:
    """Write the model as `kind`; return the model whose weights are those that the file then holds."""
    config, writer = model.config, gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if words:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_list(WORDS)
        writer.add_token_types([3, *[1] * (len(WORDS) - 1)])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(0)
    names, held = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers), make_model()
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            values, place = weight.numpy(), held.get_parameter(name)
            packed = gguf.quantize(values, kind) if values.ndim == 2 else values
            if values.ndim == 2:
                place.copy_(torch.from_numpy(gguf.dequantize(packed, kind)))
            if "q_proj" in name or "k_proj" in name:
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                packed = gguf.quantize(_interleaved(values, heads), kind)
            stem = names.get_name(name.removesuffix(".weight"))
            writer.add_tensor(f"{stem}.weight", packed, raw_dtype=kind if values.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", make_model())
    return tmp_path / "tiny.gguf"


@torch.no_grad()
def logits(model: PreTrainedModel) -> torch.Tensor:
    ids = torch.randint(0, len(WORDS), (2, 12), generator=torch.Generator().manual_seed(3))
    return model.float()(ids).logits


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1])
def test_the_logits_are_those_of_the_weights_in_the_file(kind: Kind, tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", make_model(), kind)
    model = load_model(tmp_path / "tiny.gguf")
    dtypes = {Kind.F16: torch.float16, Kind.BF16: torch.bfloat16}
    assert model.dtype == dtypes.get(kind, torch.float32)
    if kind in dtypes:  # norms are stored as float32 and are rounded
        for parameter in expected.parameters():
            parameter.data = parameter.data.to(dtypes[kind]).float()
    torch.testing.assert_close(logits(model), logits(expected), atol=1e-5, rtol=1e-5)
    assert getattr(model.config, "quantization_config", None) is None


def test_it_is_said_once_that_the_weights_are_unpacked(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        load_config(file)
        load_model(str(file))
    said = capsys.readouterr().err
    assert said.count("note: the weights of") == 1 and f"{file} (F32) are unpacked to float32" in said


def test_the_tokenizer_is_that_of_the_file(file: Path) -> None:
    expected = Tokenizer(
        models.BPE({word: i for i, word in enumerate(WORDS)}, [tuple(each.split()) for each in MERGES])  # type: ignore[misc]
    )
    expected.pre_tokenizer, expected.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = load_tokenizer(file)
    for text in ("def in(x):\n    return x", "undefined größe"):
        assert tokenizer.encode(text, add_special_tokens=False) == expected.encode(text).ids
        assert tokenizer.decode(expected.encode(text).ids) == text
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|end|>", 0)


def test_a_cut_of_the_file_loads_everywhere(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", make_model(), Kind.Q8_0)
    out = tmp_path / "new"
    result = CliRunner().invoke(app, ["inherit", str(tmp_path / "tiny.gguf"), "--layers", "0,2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(model), logits(it.inherit(load_model(tmp_path / "tiny.gguf"), (0, 2))))
    torch.testing.assert_close(logits(model), logits(it.inherit(expected, (0, 2))), atol=1e-5, rtol=1e-5)
    config = (out / "config.json").read_text()
    assert "quant" not in config and "gguf" not in config.lower()
    assert {path.name for path in out.glob("*.safetensors")} == {"model.safetensors"}
    assert AutoTokenizer.from_pretrained(out).encode("def in", add_special_tokens=False)
    assert json.loads((out / "inherit.json").read_text())["source"] == str(tmp_path / "tiny.gguf")
    assert "tiny.gguf" in (out / "README.md").read_text() and "inheritune-gguf" not in (out / "README.md").read_text()


def test_commands_and_functions_take_the_file(file: Path, tmp_path: Path) -> None:
    windows = np.random.default_rng(0).integers(0, len(WORDS), (3, 12))
    folder = resolve_model(file)
    assert np.array_equal(it.analyze(str(file), windows).rank, it.analyze(folder, windows).rank)
    assert it.ablate(file, windows).loss == pytest.approx(it.ablate(folder, windows).loss, abs=1e-6)
    np.save(tmp_path / "windows.npy", windows)
    call = ["analyze", str(file), "--tokens", str(tmp_path / "windows.npy"), "--out", str(tmp_path / "analysis")]
    assert (result := CliRunner().invoke(app, call)).exit_code == 0, result.output
    analysis = json.loads((tmp_path / "analysis" / "spectra.json").read_text())
    assert (analysis["model"], analysis["identity"]) == (str(file), model_identity(file))
    call = ["inherit", str(file), "--layers", str(tmp_path / "analysis"), "--plan-only"]
    assert (result := CliRunner().invoke(app, call)).exit_code in (0, 2) and "another model" not in result.output
    text = tmp_path / "text.txt"
    text.write_text("def in(x):\n    return x\n\n" * 40)
    call = ["evaluate", str(file), "--data", str(text), "--length", "16", "--out", str(tmp_path / "evaluation.json")]
    assert (result := CliRunner().invoke(app, call)).exit_code == 0, result.output
    recipe = {"name": "x", "method": "inheritune", "reference": str(file), "layers": 2, "training": {"length": 32}}
    check_recipe(load_recipe(recipe))


def test_what_it_is_does_not_depend_on_where_it_lies(file: Path, tmp_path: Path) -> None:
    (tmp_path / "moved").mkdir()
    copy = tmp_path / "moved" / "other.gguf"
    copy.write_bytes(file.read_bytes())
    assert model_identity(copy) == model_identity(file) is not None
    assert model_identity(copy.parent) == model_identity(file)  # the only model of a folder
    changed = make_model()
    with torch.no_grad():
        changed.get_parameter("model.layers.1.mlp.up_proj.weight").mul_(2)
    write_gguf(copy, changed)
    assert model_identity(copy) != model_identity(file)


def test_a_file_without_words_has_no_tokenizer(tmp_path: Path) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", make_model(), words=False)
    torch.testing.assert_close(logits(load_model(tmp_path / "tiny.gguf")), logits(expected), atol=1e-5, rtol=1e-5)
    with pytest.raises(ModelError, match=r"no tokenizer in .*tiny\.gguf"):
        load_tokenizer(tmp_path / "tiny.gguf")


def _refusals(folder: Path) -> dict[str, Any]:
    """Return, by what the line says, files and folders that are no model."""
    write_gguf(folder / "tiny.gguf", make_model())
    whole = (folder / "tiny.gguf").read_bytes()
    cut, header, other, none = (folder / f"{name}.gguf" for name in ("cut", "header", "other", "none"))
    cut.write_bytes(whole[:-4000])
    header.write_bytes(whole[:300])
    none.write_bytes(b"PK" + whole[2:])
    writer = gguf.GGUFWriter(other, "lama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (folder / "lacks").mkdir()
    lacks = folder / "lacks" / "lacks.gguf"
    model = make_model()
    del model.model.norm
    write_gguf(lacks, model)
    return {
        "cut is cut short": (cut, r"cut\.gguf is cut short or damaged: [\d,]+ bytes do not hold it"),
        "so is a header": (header, r"header\.gguf is cut short or damaged"),
        "an unknown architecture": (
            other,
            r"architecture 'lama', which transformers does not .*; did you mean 'llama'",
        ),
        "no GGUF": (none, r"none\.gguf is not a GGUF file: it does not begin with the letters GGUF"),
        "a folder of several": (folder, r"holds 5 GGUF files and no other model: pass one, such as .*cut\.gguf"),
        "weights are missing": (lacks, r"lacks\.gguf lacks 1 of the model's weights, 'model\.norm\.weight' first"),
    }


def test_what_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for case, (path, message) in _refusals(tmp_path).items():
        with pytest.raises(ModelError, match=message) as caught:
            load_config(path)
        assert "\n" not in str(caught.value), case
        result = CliRunner().invoke(app, ["inherit", str(path), "--layers", "1", "--out", str(tmp_path / "new")])
        assert result.exit_code == 2 or isinstance(result.exception, ModelError), case
        assert not (tmp_path / "new").exists(), case


def test_a_missing_package_is_named_with_its_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    with pytest.raises(ModelError, match=r"the package gguf reads: pip install 'inheritune\[gguf\]'"):
        load_config(file)


def test_a_configuration_beside_a_gguf_file_does_not_hide_it(file: Path) -> None:
    (file.parent / "config.json").write_text(make_model().config.to_json_string())
    with pytest.raises(ModelError, match=r"holds a config\.json and GGUF files: pass .*tiny\.gguf itself"):
        load_model(file.parent)
    load_model(file)
