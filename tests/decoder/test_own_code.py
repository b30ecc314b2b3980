"""Checkpoints that bring their own code: nothing of it runs unless the user says so, and surgery carries it along."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import inheritune.surgery as surgery
from inheritune.decoder import load_config, load_model, load_tokenizer
from inheritune.errors import ModelError
from tiny import make_llama

CONFIGURATION = """
from pathlib import Path
from transformers import LlamaConfig
Path({marker!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own-kind"
"""
MODELING = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *arguments, **options):
        out = super().forward(*arguments, **options)
        out.logits = out.logits * 2
        return out
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose code doubles Llama's logits, and says when it is run."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "own"
    make_llama().save_pretrained(folder)
    (folder / "configuration_own.py").write_text(CONFIGURATION.format(marker=str(tmp_path / "ran")))
    (folder / "modeling_own.py").write_text(MODELING)
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "own-kind",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_code_is_refused_in_one_line_and_not_run(folder: Path, tmp_path: Path) -> None:
    line = (
        r"own needs code that comes with it \(auto_map .*\): read that code, and pass trust_remote_code=True if you "
        r"trust it \(`inheritune inherit`: --trust-remote-code; no other command runs it\)"
    )
    for attempt in (load_config, load_model, lambda source: surgery.inherit_checkpoint(source, tmp_path / "out", 2)):
        with pytest.raises(ModelError, match=line) as caught:
            attempt(folder)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_code_that_the_user_trusts_is_run_and_carried_along(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, make_llama()(tokens).logits * 2)
    out = surgery.inherit_checkpoint(folder, tmp_path / "out", [3, 1], trust_remote_code=True)
    again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert type(again).__name__ == "OwnForCausalLM"
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, surgery.inherit(model, [3, 1])(tokens).logits)
    for name in ("configuration_own.py", "modeling_own.py"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


def test_a_known_kind_needs_none_of_the_code_it_brings(folder: Path, tmp_path: Path) -> None:
    """As Phi-3's repositories, which are older than its code in transformers."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    surgery.inherit_checkpoint(folder, tmp_path / "out", 2)
    assert type(load_model(tmp_path / "out")).__name__ == "LlamaForCausalLM"
    assert not (tmp_path / "ran").exists()
    assert load_config(folder).num_hidden_layers == 4


def test_a_tokenizer_with_its_own_code_is_refused(stories: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((stories / "tokenizer.json").read_bytes())
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
        "tokenizer_class": "OwnTokenizer",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    with pytest.raises(ModelError, match=r"t needs code that comes with it"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()
