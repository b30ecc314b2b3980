"""Progress with an estimate of the time left: a bar on a terminal, a line now and then in a log file."""

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG_SECONDS = 15.0
"""Least time between two lines when standard error is not a terminal."""

_showing = False

Advance = Callable[..., None]
"""`advance(count=1, note="")`: `count` more units are done; `note` is shown beside the bar."""


@functools.cache
def note(text: str) -> None:
    """Say on standard error, once, what a user should know although the work goes on."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(f"note: {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is the line itself


@contextmanager
def progress(description: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Show the progress of `total` units of work on standard error, with the time left.

    The estimate leaves out the units that were `done` before this process began (a resumed run). Only the first process
    of a distributed run shows anything, and only the outermost of nested works.
    """
    global _showing
    if _showing or int(os.environ.get("RANK", "0")) > 0:
        yield lambda count=1, note="": None
        return
    _showing = True
    try:
        with _bar(description, total, done) if sys.stderr.isatty() else _lines(description, total, done) as advance:
            yield advance
    finally:
        _showing = False


@contextmanager
def _bar(description: str, total: int, done: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=8),  # all of it, with the loss and the speed, has to fit 80 columns
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")

        def advance(count: int = 1, note: str = "") -> None:
            bar.update(task, advance=count)
            if note:
                bar.update(task, note=note)

        yield advance


@contextmanager
def _lines(description: str, total: int, done: int) -> Iterator[Advance]:
    start = shown = time.monotonic()
    finished = done

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal shown, finished
        finished += count
        now = time.monotonic()
        if now - shown < LOG_SECONDS:
            return
        shown = now
        minutes, seconds = divmod(round((now - start) / max(finished - done, 1) * (total - finished)), 60)
        share = f"{finished:.0f}/{total} ({finished / max(total, 1):.0%})"
        text = f"{description}: {share}, {minutes}:{seconds:02d} left"
        print(f"{text}  {note}".rstrip(), file=sys.stderr, flush=True)  # noqa: T201 - this is the log line itself

    yield advance
