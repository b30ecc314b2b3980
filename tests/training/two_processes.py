"""What `test_two_processes.py` lets two processes do; each writes what it saw to a file of its own."""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d

from inheritune.data import TrainingWindows, open_shards
from inheritune.distributed import any_process, from_main
from inheritune.errors import DataError
from inheritune.training import Objective, ObjectiveSettings, TrainingSettings, losses, train
from tiny import make_gpt2

RANK = int(os.environ["RANK"])
SETTINGS = TrainingSettings(
    steps=12, batch=4, length=16, learning_rate=1e-2, warmup_steps=3, log_every=2, valid_every=0, checkpoint_every=4
)


class Signalled(TrainingWindows):
    """Data whose reading at step 5 sends the second process alone a signal."""

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if RANK == 1 and n // SETTINGS.batch == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(n)


def raising(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


def raised(function: Callable[[], Any]) -> str:
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - what was raised is the question
        return f"{type(error).__name__}: {error}"
    return "nothing"


def trained(folder: Path, data: type[TrainingWindows]) -> str:
    windows = data(open_shards(folder / "shards"), SETTINGS.length, SETTINGS.steps * SETTINGS.batch, seed=5)
    return raised(lambda: train(make_gpt2(2), windows, SETTINGS, folder / "round", seed=0))


def taught(folder: Path, name: str, at_once: int) -> None:
    """Train with the KL to a teacher, the logits of at most `at_once` tokens at a time."""
    losses.rows_at_once = lambda *_: at_once
    windows = TrainingWindows(open_shards(folder / "shards"), SETTINGS.length, SETTINGS.steps * SETTINGS.batch, seed=5)
    loss = Objective(ObjectiveSettings(kl=1.0, hidden=0.5), make_gpt2(3, seed=4))
    train(make_gpt2(2), windows, SETTINGS, folder / name, seed=0, loss=loss)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed_c10d.default_pg_timeout = datetime.timedelta(seconds=2)
    seen: dict[str, Any] = {"waited": from_main(lambda: time.sleep(5) or RANK)}
    seen["nested"] = from_main(lambda: [RANK, from_main(lambda: RANK), from_main(lambda: from_main(lambda: RANK))])
    seen["after"] = from_main(lambda: "together")
    seen["any"] = [any_process(flag) for flag in (RANK == 1, RANK == 0, False, True)]
    errors = (DataError("a mistake"), KeyError("key"), KeyboardInterrupt())
    seen["errors"] = [raised(lambda error=error: from_main(raising(error))) for error in errors]
    seen["nested error"] = raised(lambda: from_main(lambda: from_main(raising(DataError("within")))))
    seen["stopped"] = trained(folder, Signalled)
    seen["checkpoints"] = sorted(path.name for path in (folder / "round" / "checkpoints").iterdir())
    from_main(lambda: None)  # nobody goes on before all have looked
    seen["resumed"] = trained(folder, TrainingWindows)
    for name, at_once in (("at once", 1000), ("in pieces", 5)):
        taught(folder, name, at_once)
    (folder / f"{RANK}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
