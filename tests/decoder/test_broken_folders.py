"""Models and tokenizers broken in many ways: each is one line that names the file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, LlamaForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import inheritune.surgery as surgery
from inheritune.data import train_tokenizer
from inheritune.decoder import NoTokenizerError, load_config, load_model, load_tokenizer, loading
from inheritune.decoder.streaming import load_decoder
from inheritune.errors import ModelError, library_errors, reason
from inheritune.evaluation.windows import open_tokenizer
from inheritune.progress import note
from tiny import make_llama, perturbed

Break = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "m"
    make_llama(2).save_pretrained(folder)
    train_tokenizer(["some text to learn from"], 257).save_pretrained(folder)
    return folder


def copy(whole: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def set_fields(name: str, **fields: Any) -> Break:
    def change(folder: Path) -> None:
        held = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(held | fields))

    return change


def config(**fields: Any) -> Break:
    return set_fields("config.json", **fields)


def write(name: str, data: bytes) -> Break:
    return lambda folder: (folder / name).write_bytes(data)


def into_folder(name: str) -> Break:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def header(change: Callable[[dict[str, Any]], object]) -> Break:
    """Change the header of model.safetensors."""

    def rewrite(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + size])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])

    return rewrite


def pickled(held: Any) -> Break:
    """Put a pickle in the place of the weights: bytes as they are, other things as `torch.save` writes them."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        path = folder / "pytorch_model.bin"
        path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)

    return change


CONFIGS: dict[str, tuple[Break, str]] = {
    "unknown type": (config(model_type="nonsense"), r"config\.json is wrong: .*model type `nonsense`"),
    "type of another kind": (config(model_type=["llama"]), r"config\.json is wrong: "),
    "no type": (write("config.json", b"{}"), r"config\.json is wrong: Unrecognized model"),
    "no heads": (config(num_attention_heads=0), r"num_attention_heads is 0, expected 1 to 10,000$"),
    "no layers": (config(num_hidden_layers=0), r"num_hidden_layers is 0, expected 1 to 10,000$"),
    "too many layers": (config(num_hidden_layers=10**12), r"num_hidden_layers is 1000000000000, expected 1 to"),
    "negative": (config(num_key_value_heads=-2), r"num_key_value_heads is -2, expected 0 to 100,000$"),
    "wrong kind": (config(hidden_size="wide"), r"config\.json is wrong: Field 'hidden_size' expected int, got str"),
    "null": (config(num_attention_heads=None), r"config\.json is wrong: Field 'num_attention_heads' expected int"),
    "rope": (config(rope_parameters={"rope_type": "yarn"}), r"config\.json is wrong: Missing required keys .*'factor'"),
    "dtype": (config(dtype="float99"), r"config\.json is wrong: .*'float99'"),
    "architectures": (config(architectures=[3]), r"config\.json is wrong: expected string .*, got 'int'"),
    "quantisation": (config(quantization_config=[1]), r"config\.json is wrong: "),
    "code": (config(auto_map={"AutoConfig": 3}), r"config\.json is wrong: "),
    "no width": (config(hidden_size=0), r"config\.json is wrong: hidden_size is 0, expected 1 to "),
    "no positions": (config(max_position_embeddings=-1), r"wrong: max_position_embeddings is -1, expected 1 to "),
    "NaN": (
        config(rms_norm_eps=float("nan")),
        r"config\.json is damaged or not JSON: it holds NaN, expected a number$",
    ),
    "part": (config(text_config=[1]), r"config\.json is wrong: 'list' object has no attribute"),
    "empty": (write("config.json", b""), r"config\.json is damaged or not JSON: "),
    "not UTF-8": (write("config.json", b'{"model_type": "\xff"}'), r"config\.json is damaged or not JSON: .*utf-8"),
    "nested": (write("config.json", b"[" * 100_000), r"config\.json is damaged or not JSON: maximum recursion"),
    "long number": (write("config.json", b'{"a": 1' + b"0" * 5000 + b"}"), r"config\.json is damaged or not JSON: "),
    "nothing": (write("config.json", b"null"), r"config\.json holds a JSON NoneType: expected an object$"),
    "folder": (into_folder("config.json"), r"^cannot read .*config\.json: Is a directory$"),
    "adapter": (
        write("adapter_config.json", b"{}"),
        r"m holds an adapter \(adapter_config\.json\), .*: merge it first",
    ),
    "adapter's weights": (write("adapter_model.safetensors", b""), r"holds an adapter \(adapter_model\.safetensors\)"),
    "task": (
        config(architectures=["LlamaForSequenceClassification"]),
        r"is not a decoder language model \(LlamaForSeq",
    ),
    "wrapped task": (config(architectures=["FSDPLlamaForTokenClassification"]), r"is not a decoder language model"),
    "no head": (config(architectures=["FSDPLlamaModel"]), r"is not a decoder language model \(FSDPLlamaModel\)"),
}

