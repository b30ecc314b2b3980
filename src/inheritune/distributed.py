"""One process decides, all hear: what a run on several devices needs beyond the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def has_accelerator() -> bool:
    """Return whether there is a device other than the CPU to train on."""
    import torch

    return bool(torch.accelerator.is_available())


def _state() -> Any:
    from accelerate import PartialState

    # Without a device, accelerate takes several processes for one unless it is told that the CPU is meant.
    return PartialState(cpu=not has_accelerator())


def is_main() -> bool:
    """Return whether this is the first process (or the only one)."""
    return bool(_state().is_main_process)


def from_main(function: Callable[[], Result]) -> Result:
    """Call `function` in the first process alone and return its result in every process.

    Decisions (does the target match?) and files are made once, so that processes cannot disagree over a last bit. An
    error of the first process is raised in all of them.
    """
    from accelerate.utils import broadcast_object_list

    state = _state()
    if state.num_processes == 1:
        return function()
    outcome: list[object] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = function()
        except Exception as error:  # noqa: BLE001 - raised again, in every process, below
            outcome[1] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[1], Exception):
        raise outcome[1]
    return outcome[0]  # type: ignore[return-value]
