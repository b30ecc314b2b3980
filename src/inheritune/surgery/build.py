"""Build a model and put weights into it: what cutting, growing and narrowing have in common.

Growth may preserve the function: appended blocks then write nothing to the residual stream until they are trained. A
block with a residual connection around each of its branches computes the identity when the last projection of every
branch is zero. The loss of the model then does not jump when the block is appended, and since only the last projections
are zero their gradients are not, so the block learns from the first step on (the last layer of each residual branch
starts at zero in Fixup too: Zhang et al., arXiv 1901.09321).
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Container, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.decoder import Decoder, compute_buffers, evaluating
from inheritune.decoder.view import is_finite
from inheritune.errors import InherituneWarning, PlanError, library_errors

UNTIE = 'set "tie_word_embeddings": false in its config.json (config.tie_word_embeddings = False of a model)'
"""What mends a model whose head is not the embedding that its configuration says it is."""


def build_random(
    build: Callable[..., PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype | None, seed: int
) -> PreTrainedModel:
    """Build a randomly initialised model on the CPU, so that a seed means the same weights on every machine.

    `build` makes it of `config` and `dtype`, None for what `config` says. The global random state is left as it was.

    Raises:
        PlanError: the configuration cannot be built, or the seed is none.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise PlanError(f"seed {seed!r}: expected a whole number from 0 to {2**63 - 1}")
    # Only the CPU generator is seeded; torch.manual_seed would reset the accelerators' as well.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.random.default_generator.manual_seed(seed)
        with library_errors(f"cannot build the new {config.model_type}", kind=PlanError):
            model = build(config, dtype=dtype).eval()
    compute_buffers(model)
    return model


def copy_weights(target: PreTrainedModel, weight_of: Callable[[str, Tensor], Tensor | None]) -> None:
    """Put weights into the parameters and stored buffers of `target`; what holds NaN or infinity is warned of.

    `weight_of` gives the weight for a name in the target's state and what is there now, in the shape of that; None to
    leave it. The weight may share its memory with another model.

    Raises:
        PlanError: two different weights are given for one that the target holds under two names.
    """
    given: dict[int, tuple[str, Tensor]] = {}
    for key, place in target.state_dict(keep_vars=True).items():
        weight = weight_of(key, place) if isinstance(place, torch.Tensor) else None
        if weight is None:
            continue
        other, earlier = given.setdefault(id(place), (key, weight))
        if earlier.data_ptr() != weight.data_ptr() and not torch.equal(earlier, weight):
            raise PlanError(
                f"{key} and {other} are two different weights, and the new model has one for both: if they are head "
                f"and embedding, {UNTIE}"
            )
        if isinstance(place, torch.nn.Parameter) and not is_finite(weight):
            warn_not_finite([key])
        place.data = weight.detach().clone(memory_format=torch.contiguous_format)


def take_after(target: PreTrainedModel, source: PreTrainedModel) -> PreTrainedModel:
    """Give `target` the generation settings of `source`, move it to its device, and return it."""
    target.generation_config = copy.deepcopy(source.generation_config)
    return target.to(source.device)


def warn_not_finite(names: list[str]) -> None:
    """Warn of weights of the new model that hold NaN or infinity."""
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    line = f"{names[0]}{more} hold NaN or infinity, as in the source: the new model is damaged"
    warnings.warn(line, InherituneWarning, stacklevel=3)


LAST = re.compile(
    r"(^|\.)(o_proj|out_proj|c_proj|down_proj|dense|dense_4h_to_h|fc2|fc_out|w2|[Ww]o|w_out|output_linear|linear_out"
    r"|attention_out|proj_down|ffn\.2|per_layer_projection)(\.(weight|bias)|_bias)?$"
    r"|(^|\.)(mlp|self_attention\.experts)\.bias$"  # JetMoE adds its experts' biases behind the output projection
)
"""What families call the last projection of a branch; that these are all of them is proved on the built model."""


def zero_outputs(target: Decoder, rows: Iterable[int]) -> None:
    """Set the blocks `rows` of a grown model to the identity, in place, and prove it by running the model.

    Raises:
        PlanError: the family's blocks cannot be the identity, or share their projections with other blocks.
    """
    rows = sorted(set(rows))
    others = {id(p) for i, block in enumerate(target.blocks) if i not in rows for p in block.parameters()}
    for row in rows:
        zero_output(target.blocks[row], others)
    check_identity(target, rows)


def zero_output(block: nn.Module, shared: Container[int] = frozenset()) -> list[str]:
    """Set to zero, in place, the projections through which a block writes to the residual stream; return their names.

    `shared` are the ids of parameters that other blocks use too; they are left as they are.
    """
    names = [name for name, weight in block.named_parameters() if LAST.search(name) and id(weight) not in shared]
    with torch.no_grad():
        for name in names:
            block.get_parameter(name).zero_()
    return names


def check_identity(target: Decoder, rows: Iterable[int]) -> None:
    """Confirm that the blocks `rows` leave the states of two random sequences of 8 tokens as they are, to the bit.

    Raises:
        PlanError: naming the family and the first block that does not.
    """
    rows, generator = list(rows), torch.Generator().manual_seed(0)
    ids = torch.randint(target.vocabulary, (2, 8), generator=generator).to(target.model.device)
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
