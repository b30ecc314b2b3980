"""Surgery on decoders: a `LayerPlan` says where each layer comes from; a new model or a new checkpoint results."""

from inheritune.surgery.config.blueprint import blueprint
from inheritune.surgery.files.checkpoint import inherit_checkpoint
from inheritune.surgery.inherit import inherit, scratch
from inheritune.surgery.plan.layer_plan import LayerPlan
from inheritune.surgery.plan.row import LayerRow
from inheritune.surgery.plan.selection import PARTS, parse_parts, part_of
from inheritune.surgery.width import narrow, narrow_config

__all__ = [
    "PARTS",
    "LayerPlan",
    "LayerRow",
    "blueprint",
    "inherit",
    "inherit_checkpoint",
    "narrow",
    "narrow_config",
    "parse_parts",
    "part_of",
    "scratch",
]
