"""inherit_checkpoint: equal to the in-memory path, on any shards, and nothing half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from surgery_families import DEPTH, assert_same_weights, source
from transformers import AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.errors import ModelError, OutputError, PlanError
from inheritune.surgery import LayerPlan


def load(folder: Path) -> PreTrainedModel:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


NAMES = [
    "gpt2",
    "llama",
    "gemma2",
    "falcon",
    "bloom",
    "mixtral",
    "qwen2_moe",
    "deepseek_v3",
    "gpt_oss",
    "gpt_neo",
    "opt",
]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_in_memory_path_sharded_or_not(name: str, tmp_path: Path) -> None:
    layers = [0, 3] if name == "deepseek_v3" else [3, 0, 0]
    source(name).save_pretrained(tmp_path / "whole")
    source(name).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / "model.safetensors.index.json").is_file()
    expected = surgery.inherit(source(name), layers)
    for given in ("whole", "sharded"):
        before = contents(tmp_path / given)
        for size in ("5GB", 15_000):
            out = surgery.inherit_checkpoint(
                tmp_path / given, tmp_path / f"{given}-{size}", layers, max_shard_size=size
            )
            new = load(out)
            assert type(new) is type(expected)
            assert_same_weights(new.state_dict(), expected.state_dict())
            assert new.config.num_hidden_layers == len(layers)
        assert contents(tmp_path / given) == before
    assert not list(tmp_path.glob(".*"))


def test_shards_are_well_formed(folder: Path, tmp_path: Path) -> None:
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", 3, max_shard_size="20KB")
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(out.glob("*.safetensors"))
    assert [path.name for path in shards] == [
        f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))
    ]
    held: dict[str, torch.Tensor] = {}
    for path in shards:
        tensors = load_file(path)
        assert all(index["weight_map"][key] == path.name for key in tensors)
        assert sum(t.nbytes for t in tensors.values()) <= 20_000 or len(tensors) == 1
        with safe_open(path, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
        held |= tensors
    assert held.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in held.values())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def test_any_type_is_copied_and_stays_aligned(folder: Path, tmp_path: Path) -> None:
    """Bytes, halves and 8-bit floats side by side: the same bits come back through safetensors' own reader."""
    odd: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    for i in range(4):
        odd[f"model.layers.{i}.self_attn.mask"] = torch.arange(3 + i, dtype=torch.uint8)
        odd[f"model.layers.{i}.self_attn.scale"] = torch.randn(5, 3).to(torch.float8_e4m3fn)
        odd[f"model.layers.{i}.self_attn.count"] = torch.tensor(i, dtype=torch.int64)
        odd[f"model.layers.{i}.self_attn.half"] = torch.randn(7).bfloat16()
        odd[f"model.layers.{i}.self_attn.none"] = torch.zeros(0, 4)
    save_file(odd, folder / "model.safetensors", metadata={"format": "pt"})
    file = surgery.inherit_checkpoint(folder, tmp_path / "out", [2, 1]) / "model.safetensors"
    new = load_file(file)
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for key, value in new.items():
        assert header[key]["data_offsets"][0] % value.element_size() == 0, key
        old = odd[key.replace("layers.0", "layers.2")]
        assert value.dtype == old.dtype and torch.equal(bits(value), bits(old)), key


def test_old_checkpoints_without_the_base_models_prefix(tmp_path: Path) -> None:
    """The published GPT-2 files say `h.0.attn...`, and hold masks that today's model does not have."""
    source("gpt2").save_pretrained(tmp_path / "old")
    file = tmp_path / "old" / "model.safetensors"
    weights = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(DEPTH)}
    save_file(weights, file, metadata={"format": "pt"})
    surgery.inherit_checkpoint(tmp_path / "old", tmp_path / "out", [1, 3])
    expected = surgery.inherit(source("gpt2"), [1, 3]).state_dict()
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict(), expected)


def test_layers_behind_the_last_are_left_out(folder: Path, tmp_path: Path) -> None:
    """DeepSeek-V3 stores a prediction layer as layer 61 of 61; it must not become a layer of the target."""
    weights = load_file(folder / "model.safetensors")
    weights |= {k.replace("layers.3", "layers.4"): v.clone() for k, v in weights.items() if "layers.3." in k}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    out = load_file(surgery.inherit_checkpoint(folder, tmp_path / "out", 2) / "model.safetensors")
    assert {key.split(".")[2] for key in out if "layers" in key} == {"0", "1"}


