"""Give collapsed heads a new start: their query and key weights go back to a random initialisation.

Theorem H.1 of the paper (arXiv 2404.08634, appendix H): the gradient of the query and key weights of a collapsed head
is as small as its attention is collapsed, so training alone hardly brings it back. Only these weights start afresh;
the head's values, its output and the rest of the block are copied.

Which weights these are is read off the model itself, family by family nothing is written down: the gradient of a
head's attention logits is nonzero just on the outputs of the projections that make its queries and keys, however these
are fused, interleaved or shared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from inheritune.decoder import Decoder, evaluating
from inheritune.errors import PlanError
from inheritune.spectra.folder import from_record, read_analysis
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.spectra.watch.capture import attention_implementation

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inheritune.surgery.plan.layer_plan import LayerPlan

Revived: TypeAlias = Spectra | BothSpectra | str | Path | Mapping[int, Iterable[int]]
"""Which heads to revive: what `analyze` returned, the folder it was saved in, or heads by layer."""

LENGTH = 5
"""Tokens of the pass that follows logits back to weights; few, and unlike any other dimension of a model."""


def heads_to_revive(revive: Revived, depth: int) -> dict[int, tuple[int, ...]]:
    """Return the heads to revive by layer of the model that was analysed, layers without any left out.

    A spectra result names its collapsed heads (`Spectra.collapsed_heads`); of both masks the causal one is asked, which
    is what the model computes and what Theorem H.1 speaks of.

    Args:
        revive: an analysis or a mapping from layers to query heads, all 0-based.
        depth: number of layers of the model the heads belong to.

    Raises:
        PlanError: it names layers that the model does not have, or no head at all.
        OutputError: the folder holds no analysis.
    """
    named = f"the analysis {revive}" if isinstance(revive, str | Path) else "the analysis"
    if isinstance(revive, str | Path):
        folder = Path(revive).expanduser()
        record = read_analysis(folder)
        revive = from_record(record)
        if record.depth not in (None, depth):
            layers = f"{record.depth} layers, this model has {depth}"
            raise PlanError(f"{folder} analyses a model of {layers}: analyse this one")
    if isinstance(revive, BothSpectra):
        revive = revive.causal
    if isinstance(revive, Spectra):
        rows = zip(revive.layers_index, revive.collapsed_heads, strict=True)
        revive = {layer: row.nonzero()[0].tolist() for layer, row in rows}
    heads = {layer: tuple(which) for layer, which in revive.items()}
    heads = {layer: which for layer, which in heads.items() if which}
    if beyond := [layer for layer in heads if not 0 <= layer < depth]:
        raise PlanError(f"asked to revive heads of layer {beyond[0]}, the model has {depth} layers (0-{depth - 1})")
    if not heads:
        raise PlanError(f"no head to revive: {named} names no collapsed head")
    return heads


@dataclass(frozen=True)
class FreshWeights:
    """Random values of some outputs of one projection, to be put back after the trained weights were copied.

    Attributes:
        module: the projection.
        outputs: (n,) int64, the numbers of its outputs.
        weight: (n, d_in), a row for each output.
        bias: (n,), or None.
    """

    module: nn.Module
    outputs: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, module: nn.Module, outputs: Tensor) -> FreshWeights:
        """Remember the present values."""
        bias = getattr(module, "bias", None)
        weight = _by_output(module)[outputs].detach().clone()
        return cls(module, outputs, weight, None if bias is None else bias[outputs].detach().clone())

    def put_back(self) -> None:
        """Write the remembered values into the projection."""
        import torch

        with torch.no_grad():
            _by_output(self.module)[self.outputs] = self.weight
            if self.bias is not None:
                getattr(self.module, "bias")[self.outputs] = self.bias  # noqa: B009 - of any module


def fresh_weights(decoder: Decoder, plan: LayerPlan) -> list[FreshWeights]:
    """Return the query and key weights of the heads that `plan` revives, as the random `decoder` has them now.

    An output of a projection that several heads read (a key head of grouped queries, the latent of multi-head latent
    attention) is among them only if all of these heads are revived: a living head keeps what it reads.

    Raises:
        PlanError: a layer has no such head, a head has no weights of its own, or the model cannot be followed.
    """
    wanted = {layer: set(row.revived) for layer, row in enumerate(plan) if row.revived}
    if not wanted:
        return []
    fresh = []
    for layer, readers in _readers(decoder, wanted).items():
        place = f"layer {layer} of {type(decoder.model).__name__}"
        _check_heads(wanted[layer], readers.heads, place)
        for head in sorted(wanted[layer]):
            own = [readers.only(wanted[layer], module) & read for module, read in readers.reads[head].items()]
            if not any(outputs.any() for outputs in own):
                raise PlanError(f"head {head} of {place} shares all its query and key weights with heads that stay")
        for module in readers.projections(wanted[layer]):
            if getattr(module, "weight").ndim != 2:  # noqa: B009 - of any module
                raise PlanError(f"cannot revive heads of {place}: {type(module).__name__} is not one matrix")
            fresh.append(FreshWeights.of(module, readers.only(wanted[layer], module).nonzero().flatten()))
    return [weights for weights in fresh if len(weights.outputs)]


def _check_heads(wanted: Iterable[int], heads: int, place: str) -> None:
    if not heads:
        raise PlanError(f"cannot revive heads of {place}: it has no attention whose logits can be followed")
    if beyond := sorted(head for head in wanted if head >= heads):
        raise PlanError(f"asked to revive head {beyond[0]}, {place} has {heads} (0 to {heads - 1})")


# -- Which outputs of which projections reach a head's logits ----------------------------------------------------------


@dataclass
class _Readers:
    """Which outputs of the projections of one layer its query heads read.

    Attributes:
        reads: for each head, the projections it reads and which of their outputs, (d_out,) bool.
        outputs: what each projection gave in the running pass, (..., d_out), with its history.
    """

    reads: list[dict[nn.Module, Tensor]] = field(default_factory=list)
    outputs: dict[nn.Module, Tensor] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """The number of query heads."""
        return len(self.reads)

    def projections(self, heads: Iterable[int]) -> list[nn.Module]:
        """Return the projections that any of `heads` reads, each once."""
        return list(dict.fromkeys(module for head in sorted(heads) for module in self.reads[head]))

    def only(self, heads: Collection[int], projection: nn.Module) -> Tensor:
        """Return which outputs of `projection` some of `heads` read and no other head does, (d_out,) bool."""
        import torch

        read = next(each[projection] for each in self.reads if projection in each)
        rows = torch.stack([each.get(projection, torch.zeros_like(read)) for each in self.reads])
        chosen = torch.tensor([head in heads for head in range(self.heads)])
        return rows[chosen].any(dim=0) & ~rows[~chosen].any(dim=0)

    def follow(self, logits: Tensor) -> None:
        """Take down what each head of `logits`, (1, H, T, S), reads."""
        import torch

        # Random factors, so that no sum over tokens can cancel out.
        factors = torch.randn(logits.shape[2:], generator=torch.Generator().manual_seed(0)).to(logits)
        modules, outputs = list(self.outputs), list(self.outputs.values())
        for head in logits[0]:
            score = (head.nan_to_num(neginf=0.0) * factors).sum()
            found = torch.autograd.grad(score, outputs, retain_graph=True, allow_unused=True)
            gradients = {module: part for module, part in zip(modules, found, strict=True) if part is not None}
            self.reads.append({module: part.flatten(0, -2).ne(0).any(dim=0) for module, part in gradients.items()})


def _readers(decoder: Decoder, layers: Iterable[int]) -> dict[int, _Readers]:
    """Run a few tokens through the model and return what the heads of some layers read.

    Raises:
        PlanError: the model's attention takes its softmax where it cannot be seen.
    """
    import torch

    readers = {layer: _Readers() for layer in layers}
    tokens = torch.arange(LENGTH)[None] % decoder.vocabulary
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(evaluating(decoder.model))
        stack.enter_context(attention_implementation(decoder.model, "eager"))
        for layer, reader in readers.items():
            stack.enter_context(_following(decoder.blocks[layer], reader))
        decoder.model.base_model(input_ids=tokens, use_cache=False)
    return readers


@contextmanager
def _following(block: nn.Module, reader: _Readers) -> Iterator[None]:
    """Let `reader` see the projections and the logits of a block whenever it runs."""
    listening = ExitStack()

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        listening.enter_context(_softmax_listener(reader))
        return _detached(args), {name: _detached((value,))[0] for name, value in kwargs.items()}

    def see(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if getattr(module, "weight").ndim == 1:  # noqa: B009 - of any module
            return inputs[0]  # a norm: through the length of all heads together each head would read every other
        reader.outputs[module] = output
        return None

    with ExitStack() as stack:
        stack.callback(listening.close)
        stack.enter_context(block.register_forward_pre_hook(enter, with_kwargs=True))
        stack.enter_context(block.register_forward_hook(lambda *_: listening.close()))
        for module in block.modules():
            if getattr(module, "weight", None) is not None:
                stack.enter_context(module.register_forward_hook(see))
        yield


def _softmax_listener(reader: _Readers) -> Any:
    """Return a context manager that shows `reader` the logits of every softmax over attention."""
    from torch.overrides import TorchFunctionMode

    class Listener(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") == "softmax" and args[0].ndim == 4 and args[0].shape[2] == LENGTH:
                reader.follow(args[0])
            return func(*args, **(kwargs or {}))

    return Listener()


def _detached(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return hidden states without what came before, so that each block's history stays its own."""
    import torch

    def floats(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.is_floating_point()

    return tuple(value.detach().requires_grad_() if floats(value) else value for value in values)


def _by_output(projection: nn.Module) -> Tensor:
    """Return a view of the projection's weight with a row for each output; GPT-2's `Conv1D` has columns."""
    from transformers.pytorch_utils import Conv1D

    weight: Tensor = getattr(projection, "weight")  # noqa: B009 - of any module
    return weight.T if isinstance(projection, Conv1D) else weight
