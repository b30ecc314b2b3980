"""Collapse while a model is trained: layers down, tokens across."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from inheritune.report.charts.base import BLUES, COLLAPSED_COLOUR, Picture, data, framed, gradient_legend, tips
from inheritune.report.charts.curves import round_marks, tokens_axis
from inheritune.report.rows.series import Row

_GREENS = ("#d9efe3", "#009e73", "#00382a")


class Watched(NamedTuple):
    """How a quantity that is watched while training is drawn."""

    title: str
    """Its name on the page."""
    logarithmic: bool
    """Whether its colour scale is."""
    shades: tuple[str, ...]
    """The colours from low to high."""
    number: str
    """How its values are written."""
    domain: tuple[float, float] | None = None
    """The ends of the colour scale; None for those of the data."""


WATCHED = {
    "max_rank": Watched("MaxRank", True, BLUES, ".2f"),
    "collapsed": Watched("collapsed heads", False, ("#e9edf1", "#f3b48a", COLLAPSED_COLOUR), ".0%", (0.0, 1.0)),
    "query": Watched("‖dL/dW_Q‖", True, _GREENS, ".3~g"),
    "key": Watched("‖dL/dW_K‖", True, _GREENS, ".3~g"),
}


def training_map(
    rows: Sequence[Row], watched: Watched, rounds: Sequence[Row], title: str, ends: tuple[float, float]
) -> Picture:
    """Draw a quantity of each layer over the tokens of all rounds together.

    Args:
        rows: of `measures.collapse_rows`, one quantity of one run.
        watched: how it is drawn.
        rounds: where rounds begin, of `series.round_rows`.
        title: what stands above the chart.
        ends: the ends of the colour scale, the same for charts that stand side by side.
    """
    domain = list(watched.domain or ends)
    kind = "log" if watched.logarithmic else "linear"
    scale = alt.Scale(type=kind, range=list(watched.shades), interpolate="lab", domain=domain)
    legend = gradient_legend(watched.title, format=".0%" if watched.number.endswith("%") else ".2~g")
    cells = alt.Chart(data(rows)).mark_rect()
    cells = cells.encode(
        x=tokens_axis("start:Q").scale(nice=False),
        x2="end:Q",
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
        color=alt.Color("value:Q", scale=scale, legend=legend),
        tooltip=tips(rows, "round", "step", "tokens", "layer", value=(watched.title, watched.number)),
    )
    # The rounds' names would not show on the cells; their number of layers does.
    marks = round_marks(rounds)[:1] if rounds else []
    height = max(110, min(14 * len({row["layer"] for row in rows}), 420))
    return framed(title, height, cells, *marks)