WEIGHTS: dict[str, tuple[Break, str]] = {
    "generation": (
        write("generation_config.json", b'{"cache_implementation": "x"}'),
        r"generation_config\.json is wrong: Invalid `cache_implementation` \(x\)",
    ),
    "activation": (config(hidden_act="quux"), r"config\.json is wrong: unknown name 'quux'$"),
    "rope": (config(rope_parameters={"rope_type": "spiral", "rope_theta": 1e4}), r"config\.json is wrong: .*'spiral'$"),
    "experts": (config(experts_implementation="x"), r"config\.json is wrong: .*`experts_implementation=\"x\"` is not"),
    "fields that are not there": (
        write("config.json", b'{"model_type": "llama"}'),
        r"holds [\d,]+ bytes of weights: its config\.json describes a model of 6,738,415,616 parameters",
    ),
    "shape": (config(vocab_size=96), r"m stores .* as \[97, 32\]: its config\.json asks for \[96, 32\]$"),
    "quantised": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"cannot load the weights in .*GPTQ",
    ),
    "long header": (
        write("model.safetensors", b"\xff" * 40),
        r"model\.safetensors is damaged or not a safetensors file: Expecting value",
    ),
    "type": (
        header(lambda entries: entries["lm_head.weight"].update(dtype="Q7")),
        r"model\.safetensors is damaged or not a safetensors file: 'Q7' is no type of tensors$",
    ),
    "four bits": (
        header(lambda entries: entries["lm_head.weight"].update(dtype="F4")),
        r"model\.safetensors is damaged .*'lm_head\.weight' has 12416 bytes, which is not \[97, 32\] of F4$",
    ),
    "twice": (
        header(lambda entries: entries.update(more=entries["lm_head.weight"])),
        r"model\.safetensors is damaged or not a safetensors file: '.*' begins at byte",
    ),
    "metadata": (header(lambda entries: entries.update(__metadata__=[1])), r"model\.safetensors is damaged .*metadata"),
    "folder": (into_folder("model.safetensors"), r"m holds no weights: expected model\.safetensors or"),
    "empty pickle": (pickled(b""), r"pytorch_model\.bin is damaged or not a PyTorch file$"),
    "text": (pickled(b"hello"), r"pytorch_model\.bin is damaged or not a PyTorch file$"),
    "list": (pickled([torch.ones(2)]), r"pytorch_model\.bin holds a list: expected tensors by name$"),
    "code": (pickled(torch.nn.Linear(2, 2)), r"pytorch_model\.bin is a pickle that holds more than tensors"),
    "numbers for names": (pickled({1: torch.ones(2)}), r"pytorch_model\.bin holds 1 of type torch\.float32: expected"),
}

TOKENIZERS: dict[str, tuple[Break, str]] = {
    "newer format": (
        lambda folder: set_fields(
            "tokenizer.json",
            model=json.loads((folder / "tokenizer.json").read_text())["model"] | {"merges": [{"left": 1, "right": 2}]},
        )(folder),
        r"^cannot load the tokenizer .*tokenizer\.json: data did not match any variant",
    ),
    "version": (set_fields("tokenizer.json", version="9.0"), r"tokenizer\.json: Unknown tokenizer version '9\.0'"),
    "cut": (lambda folder: write("tokenizer.json", (folder / "tokenizer.json").read_bytes()[:999])(folder),
            r"^.*tokenizer\.json is damaged or not JSON: "),
    "empty": (write("tokenizer.json", b""), r"tokenizer\.json is empty: expected a tokenizer's file$"),
    "folder": (into_folder("tokenizer.json"), r"tokenizer\.json is a folder: expected a tokenizer's file$"),
    "list": (write("tokenizer.json", b"[1]"), r"tokenizer\.json holds a JSON list: expected an object$"),
    "settings": (write("tokenizer_config.json", b"null"), r"tokenizer_config\.json holds a JSON NoneType: "),
    "settings cut": (write("tokenizer_config.json", b'{"a'), r"tokenizer_config\.json is damaged or not JSON: "),
    "setting": (set_fields("tokenizer_config.json", padding_side="up"), r"^cannot load the tokenizer .*value: up"),
    "special tokens": (write("special_tokens_map.json", b"[1]"), r"special_tokens_map\.json holds a JSON list"),
    "configuration": (write("config.json", b"\xff"), r"config\.json is damaged or not JSON: "),
}  # fmt: skip

