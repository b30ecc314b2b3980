"""A model's head alone: from the body's last hidden states to logits, for as few positions at a time as one likes.

The family's own code makes them, with all that it does to logits (scale, soft-cap, bias): the model's forward pass
runs with a body that answers at once with the hidden states it is given. B sequences, T tokens, D hidden units, V
vocabulary.
"""

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from inheritune.decoder.view import decoder_of, evaluating

_FORMS: WeakKeyDictionary[nn.Module, type | None] = WeakKeyDictionary()
"""What the body of a model returns; None for a model whose head cannot be run alone."""


@dataclass(frozen=True)
class Head:
    """The head of a model.

    Attributes:
        model: the whole model, not wrapped for several processes.
        body: what gives the last hidden states.
        form: the class of the body's output.
    """

    model: PreTrainedModel
    body: nn.Module
    form: type

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the logits (n, V) of last hidden states (n, D)."""
        answer, own = self.form(last_hidden_state=rows[None]), vars(self.body).get("forward")
        unread = torch.zeros(1, len(rows), dtype=torch.int64, device=rows.device)
        self.body.forward = lambda *_, **__: answer
        try:
            return self.model(input_ids=unread, use_cache=False).logits[0]
        finally:
            del self.body.forward
            if own is not None:
                self.body.forward = own

    def hidden(self, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states (B, T, D) of inputs (B, T); logits are made of one position alone.

        `model` is called, which may be the head's model wrapped for several processes.
        """
        with outputs_of([self.body]) as seen:
            model(input_ids=inputs, use_cache=False, logits_to_keep=1)
        return seen[self.body].last_hidden_state

    def weights(self) -> tuple[nn.Parameter, ...]:
        """Return the trained weights that the head may use: those outside the body, and those that are tied to it."""
        inside, tied = set(self.body.parameters()), set(self.model.get_output_embeddings().parameters())
        return tuple(p for p in self.model.parameters() if p.requires_grad and (p not in inside or p in tied))


def head_of(model: PreTrainedModel) -> Head | None:
    """Return a model's head; None where it needs more than the last hidden states, as a trial with two tokens tells."""
    if model not in _FORMS:
        _FORMS[model] = _tried(model)
    form = _FORMS[model]
    return None if form is None else Head(model, decoder_of(model), form)


def _tried(model: PreTrainedModel) -> type | None:
    """Return the class of the body's output if the logits that are made of it are the model's own."""
    if "logits_to_keep" not in inspect.signature(type(model).forward).parameters:
        return None
    body, inputs = decoder_of(model), torch.arange(2, device=model.device)[None]
    with evaluating(model), torch.no_grad(), outputs_of([body]) as seen:
        logits = model(input_ids=inputs, use_cache=False).logits[0]
    output = seen.get(body)
    if output is None or getattr(output, "last_hidden_state", None) is None:
        return None
    with evaluating(model), torch.no_grad():
        again = Head(model, body, type(output))(output.last_hidden_state[0])
    same = again.shape == logits.shape and torch.allclose(again, logits, rtol=1e-3, atol=1e-3)
    return type(output) if same else None


@contextmanager
def outputs_of(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, Any]]:
    """Keep what each of these parts of a model returns while the block runs; of several calls, the last."""
    seen: dict[nn.Module, Any] = {}

    def keep(module: nn.Module, _: Any, output: Any) -> None:
        seen[module] = output

    handles = [module.register_forward_hook(keep) for module in set(modules)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
