"""Run a decoder with a history for gradients, and hand out each layer's attention beside what the loss asks of it.

All gradients are asked for by name (`torch.autograd.grad`), so no `.grad` is ever touched and no weight has to require
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from inheritune.decoder import Decoder
from inheritune.decoder.view import evaluating
from inheritune.errors import ModelError
from inheritune.spectra.watch.attention import AttentionInputs
from inheritune.spectra.watch.interface import Watcher, watched_interface

CHUNK_BYTES = 512 * 2**20
"""Rough size of what the sequences of one forward pass keep for their gradients; at least one sequence is taken."""

Side = Literal["query", "key"]
SIDES: tuple[Side, ...] = ("query", "key")
Origin = TypeVar("Origin")


@dataclass(frozen=True, eq=False)
class Source:
    """One run of a module with weights inside an attention module.

    Attributes:
        module: the module.
        number: how many modules with weights ran before it in the block.
        input: what it was given, (..., d_in).
        output: what it gave, (..., d_out).
    """

    module: nn.Module
    number: int
    input: Tensor
    output: Tensor

    @property
    def is_product(self) -> bool:
        """Whether the module multiplies with a matrix (`Linear`, GPT-2's `Conv1D`)."""
        return getattr(self.module, "weight").ndim == 2  # noqa: B009 - of any module

    def weight_gradient(self, part: Tensor, columns: Tensor | None = None) -> Tensor:
        """Return X^T G, (d_in, m), for the gradient G (..., d_out) of the output, or for some `columns` (m,) of it."""
        left, right = self.input.detach().flatten(0, -2), part.flatten(0, -2)
        if columns is not None:
            right = right[:, columns]
        return as_float32(left).T @ as_float32(right)


@dataclass
class Call:
    """One layer's attention in one chunk of n sequences; H query heads, S = T keys.

    Attributes:
        layer: index of the block.
        head: number of the first head: not 0 where a block has several attention modules.
        module: the attention module.
        tensors: `query` and `key` (n, H, T, d), a key for each query head, as they enter the logits; `probabilities`
            (n, H, T, T).
        scaling: factor of the dot products.
        sources: the modules with weights that ran inside the attention module before.
        gradients: those of `tensors`, once the loss is known.
    """

    layer: int
    head: int
    module: nn.Module
    tensors: dict[str, Tensor]
    scaling: float
    sources: list[Source]
    gradients: dict[str, Tensor] = field(default_factory=dict)
    _input_norms: dict[int, Tensor] = field(default_factory=dict)

    @property
    def heads(self) -> int:
        """The number of query heads H."""
        return self.tensors["query"].shape[1]

    def pull(self, tensor: Tensor, gradient: Tensor) -> list[tuple[Source, Tensor]]:
        """Return the sources of `tensor`, each with the gradient (..., d_out) of its output.

        `gradient` is that of `tensor`, of the same shape: queries or keys (n, H, T, d), or those of one head.
        """
        return pull_back(tensor, gradient, {source: source.output for source in self.sources})

    def input_norm(self, number: int) -> Tensor:
        """Return the spectral norm of each sequence's input of a source, (n,)."""
        if number not in self._input_norms:
            n, _, length, _ = self.tensors["query"].shape
            source = next(source for source in self.sources if source.number == number)
            self._input_norms[number] = torch.linalg.matrix_norm(as_float64(source.input).reshape(n, length, -1), ord=2)
        return self._input_norms[number]


def pull_back(tensor: Tensor, gradient: Tensor, outputs: Mapping[Origin, Tensor]) -> list[tuple[Origin, Tensor]]:
    """Return what `tensor` comes from, each with the gradient (..., d_out) of its output, given that of `tensor`."""
    parts = torch.autograd.grad(tensor, [*outputs.values()], gradient, retain_graph=True, allow_unused=True)
    return [(origin, part) for origin, part in zip(outputs, parts, strict=True) if part is not None]


def reached(part: Tensor) -> Tensor:
    """Return which outputs, (d_out,) bool, have a gradient in `part` (..., d_out) that is not zero."""
    return part.flatten(0, -2).ne(0).any(dim=0)


def run_with_gradients(decoder: Decoder, tokens: Tensor, add: Callable[[Call], None]) -> float:
    """Run tokens (N, T) int64; hand every layer's attention with its gradients to `add`, by chunks; return the loss.

    Raises:
        ModelError: the model's attention cannot be followed, or its loss is no number.
    """
    model, total = decoder.model, 0.0
    tokens = tokens.to(model.get_input_embeddings().weight.device)
    size = max(1, CHUNK_BYTES // _bytes_per_sequence(decoder, tokens.shape[1]))
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(tokens.device.type, enabled=False),
        evaluating(model),
        _recording(decoder) as recorder,
    ):
        for start in range(0, len(tokens), size):
            chunk = tokens[start : start + size]
            recorder.sequence, recorder.calls = start, []
            # The mean over all sequences, so that the gradients of the chunks add up.
            loss = _loss(model, chunk) * (len(chunk) / len(tokens))
            total += float(loss.detach())
            _differentiate(recorder, loss)
            for call in recorder.calls:
                add(call)
    return total


def _loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy of (n, T) tokens, a scalar with its history, nats a token."""
    # Mixed precision training on accelerate wraps `forward` in an autocast that no context outside can turn off.
    forward = getattr(model, "_original_forward", model)
    logits = forward(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(as_float32(logits).flatten(0, 1), tokens[:, 1:].flatten())


def _differentiate(recorder: Recorder, loss: Tensor) -> None:
    """Put down the gradients of every recorded call, given the scalar loss with its history."""
    if not recorder.calls:
        raise ModelError(
            f"{recorder.cannot}: none of its layers uses transformers' attention interface, so their queries and keys "
            "cannot be seen"
        )
    if not loss.isfinite():
        raise ModelError(f"the loss of {recorder.family} is {float(loss)} on these tokens: expected a number")
    wanted = [tensor for call in recorder.calls for tensor in call.tensors.values()]
    # The way from each layer's queries to its weights is walked again afterwards. A layer whose attention reaches no
    # output learns nothing: zeros.
    found = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
    gradients = iter(found)
    for call in recorder.calls:
        call.gradients = {name: next(gradients) for name in call.tensors}


@dataclass
class Recorder(Watcher):
    """A forward pass whose attention is written down with its history.

    `calls` are the attention of the layers so far, `sources` the modules with weights that ran in the running block.
    """

    AIM: ClassVar[str] = "probe the gradients of"

    calls: list[Call] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    def enter(self, layer: int) -> None:
        """Note that block `layer` begins; see `Watcher.enter`."""
        super().enter(layer)
        self.sources = []

    def see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the run of a module with weights (a forward hook)."""
        if self.layer is not None and inputs and getattr(output, "requires_grad", False):
            self.sources.append(Source(module, len(self.sources), inputs[0], output))

    def attend(self, inputs: AttentionInputs) -> Tensor:
        """Return what a layer's attention gives, (n, T, H, d') at least float32, and write it down."""
        module, query, groups = inputs.module, inputs.query, inputs.query.shape[1] // inputs.key.shape[1]
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (inputs.key, inputs.value))
        each, every = replace(inputs, key=key, value=value), (slice(None), slice(None))
        probabilities = each.probabilities(each.hide(each.logits(*every), *every), *every)
        if self.layer is not None:
            head = sum(call.heads for call in self.calls if call.layer == self.layer)
            inside = set(module.modules())
            sources = [source for source in self.sources if source.module in inside]
            tensors = {"query": query, "key": key, "probabilities": probabilities}
            self.calls.append(Call(self.layer, head, module, tensors, inputs.scaling, sources))
        return each.mix(probabilities, *every).contiguous()


