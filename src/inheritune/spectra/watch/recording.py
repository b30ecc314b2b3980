"""Run a decoder with a history for gradients, and hand out each layer's attention beside what the loss asks of it.

The attention function that models call meanwhile keeps each layer's queries, keys and probabilities. All gradients
are asked for by name (`torch.autograd.grad`), so no `.grad` is ever touched and no weight has to require one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from inheritune.decoder import Decoder
from inheritune.decoder.view import evaluating
from inheritune.errors import ModelError
from inheritune.spectra.watch.attention import AttentionInputs, check_against_eager
from inheritune.spectra.watch.capture import attention_implementation

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

IMPLEMENTATION = "inheritune_gradients"
"""The name under which the attention function is registered with transformers' AttentionInterface."""

CHUNK_BYTES = 512 * 2**20
"""Rough size of what the sequences of one forward pass keep for their gradients; at least one sequence is taken."""

Side = Literal["query", "key"]
SIDES: tuple[Side, ...] = ("query", "key")


@dataclass(frozen=True)
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
        query: (n, H, T, d), key: (n, H, T, d), one for each query head; both as they enter the logits.
        probabilities: (n, H, T, T).
        scaling: factor of the dot products.
        sources: the modules with weights that ran inside the attention module before.
    """

    layer: int
    head: int
    module: nn.Module
    query: Tensor
    key: Tensor
    probabilities: Tensor
    scaling: float
    sources: list[Source]
    _input_norms: dict[int, Tensor] = field(default_factory=dict)

    def side(self, side: Side) -> Tensor:
        """Return the queries or the keys, (n, H, T, d)."""
        return self.query if side == "query" else self.key

    def pull(self, tensor: Tensor, gradient: Tensor) -> list[tuple[Source, Tensor]]:
        """Return the sources of `tensor`, each with the gradient (..., d_out) of its output.

        `gradient` is that of `tensor`, of the same shape: queries or keys (n, H, T, d), or those of one head.
        """
        import torch

        outputs = [source.output for source in self.sources]
        parts = torch.autograd.grad(tensor, outputs, gradient, retain_graph=True, allow_unused=True)
        return [(source, part) for source, part in zip(self.sources, parts, strict=True) if part is not None]

    def input_norm(self, number: int) -> Tensor:
        """Return the spectral norm of each sequence's input of a source, (n,)."""
        import torch

        if number not in self._input_norms:
            source = next(source for source in self.sources if source.number == number)
            inputs = as_float64(source.input).reshape(*self.query.shape[:1], self.query.shape[2], -1)
            self._input_norms[number] = torch.linalg.matrix_norm(inputs, ord=2)
        return self._input_norms[number]


@dataclass(frozen=True)
class Gradients:
    """The gradients of a call's queries, keys and probabilities, shaped as they are."""

    query: Tensor
    key: Tensor
    probabilities: Tensor

    def side(self, side: Side) -> Tensor:
        """Return the gradient of the queries or of the keys, (n, H, T, d)."""
        return self.query if side == "query" else self.key


def run_with_gradients(decoder: Decoder, tokens: Tensor, add: Callable[[Call, Gradients], None]) -> float:
    """Run tokens (N, T) int64; hand every layer's attention and its gradients to `add` by chunks; return the loss.

    Raises:
        ModelError: the model's attention cannot be followed, or its loss is no number.
    """
    import torch

    model, total = decoder.model, 0.0
    tokens = tokens.to(model.get_input_embeddings().weight.device)
    size = max(1, CHUNK_BYTES // _bytes_per_sequence(decoder, tokens.shape[1]))
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(tokens.device.type, enabled=False))
        stack.enter_context(evaluating(model))
        recorder = stack.enter_context(_recording(decoder))
        for start in range(0, len(tokens), size):
            chunk = tokens[start : start + size]
            recorder.begin()
            # The mean over all sequences, so that the gradients of the chunks add up.
            loss = _loss(model, chunk) * (len(chunk) / len(tokens))
            total += float(loss.detach())
            for call, gradients in zip(recorder.calls, _differentiate(recorder, loss), strict=True):
                add(call, gradients)
    return total