def test_the_real_model_with_its_tokenizer(stories: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = surgery.inherit_checkpoint(stories, tmp_path / "cut", 3)
    assert_same_weights(load(out).state_dict(), surgery.inherit(stories, 3).state_dict())
    text = "Once upon a time"
    assert AutoTokenizer.from_pretrained(out)(text).input_ids == AutoTokenizer.from_pretrained(stories)(text).input_ids
    assert (out / "generation_config.json").read_bytes() == (stories / "generation_config.json").read_bytes()


def _missing_shard(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").unlink()


def _truncated(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _garbage(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"<html>not found</html>")


def _empty(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"")


def _edit_index(folder: Path, edit: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    edit(index["weight_map"])
    path.write_text(json.dumps(index))


def _wrong_index(folder: Path) -> None:
    _edit_index(folder, lambda weights: weights.update({"model.norm.weight": "model-00001-of-00003.safetensors"}))


def _short_index(folder: Path) -> None:
    def edit(weights: dict[str, str]) -> None:
        for key in [key for key in weights if "layers.3." in key]:
            del weights[key]

    _edit_index(folder, edit)


def _unreadable_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')


def _pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _quantised(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_missing_shard, "model-00002-of-00003.safetensors is missing: model.safetensors.index.json names it"),
        (_truncated, "model-00002-of-00003.safetensors is damaged or not a safetensors file"),
        (_garbage, "model-00002-of-00003.safetensors is damaged or not a safetensors file"),
        (_empty, "model-00002-of-00003.safetensors is damaged or not a safetensors file"),
        (_wrong_index, "puts 'model.norm.weight' in model-00001-of-00003.safetensors, which does not hold it"),
        (_short_index, "the checkpoint has no weights for all layers 0-3 that config.json says it has"),
        (_unreadable_index, "expected a JSON object with a weight_map"),
        (_pickles, "holds only .bin files: expected model.safetensors or model.safetensors.index.json"),
        (_quantised, "the model is quantised .gptq."),
    ],
)
def test_damaged_sources_get_one_line_and_leave_nothing(
    damage: Any, line: str, tiny_llama: PreTrainedModel, tmp_path: Path
) -> None:
    tiny_llama.save_pretrained(tmp_path / "source", max_shard_size="70KB")
    assert len(list((tmp_path / "source").glob("model-*-of-00003.safetensors"))) == 3
    damage(tmp_path / "source")
    with pytest.raises(ModelError, match=line) as caught:
        surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 2)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_where_it_may_not_write(folder: Path, tmp_path: Path) -> None:
    before = contents(folder)
    with pytest.raises(OutputError, match="is the source: pass another one"):
        surgery.inherit_checkpoint(folder, folder / ".." / "source", 2)
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="full exists and is not empty: pass a new or empty folder"):
        surgery.inherit_checkpoint(folder, full, 2)
    assert contents(full) == {"mine.txt": b"mine"}
    with pytest.raises(OutputError, match="is not empty"):
        surgery.inherit_checkpoint(folder, full / "mine.txt", 2)
    with pytest.raises(OutputError, match=r"cannot write .*Not a directory"):
        surgery.inherit_checkpoint(folder, full / "mine.txt" / "deeper", 2)
    assert contents(folder) == before
    (tmp_path / "empty").mkdir()
    assert len(list(surgery.inherit_checkpoint(folder, tmp_path / "empty", 2).iterdir())) >= 2


def test_an_interrupted_or_failing_copy_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inheritune.surgery import checkpoint

    for failure, shown in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), OutputError),
    ):

        def fail(path: Path, *_: Any, failure: BaseException = failure) -> None:
            path.write_bytes(b"half")
            raise failure

        monkeypatch.setattr(checkpoint, "write_file", fail)
        with pytest.raises(shown):
            surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_layers_that_share_weights_are_refused() -> None:
    from transformers import CONFIG_MAPPING

    from inheritune.surgery.checkpoint import check_whole

    with pytest.raises(PlanError, match=r"layers of ZambaForCausalLM share weights \(.* and .*\): use inherit"):
        check_whole(CONFIG_MAPPING["zamba"](), LayerPlan.first(76, 76))


def test_plans_that_need_a_model_say_so(folder: Path, tmp_path: Path) -> None:
    for given in ({"layers": 2, "parts": "mlp"}, {"plan": LayerPlan.random(2)}, {"plan": LayerPlan.append(1, 2)}):
        with pytest.raises(PlanError, match="leaves weights random or takes them from a target: use inherit"):
            surgery.inherit_checkpoint(folder, tmp_path / "out", **given)
    with pytest.raises(PlanError, match=r"asked for layer 4, the model has 4 \(0-3\)"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", [4])
    with pytest.raises(OutputError, match="max_shard_size 'five apples': expected bytes or a size such as '5GB'"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2, max_shard_size="five apples")
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="no folder"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
