"""`inheritune inherit`: a new model folder made of layers of a trained one."""

from __future__ import annotations

import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.options import SEPARATOR, Field, Model, PathOption, Private, PushTo, Separator, SourceOption
from inheritune.errors import InherituneWarning, OutputError, PlanError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from inheritune.records.analysis import Recommendation
    from inheritune.surgery import LayerPlan
    from inheritune.surgery.plan.selection import Layers


def inherit(
    model: Model,
    layers: Annotated[
        str | None,
        typer.Option(
            help="A count (12: the first 12), a range with its end excluded (0:12), a list (0,2,4), or the folder of "
            "an analysis of this model: what it recommends. With --width alone: all layers."
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="How many layers stay, or a share of them (80%): the cheapest cut to so many, see --data."),
    ] = None,
    drop: Annotated[int | None, typer.Option(help="How many layers go, in place of --keep.")] = None,
    analysis: Annotated[
        Path | None,
        PathOption(metavar="ANALYSIS", help="With --keep or --drop: an analysis of MODEL with --ablate."),
    ] = None,
    data: Annotated[
        str | None,
        SourceOption(help="With --keep or --drop: text to measure what each cut costs."),
    ] = None,
    field: Field = "text",
    separator: Separator = SEPARATOR,
    arrange: Annotated[
        str,
        typer.Option(
            help="Which layers a count means: first, middle, last, evenly-spaced, distilbert (every other one, then "
            "some of the last again), stacking (the first half of them, twice), random; or in-place: these layers "
            "stay where they are and the rest is random."
        ),
    ] = "first",
    parts: Annotated[
        str, typer.Option(help="What to copy: all, or some of attention,mlp,norms; the rest is random.")
    ] = "all",
    moved: Annotated[
        str | None,
        typer.Option(
            metavar="keep|as-is",
            help="Layers that get another number, where the model computes by it: keep changes their weights so that "
            "they compute what they did; as-is leaves them, which is the default of stacking alone.",
        ),
    ] = None,
    grow_from: Annotated[
        str | None,
        SourceOption(
            metavar="TARGET",
            help="A trained model to grow: it keeps its layers, and layers of MODEL are put behind them. --layers is "
            "the depth to grow to, or says which layers of MODEL.",
        ),
    ] = None,
    zero_output: Annotated[
        bool,
        typer.Option(
            "--zero-output",
            help="With --grow-from: the new layers start without output, so that the grown model gives exactly the "
            "logits of TARGET.",
        ),
    ] = False,
    revive: Annotated[
        Path | None,
        PathOption(
            metavar="ANALYSIS",
            help="Folder of an analysis of MODEL: the queries and keys of collapsed heads start anew.",
        ),
    ] = None,
    width: Annotated[
        str | None, typer.Option(help="Share of the heads, hidden units and MLP units that stay, for example 1/2.")
    ] = None,
    repair: Annotated[
        str | None,
        SourceOption(
            metavar="TEXT",
            help="Text or shards, whose training split is read: a linear map that stands in for the layers left out is "
            "fitted to it and folded into the MLP before each gap.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random initialisation of what is not copied.")] = 0,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="Print the plan and stop; no weights are read.")
    ] = False,
    out: Annotated[Path | None, PathOption(metavar="DIR", help="New or empty folder for the model.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Largest file of weights.")] = "5GB",
    push_to: PushTo = None,
    private: Private = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of MODEL on the hub.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run the code that MODEL brings along, if it needs any.")
    ] = False,
) -> None:
    """Build a smaller model from layers of a trained one, and save it with its tokenizer and a model card.

    The plan is printed first: where each layer comes from, what is copied, what is random.
    """
    from inheritune.checkpoints import hub
    from inheritune.decoder import load_config
    from inheritune.surgery.config.target import depth_of
    from inheritune.surgery.files.checkpoint import check_destination, check_shard_size
    from inheritune.surgery.plan.selection import recommended_layers
    from inheritune.surgery.request import RECORD, SurgeryRequest, check_same_model, start_of
    from inheritune.surgery.revive import heads_to_revive

    check_shard_size(max_shard_size)
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    if out is not None and not plan_only:
        check_destination(out, Path(model), *([Path(grow_from)] if grow_from else []))
    with _notes():
        for folder in (layers if recommended_layers(layers) else None, analysis, revive):
            if folder is not None:
                check_same_model(folder, model)
    budget = Budget(keep, drop, analysis, data, separator, field, revision)
    chosen = budget.choose(model, config, layers, arrange, grow_from)
    target = None if grow_from is None else load_config(grow_from, trust_remote_code=trust_remote_code)
    start = None if grow_from is None else start_of(grow_from, model)
    plan = _plan(config, target, chosen, arrange, parts, zero_output, width, start)
    plan = plan if moved is None else plan.with_moved(moved)
    if revive is not None:
        plan = plan.revive(heads_to_revive(revive, depth_of(config)))
    if private and push_to is None:
        raise OutputError("--private is for an upload: pass --push-to USER/NAME")
    request = SurgeryRequest(
        model, grow_from, config, target, plan, width, repair, seed, max_shard_size, revision, trust_remote_code
    )
    typer.echo(request.describe())
    if plan_only:
        return
    if out is None:
        raise OutputError("no output folder: pass --out DIR, or --plan-only to see the plan alone")
    if push_to is not None:
        hub.check_push(push_to)
    with _notes():
        request.write(out, shlex.join(["inheritune", *sys.argv[1:]]))
    typer.echo(f"saved: {out}")
    if push_to is not None:
        url = hub.push(out, push_to, private=private, leave_out=[RECORD])
        typer.echo(f"uploaded: {url}")


