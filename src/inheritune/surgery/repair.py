"""A cut healed in closed form: a linear map stands in for the layers that are missing, and no parameter is added.

Behind the last block before a gap the removed blocks would have changed the hidden states. Least squares finds the map
D of that block's MLP output m for which y + m D comes closest to what the next kept block got; m (I + D) is what a
changed output projection gives (ReplaceMe: Shopkhoev et al., arXiv 2505.02819, whose map is I + D). Where the
projection has a bias, a constant is fitted too. The normal equations are summed up in float64, a few windows at a time,
so that memory does not grow with them. A ridge draws D to nothing, which is the plain cut; its strength, and whether
to change anything at all, is decided on every fourth batch, which the map was not fitted to.

It is exact only where the MLP's output is added to the hidden states as it is, which is tried on the model itself:
norms or scales behind the MLP, and experts with a projection each, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from inheritune.decoder import Decoder, evaluating
from inheritune.decoder.head import outputs_of
from inheritune.errors import PlanError
from inheritune.layers import ranges
from inheritune.progress import note, progress
from inheritune.spectra.checks import check_fit, check_tokens
from inheritune.surgery.build import LAST
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.selection import PARTS, part_of

WINDOWS, WINDOW_LENGTH = 128, 256
"""What a text is fitted with: windows and their tokens, or fewer where the model takes no more."""
BATCH = 4
"""Windows that run together."""
HELD = 4
"""Every so many batches one decides on the ridge."""
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Strengths that are tried, as shares of the mean square of the MLP's output."""


@dataclass(frozen=True)
class Repair:
    """What was done about one gap.

    Attributes:
        layer: the new model's layer before the gap, whose MLP was changed.
        removed: layers of the reference in the gap.
        before: mean square of what the gap lacks, on the windows that decide; a share of that of what the removed
            layers added.
        after: the same once the map is folded in; as `before` where no map was better.
        ridge: the strength that was chosen; None for no change.
    """

    layer: int
    removed: range
    before: float
    after: float
    ridge: float | None

    def __str__(self) -> str:
        removed = f"layer{'s' if len(self.removed) > 1 else ''} {ranges(self.removed)}"
        if self.ridge is None:
            return f"layer {self.layer} is left as it is: no map stands in for {removed} of the reference"
        return (
            f"layer {self.layer} stands in for {removed} of the reference: of what they add, {self.before:.0%} was "
            f"missing and {self.after:.0%} is (mean square)"
        )


def gaps_of(plan: LayerPlan, depth: int) -> list[tuple[int, range]]:
    """Return for each gap of a plan the new layer before it and the layers of a reference of `depth` in it.

    Raises:
        PlanError: the plan does more than leave out layers, or there is no layer before any gap.
    """
    sources = [row.source for row in plan if row.model == "reference" and row.parts == PARTS and not row.changes]
    kept = [source for source in sources if source is not None]
    if len(kept) < len(plan) or kept != sorted(set(kept)):
        raise PlanError(
            "a repair is for plans that leave out layers of the reference and keep the others whole, in order"
        )
    ends = [*kept[1:], depth]
    gaps = [(new, range(one + 1, end)) for new, (one, end) in enumerate(zip(kept, ends, strict=True)) if one + 1 < end]
    if not gaps:
        raise PlanError("nothing to repair: the plan leaves out no layers behind one that it keeps")
    return gaps


def check_repairable(plan: LayerPlan, depth: int, width: object = None) -> None:
    """Refuse, by a PlanError, a repair of a plan as `gaps_of` does, or of a model of another `width`."""
    gaps_of(plan, depth)
    if width is not None:
        raise PlanError("a repair is for models of full width: pass repair or width")


def repair_gaps(new: Decoder, source: Decoder, plan: LayerPlan, tokens: Any) -> list[Repair]:
    """Fold a map into the MLP before each gap of `new`, in place, from the first to the last.

    Each is fitted to the states of the model in which those before it are repaired.

    Args:
        new: the model that `plan` cut from `source`.
        source: the whole model.
        plan: how it was cut.
        tokens: windows to fit to, (N, T) integers, an array or tensor; N T should be many times the model's width.

    Raises:
        PlanError: the plan has no gap, the family's MLP is not added as it is, or there are too few tokens.
        DataError: they are no (N, T) integers, or not of the model's vocabulary and context.
    """
    gaps, tokens = gaps_of(plan, source.layers), check_tokens(tokens)
    check_fit(source, tokens)
    width = int(source.config.hidden_size)
    if tokens.numel() < 2 * width or len(tokens) < BATCH * HELD:
        raise PlanError(
            f"{len(tokens)} windows of {tokens.numel():,} tokens to fit a repair to: expected at least {BATCH * HELD}, "
            f"of {2 * width:,} tokens"
        )
    for layer, _ in gaps:
        _check_added(new, layer, tokens[:1, :8])
    done = []
    with progress("repairing gaps", len(gaps)) as advance:
        for layer, removed in gaps:
            done.append(_repair_one(new, source, layer, removed, tokens))
            advance(1)
    for each in done:
        note(str(each))
    return done