def _loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Return the mean next-token cross-entropy of (n, T) tokens, a scalar with its history, nats a token."""
    from torch.nn import functional as F

    # Mixed precision training on accelerate wraps `forward` in an autocast that no context outside can turn off.
    forward = getattr(model, "_original_forward", model)
    logits = forward(input_ids=tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(as_float32(logits).flatten(0, 1), tokens[:, 1:].flatten())


def _differentiate(recorder: Recorder, loss: Tensor) -> list[Gradients]:
    """Return the gradients of every recorded call, given the scalar loss with its history."""
    import torch

    if not recorder.calls:
        raise ModelError(
            f"cannot probe the gradients of {recorder.family}: none of its layers uses transformers' attention "
            "interface, so their queries and keys cannot be seen"
        )
    if not loss.isfinite():
        raise ModelError(f"the loss of {recorder.family} is {float(loss)} on these tokens: expected a number")
    wanted = [tensor for call in recorder.calls for tensor in (call.query, call.key, call.probabilities)]
    # The way from each layer's queries to its weights is walked again afterwards. A layer whose attention reaches no
    # output learns nothing: zeros.
    flat = torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [Gradients(*flat[i : i + 3]) for i in range(0, len(flat), 3)]


@dataclass
class Recorder:
    """What the attention function and the hooks write down during one forward pass.

    Attributes:
        decoder: the model.
        calls: the attention of the layers so far.
        layer: the block that is running, or None between blocks.
        sources: the modules with weights that have run in it.
    """

    decoder: Decoder
    calls: list[Call] = field(default_factory=list)
    layer: int | None = None
    sources: list[Source] = field(default_factory=list)
    checked: bool = False

    @property
    def family(self) -> str:
        """The model's class, for messages."""
        return type(self.decoder.model).__name__

    def begin(self) -> None:
        """Note that the forward pass of a chunk begins."""
        self.checked = bool(self.calls)
        self.calls = []

    def enter(self, layer: int) -> None:
        """Note that block `layer` begins.

        Raises:
            ModelError: the model is recurrent in depth.
        """
        if any(call.layer == layer for call in self.calls):
            raise ModelError(f"cannot probe the gradients of {self.family}: it runs layer {layer} more than once")
        self.layer, self.sources = layer, []

    def leave(self) -> None:
        """Note that the block has ended."""
        self.layer = None

    def see(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        """Note the run of a module with weights (a forward hook)."""
        if self.layer is not None and inputs and getattr(output, "requires_grad", False):
            self.sources.append(Source(module, len(self.sources), inputs[0], output))

    def take(self, inputs: AttentionInputs, key: Tensor, probabilities: Tensor) -> None:
        """Note the attention of the running block: keys (n, H, T, d), probabilities (n, H, T, T)."""
        if self.layer is None:
            return
        head = sum(call.query.shape[1] for call in self.calls if call.layer == self.layer)
        inside = set(inputs.module.modules())
        sources = [source for source in self.sources if source.module in inside]
        module, query, scaling = inputs.module, inputs.query, inputs.scaling
        self.calls.append(Call(self.layer, head, module, query, key, probabilities, scaling, sources))


_active: ContextVar[Recorder] = ContextVar("inheritune_gradient_recorder")


@contextmanager
def _recording(decoder: Decoder) -> Iterator[Recorder]:
    """Let the model write down its attention with a history for gradients, and leave it as it was."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    AttentionInterface.register(IMPLEMENTATION, _attend)
    AttentionMaskInterface.register(IMPLEMENTATION, eager_mask)
    recorder = Recorder(decoder)
    with ExitStack() as stack:
        stack.callback(_active.reset, _active.set(recorder))
        stack.enter_context(attention_implementation(decoder.model, IMPLEMENTATION))
        # Gradients must flow although no weight may require them; what lies before the blocks is not asked about.
        embeddings = decoder.model.get_input_embeddings()
        stack.enter_context(embeddings.register_forward_hook(lambda *run: run[2].detach().requires_grad_()))
        for layer, block in enumerate(decoder.blocks):
            stack.enter_context(block.register_forward_pre_hook(lambda *_, layer=layer: recorder.enter(layer)))
            stack.enter_context(block.register_forward_hook(lambda *_: recorder.leave()))
            for module in block.modules():
                if getattr(module, "weight", None) is not None:
                    stack.enter_context(module.register_forward_hook(recorder.see))
        yield recorder


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Compute one layer's attention for the model, with a history, and hand it to the active recorder.

    The model calls this in place of its own function; see `AttentionInputs` for the arguments.

    Returns:
        (n, T, H, d') in the dtype of `value`, and no weights.

    Raises:
        ModelError: the family computes attention in a way that this function does not reproduce.
    """
    import torch

    recorder = _active.get()
    inputs = AttentionInputs.from_call(module, query, key, value, attention_mask, options)
    every, groups = slice(None), query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    logits = inputs.masked(_logits(inputs, key), every, every)
    probabilities = inputs.probabilities(logits, every, every)
    output = (probabilities @ value.to(probabilities.dtype)).transpose(1, 2)
    recorder.take(inputs, key, probabilities)
    if recorder.layer is not None and not recorder.checked:
        place = f"cannot probe the gradients of {recorder.family}: layer {recorder.layer}"
        with torch.no_grad():
            check_against_eager(place, inputs, output.detach().float(), options)
    return output.to(value.dtype), None


def _logits(inputs: AttentionInputs, key: Tensor) -> Tensor:
    """Return the logits before the mask, (n, H, T, S), at least float32; nothing is overwritten."""
    logits = (as_float32(inputs.query) @ as_float32(key).mT) * inputs.scaling
    if inputs.softcap is not None:
        logits = (logits / inputs.softcap).tanh() * inputs.softcap
    return logits if inputs.bias is None else logits + inputs.bias


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
