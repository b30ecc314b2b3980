"""Give collapsed heads a new start: their query and key weights go back to a random initialisation.

Theorem H.1 of the paper (arXiv 2404.08634, appendix H): the gradient of the query and key weights of a collapsed head
is as small as its attention is collapsed, so training alone hardly brings it back.

Which weights these are is read off the model itself, family by family nothing is written down: the gradient of a
head's attention logits is nonzero just on the outputs of the projections that make its queries and keys, however these
are fused, interleaved or shared.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from inheritune.decoder import Decoder, evaluating
from inheritune.errors import PlanError
from inheritune.spectra.folder import from_record, read_analysis
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.interface import attention_implementation
from inheritune.spectra.watch.recording import pull_back, reached
from inheritune.surgery.plan.layer_plan import LayerPlan

Revived: TypeAlias = Spectra | BothSpectra | str | Path | Mapping[int, Iterable[int]]
"""Which heads to revive: what `analyze` returned, the folder it was saved in, or heads by layer."""

LENGTH = 5
"""Tokens of the pass that follows logits back to weights; few, and unlike any other dimension of a model."""


def heads_to_revive(revive: Revived, depth: int) -> dict[int, tuple[int, ...]]:
    """Return the heads to revive by layer of the model that was analysed, layers without any left out.

    A spectra result names its collapsed heads (`Spectra.collapsed_heads`); of both masks the causal one is asked, which
    is what the model computes and what Theorem H.1 speaks of. A mapping is from layers to query heads, all 0-based, of
    a model of `depth` layers.

    Raises:
        PlanError: it names layers that the model does not have, or no head at all.
        OutputError: the folder holds no analysis.
    """
    if isinstance(revive, str | Path):
        record = read_analysis(Path(revive).expanduser())
        if record.depth not in (None, depth):
            layers = f"{record.depth} layers, this model has {depth}"
            raise PlanError(f"{revive} analyses a model of {layers}: analyse this one")
        revive = from_record(record)
    heads = collapsed_heads(revive)
    if beyond := [layer for layer in heads if not 0 <= layer < depth]:
        raise PlanError(f"asked to revive heads of layer {beyond[0]}, the model has {depth} layers (0-{depth - 1})")
    if not heads:
        raise PlanError("no head to revive: the analysis names no collapsed head")
    return heads


def collapsed_heads(revive: Revived) -> dict[int, tuple[int, ...]]:
    """Return heads as `heads_to_revive` does, whatever the model's depth; none where nothing is named.

    Raises:
        OutputError: the folder holds no analysis.
    """
    if isinstance(revive, str | Path):
        revive = from_record(read_analysis(Path(revive).expanduser()))
    if isinstance(revive, BothSpectra):
        revive = revive.causal
    if isinstance(revive, Spectra):
        rows = zip(revive.layers_index, revive.collapsed_heads, strict=True)
        revive = {layer: row.nonzero()[0].tolist() for layer, row in rows}
    return {layer: named for layer, which in revive.items() if (named := tuple(which))}


def revived_entries(decoder: Decoder, plan: LayerPlan) -> dict[int, Tensor]:
    """Return which entries of the random `decoder` are query and key weights of the heads that `plan` revives.

    An output of a projection that several heads read (a key head of grouped queries, the latent of multi-head latent
    attention) is among them only if all of these heads are revived: a living head keeps what it reads.

    Returns:
        For each parameter with such entries, by its id, a bool tensor that broadcasts to it: (d_out, 1) for the weight
        of a linear layer, (d_out,) for a bias and for the transposed weight of GPT-2's `Conv1D`.

    Raises:
        PlanError: a layer has no such head, a head has no weights of its own, or the model cannot be followed.
    """
    wanted = {layer: set(row.revived) for layer, row in enumerate(plan) if row.revived}
    entries: dict[int, Tensor] = {}
    for layer, reads in (_reads(decoder, wanted) if wanted else {}).items():
        place = f"layer {layer} of {type(decoder.model).__name__}"
        if not reads:
            raise PlanError(f"cannot revive heads of {place}: it has no attention whose logits can be followed")
        if beyond := sorted(head for head in wanted[layer] if head >= len(reads)):
            raise PlanError(f"asked to revive head {beyond[0]}, {place} has {len(reads)} (0 to {len(reads) - 1})")
        own = {module: _read_by_no_other(wanted[layer], reads, module) for h in wanted[layer] for module in reads[h]}
        for head in sorted(wanted[layer]):
            if not any((own[module] & read).any() for module, read in reads[head].items()):
                raise PlanError(f"head {head} of {place} shares all its query and key weights with heads that stay")
        for module, outputs in own.items():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if weight is None or weight.ndim != 2:
                raise PlanError(f"cannot revive heads of {place}: {type(module).__name__} is not one matrix")
            entries[id(weight)] = outputs if isinstance(module, Conv1D) else outputs[:, None]
            entries |= {} if bias is None else {id(bias): outputs}
    return entries


# -- Which outputs of which projections reach a head's logits ----------------------------------------------------------

Reads: TypeAlias = "list[dict[nn.Module, Tensor]]"
"""For each query head of a layer, the projections that it reads and which of their outputs, (d_out,) bool."""


def _read_by_no_other(heads: Container[int], reads: Reads, projection: nn.Module) -> Tensor:
    """Return which outputs of `projection` some of `heads` read and no other head does, (d_out,) bool."""
    nothing = torch.zeros_like(next(each[projection] for each in reads if projection in each))
    rows = torch.stack([each.get(projection, nothing) for each in reads])
    chosen = torch.tensor([head in heads for head in range(len(reads))])
    return rows[chosen].any(dim=0) & ~rows[~chosen].any(dim=0)


def _reads(decoder: Decoder, layers: Iterable[int]) -> dict[int, Reads]:
    """Run a few tokens through the model and return what the heads of some layers read; none where it is not seen."""
    reads: dict[int, Reads] = {layer: [] for layer in layers}
    tokens = torch.arange(LENGTH)[None] % decoder.vocabulary
    with ExitStack() as stack, torch.inference_mode(False), torch.enable_grad(), evaluating(decoder.model):
        stack.enter_context(attention_implementation(decoder.model, "eager"))
        for layer, heads in reads.items():
            stack.enter_context(_following(decoder.blocks[layer], heads))
        decoder.model.base_model(input_ids=tokens, use_cache=False)
    return reads


@contextmanager
def _following(block: nn.Module, reads: Reads) -> Iterator[None]:
    """Add to `reads` what the heads of a block read, when it runs."""
    outputs: dict[nn.Module, Tensor] = {}
    listening = ExitStack()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        listening.enter_context(_SoftmaxListener(outputs, reads))
        return tuple(map(_detached, args)), {name: _detached(value) for name, value in kwargs.items()}

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if getattr(module, "weight").ndim == 1:  # noqa: B009 - of any module
            return inputs[0]  # a norm: through the length of all heads together each head would read every other
        outputs[module] = output
        return None

    with ExitStack() as stack:
        stack.callback(listening.close)
        stack.enter_context(block.register_forward_pre_hook(enter, with_kwargs=True))
        stack.enter_context(block.register_forward_hook(lambda *_: listening.close()))
        for module in block.modules():
            if getattr(module, "weight", None) is not None:
                stack.enter_context(module.register_forward_hook(see))
        yield


class _SoftmaxListener(TorchFunctionMode):
    """Adds to `reads` what each head reads of `outputs`, (..., d_out), at every softmax over logits (1, H, T, S)."""

    def __init__(self, outputs: Mapping[nn.Module, Tensor], reads: Reads) -> None:
        super().__init__()
        self.outputs, self.reads = outputs, reads

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") == "softmax" and args[0].ndim == 4 and args[0].shape[2] == LENGTH:
            # Random factors, so that no sum over tokens can cancel out.
            factors = torch.randn(args[0].shape[2:], generator=torch.Generator().manual_seed(0)).to(args[0])
            for head in args[0][0]:
                parts = pull_back(head.nan_to_num(neginf=0.0), factors, self.outputs)
                self.reads.append({module: reached(part) for module, part in parts})
        return func(*args, **(kwargs or {}))


def _detached(value: Any) -> Any:
    """Return hidden states without what came before, so that each block's history stays its own."""
    floats = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.detach().requires_grad_() if floats else value