def _repair_one(new: Decoder, source: Decoder, layer: int, removed: range, tokens: Tensor) -> Repair:
    projection = output_projection(new.blocks[layer], f"layer {layer} of {type(new.model).__name__}")
    fit, held, added = _Sums(), _Sums(), 0.0
    for number, (states, wanted, start) in enumerate(_states(new, source, layer, removed, projection, tokens)):
        part = held if number % HELD == HELD - 1 else fit
        part.add(states[0], wanted - states[1], projection.bias is not None)
        added += float((wanted - start).square().sum()) if part is held else 0.0
    before = held.residual(None)
    tried = [(held.residual(fit.solve(ridge)), ridge) for ridge in RIDGES]
    after, ridge = min(tried)
    if after >= before:
        return Repair(layer, removed, before / added, before / added, None)
    _fold(projection, (fit + held).solve(ridge))
    return Repair(layer, removed, before / added, after / added, ridge)


class _Sums:
    """Normal equations of residuals (n, D) on MLP outputs (n, D), with a column of ones where there is a bias."""

    def __init__(self) -> None:
        self.gram: Any = 0.0
        self.cross: Any = 0.0
        self.square = 0.0

    def add(self, outputs: Tensor, lacking: Tensor, bias: bool) -> None:
        """Add rows, float64."""
        known = torch.cat([outputs, outputs.new_ones(len(outputs), 1)], dim=1) if bias else outputs
        self.gram, self.cross = self.gram + known.T @ known, self.cross + known.T @ lacking
        self.square += float(lacking.square().sum())

    def __add__(self, other: _Sums) -> _Sums:
        both = _Sums()
        both.gram, both.cross = self.gram + other.gram, self.cross + other.cross
        both.square = self.square + other.square
        return both

    def solve(self, ridge: float) -> Tensor:
        """Return the map, (D, D) or (D + 1, D), its constant in the last row; that one is not drawn to nothing."""
        width = self.cross.shape[1]
        strength = torch.zeros_like(self.gram.diagonal())
        strength[:width] = ridge * self.gram.diagonal()[:width].mean()
        return torch.linalg.solve(self.gram + strength.diag(), self.cross)

    def residual(self, linear: Tensor | None) -> float:
        """Return the sum of squares that a map leaves; None for no map."""
        if linear is None:
            return self.square
        return self.square + float((linear * (self.gram @ linear - 2 * self.cross)).sum())


def output_projection(block: nn.Module, place: str) -> Any:
    """Return the module through which a block's MLP writes, a `Linear` or GPT-2's `Conv1D`.

    Raises:
        PlanError: there is not one such module; `place` names the block.
    """
    weights = [name for name, _ in block.named_parameters() if name.endswith(".weight") and LAST.search(name)]
    found = [block.get_submodule(name.removesuffix(".weight")) for name in weights if part_of(name) == "mlp"]
    if len(found) != 1 or not isinstance(found[0], nn.Linear | Conv1D):
        raise PlanError(f"cannot repair a gap behind {place}: expected an MLP with one output projection")
    return found[0]


def _check_added(new: Decoder, layer: int, tokens: Tensor) -> None:
    """Confirm that what is added to the MLP's output comes out of the block as it is."""
    kind = new.model.config.model_type
    projection = output_projection(new.blocks[layer], f"layer {layer} of {type(new.model).__name__}")
    shared = {id(p) for i, block in enumerate(new.blocks) if i != layer for p in block.parameters()}
    with torch.no_grad(), evaluating(new.model):
        plain = _run(new, tokens, new.blocks[layer])[0]
        with projection.register_forward_hook(lambda module, args, output: output + plain.view_as(output)):
            more = _run(new, tokens, new.blocks[layer])[0]
    exact = torch.linalg.vector_norm(more - 2 * plain) < 0.05 * torch.linalg.vector_norm(plain)
    if not exact or id(projection.weight) in shared:
        raise PlanError(
            f"cannot repair a gap in a {kind}: its MLP's output is not added to the hidden states as it is (a norm, a "
            "scale or shared weights)"
        )


def _states(
    new: Decoder, source: Decoder, layer: int, removed: range, projection: nn.Module, tokens: Tensor
) -> Iterator[tuple[tuple[Tensor, Tensor], Tensor, Tensor]]:
    """Yield the states at a gap, a batch of windows at a time, (n, D) float64 each.

    They are the MLP's and the block's output before the gap; and, of the whole model, what the next kept block got and
    what the first removed one did.
    """
    for batch in tokens.split(BATCH):
        with torch.no_grad(), evaluating(new.model), evaluating(source.model):
            wanted, before = _run(source, batch, *(source.blocks[i] for i in (removed[-1], removed[0] - 1)))
            outputs, hidden = _run(new, batch, projection, new.blocks[layer])
        yield (_rows(outputs), _rows(hidden)), _rows(wanted), _rows(before)


def _run(decoder: Decoder, tokens: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Run the blocks of a model and return what some modules gave out."""
    with outputs_of(modules) as found:
        decoder.model.base_model(input_ids=tokens.to(decoder.model.device), use_cache=False)
    outputs = (found[module] for module in modules)
    return [output if isinstance(output, Tensor) else output[0] for output in outputs]


def _rows(states: Tensor) -> Tensor:
    return states.reshape(-1, states.shape[-1]).double()


def _fold(projection: Any, linear: Tensor) -> None:
    """Let a projection give out m + m D + c where it gave m, in place; `linear` is D, and c below it."""
    width = linear.shape[1]
    whole = linear[:width] + torch.eye(width, dtype=linear.dtype, device=linear.device)
    with torch.no_grad():
        weight = projection.weight.double()
        transposed = isinstance(projection, torch.nn.Linear)
        projection.weight.copy_(whole.T @ weight if transposed else weight @ whole)
        if projection.bias is not None:
            projection.bias.copy_(projection.bias.double() @ whole + linear[width])