@contextmanager
def _recording(decoder: Decoder) -> Iterator[Recorder]:
    """Let the model write down its attention with a history for gradients, and leave it as it was."""
    recorder = Recorder(decoder)
    modules = [module for block in decoder.blocks for module in block.modules()]
    with ExitStack() as stack:
        stack.enter_context(watched_interface(recorder))
        stack.enter_context(recorder.blocks())
        # Gradients must flow although no weight may require them; what lies before the blocks is not asked about.
        # A copy, because CTRL scales it in place.
        embeddings = decoder.model.get_input_embeddings()
        stack.enter_context(embeddings.register_forward_hook(lambda *run: run[2].detach().requires_grad_().clone()))
        for module in modules:
            if getattr(module, "weight", None) is not None:
                stack.enter_context(module.register_forward_hook(recorder.see))
        yield recorder


def as_float32(tensor: Tensor) -> Tensor:
    """Return `tensor` (any shape) in at least float32: half precision is widened, float64 stays."""
    return tensor.float() if tensor.element_size() < 4 else tensor


def _bytes_per_sequence(decoder: Decoder, length: int) -> int:
    """Return a rough size of what one sequence of `length` tokens keeps from a forward pass for its gradients.

    That is some 30 float32 vectors a token and layer, five matrices for each head, and the logits with their softmax.
    """
    vectors = 30 * decoder.layers * int(decoder.config.hidden_size) + 4 * decoder.vocabulary
    return 4 * length * (vectors + 5 * decoder.layers * decoder.heads * length)


def as_float64(tensor: Tensor) -> Tensor:
    """Return `tensor` (any shape) without its history, float64, so that squares of small numbers do not underflow."""
    return tensor.detach().double()
