"""`inheritune inherit`: a new model folder made of layers of a trained one."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.errors import ModelError, OutputError, PlanError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from inheritune.surgery import LayerPlan

RECORD = "inherit.json"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("inherit")(inherit)


def inherit(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The trained model: a folder or a hub id.")],
    layers: Annotated[
        str | None,
        typer.Option(
            help="A count (12: the first 12), a range with its end excluded (0:12), a list (0,2,4), or the folder of "
            "an analysis of this model: what it recommends. With --width alone: all layers."
        ),
    ] = None,
    arrange: Annotated[
        str,
        typer.Option(
            help="Which layers a count means: first, middle, last, distilbert (every other one), stacking (the first "
            "half of them, twice), random; or in-place: these layers stay where they are and the rest is random."
        ),
    ] = "first",
    parts: Annotated[
        str, typer.Option(help="What to copy: all, or some of attention,mlp,norms; the rest is random.")
    ] = "all",
    grow_from: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="A trained model to grow: it keeps its layers, and layers of MODEL are put behind them. --layers is "
            "the depth to grow to, or says which layers of MODEL.",
        ),
    ] = None,
    zero_output: Annotated[
        bool,
        typer.Option(
            "--zero-output",
            help="With --grow-from: the new layers start without output, so that the "
            "grown model says exactly what TARGET says.",
        ),
    ] = False,
    revive: Annotated[
        Path | None,
        typer.Option(
            metavar="ANALYSIS",
            help="Folder of an analysis of MODEL: the queries and keys of collapsed heads start anew.",
        ),
    ] = None,
    width: Annotated[
        str | None, typer.Option(help="Share of the heads, hidden units and MLP units that stay, for example 1/2.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random initialisation of what is not copied.")] = 0,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and stop; no weights are read.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New or empty folder for the model.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    push_to: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the folder to the hub, with its model card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to: a private repository.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that MODEL brings along, if it needs any.")
    ] = False,
) -> None:
    """Build a smaller model from layers of a trained one, and save it with its tokenizer and a model card.

    The plan is printed first: where each layer comes from, what is copied, what is random.
    """
    from inheritune.cli.console import console
    from inheritune.decoder import hub, load_config
    from inheritune.surgery.checkpoint import check_destination

    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    target = None if grow_from is None else load_config(grow_from, trust_remote_code=trust_remote_code)
    plan = _plan(config, target, layers, arrange, parts, zero_output, width)
    if revive is not None:
        plan = _revived(plan, revive, config)
    order = Order(model, grow_from, config, target, plan, width, seed, max_shard_size, revision, trust_remote_code)
    console.print(order.describe(), markup=False, soft_wrap=True)
    if plan_only:
        return
    if out is None:
        raise OutputError("no output folder: pass --out DIR, or --plan-only to see the plan alone")
    check_destination(Path(model), out, *([Path(grow_from)] if grow_from else []))
    if push_to is not None:
        hub.check_push(push_to)
    order.fill(out, _spell(context))
    console.print(f"saved: {out}", markup=False, soft_wrap=True)
    if push_to is not None:
        url = hub.push(out, push_to, private=private, leave_out=[RECORD])
        console.print(f"uploaded: {url}", markup=False, soft_wrap=True)


def _plan(
    config: PretrainedConfig,
    target: PretrainedConfig | None,
    layers: str | None,
    arrange: str,
    parts: str,
    zero_output: bool,
    width: str | None,
) -> LayerPlan:
    """Return the plan that the options stand for, which may contradict each other."""
    from inheritune.surgery import LayerPlan
    from inheritune.surgery.config import depth_of

    depth = depth_of(config)
    if layers is None:
        if width is None:
            raise PlanError(f"no layers given: pass --layers, for example --layers {(depth + 1) // 2}")
        layers = str(depth)
    if target is None:
        if zero_output:
            raise PlanError("--zero-output is for layers that a trained model grows by: pass --grow-from TARGET")
        return LayerPlan.arranged(arrange, layers, depth, parts)
    for option, value, default in (
        ("--arrange", arrange, "first"),
        ("--parts", parts, "all"),
        ("--width", width, None),
    ):
        if value != default:
            raise PlanError(f"{option} {value} does not go with --grow-from: new layers are whole layers of MODEL")
    return LayerPlan.grown(depth_of(target), layers, depth, zero_output)


def _revived(plan: LayerPlan, analysis: Path, config: PretrainedConfig) -> LayerPlan:
    from inheritune.surgery.config import depth_of
    from inheritune.surgery.revive import heads_to_revive

    return plan.revive(heads_to_revive(analysis, depth_of(config)))


@dataclass(frozen=True)
class Order:
    """What is to be made, checked and ready: building it reads weights for the first time.

    Attributes:
        model: the reference, a folder or a hub id.
        target: the model that grows, likewise, or None.
        config: the reference's configuration.
        target_config: the target's, or None.
        plan: where each layer comes from.
        width: the share of the width that stays, or None for all.
        seed: of what is random.
        max_shard_size: of the files that are written.
        revision: of the reference on the hub.
        trust_remote_code: whether a model may bring its own code.
    """

    model: str
    target: str | None
    config: PretrainedConfig
    target_config: PretrainedConfig | None
    plan: LayerPlan
    width: str | None
    seed: int
    max_shard_size: str
    revision: str | None
    trust_remote_code: bool

    def parameters(self) -> dict[str, int]:
        """Return the number of parameters of the reference and of the model to be made.

        Raises:
            PlanError: the plan or the width does not fit.
        """
        from inheritune.decoder import count_parameters
        from inheritune.surgery import blueprint, narrow_config
        from inheritune.surgery.fit import draft

        new_config, reference, new = draft(self.config, self.plan, self.target_config)
        made = new.model if self.width is None else blueprint(narrow_config(new_config, self.width))
        return {"before": count_parameters(reference.model), "after": count_parameters(made)}

    def describe(self) -> str:
        """Return the plan as text, with the number of parameters."""
        from inheritune.surgery.width import describe_width

        sizes = self.parameters()
        share = sizes["after"] / sizes["before"]
        narrowed = [] if self.width is None else [f"width: {describe_width(self.config, self.width)}"]
        counted = f"parameters: {sizes['before']:,} -> {sizes['after']:,} ({share:.0%})"
        return "\n".join([str(self.plan), *narrowed, counted])

    def fill(self, out: Path, command: str) -> None:
        """Write the model's folder and the record: from file to file where that can be, else through memory."""
        from inheritune import records, surgery

        if self.is_copy():
            surgery.inherit_checkpoint(
                self.model,
                out,
                plan=self.plan,
                target=self.target,
                max_shard_size=self.max_shard_size,
                revision=self.revision,
                trust_remote_code=self.trust_remote_code,
                command=command,
            )
        else:
            self._build(out, command)
        records.write_json(out / RECORD, self.as_record())

    def is_copy(self) -> bool:
        """Return whether the files of the sources hold all there is to write, bit for bit."""
        from inheritune.surgery.checkpoint import check_whole

        if self.width is not None:
            return False
        try:
            check_whole(self.config, self.plan, self.target_config)
        except PlanError:  # the plan itself was found to fit: it needs a model in memory
            return False
        return True

    def _build(self, out: Path, command: str) -> None:
        from inheritune import surgery
        from inheritune.decoder import load_tokenizer, save_model
        from inheritune.records import write_text
        from inheritune.surgery.card import CARD, model_card, place_of
        from inheritune.surgery.width import describe_width

        built = surgery.inherit(
            self.model,
            plan=self.plan,
            target=self.target,
            width=self.width,
            seed=self.seed,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
        try:
            tokenizer = load_tokenizer(self.model, revision=self.revision, trust_remote_code=self.trust_remote_code)
        except ModelError as error:
            typer.echo(f"note: saved without a tokenizer: {error}", err=True)
            tokenizer = None
        sizes = self.parameters()

        card = model_card(
            name=out.name,
            plan=self.plan,
            source=place_of(self.model, self.revision),
            target=None if self.target is None else place_of(self.target),
            parameters=(sizes["before"], sizes["after"]),
            command=command,
            width="" if self.width is None else describe_width(self.config, self.width),
        )

        def finish(folder: Path) -> None:
            write_text(folder / CARD, card)

        save_model(built, out, tokenizer, max_shard_size=self.max_shard_size, finish=finish)

    def as_record(self) -> dict[str, Any]:
        """Return what was made from what, as plain data."""
        from inheritune import records

        return {
            "kind": "inherit",
            "schema": 1,
            "source": self.model,
            "target": self.target,
            "layers": len(self.plan),
            "plan": self.plan.as_records(),
            "width": self.width,
            "seed": self.seed,
            "parameters": self.parameters(),
            "created": records.now(),
            "environment": records.environment(),
        }


def _spell(context: typer.Context) -> str:
    """Return the command as it was given, defaults left out."""
    words = ["inheritune", "inherit"]
    for parameter in context.command.params:
        name = str(parameter.name)
        if getattr(context.get_parameter_source(name), "name", "") != "COMMANDLINE":
            continue
        value = context.params[name]
        option = [] if parameter.param_type_name == "argument" else [parameter.opts[0]]
        words += option if value is True else [*option, str(value)]
    return shlex.join(words)
