"""`inheritune inherit`: a new model folder made of layers of a trained one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.errors import ModelError, OutputError

if TYPE_CHECKING:
    from inheritune.surgery import LayerPlan

RECORD = "inherit.json"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("inherit")(inherit)


def inherit(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The trained model: a folder or a hub id.")],
    layers: Annotated[
        str,
        typer.Option(
            help="A count (12: the first 12), a range with its end excluded (0:12), a list (0,2,4), or the folder of "
            "an analysis of this model: what it recommends."
        ),
    ],
    parts: Annotated[
        str, typer.Option(help="What to copy: all, or some of attention,mlp,norms; the rest is random.")
    ] = "all",
    seed: Annotated[int, typer.Option(help="Seed of the random initialisation of what is not copied.")] = 0,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and stop; no weights are read.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New or empty folder for the model.")] = None,
) -> None:
    """Build a smaller model from layers of a trained one, and save it with its tokenizer."""
    from inheritune.cli.console import console
    from inheritune.decoder import count_parameters, load_config
    from inheritune.surgery import LayerPlan
    from inheritune.surgery.checkpoint import check_destination
    from inheritune.surgery.config import depth_of
    from inheritune.surgery.fit import draft

    config = load_config(model)
    plan = LayerPlan.from_layers(layers, depth_of(config), parts)
    _, before, after = draft(config, plan)
    sizes = {"before": count_parameters(before.model), "after": count_parameters(after.model)}
    console.print(str(plan), markup=False, soft_wrap=True)
    share = sizes["after"] / sizes["before"]
    console.print(f"parameters: {sizes['before']:,} -> {sizes['after']:,} ({share:.0%})", markup=False)
    if plan_only:
        return
    if out is None:
        raise OutputError("no output folder: pass --out DIR, or --plan-only to see the plan alone")
    check_destination(Path(model), out)
    _build(model, plan, seed, out)
    _write_record(out, model, plan, seed, sizes)
    console.print(f"saved: {out}", markup=False, soft_wrap=True)


def _build(model: str, plan: LayerPlan, seed: int, out: Path) -> None:
    """Write the model folder: from file to file where everything is copied, else through a model in memory."""
    from inheritune import surgery
    from inheritune.decoder import load_tokenizer, save_model

    folder = Path(model).expanduser()
    if plan.copies_all and any(folder.glob("*.safetensors")):
        surgery.inherit_checkpoint(folder, out, plan=plan)
        return
    built = surgery.inherit(model, plan=plan, seed=seed)
    try:
        tokenizer = load_tokenizer(model)
    except ModelError as error:
        typer.echo(f"note: saved without a tokenizer: {error}", err=True)
        tokenizer = None
    save_model(built, out, tokenizer)


def _write_record(out: Path, model: str, plan: LayerPlan, seed: int, parameters: dict[str, int]) -> None:
    from inheritune import records

    record: dict[str, Any] = {
        "kind": "inherit",
        "schema": 1,
        "source": model,
        "layers": len(plan),
        "plan": plan.as_records(),
        "seed": seed,
        "parameters": parameters,
        "created": records.now(),
        "environment": records.environment(),
    }
    records.write_json(out / RECORD, record)
