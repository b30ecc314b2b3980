"""Surgery on decoders: a `LayerPlan` says where each layer comes from; a new model or a new checkpoint results.

What needs torch is imported on first use, so that recipes, which name layers, are listed without it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.row import LayerRow
from inheritune.surgery.plan.selection import PARTS, parse_parts, part_of

if TYPE_CHECKING:
    from inheritune.surgery.assembly import inherit, scratch
    from inheritune.surgery.config.blueprint import blueprint
    from inheritune.surgery.files.checkpoint import inherit_checkpoint

__all__ = [
    "PARTS",
    "LayerPlan",
    "LayerRow",
    "blueprint",
    "inherit",
    "inherit_checkpoint",
    "parse_parts",
    "part_of",
    "scratch",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = {"blueprint": "config.blueprint", "inherit_checkpoint": "files.checkpoint"}.get(name, "assembly")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
