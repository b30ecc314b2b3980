"""Charts over the tokens of a training: losses, and collapse while a model is trained (layers down, tokens across)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from inheritune.report.charts import base
from inheritune.report.rows.series import Row

_GREENS = ("#d9efe3", "#009e73", "#00382a")
_VALIDATION = alt.Tooltip("loss:Q", title="validation loss", format=".4f")


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
    "max_rank": Watched("MaxRank", True, base.BLUES, ".2f"),
    "collapsed": Watched("collapsed heads", False, ("#e9edf1", "#f3b48a", base.COLLAPSED_COLOUR), ".0%", (0.0, 1.0)),
    "query": Watched("‖dL/dW_Q‖", True, _GREENS, ".3~g"),
    "key": Watched("‖dL/dW_K‖", True, _GREENS, ".3~g"),
}


def tokens_axis(field: str) -> alt.X:
    """Return the horizontal axis of charts over training."""
    return alt.X(field, title="tokens trained on, all rounds together", axis=alt.Axis(format="~s", tickCount=6))


def curves(
    rows: Sequence[Row],
    references: Sequence[Row],
    rounds: Sequence[Row],
    palette: dict[str, str],
    losses: tuple[float, float],
) -> alt.LayerChart:
    """Draw training and validation loss over tokens (the paper's Fig. 5, 6), references as dashed lines.

    Args:
        rows: the points, of `series.curve_rows`.
        references: the references' losses, of `series.reference_rows`.
        rounds: where rounds begin, of `series.round_rows`.
        palette: a colour for each model.
        losses: the range of the vertical axis, nats per token.
    """
    colour = base.model_colour(palette, [*rows, *references])
    y = alt.Y("loss:Q", title="loss, nats per token", scale=alt.Scale(domain=list(losses), zero=False, nice=False))
    chart = alt.Chart(base.data(rows)).encode(x=tokens_axis("tokens:Q"), y=y, color=colour, detail="round:N")
    lines = [
        chart.transform_filter(f"datum.kind === '{kind}'").mark_line(clip=True, strokeWidth=width, opacity=opacity)
        for kind, width, opacity in (("training", 1, 0.6), ("check", 2, 1))
        if any(row["kind"] == kind for row in rows)
    ]
    layers = [*lines, _measured(chart)]
    if references:
        rule = alt.Chart(base.data(references)).mark_rule(strokeDash=[7, 5], strokeWidth=2, clip=True)
        layers.insert(0, rule.encode(y="loss:Q", color=colour, tooltip=[alt.Tooltip("model:N"), _VALIDATION]))
    if rounds:
        layers[:0] = round_marks(rounds)
    return alt.layer(*layers).properties(width="container", height=320)


def _measured(chart: alt.Chart) -> alt.Chart:
    """Return the validation losses as points, evaluations on all windows large; the nearest to the pointer grows."""
    nearest = alt.selection_point(nearest=True, on="pointerover", fields=["tokens", "model", "kind"], empty=False)
    names = [alt.Tooltip(f"{name}:N") for name in ("model", "round", "kind")]
    tooltip = [*names, alt.Tooltip("tokens:Q", format=","), _VALIDATION]
    sizes = alt.Size("kind:O", scale=alt.Scale(domain=["check", "validation"], range=[16, 70]), legend=None)
    points = chart.transform_filter("datum.kind !== 'training'").mark_point(filled=True, clip=True, opacity=1)
    return points.add_params(nearest).encode(size=alt.condition(nearest, alt.value(150), sizes), tooltip=tooltip)


def round_marks(rounds: Sequence[Row]) -> list[alt.Chart]:
    """Return dotted lines where rounds of growth begin, with the layers each has; rows of `series.round_rows`."""
    chart = alt.Chart(base.data(rounds)).encode(x="tokens:Q")
    rule = chart.mark_rule(strokeDash=[2, 3], strokeWidth=1, color="#8a8a8a")
    name = chart.mark_text(align="left", baseline="top", dx=4, dy=3, color="#8a8a8a", fontSize=11)
    return [rule, name.encode(y=alt.value(0), text="label:N")]


def training_map(
    rows: Sequence[Row], watched: Watched, rounds: Sequence[Row], title: str, ends: tuple[float, float]
) -> base.Picture:
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
    legend = base.gradient_legend(watched.title, format=".0%" if watched.number.endswith("%") else ".2~g")
    cells = alt.Chart(base.data(rows)).mark_rect()
    cells = cells.encode(
        x=tokens_axis("start:Q").scale(nice=False),
        x2="end:Q",
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True, ticks=False)),
        color=alt.Color("value:Q", scale=scale, legend=legend),
        tooltip=base.tips(rows, "round", "step", "tokens", "layer", value=(watched.title, watched.number)),
    )
    # The rounds' names would not show on the cells; their number of layers does.
    marks = round_marks(rounds)[:1] if rounds else []
    height = max(110, min(14 * len({row["layer"] for row in rows}), 420))
    return base.framed(title, height, cells, *marks)