BARE: dict[str, tuple[dict[str, bytes], str]] = {
    "missing package": (
        {"tokenizer.model": b"\x0a\x0b"},
        r"^cannot load the tokenizer .*tokenizer\.model: .*pip install",
    ),
    "another class": ({"vocab.txt": b"a\nb"}, r"vocab\.txt: a LlamaTokenizer needs tokenizer\.model beside it$"),
    "no merges": (
        {"vocab.json": b'{"a": 0}', "class": b"GPT2Tokenizer"},
        r"^cannot load the tokenizer .*vocab\.json: ",
    ),
    "merges": (
        {"vocab.json": b'{"a": 0}', "merges.txt": b"#\na b c\n", "class": b""},
        r"vocab\.json: Error while init",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_broken_configuration_is_one_line(case: str, whole: Path, tmp_path: Path) -> None:
    change, line = CONFIGS[case]
    change(folder := copy(whole, tmp_path / "m"))
    for attempt in (load_config, load_model, lambda source: surgery.inherit_checkpoint(source, tmp_path / "out", 1)):
        with pytest.raises(ModelError, match=line) as caught:
            attempt(folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", WEIGHTS)
def test_broken_weights_are_one_line(case: str, whole: Path, tmp_path: Path) -> None:
    change, line = WEIGHTS[case]
    change(folder := copy(whole, tmp_path / "m"))
    with pytest.raises(ModelError, match=line) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    if "config.json is wrong" in str(caught.value) and case != "generation":  # by layer, too
        with pytest.raises(ModelError, match=line):
            load_decoder(folder, stream=True)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_broken_tokenizer_is_its_own_error_and_not_no_tokenizer(case: str, whole: Path, tmp_path: Path) -> None:
    change, line = TOKENIZERS[case]
    change(folder := copy(whole, tmp_path / "m"))
    for attempt in (load_tokenizer, lambda source: open_tokenizer(str(source))):
        with pytest.raises(ModelError, match=line) as caught:
            attempt(folder)
        assert "\n" not in str(caught.value) and not isinstance(caught.value, NoTokenizerError)


@pytest.mark.parametrize("case", BARE)
def test_files_that_make_no_tokenizer_are_one_line(case: str, tmp_path: Path) -> None:
    files, line = BARE[case]
    kind = files.get("class", b"LlamaTokenizer").decode()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    if kind:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind}))
    with pytest.raises(ModelError, match=line) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, NoTokenizerError)


def test_a_folder_without_a_tokenizer_has_none(whole: Path, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path / "m")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(NoTokenizerError, match=r"^no tokenizer in .*m: expected one of tokenizer\.json, "):
        load_tokenizer(folder)
    assert open_tokenizer(str(folder)) is None


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_the_numbers_of_every_known_family_are_possible(kind: str, tmp_path: Path) -> None:
    with suppress(Exception):  # a few families have no default configuration
        CONFIG_MAPPING[kind]().to_json_file(tmp_path / "config.json")
    if (tmp_path / "config.json").is_file():
        loading._check_counts(json.loads((tmp_path / "config.json").read_text()))


