"""inherit_checkpoint: what it refuses, and that it leaves nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file
from surgery_families import contents, load, source
from transformers import PreTrainedModel

import inheritune.surgery as surgery
from inheritune.checkpoints.copying import write_file
from inheritune.errors import ModelError, OutputError, PlanError
from inheritune.surgery import LayerPlan
from inheritune.surgery.files.checkpoint import check_shard_size
from mounting import mounted


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


def _no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "weights.gguf").write_bytes(b"GGUF")


def _not_a_pickle(folder: Path) -> None:
    _no_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")


def _truncated_pickle(folder: Path) -> None:
    _no_weights(folder)
    torch.save({"weight": torch.ones(100)}, folder / "pytorch_model.bin")
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:-100])


def _pickle_of_something_else(folder: Path) -> None:
    _no_weights(folder)
    torch.save({"state_dict": {"weight": torch.ones(3)}}, folder / "pytorch_model.bin")


def _index_elsewhere(folder: Path) -> None:
    _edit_index(folder, lambda weights: weights.update({"model.norm.weight": "../other.safetensors"}))


def _overlapping(folder: Path) -> None:
    """Two tensors over each other, in a file that is as long as its header says."""
    path = folder / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    one, two = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])[:2]
    header[two]["data_offsets"] = header[one]["data_offsets"]
    header[two]["shape"] = header[one]["shape"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _wrong_shape(folder: Path) -> None:
    path = folder / "model-00002-of-00003.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].replace(b'"F32"', b'"F64"', 1)
    path.write_bytes(data[:8] + text + data[8 + length :])


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def _pointer(folder: Path) -> None:
    (folder / "model-00002-of-00003.safetensors").write_text(POINTER)


def _tokenizer_pointer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(POINTER)


def _index_leaves_out(folder: Path) -> None:
    _edit_index(folder, lambda weights: weights.pop("model.norm.weight"))


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
        (_short_index, r"source has weights of layers .* \(model.layers\): its config.json says it has layers 0-3$"),
        (
            _pointer,
            r"00002-of-00003.safetensors is a git-lfs pointer, not the file itself: run git lfs pull in .*source$",
        ),
        (
            _tokenizer_pointer,
            r"tokenizer.json is a git-lfs pointer, not the file itself: run git lfs pull in .*source$",
        ),
        (_index_leaves_out, r"the checkpoint .*source lacks 1 of the weights asked for, 'model.norm.weight' first$"),
        (_unreadable_index, "expected a JSON object with a weight_map"),
        (_index_elsewhere, "names the file '../other.safetensors': expected names of files beside it"),
        (_overlapping, "model-00002-of-00003.safetensors is damaged or not a safetensors file: '.*' begins at byte"),
        (_wrong_shape, "model-00002-of-00003.safetensors is damaged or not a safetensors file: '.*' has .* of F64"),
        (_no_weights, "holds a config.json and GGUF files: pass .*weights.gguf itself"),
        (_not_a_pickle, "pytorch_model.bin is a pickle that holds more than tensors, or no pickle at all"),
        (_truncated_pickle, "pytorch_model.bin is damaged or not a PyTorch file"),
        (_pickle_of_something_else, "pytorch_model.bin holds 'state_dict' of type dict: expected tensors by name"),
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
    with pytest.raises(OutputError, match=r"cannot write .*deeper: .*mine.txt is a file"):
        surgery.inherit_checkpoint(folder, full / "mine.txt" / "deeper", 2)
    assert contents(folder) == before
    (tmp_path / "empty").mkdir()
    assert len(list(surgery.inherit_checkpoint(folder, tmp_path / "empty", 2).iterdir())) >= 2


def test_an_interrupted_or_failing_copy_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inheritune.surgery.files import checkpoint

    for failure, shown in (
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
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

    from inheritune.surgery.config.blueprint import Draft

    zamba = Draft.of(LayerPlan.first(76, 76), CONFIG_MAPPING["zamba"]())
    with pytest.raises(PlanError, match=r"layers of ZambaForCausalLM share weights \(.* and .*\): use inherit"):
        zamba.check_copyable()


def test_plans_that_need_a_model_say_so(folder: Path, tmp_path: Path) -> None:
    grown = {"plan": LayerPlan.append(2, 4, zero_output=True), "target": folder}
    for given in ({"layers": 2, "parts": "mlp"}, {"plan": LayerPlan.random(2)}, grown):
        with pytest.raises(PlanError, match=r"this plan sets weights anew \(random, or to zero\): use inherit"):
            surgery.inherit_checkpoint(folder, tmp_path / "out", **given)
    with pytest.raises(PlanError, match="layer 0 of the plan comes from the target model: pass target="):
        surgery.inherit_checkpoint(folder, tmp_path / "out", plan=LayerPlan.append(1, 2))
    with pytest.raises(PlanError, match="holds no layers"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", [])
    with pytest.raises(PlanError, match="unknown part 'heads'"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2, "heads")
    with pytest.raises(PlanError, match=r"asked for layer 4, the model has 4 \(0-3\)"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", [4])
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="no folder"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)


@pytest.mark.parametrize("size", ["five apples", "5", "-1GB", "0MB", "0.0001KB", "5GiB", 0, -7, 2.5, True])
def test_what_is_no_size_of_a_file_is_refused_before_anything_is_read(size: Any, tmp_path: Path) -> None:
    line = rf"^max_shard_size {size!r}: expected KB, MB, GB or TB as in '5GB', or a positive int of bytes$"
    with pytest.raises(OutputError, match=line):
        surgery.inherit_checkpoint(tmp_path / "not there", tmp_path / "out", 2, max_shard_size=size)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["5GB", "1.5 gb", "0.001kb", 1])
def test_what_hugging_face_takes_for_a_size_is_one(size: int | str, folder: Path) -> None:
    check_shard_size(size)
    split_torch_state_dict_into_shards(load_file(folder / "model.safetensors"), max_shard_size=size)


def test_of_two_processes_the_second_to_finish_leaves_the_first_ones_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = surgery.inherit_checkpoint(folder, tmp_path / "first", 1)

    def write_late(*arguments: Any) -> None:
        write_file(*arguments)
        if not (tmp_path / "out").exists():
            first.rename(tmp_path / "out")

    monkeypatch.setattr("inheritune.surgery.files.checkpoint.write_file", write_late)
    with pytest.raises(OutputError, match=r"^.*out was filled meanwhile by another process: it stays as it is, pass a"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    assert load(tmp_path / "out").config.num_hidden_layers == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


# -- growth from a target folder --------------------------------------------------------------------------------------


def test_a_file_that_shrinks_while_it_is_copied(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def shrink(*arguments: Any) -> None:
        os.truncate(folder / "model.safetensors", 5000)
        write_file(*arguments)

    monkeypatch.setattr("inheritune.surgery.files.checkpoint.write_file", shrink)
    with pytest.raises(ModelError, match=r"model.safetensors ends early: it changed while it was read"):
        surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# -- where it may not or cannot write ---------------------------------------------------------------------------------


def test_never_into_a_source(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    tiny_llama.save_pretrained(tmp_path / "target")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "up").symlink_to(tmp_path)
    before = contents(folder)
    growth = {"plan": LayerPlan.append(3, 4), "target": tmp_path / "target"}
    for given, out, line in (
        ({"layers": 2}, tmp_path / "link", "is the source: pass another one"),
        ({"layers": 2}, tmp_path / "elsewhere" / "up" / "source", "is the source: pass another one"),
        ({"layers": 2}, folder / "cut", "is inside the source, which is only read"),
        ({"layers": 2}, tmp_path / "link" / "deep" / "cut", "is inside the source, which is only read"),
        (growth, tmp_path / "target", "is the source: pass another one"),
        (growth, tmp_path / "target" / "grown", "is inside the source"),
    ):
        with pytest.raises(OutputError, match=line):
            surgery.inherit_checkpoint(folder, out, **given)
    with pytest.raises(OutputError, match="is the source"):
        surgery.inherit_checkpoint(tmp_path / "link", folder, 2)
    assert contents(folder) == before and len(list((tmp_path / "target").iterdir())) == len(before)


def test_a_full_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with mounted(tmp_path / "disk", "size=100k") as disk:
        with pytest.raises(OutputError, match=r"no space left for [\d,]+ bytes, the disk has [\d,]+$"):
            surgery.inherit_checkpoint(folder, disk / "out", 4)
        assert not list(disk.iterdir())
        # As it is where a quota, or another process, takes the space while the files are copied.
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
        with pytest.raises(OutputError, match=r"cannot write .*out: No space left on device$"):
            surgery.inherit_checkpoint(folder, disk / "out", 4)
        assert not list(disk.iterdir())


def test_a_read_only_disk(folder: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        with pytest.raises(OutputError, match=r"cannot write .*out: Read-only file system$"):
            surgery.inherit_checkpoint(folder, disk / "out", 2)
        assert not list(disk.iterdir())


def test_a_mount_point_is_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=10m") as disk:
        with pytest.raises(OutputError, match=r"disk is a mount point.*: try .*disk/model$"):
            surgery.inherit_checkpoint(folder, disk, 2)
        assert not list(disk.iterdir())
        assert (surgery.inherit_checkpoint(folder, disk / "model", 2) / "model.safetensors").is_file()


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config

    T5Config(vocab_size=30, d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2).save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"t5 is an encoder-decoder \(t5\): expected a decoder-only language model"):
        surgery.inherit_checkpoint(tmp_path / "t5", tmp_path / "out", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["t5"]


def test_slices_of_layers_in_one_weight_need_the_model(tmp_path: Path) -> None:
    source("gemma3n_text").save_pretrained(tmp_path / "source")
    with pytest.raises(PlanError, match=r"keeps a slice for each layer in .*per_layer.*: use inherit"):
        surgery.inherit_checkpoint(tmp_path / "source", tmp_path / "out", 2)
