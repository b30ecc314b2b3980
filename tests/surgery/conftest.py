"""A checkpoint on disk, for the tests of surgery from file to file."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    """A small Llama in Hugging Face format."""
    tiny_llama.save_pretrained(tmp_path / "source")
    return tmp_path / "source"