def test_an_adapter_alone_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "them/one"}')
    with pytest.raises(ModelError, match=r"holds an adapter \(adapter_config\.json\)"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "attention",
    ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn", "flex_attention", "paged|sdpa", 5, "x"],
)
def test_attention_that_this_machine_lacks_is_replaced_with_a_note(
    attention: object, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config(_attn_implementation=attention)(folder := copy(whole, tmp_path / "m"))
    note.cache_clear()
    model = load_model(folder)
    assert model.config._attn_implementation == "sdpa"
    line = f"note: the attention {attention!r} of the config.json is not used: PyTorch's own (sdpa) or eager is\n"
    assert capsys.readouterr().err.count(line) == 1
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, load_model(whole)(tokens).logits)
    surgery.inherit_checkpoint(folder, tmp_path / "out", 1)
    assert "attn" not in (tmp_path / "out" / "config.json").read_text()


def test_eager_attention_stays(whole: Path, tmp_path: Path) -> None:
    config(_attn_implementation="eager")(folder := copy(whole, tmp_path / "m"))
    assert load_model(folder).config._attn_implementation == "eager"


@pytest.mark.parametrize("names", [["FSDPLlamaForCausalLM"], ["MyLlama"], [], None, ["LlamaForCausalLMCompiled"]])
def test_names_of_classes_that_transformers_passes_over_are_loaded(
    names: list[str] | None, whole: Path, tmp_path: Path
) -> None:
    config(architectures=names)(folder := copy(whole, tmp_path / "m"))
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is LlamaForCausalLM
    assert type(load_model(folder)) is LlamaForCausalLM


def test_sparse_tensors_in_a_pickle_are_copied(whole: Path, tmp_path: Path) -> None:
    state = load_file(whole / "model.safetensors")
    folder = copy(whole, tmp_path / "m")
    pickled({name: value.to_sparse() if value.ndim == 2 else value for name, value in state.items()})(folder)
    surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    copied = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(copied[name], value) for name, value in state.items())


def test_what_is_no_fault_of_a_library_passes_the_boundary() -> None:
    for error in (MemoryError(), KeyboardInterrupt(), SystemExit(), ModelError("ours")):
        with pytest.raises(type(error)) as caught, library_errors("cannot"):
            raise error
        assert caught.value is error
    panic = type("PanicException", (BaseException,), {})("index out of bounds")
    with pytest.raises(ModelError, match=r"^cannot: index out of bounds$") as wrapped, library_errors("cannot"):
        raise panic
    assert wrapped.value.__cause__ is panic


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/m/config.json"), "Permission denied: /m/config.json"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (KeyError("quux"), "unknown name 'quux'"),
        (ZeroDivisionError("division by zero"), "division by zero (ZeroDivisionError)"),
        (RuntimeError("\n\n first \n second"), "first"),
        (ImportError("needs one of:\n(1) a\n(2) b"), "needs one of: (1) a (2) b"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_the_reason_is_one_line(error: Exception, line: str) -> None:
    assert reason(error) == line


def test_a_file_that_may_not_be_read_is_said_as_it_is(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ModelError, match=r"^cannot read .*config\.json: Permission denied$"):
        load_config(whole)


@pytest.mark.parametrize(
    ("kind", "whole_class", "layers"),
    [("qwen3_5", "Qwen3_5", [0, 3]), ("llama4", "Llama4", 2), ("gemma3", "Gemma3", 2)],
)
def test_of_a_composite_model_the_decoder_that_transformers_loads_is_cut(
    kind: str, whole_class: str, layers: int | list[int], tmp_path: Path
) -> None:
    text = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4, "num_local_experts": 2,
        "pad_token_id": 0,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "depth": 1,
        "num_heads": 4, "out_hidden_size": 32, "image_size": 28, "patch_size": 14, "vision_output_dim": 32,
        "projector_input_dim": 32, "projector_output_dim": 32,
    }  # fmt: skip
    built = getattr(transformers, f"{whole_class}ForConditionalGeneration")(
        CONFIG_MAPPING[kind](text_config=text, vision_config=vision)
    )
    perturbed(built).save_pretrained(tmp_path / "m")
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    model = load_model(tmp_path / "m")
    assert type(model) is type(expected) and type(load_config(tmp_path / "m")) is type(expected.config)
    tokens = torch.arange(10)[None]
    copied = load_model(surgery.inherit_checkpoint(tmp_path / "m", tmp_path / "out", layers))
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
        cut = surgery.inherit(tmp_path / "m", layers)(tokens, use_cache=False).logits
        assert torch.equal(copied(tokens, use_cache=False).logits, cut)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["architectures"]
    assert written == [type(expected).__name__]
