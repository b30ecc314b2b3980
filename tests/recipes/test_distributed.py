"""The same recipe on two processes as on one: the same data, the same decisions, one set of files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import inheritune as it
from inheritune.data import train_tokenizer
from inheritune.decoder import save_model
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=270, n_positions=32, n_embd=16, n_layer=4, n_head=2, bos_token_id=0, eos_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    save_model(perturbed(GPT2LMHeadModel(config)), tmp_path / "reference", train_tokenizer(TEXTS, 270))
    recipe = {
        "name": "two", "method": "inheritune", "reference": str(tmp_path / "reference"), "layers": 2,
        "data": {"source": str(tmp_path / "text.txt"), "valid_fraction": 0.2},
        "training": {"steps": 6, "batch": 4, "length": 16, "learning_rate": 3e-3, "warmup_steps": 2,
                     "log_every": 2, "valid_every": 2, "checkpoint_every": 2},
        "growth": {"by": 2, "max_rounds": 2},
        "evaluation": {"speed": False, "prompt": "text "}, "analysis": None,
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command += ["-m", "inheritune", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("two (inheritune)") == 1
    # Killed after the last round and before the record, the run goes on from what is on disk.
    whole = json.loads((tmp_path / "two" / "record.json").read_text())
    (tmp_path / "two" / "record.json").unlink()
    again = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((tmp_path / "two" / "record.json").read_text())["result"] == whole["result"]
    one = it.run(recipe, tmp_path / "one")
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert [item["layers"] for item in two["rounds"]] == [item["layers"] for item in one["rounds"]]
    assert two["result"]["tokens"] == one["result"]["tokens"]
    for ours, theirs in zip(two["rounds"], one["rounds"], strict=True):
        # The two devices' gradients are added in another order; a wrong share of the data moves the loss by 1e-2.
        assert ours["start_evaluation"]["loss"] == pytest.approx(theirs["start_evaluation"]["loss"], abs=1e-4)
        assert ours["evaluation"]["loss"] == pytest.approx(theirs["evaluation"]["loss"], abs=1e-4)
        logs = [
            [json.loads(line) for line in (tmp_path / name / theirs["metrics"]).read_text().splitlines()]
            for name in ("two", "one")
        ]
        assert [line["loss"] for line in logs[0]] == pytest.approx([line["loss"] for line in logs[1]], abs=1e-4)
        assert [line["step"] for line in logs[0]] == [2, 4, 6]
