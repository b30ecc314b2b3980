"""Build a model from its configuration and put weights into it: what cutting, growing and narrowing have in common."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from inheritune.decoder import compute_buffers
from inheritune.errors import InherituneWarning, PlanError, library_errors

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

UNTIE = 'set "tie_word_embeddings": false in its config.json (config.tie_word_embeddings = False of a model)'
"""What mends a model whose head is not the embedding that its configuration says it is."""


def build_random(
    build: Callable[..., PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype | None, seed: int
) -> PreTrainedModel:
    """Build a randomly initialised model on the CPU, so that a seed means the same weights on every machine.

    Args:
        build: makes a model of `config` and `dtype`.
        config: what to build.
        dtype: of the weights; None for what the configuration says.
        seed: of the initialisation; the global random state is left as it was.

    Raises:
        PlanError: the configuration cannot be built, or the seed is none.
    """
    import torch

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

    Args:
        target: the new model.
        weight_of: gives the weight for a name in the target's state and what is there now, in the shape of that; None
            to leave it. The result may share its memory with another model.

    Raises:
        PlanError: two different weights are given for one that the target holds under two names.
    """
    import torch

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


def is_finite(weight: Tensor) -> bool:
    """Return whether no element of `weight`, of any shape and type, is NaN or infinite."""
    import torch

    if weight.numel() == 0 or not weight.is_floating_point() or weight.element_size() < 2:
        return True
    least, most = torch.aminmax(weight.detach())
    return bool(least.isfinite() and most.isfinite())


def warn_not_finite(names: list[str]) -> None:
    """Warn of weights of the new model that hold NaN or infinity."""
    more = f" and {len(names) - 1} more weights" if len(names) > 1 else ""
    line = f"{names[0]}{more} hold NaN or infinity, as in the source: the new model is damaged"
    warnings.warn(line, InherituneWarning, stacklevel=3)
