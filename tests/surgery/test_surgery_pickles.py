"""Checkpoints in PyTorch's own format: the same result as loading them with transformers, and no code is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from surgery_families import assert_same_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.checkpoints import stored
from inheritune.decoder import load_model
from inheritune.errors import ModelError, OutputError
from mounting import mounted
from tiny import make_gpt2, make_llama

KEEP = [3, 1]


def save_pickled(model: PreTrainedModel, folder: Path, files: int = 1, **options: Any) -> Path:
    """Save a model as transformers 4 did: every name of every weight, shared memory and all."""
    folder.mkdir()
    model.config.save_pretrained(folder)
    state = model.state_dict()
    if files == 1:
        torch.save(state, folder / "pytorch_model.bin", **options)
        return folder
    weight_map: dict[str, str] = {}
    for number in range(files):
        name = f"pytorch_model-{number + 1:05d}-of-{files:05d}.bin"
        part = {key: state[key].clone() for key in list(state)[number::files]}
        torch.save(part, folder / name, **options)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def assert_right(folder: Path, out: Path) -> None:
    """Compare with the layers of the model that transformers loads from `folder`."""
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert_same_weights(load_model(out).state_dict(), surgery.inherit(loaded, KEEP).state_dict())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_equals_what_transformers_loads(tmp_path: Path, tied: bool, files: int, zipped: bool) -> None:
    model = make_llama(tie_word_embeddings=tied)
    folder = save_pickled(model, tmp_path / "source", files, _use_new_zipfile_serialization=zipped)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", KEEP, max_shard_size="30KB")
    assert_right(folder, out)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not [path.name for path in out.iterdir() if path.suffix not in (".json", ".safetensors", ".md")]


def test_weights_that_share_memory_are_stored_once(tmp_path: Path) -> None:
    folder = save_pickled(make_gpt2(), tmp_path / "source")
    assert {"lm_head.weight", "transformer.wte.weight"} <= torch.load(folder / "pytorch_model.bin").keys()
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", KEEP)
    assert_right(folder, out)
    stored = load_file(out / "model.safetensors")
    assert "transformer.wte.weight" in stored and "lm_head.weight" not in stored


def test_memory_that_is_shared_by_untied_weights_is_copied_for_each(tmp_path: Path) -> None:
    model = make_llama()
    state = model.state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]  # equal, but free to differ after the next step
    folder = save_pickled(model, tmp_path / "source")
    torch.save(state, folder / "pytorch_model.bin")
    stored = load_file(surgery.inherit_checkpoint(folder, tmp_path / "out", KEEP) / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], state["model.embed_tokens.weight"])
    assert torch.equal(stored["lm_head.weight"], stored["model.embed_tokens.weight"])


@pytest.mark.parametrize("legacy", [False, True])
def test_transposed_and_cut_tensors_and_other_types(tmp_path: Path, legacy: bool) -> None:
    model = make_llama()
    state = model.state_dict()
    name = "model.layers.3.self_attn.q_proj.weight"
    wide = torch.randn(64, 32)
    odd = {
        name: state[name].t().contiguous().t(),
        "model.layers.1.self_attn.k_proj.weight": wide[10:26],
        "model.layers.1.count": torch.tensor(7),
        "model.layers.1.half": torch.randn(5).bfloat16(),
        "model.layers.1.none": torch.zeros(0, 3),
        "model.layers.1.flags": torch.tensor([True, False, True]),
    }
    assert not odd[name].is_contiguous()
    folder = save_pickled(model, tmp_path / "source")
    torch.save(state | odd, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    stored = load_file(surgery.inherit_checkpoint(folder, tmp_path / "out", [3, 1]) / "model.safetensors")
    for key, value in odd.items():
        new = stored[key.replace("layers.3", "layers.0")]
        assert new.dtype == value.dtype and torch.equal(new, value), key


def test_plain_files_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes go from file to file: PyTorch is only asked where they lie."""
    folder = save_pickled(make_llama(), tmp_path / "source", 3)
    load, devices = torch.load, []

    def watch(path: Any, **options: Any) -> Any:
        assert options["weights_only"] is True
        devices.append(options["map_location"])
        return load(path, **options)

    monkeypatch.setattr(torch, "load", watch)
    surgery.inherit_checkpoint(folder, tmp_path / "out", KEEP)
    assert set(devices) == {"meta"}


def test_where_pytorch_does_not_say_the_place_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pickled(make_gpt2(), tmp_path / "source")
    monkeypatch.setattr(stored, "_offset", lambda tensor: None)  # as before PyTorch 2.7
    assert_right(folder, surgery.inherit_checkpoint(folder, tmp_path / "out", KEEP))


def test_a_disk_that_is_full_of_the_copy_is_one_line(tmp_path: Path) -> None:
    folder = save_pickled(make_llama(), tmp_path / "source", _use_new_zipfile_serialization=False)
    with mounted(tmp_path / "disk", "size=20k") as disk:
        with pytest.raises(OutputError, match=r"^cannot write .*out: No space left on device$"):
            surgery.inherit_checkpoint(folder, disk / "out", KEEP)
        assert not [*disk.iterdir()]


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_pickle_that_would_run_code_is_refused_in_one_line_and_does_not_run(tmp_path: Path) -> None:
    folder = save_pickled(make_llama(), tmp_path / "source")
    torch.save({"weight": Attack(tmp_path / "ran")}, folder / "pytorch_model.bin")
    message = r"is a pickle that holds more than tensors.*: expected safetensors, or a file that torch\.load"
    for attempt in (lambda: surgery.inherit_checkpoint(folder, tmp_path / "out", 2), lambda: load_model(folder)):
        with pytest.raises(ModelError, match=message) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]
