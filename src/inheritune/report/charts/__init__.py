"""Altair charts made from rows of records: one specification is drawn in the page and saved as SVG or PNG.

Colours follow the palette of Okabe and Ito (its blue a little lighter, to show on dark ground), which colour-blind
readers can tell apart. Vermillion is kept for one meaning, collapsed attention, and grey for the reference.
Backgrounds are transparent and text colours are left to the page, which has a light and a dark side; a saved picture
has a white ground.
"""

from __future__ import annotations

from inheritune.report.charts.base import (
    COLLAPSED_COLOUR,
    colours,
    on_white,
    save_chart,
    save_picture,
    script,
    svg_of,
    with_rows,
)
from inheritune.report.charts.blocks import agreement, angular_map, influence, mlp_profile
from inheritune.report.charts.collapse import training_map
from inheritune.report.charts.curves import curves
from inheritune.report.charts.heads import class_map, gradient_scatter, rank_map
from inheritune.report.charts.layers import QUANTITIES, Quantity, profile, tau_sweep
from inheritune.report.charts.maps import attention_picture

__all__ = [
    "COLLAPSED_COLOUR",
    "QUANTITIES",
    "Quantity",
    "agreement",
    "angular_map",
    "attention_picture",
    "class_map",
    "colours",
    "curves",
    "gradient_scatter",
    "influence",
    "mlp_profile",
    "on_white",
    "profile",
    "rank_map",
    "save_chart",
    "save_picture",
    "script",
    "svg_of",
    "tau_sweep",
    "training_map",
    "with_rows",
]
