"""A narrower model of the same depth: the paper's baseline "half width" (App. D, Table 2), for any fraction that fits.

Every axis of a weight keeps its first entries (see `narrow`). That holds for families whose projections have one axis
of heads, or of MLP units, and one of hidden units; `FAMILIES` names those for which it was verified, and all others
are refused.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from pathlib import Path

import torch
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.decoder import load_config, load_model, open_decoder
from inheritune.errors import PlanError
from inheritune.surgery.build import build_random, copy_weights, take_after
from inheritune.surgery.config.blueprint import blueprint
from inheritune.surgery.config.target import refuse_quantised

FAMILIES = (
    "gemma", "gemma2", "gemma3_text", "gpt2", "granite", "llama", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3",
    "smollm3", "starcoder2",
)  # fmt: skip
"""The model types that can be narrowed: GPT-2, and those built as Llama is."""

HALF = "1/2"
Width = Fraction | float | str
"""The share of the width that stays, as a number or as text."""


def narrow(model: PreTrainedModel | str | Path, width: Width = HALF) -> PreTrainedModel:
    """Return a model of the same depth and a share of the width, its weights sliced from `model` (App. D, half width).

    - Heads: the first query heads, with the key and value heads they read. Groups of query heads that share a key-value
      head stay whole, so the first query heads read the first key-value heads, as before; where all query heads read
      a single one, it stays. GPT-2's fused `c_attn` is sliced inside each of its queries, keys and values.
    - Hidden units: the first ones, everywhere: embeddings, norms, the head, and whatever reads or writes them.
    - MLP units: the first ones of each layer.
    - Unchanged: the vocabulary, the positions, the size of a head (so RoPE, the attention's scale and Qwen3's and Gemma
      3's norms of single heads), windows, softcaps and multipliers.

    What the architecture ties to the width follows it: norms over all hidden units, or over all heads as OLMo-2's, take
    their statistics over fewer, and Gemma multiplies its embeddings by the root of the smaller hidden size. The result
    is a start for training, not a model that works. It is of the same class, dtype and device as `model`, which may be
    a folder or a hub id and is only read, in evaluation mode, and shares no memory with it.

    Raises:
        PlanError: as `narrow_sizes`, said before any weights are loaded from a folder or the hub; or the model's
            weights are not as its configuration says.
        ModelError: the model cannot be loaded, is not a decoder or is quantised.
    """
    config = load_config(model)
    new_config = narrow_config(config, width)
    source = load_model(model)
    _check_weights(source)
    new = build_random(type(source)._from_config, new_config, source.dtype, 0)
    states, hidden = source.state_dict(), int(config.hidden_size)

    def weight_of(key: str, place: torch.Tensor) -> torch.Tensor:
        matrices = states[key].shape[-1] // hidden if ".c_attn." in key else 1
        return _first_part(states[key], place.shape, matrices)

    copy_weights(new, weight_of)
    return take_after(new, source)


def narrow_config(config: PretrainedConfig, width: Width = HALF) -> PretrainedConfig:
    """Return the configuration of `narrow`'s result; `config` is only read, and no weights are needed.

    Raises:
        PlanError, ModelError: as `narrow_sizes`.
    """
    new = copy.deepcopy(config)
    for name, size in narrow_sizes(config, width).items():
        # The size of a head needs no setting: it is a field of its own, or hidden units over heads, which stays.
        setattr(new, _FIELDS.get(name) or _mlp_field(config), size)
    return new


def narrow_sizes(config: PretrainedConfig, width: Width = HALF) -> dict[str, int]:
    """Return the sizes that `width` leaves of a model, by what they count: `{"heads": 8, "hidden units": 512 ...}`.

    Raises:
        PlanError: the family is not one of `FAMILIES`, or the width leaves no whole heads, groups or units.
        ModelError: the model is quantised.
    """
    share = parse_width(width)
    refuse_quantised(config)
    if config.model_type not in FAMILIES:
        raise PlanError(f"cannot narrow a {config.model_type} model: expected one of {', '.join(FAMILIES)}")
    sizes = _sizes(config)
    for name, size in sizes.items():
        if (share * size).denominator > 1:
            counted = name.removesuffix("s") if size == 1 else name
            raise PlanError(f"{share} of {size} {counted} is {float(share * size):g}: {_nearest(share, sizes)}")
    return {name: int(share * size) for name, size in sizes.items()}


def describe_width(config: PretrainedConfig, width: Width = HALF) -> str:
    """Say what `narrow` does, in one line: `heads 16 -> 8, hidden units 1024 -> 512, MLP units 4096 -> 2048`.

    Raises:
        PlanError, ModelError: as `narrow_sizes`.
    """
    after = narrow_sizes(config, width)
    return ", ".join(f"{name} {size} -> {after[name]}" for name, size in _sizes(config).items())


def parse_width(width: Width) -> Fraction:
    """Return the share that `width` stands for; of a float the simplest fraction it is the nearest to.

    Raises:
        PlanError: it is no number between 0 and 1, both ends excluded.
    """
    try:
        share = Fraction(width)
        share = share.limit_denominator(10**6) if isinstance(width, float) else share
    except (ValueError, TypeError, ArithmeticError):  # text; None; NaN, infinity and division by zero
        share = Fraction(0)
    if not 0 < share < 1:
        raise PlanError(f"width {width!r}: expected a fraction between 0 and 1, for example '1/2' or 0.75")
    return share


_FIELDS = {"heads": "num_attention_heads", "KV heads": "num_key_value_heads", "hidden units": "hidden_size"}


def _sizes(config: PretrainedConfig) -> dict[str, int]:
    """Return the sizes that follow the width, by what they count."""
    sizes = {name: int(getattr(config, field)) for name, field in _FIELDS.items() if hasattr(config, field)}
    if sizes.get("KV heads") == 1:
        del sizes["KV heads"]
    return sizes | {"MLP units": int(getattr(config, _mlp_field(config)) or 4 * config.hidden_size)}


def _mlp_field(config: PretrainedConfig) -> str:
    """Return the field that counts MLP units; GPT-2's may be None, which stands for 4 times the hidden units."""
    return "n_inner" if config.model_type == "gpt2" else "intermediate_size"


def _nearest(share: Fraction, sizes: dict[str, int]) -> str:
    """Say which fractions near `share` fit: the multiples of one over the greatest number that divides all `sizes`."""
    parts = math.gcd(*sizes.values())
    below = math.floor(share * parts)
    fit = [str(Fraction(count, parts)) for count in (below, below + 1) if 0 < count < parts]
    return f"expected a fraction such as {' or '.join(fit)}" if fit else "no fraction leaves whole parts of this model"


def _check_weights(source: PreTrainedModel) -> None:
    """Refuse a model that was changed by hand: the first part of weights that nobody described means nothing."""
    open_decoder(source)
    plain = blueprint(source.config)
    wanted, found = ({key: value.shape for key, value in model.state_dict().items()} for model in (plain, source))
    odd = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
    if odd:
        raise PlanError(f"cannot narrow this model: its configuration does not say that {odd[0]!r} is as it is")


def _first_part(weight: torch.Tensor, shape: torch.Size, matrices: int) -> torch.Tensor:
    """Return the first entries along each axis, as many as `shape` has, of each of the matrices side by side."""
    kept = (*shape[:-1], matrices, shape[-1] // matrices)
    part = weight.detach().unflatten(-1, (matrices, -1))[tuple(slice(size) for size in kept)]
    return part.flatten(-2)
