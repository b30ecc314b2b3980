"""`inheritune plan`: what a recipe would cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inheritune.cli.run import Changes

PARTS = {
    "training": "weights, gradients and optimiser",
    "reference": "reference",
    "logits": "logits",
    "activations": "activations",
    "libraries": "Python and its libraries",
}
"""What takes memory, in words."""


SPARE = 1.2
"""What a training may take for an estimate of 1; up to 1.11 was measured: allocators keep some as well."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("plan")(plan)


def plan(
    recipe: Annotated[
        str, typer.Argument(help="A recipe in YAML, or the name of one that the package ships (run --list).")
    ],
    set_: Changes = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan as JSON to this file.")] = None,
) -> None:
    """Check a recipe and estimate what it takes, at worst; nothing is downloaded, prepared or trained."""
    from inheritune.cli.console import console, print_table
    from inheritune.recipes import plan as plan_recipe

    cost = plan_recipe(recipe, set_ or [])
    for note in cost.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    rows = [
        (f"round {i}", item.layers, f"{item.parameters:,}", f"{item.tokens:,}", time_span(item.seconds))
        for i, item in enumerate(cost.rounds, 1)
    ]
    columns = ("", "layers", "parameters", "tokens", "time (rough)")
    print_table(f"{cost.name} ({cost.method}), at most", columns, rows)
    need, free = cost.memory_bytes / 1e9, cost.memory_available_bytes / 1e9
    advice = "lower training.micro_batch or use a smaller target"
    fits = "fits" if SPARE * need < free else f"{'may' if need < free else 'does'} not fit: {advice}"
    said = [] if cost.memory is None else [f"{cost.memory[key] / 1e9:.2f} {text}" for key, text in PARTS.items()]
    console.print(
        f"{cost.tokens:,} tokens, about {time_span(cost.seconds)} of training here\n"
        f"memory about {need:.2f} GB ({', '.join(said)}) of {free:.1f} GB free: {fits}",
        markup=False,
        soft_wrap=True,
    )
    if out is not None:
        cost.write(out)


def time_span(seconds: float) -> str:
    """Write a rough time span in the unit a person would use: `40 s`, `12.5 minutes`, `4.3 days`."""
    for unit, size in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
