"""inherit_checkpoint: equal to the in-memory path, on any shards, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from surgery_families import DEPTH, assert_same_weights, contents, load, source
from transformers import AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.checkpoints import copying
from inheritune.checkpoints.folder import read_folder
from inheritune.errors import ModelError, PlanError
from inheritune.surgery import LayerPlan

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


def test_what_comes_along_and_what_stays(folder: Path, tmp_path: Path) -> None:
    carried = (
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "NOTICE",
    )
    left = ("training_args.bin", "optimizer.pt", "model.py", "notes.txt", "tokenizer.d/vocab.txt")
    for name in (*carried, *left):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    for name in carried:
        assert (out / name).read_text() == f"text of {name}"
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    own = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert found == own | set(carried)


def other_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a trained-looking model of the same family with three layers and other weights everywhere."""
    other = surgery.scratch(model.config, 3, seed=1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.37)
    return other


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mixtral", "bloom"])
def test_growing_from_a_target_folder_equals_the_in_memory_path(name: str, tmp_path: Path) -> None:
    reference = source(name)
    # Of the same kinds of layers, where the family has several.
    target = surgery.inherit(other_model(reference), [0, 1, 2])
    reference.save_pretrained(tmp_path / "reference")
    target.save_pretrained(tmp_path / "target", max_shard_size="20KB")
    for mode in ("continue", "restart"):
        plan = LayerPlan.append(3, 4, mode)
        expected = surgery.inherit(reference, plan=plan, target=target)
        out = surgery.inherit_checkpoint(
            tmp_path / "reference", tmp_path / mode, plan=plan, target=tmp_path / "target", max_shard_size=30_000
        )
        assert_same_weights(load(out).state_dict(), expected.state_dict())
    assert not torch.equal(
        load(tmp_path / "continue").get_input_embeddings().weight,
        load(tmp_path / "restart").get_input_embeddings().weight,
    )


def test_stacking_a_checkpoint_on_itself(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    plan = LayerPlan.stacking(4)
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", plan=plan)
    assert_same_weights(load(out).state_dict(), surgery.inherit(tiny_llama, plan=plan).state_dict())


def test_a_target_may_store_its_layers_behind_another_prefix(tmp_path: Path) -> None:
    """The published GPT-2 files say `h.0.attn...` and hold masks; what we save says `transformer.h.0.attn...`."""
    reference, target = source("gpt2"), other_model(source("gpt2"))
    reference.save_pretrained(tmp_path / "reference")
    target.save_pretrained(tmp_path / "target")
    file = tmp_path / "reference" / "model.safetensors"
    weights = {key.removeprefix("transformer."): value for key, value in load_file(file).items()}
    weights |= {f"h.{i}.attn.bias": torch.ones(1, 1, 4, 4) for i in range(DEPTH)}
    save_file(weights, file, metadata={"format": "pt"})
    plan = LayerPlan.append(3, 4)
    out = surgery.inherit_checkpoint(tmp_path / "reference", tmp_path / "out", plan=plan, target=tmp_path / "target")
    expected = surgery.inherit(reference, plan=plan, target=target)
    assert_same_weights(AutoModelForCausalLM.from_pretrained(out).state_dict(), expected.state_dict())


def test_a_reference_whose_layers_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    source("mixtral").save_pretrained(tmp_path / "reference")
    other_model(source("mixtral")).save_pretrained(tmp_path / "target")
    file = tmp_path / "reference" / "model.safetensors"
    renamed = {key.replace(".block_sparse_moe.", ".moe_of_old."): value for key, value in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"reference lacks \d of the weights asked for, 'model.layers.3.mlp.*' first"):
        surgery.inherit_checkpoint(
            tmp_path / "reference", tmp_path / "out", plan=LayerPlan.append(3, 4), target=tmp_path / "target"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fused", ["reference", "target"])
def test_one_checkpoint_may_hold_experts_one_by_one_and_together(fused: str, tmp_path: Path) -> None:
    """As different versions of transformers store them."""
    models = {"reference": source("mixtral"), "target": other_model(surgery.inherit(source("mixtral"), 3))}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    state = {key: value.clone() for key, value in models[fused].state_dict().items()}
    save_file(state, tmp_path / fused / "model.safetensors", metadata={"format": "pt"})
    plan = LayerPlan.append(3, 4)
    out = surgery.inherit_checkpoint(tmp_path / "reference", tmp_path / "out", plan=plan, target=tmp_path / "target")
    expected = surgery.inherit(models["reference"], plan=plan, target=models["target"])
    assert_same_weights(load(out).state_dict(), expected.state_dict())


def test_a_target_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    source("gpt2").save_pretrained(tmp_path / "target")
    with pytest.raises(PlanError, match=r"different families \(gpt2 and llama\)"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", plan=LayerPlan.append(2, 4), target=tmp_path / "target")


# -- what it reads and how it copies ----------------------------------------------------------------------------------


def test_only_files_with_needed_tensors_are_looked_at(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    tiny_llama.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    index = json.loads((tmp_path / "source" / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {name for key, name in index.items() if ".layers." not in key or ".layers.0." in key}
    assert needed < set(index.values())
    for name in set(index.values()) - needed:
        (tmp_path / "source" / name).unlink()
    out = surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 1)
    assert_same_weights(load(out).state_dict(), surgery.inherit(tiny_llama, 1).state_dict())


def test_neighbouring_tensors_are_copied_in_one_go(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = copying._copy
    sizes: list[int] = []

    def watch(path: Path, start: int, size: int, *rest: Any) -> None:
        sizes.append(size)
        copy(path, start, size, *rest)

    monkeypatch.setattr(copying, "_copy", watch)
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", 4)
    assert sizes == [sum(tensor.nbytes for tensor in load_file(out / "model.safetensors").values())]


@pytest.mark.parametrize("answer", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, 0, "absent"])
def test_where_the_system_does_not_copy_the_bytes_are_the_same(
    answer: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = surgery.inherit_checkpoint(folder, tmp_path / "expected", [2, 0]) / "model.safetensors"

    def refuse(*_: Any) -> int:
        if answer:
            raise OSError(answer, "no")
        return 0

    if answer == "absent":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    else:
        monkeypatch.setattr(os, "copy_file_range", refuse, raising=False)
    monkeypatch.setattr(copying, "_BLOCK", 1000)  # so that a tensor takes several reads
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", [2, 0])
    assert (out / "model.safetensors").read_bytes() == expected.read_bytes()


def test_a_copy_keeps_the_sources_shards(tiny_llama: PreTrainedModel, tmp_path: Path) -> None:
    tiny_llama.save_pretrained(tmp_path / "source", max_shard_size="70KB")
    out = surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 4)
    before, after = read_folder(tmp_path / "source"), read_folder(out)
    assert {key: tensor.path.name for key, tensor in after.items()} == {key: t.path.name for key, t in before.items()}
    assert_same_weights(load(out).state_dict(), tiny_llama.state_dict())
