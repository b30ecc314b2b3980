"""Fixtures shared by all rooms: tiny random models, and the real tiny one."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
from transformers import PreTrainedModel

from tiny import SHARED, make_gpt2, make_llama

# Tiny matrices gain nothing from a second thread, and lose much when the machine is busy.
torch.set_num_threads(1)


@pytest.fixture
def tiny_gpt2() -> PreTrainedModel:
    return make_gpt2()


@pytest.fixture
def tiny_llama() -> PreTrainedModel:
    return make_llama()


@pytest.fixture
def stories() -> Path:
    folder = SHARED / "data" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"no trained model at {folder}")
    return folder
