"""Which part of a transformer block a weight belongs to: attention, MLP or norms (paper, Table 3).

The parts follow from the names of the block's direct children, not from a table of families:

- norms: the block's own normalisation layers, whatever they normalise (`ln_1`, `input_layernorm`, OPT's
  `self_attn_layer_norm`, Falcon's `ln_attn`, Gemma 2's `post_feedforward_layernorm` ...);
- attention: everything inside the attention module. Norms of queries, keys or of the attention's own output
  (`self_attn.q_norm`, Phi's `q_layernorm`, BitNet's `attn_sub_norm`) belong to it: they set the scale of the logits
  the projections beside them were trained for, so copying one without the other copies neither;
- mlp: everything inside the feed-forward module, experts, routers and inner norms included.

A name that is none of these (a Mamba mixer, a convolution, a per-layer gate) is an error, never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from inheritune.errors import PlanError, unknown_name

PARTS = ("attention", "mlp", "norms")
"""The parts of a block, in the order in which they are printed and recorded."""

_NORM = re.compile(r"(^|_)(ln|norm|layer_?norm|rms_?norm)(_|\d|$)|layernorm\d*$", re.IGNORECASE)
_ATTENTION = re.compile(r"(^|_)(attn|att|attention)$")
_MLP = re.compile(r"(^|_)(mlp|ffn|ff|feed_?forward|moe|fc\d|experts|router)$")


def parse_parts(parts: str | Iterable[str]) -> tuple[str, ...]:
    """Return the parts named by `parts`, each once, in the order of `PARTS`.

    Args:
        parts: `"all"`, one name, names with commas (`"attention,norms"`), or an iterable of names.

    Raises:
        PlanError: a name is unknown, or there is none.
    """
    if not isinstance(parts, Iterable):
        raise PlanError(f"parts {parts!r}: expected 'all' or some of {', '.join(PARTS)}")
    names = [str(name).strip().lower() for name in (parts.split(",") if isinstance(parts, str) else parts)]
    if not any(names):
        raise PlanError(f"no parts given: expected 'all' or some of {', '.join(PARTS)}")
    for name in names:
        if name not in ("all", *PARTS):
            raise PlanError(unknown_name("part", name, ("all", *PARTS)))
    return PARTS if "all" in names else tuple(part for part in PARTS if part in names)


def part_of(key: str) -> str:
    """Return the part that a block's weight belongs to.

    Args:
        key: name of the weight inside its block, for example `attn.c_attn.weight`.

    Raises:
        PlanError: the name says neither attention, MLP nor norm.
    """
    *modules, _ = key.split(".")
    for depth, name in enumerate(modules):
        # A norm is a module that holds the weight itself; DBRX's `norm_attn_norm` is a container, so look inside it.
        if _NORM.search(name):
            if depth == len(modules) - 1:
                return "norms"
            continue
        if _ATTENTION.search(name):
            return "attention"
        if _MLP.search(name):
            return "mlp"
        break
    raise PlanError(f"cannot tell which part the block's weight {key!r} belongs to: expected parts 'all'")