@dataclass(frozen=True)
class Budget:
    """`--keep` and `--drop`: how many layers stay, and which, by what was or is measured."""

    keep: str | None
    drop: int | None
    analysis: Path | None
    data: str | None
    separator: str
    field: str
    revision: str | None

    def choose(
        self, model: str, config: PretrainedConfig, layers: str | None, arrange: str, grow_from: str | None
    ) -> Recommendation | str | None:
        """Return the layers that stay, and print the recommendation; a count where another option says which.

        Without a budget they are those that `--layers` says.

        Raises:
            InherituneError: the options contradict each other, the budget is out of range, or nothing can be measured.
        """
        from inheritune.spectra.advice import depth_of_budget, recommend, recommend_by_price
        from inheritune.surgery.config.target import depth_of

        sources = [name for name, value in (("--analysis", self.analysis), ("--data", self.data)) if value is not None]
        if self.keep is None and self.drop is None:
            if sources:
                raise PlanError(f"{sources[0]} says which layers stay, not how many: pass --keep or --drop too")
            return layers
        option = "--keep" if self.keep is not None else "--drop"
        for name, value in (("--layers", layers), ("--grow-from", grow_from)):
            if value is not None:
                raise PlanError(f"{option} and {name} are both given: expected one of them")
        count = depth_of_budget(self.keep, self.drop, depth_of(config))
        if len(sources) > 1 or (sources and arrange != "first"):
            raise PlanError(f"{sources[0]} and {[*sources, '--arrange'][1]} both say which layers stay: expected one")
        if self.data and self.revision is not None:
            raise PlanError(f"--data measures {model} as it is now, not --revision {self.revision}: pass --analysis")
        if not sources:
            if arrange == "first":
                typer.echo(
                    f"note: the first {count} layers are the paper's rule of thumb, unmeasured: pass --data TEXT, or "
                    "--analysis of analyze --ablate, to keep those that cost least",
                    err=True,
                )
            return str(count)
        if self.data:
            from inheritune.surgery.prices import check_choice, choice_windows, measure_prices

            windows = choice_windows(model, self.data, self.separator, self.field)
            check_choice(windows, config)
            advice = recommend_by_price(measure_prices(None, model, windows, depth=count), count)
        else:
            advice = recommend(str(self.analysis), keep=count)
        typer.echo(f"Recommended: {advice}")
        return advice


@contextmanager
def _notes() -> Iterator[None]:
    """Show the package's own warnings as lines on standard error."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        typer.echo(f"note: {message}", err=True)

    with warnings.catch_warnings():
        warnings.simplefilter("always", InherituneWarning)
        warnings.showwarning = show
        yield


def _plan(
    config: PretrainedConfig,
    target: PretrainedConfig | None,
    layers: Layers | None,
    arrange: str,
    parts: str,
    zero_output: bool,
    width: str | None,
    start: LayerPlan | None,
) -> LayerPlan:
    """Return the plan that the options stand for, which may contradict each other."""
    from inheritune.surgery import LayerPlan
    from inheritune.surgery.config.target import check_families, depth_of

    depth = depth_of(config)
    if layers is None:
        if width is None:
            raise PlanError(f"no layers given: pass --layers, for example --layers {(depth + 1) // 2}")
        layers = str(depth)
    if target is None:
        if zero_output:
            raise PlanError("--zero-output is for layers that a trained model grows by: pass --grow-from TARGET")
        return LayerPlan.arranged(arrange, layers, depth, parts)
    check_families([config, target])
    for option, value, default in (
        ("--arrange", arrange, "first"),
        ("--parts", parts, "all"),
        ("--width", width, None),
    ):
        if value != default:
            raise PlanError(f"{option} {value} does not go with --grow-from: new layers are whole layers of MODEL")
    return LayerPlan.append(depth_of(target), layers, zero_output=zero_output, start=start, depth=depth)
