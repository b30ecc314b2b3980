"""Collapse while a model is trained: layers down, tokens across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt

from inheritune.report.charts.base import BLUES, COLLAPSED_COLOUR, data, gradient_legend, tips, title_of
from inheritune.report.charts.curves import round_marks
from inheritune.report.rows.series import Row


@dataclass(frozen=True)
class Watched:
    """A quantity that is watched while training.

    Attributes:
        field: its name in a row.
        title: its name on the page.
        logarithmic: whether its colour scale is logarithmic.
        shades: the colours from low to high.
        number: how its values are written.
        domain: the ends of the colour scale; None for those of the data.
    """

    field: str
    title: str
    logarithmic: bool
    shades: tuple[str, ...]
    number: str
    domain: tuple[float, float] | None = None


WATCHED = {
    "max_rank": Watched("max_rank", "MaxRank", True, BLUES, ".2f"),
    "collapsed": Watched(
        "collapsed", "collapsed heads", False, ("#e9edf1", "#f3b48a", COLLAPSED_COLOUR), ".0%", (0.0, 1.0)
    ),
    "query": Watched("query", "‖dL/dW_Q‖", True, ("#d9efe3", "#009e73", "#00382a"), ".3~g"),
    "key": Watched("key", "‖dL/dW_K‖", True, ("#d9efe3", "#009e73", "#00382a"), ".3~g"),
}


def training_map(
    rows: Sequence[Row], watched: Watched, rounds: Sequence[Row], title: str, ends: tuple[float, float] | None = None
) -> alt.LayerChart:
    """Draw a quantity of each layer over the tokens of all rounds together.

    Args:
        rows: of `measures.collapse_rows`, one quantity of one run.
        watched: which quantity, and how it is drawn.
        rounds: where rounds begin, of `series.round_rows`.
        title: what stands above the chart.
        ends: the ends of the colour scale, the same for charts that stand side by side.
    """
    layers = len({row["layer"] for row in rows})
    kind = "log" if watched.logarithmic else "linear"
    domain = watched.domain or ends
    scale = alt.Scale(
        type=kind, range=list(watched.shades), interpolate="lab", **({"domain": list(domain)} if domain else {})
    )
    legend = gradient_legend(watched.title, format=".0%" if watched.number.endswith("%") else ".2~g")
    x = alt.X("start:Q", title="tokens trained on, all rounds together", axis=alt.Axis(format="~s", tickCount=6))
    cells = (
        alt.Chart(data(rows))
        .mark_rect()
        .encode(
            x=x.scale(nice=False),
            x2="end:Q",
            y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
            color=alt.Color("value:Q", scale=scale, legend=legend),
            tooltip=tips(rows, "round", "step", "tokens", "layer", value=(watched.title, watched.number)),
        )
    )
    height = max(110, min(14 * layers, 420))
    # The rounds' names would not show on the cells; their number of layers does.
    marks = round_marks(rounds)[:1] if rounds else []
    return alt.layer(cells, *marks).properties(width="container", height=height, title=title_of(title))
