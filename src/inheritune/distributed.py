"""One process decides, all hear: what a run on several devices needs beyond the Trainer."""

import datetime
from collections.abc import Callable
from typing import Any, TypeVar

from inheritune.errors import InherituneError

Result = TypeVar("Result")

WAIT = datetime.timedelta(days=365)
"""How long a process waits for another. The defaults, 10 minutes (NCCL) and 30 (gloo), are shorter than an evaluation
that the first process does alone; a process that dies is noticed by torchrun, which stops the others."""

_main_alone = False
"""Whether this is the first process, doing what the others wait for in `from_main`."""


def _state() -> Any:
    import torch
    from accelerate import PartialState

    # Without a device, accelerate takes several processes for one unless it is told that the CPU is meant.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)


def count_processes() -> int:
    """Return the number of processes that train together."""
    return int(_state().num_processes)


def is_main() -> bool:
    """Return whether this is the first process (or the only one)."""
    return bool(_state().is_main_process)


def from_main(function: Callable[[], Result]) -> Result:
    """Call `function` in the first process alone and return its result in every process.

    Decisions (does the target match?) and files are made once, so that processes cannot disagree over a last bit. A
    user's mistake or a Ctrl-C in the first process is raised in all of them; any other error is raised in the first one
    and, as a RuntimeError, in the others. `function` may call `from_main` again.
    """
    from accelerate.utils import broadcast_object_list

    global _main_alone
    state = _state()
    if state.num_processes == 1 or _main_alone:
        return function()
    outcome: list[Any] = [None, None]
    failure: BaseException | None = None
    if state.is_main_process:
        _main_alone = True
        try:
            outcome[0] = function()
        except BaseException as error:  # noqa: BLE001 - raised again below, when the others have heard of it
            failure = outcome[1] = error
            if not isinstance(error, InherituneError | KeyboardInterrupt):  # not every exception can be sent
                outcome[1] = RuntimeError(f"the first process failed: {type(error).__name__}: {error}")
        finally:
            _main_alone = False
    broadcast_object_list(outcome)
    failure = failure or outcome[1]
    if failure is not None:
        raise failure
    return outcome[0]


def any_process(flag: bool) -> bool:
    """Return whether `flag` is true in any process; every process has to call this, none from inside `from_main`."""
    import torch
    from accelerate.utils import reduce

    state = _state()
    if state.num_processes == 1:
        return flag
    return bool(reduce(torch.tensor(float(flag), device=state.device), "sum").item())
