"""Two processes on the CPU: what one decides, what reaches one alone, and how long they wait for each other."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import make_shards

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    make_shards(folder / "shards")
    return folder


@pytest.fixture(scope="module")
def seen(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What each process saw."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    paths = os.pathsep.join(path for path in (str(SCRIPT.parents[1]), os.environ.get("PYTHONPATH")) if path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, str(SCRIPT), str(folder)], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1))
    return first, second


def test_waiting_for_the_first_process_has_no_limit(seen: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The first process works for 5 seconds where torch's own limit is set to 2."""
    assert [each["waited"] for each in seen] == [0, 0]


def test_from_main_nests(seen: tuple[dict[str, Any], dict[str, Any]]) -> None:
    for each in seen:
        assert each["nested"] == [0, 0, 0]
        assert each["after"] == "together"
        assert each["nested error"] == "DataError: within"


def test_an_error_of_the_first_process_is_raised_in_all(seen: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert seen[0]["errors"] == ["DataError: a mistake", "KeyError: 'key'", "KeyboardInterrupt: "]
    assert seen[1]["errors"] == [
        "DataError: a mistake",
        "RuntimeError: the first process failed: KeyError: 'key'",
        "KeyboardInterrupt: ",
    ]


@pytest.mark.skipif(
    torch.__version__.startswith(("2.11.", "2.12.")),
    reason="this torch cannot read a checkpoint back to the device cpu:0 of several CPU processes",
)
def test_a_signal_to_one_process_stops_all_at_one_step(
    seen: tuple[dict[str, Any], dict[str, Any]], folder: Path
) -> None:
    for each in seen:
        assert each["any"] == [True, True, False, True]
        assert each["stopped"] == "KeyboardInterrupt: "
        assert each["checkpoints"] == ["checkpoint-4", "checkpoint-6"]
        assert each["resumed"] == "nothing"
    lines = [json.loads(line) for line in (folder / "round" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]


def test_pieces_reach_the_same_losses_on_two_processes(seen: tuple[dict[str, Any], ...], folder: Path) -> None:
    """The head runs outside the wrapped forward pass: its gradients have to be shared all the same."""
    logs = [(folder / name / "metrics.jsonl").read_text().splitlines() for name in ("at once", "in pieces")]
    whole, pieces = ([json.loads(line) for line in log] for log in logs)
    for key in ("loss", "grad_norm"):
        assert [line[key] for line in pieces] == pytest.approx([line[key] for line in whole], rel=1e-4)
