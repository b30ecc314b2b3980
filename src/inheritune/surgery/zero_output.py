"""Growth that preserves the function: appended blocks that write nothing to the residual stream until they are trained.

A block with a residual connection around each of its branches computes the identity when the last projection of every
branch is zero. The model's loss then does not jump when the block is appended, and since only the last projections are
zero their gradients are not, so the block learns from the first step on (the last layer of each residual branch starts
at zero in Fixup too: Zhang et al., arXiv 1901.09321).
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from inheritune.decoder import Decoder, evaluating
from inheritune.errors import PlanError

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAST = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|down_proj|dense|dense_4h_to_h|fc2|fc_out|w2|[Ww]o|w_out|output_linear|linear_out"
    r"|attention_out|proj_down|ffn\.2|per_layer_projection)(\.(weight|bias)|_bias)?$"
    r"|(^|\.)(mlp|self_attention\.experts)\.bias$"  # JetMoE adds its experts' biases behind the output projection
)
"""What families call the last projection of a branch; that these are all of them is proved on the built model."""


def zero_outputs(target: Decoder, rows: Iterable[int]) -> None:
    """Set blocks of `target` to the identity, in place, and prove it by running the model.

    Args:
        target: the grown model.
        rows: the blocks that shall write nothing.

    Raises:
        PlanError: the family's blocks cannot be the identity, or share their projections with other blocks.
    """
    rows = sorted(set(rows))
    others = {id(p) for i, block in enumerate(target.blocks) if i not in rows for p in block.parameters()}
    for row in rows:
        zero_output(target.blocks[row], others)
    check_identity(target, rows)


def zero_output(block: nn.Module, shared: Container[int] = frozenset()) -> list[str]:
    """Set to zero, in place, the projections through which `block` writes to the residual stream.

    Args:
        block: a transformer block: attention and MLP, experts, state spaces or convolutions.
        shared: ids of parameters that other blocks use too; they are left as they are.

    Returns:
        The names of the weights and biases in the block that are zero now.
    """
    import torch

    names = [name for name, weight in block.named_parameters() if _LAST.search(name) and id(weight) not in shared]
    with torch.no_grad():
        for name in names:
            block.get_parameter(name).zero_()
    return names


def check_identity(target: Decoder, rows: Iterable[int], tokens: int = 8) -> None:
    """Confirm that the blocks `rows` leave the hidden states of two random sequences as they are, to the bit.

    Args:
        target: the model.
        rows: the blocks.
        tokens: the length of the sequences.

    Raises:
        PlanError: naming the family and the first block that does not.
    """
    import torch

    rows, generator = list(rows), torch.Generator().manual_seed(0)
    ids = torch.randint(target.vocabulary, (2, tokens), generator=generator).to(target.model.device)
    unchanged: dict[nn.Module, bool] = {}

    def compare(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        before: Tensor = args[0] if args else kwargs["hidden_states"]
        after: Tensor = output if isinstance(output, torch.Tensor) else output[0]
        unchanged[block] = torch.equal(before, after)

    with ExitStack() as stack, torch.no_grad(), evaluating(target.model):
        for row in rows:
            stack.enter_context(target.blocks[row].register_forward_hook(compare, with_kwargs=True))
        target.model(input_ids=ids, use_cache=False)
    changed = [row for row in rows if not unchanged.get(target.blocks[row], False)]
    if changed:
        raise PlanError(
            f"{target.model.config.model_type} cannot grow with its function preserved: layer {changed[0]} changes the "
            "hidden states although its output projections are zero; append it without zero_output"
        )
