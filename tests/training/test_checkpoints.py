"""A damaged checkpoint is never loaded: the one before it is, and the run still ends with the same bits."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from training_data import make_shards
from transformers import PreTrainedModel

from inheritune.data import Shards, TrainingWindows
from inheritune.errors import OutputError
from inheritune.training import TrainingSettings, train
from inheritune.training.checkpoints import newest_checkpoint
from mounting import mounted
from tiny import make_gpt2

SETTINGS = TrainingSettings(
    steps=12, batch=4, length=16, learning_rate=1e-2, warmup_steps=3, log_every=2, valid_every=0, checkpoint_every=4
)
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "complete.json")


class Failing(TrainingWindows):
    """Data that cannot be read at step 10, as after a power cut."""

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if n == 10 * SETTINGS.batch:
            raise OSError("power cut")
        return super().__getitem__(n)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def whole(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    """An uninterrupted round: its model and its folder."""
    model, folder = make_gpt2(2), tmp_path_factory.mktemp("whole")
    go_on(model, shards, folder)
    return model, folder


@pytest.fixture(scope="module")
def interrupted(shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round that died at step 10, with checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(OSError, match="power cut"):
        go_on(make_gpt2(2), shards, folder, Failing)
    return folder


@pytest.fixture
def cut(interrupted: Path, tmp_path: Path) -> Path:
    """A copy of the interrupted round."""
    return Path(shutil.copytree(interrupted, tmp_path / "cut"))


def go_on(model: PreTrainedModel, shards: Shards, folder: Path, data: type[TrainingWindows] = TrainingWindows) -> None:
    windows = data(shards, SETTINGS.length, SETTINGS.steps * SETTINGS.batch, seed=5)
    train(model, windows, SETTINGS, folder, seed=0)


@pytest.mark.parametrize("size", ["20k", "150k"], ids=["weights", "optimizer"])
def test_a_full_disk_is_one_line(size: str, shards: Shards, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", f"size={size}") as disk:
        with pytest.raises(OutputError, match=r"^cannot save a checkpoint into .*: No space left on device$"):
            go_on(make_gpt2(2), shards, disk)
        assert [*disk.rglob("*.pt")] == [] if size == "20k" else [*disk.rglob("optimizer.pt")]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    """As many bytes as before, some of them others: what a power cut may leave of a file that was not flushed."""
    held = bytearray(path.read_bytes())
    held[len(held) // 2 :] = bytes(len(held) - len(held) // 2)
    path.write_bytes(held)


DAMAGES: tuple[Callable[[Path], None], ...] = (empty, cut_short, garbage, Path.unlink)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_the_one_before_a_damaged_checkpoint_is_used(
    cut: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    damage(cut / "checkpoints" / "checkpoint-8" / name)
    with caplog.at_level(logging.WARNING, "inheritune"):
        assert newest_checkpoint(cut / "checkpoints") == cut / "checkpoints" / "checkpoint-4"
    (record,) = caplog.records
    assert record.getMessage().startswith("checkpoint-8 cannot be used (")
    assert record.getMessage().endswith("): training goes on from checkpoint-4")
    assert "\n" not in record.getMessage()
    assert not (cut / "checkpoints" / "checkpoint-8").exists()


@pytest.mark.parametrize("damaged", [(), (8,), (8, 4)])
def test_the_run_ends_with_the_same_bits(
    cut: Path, whole: tuple[PreTrainedModel, Path], shards: Shards, damaged: tuple[int, ...]
) -> None:
    for step in damaged:
        garbage(cut / "checkpoints" / f"checkpoint-{step}" / "model.safetensors")
    with (cut / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "lo')  # a line without its end
    # Other weights than at the beginning where they must all come from the checkpoint.
    model = make_gpt2(2, seed=0 if len(damaged) == 2 else 9)
    go_on(model, shards, cut)
    for (name, left), right in zip(whole[0].state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert losses(cut) == losses(whole[1])


def test_with_none_left_a_line_says_that_the_round_starts_anew(cut: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty(cut / "checkpoints" / "checkpoint-8" / "optimizer.pt")
    (cut / "checkpoints" / "checkpoint-4" / "scheduler.pt").unlink()
    with caplog.at_level(logging.WARNING, "inheritune"):
        assert newest_checkpoint(cut / "checkpoints") is None
    assert [record.getMessage() for record in caplog.records] == [
        "checkpoint-8 cannot be used (optimizer.pt is damaged), checkpoint-4 cannot be used (scheduler.pt is missing): "
        "this round starts anew"
    ]
    assert newest_checkpoint(cut / "none") is None


@pytest.mark.parametrize(
    "content", ["[1]", "null", '{"step": 8}', '{"step": 8, "files": 3}', '{"step": 8, "files": {"a": 1}}']
)
def test_a_last_file_with_other_things_in_it(cut: Path, content: str) -> None:
    (cut / "checkpoints" / "checkpoint-8" / "complete.json").write_text(content)
    assert newest_checkpoint(cut / "checkpoints") == cut / "checkpoints" / "checkpoint-4"
