"""Losses over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import altair as alt

from inheritune.report.charts.base import data, model_colour
from inheritune.report.rows.series import Row

_VALIDATION = alt.Tooltip("loss:Q", title="validation loss", format=".4f")


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
    colour = model_colour(palette, [*rows, *references])
    y = alt.Y("loss:Q", title="loss, nats per token", scale=alt.Scale(domain=list(losses), zero=False, nice=False))
    base = alt.Chart(data(rows)).encode(x=tokens_axis("tokens:Q"), y=y, color=colour, detail="round:N")
    lines = [
        base.transform_filter(f"datum.kind === '{kind}'").mark_line(clip=True, strokeWidth=width, opacity=opacity)
        for kind, width, opacity in (("training", 1, 0.6), ("check", 2, 1))
        if any(row["kind"] == kind for row in rows)
    ]
    layers = [*lines, _measured(base)]
    if references:
        rule = alt.Chart(data(references)).mark_rule(strokeDash=[7, 5], strokeWidth=2, clip=True)
        layers.insert(0, rule.encode(y="loss:Q", color=colour, tooltip=[alt.Tooltip("model:N"), _VALIDATION]))
    if rounds:
        layers[:0] = round_marks(rounds)
    return alt.layer(*layers).properties(width="container", height=320)


def _measured(base: alt.Chart) -> alt.Chart:
    """Return the validation losses as points, evaluations on all windows large; the nearest to the pointer grows."""
    nearest = alt.selection_point(nearest=True, on="pointerover", fields=["tokens", "model", "kind"], empty=False)
    names = [alt.Tooltip(f"{name}:N") for name in ("model", "round", "kind")]
    tooltip = [*names, alt.Tooltip("tokens:Q", format=","), _VALIDATION]
    sizes = alt.Size("kind:O", scale=alt.Scale(domain=["check", "validation"], range=[16, 70]), legend=None)
    points = base.transform_filter("datum.kind !== 'training'").mark_point(filled=True, clip=True, opacity=1)
    return points.add_params(nearest).encode(size=alt.condition(nearest, alt.value(150), sizes), tooltip=tooltip)


def round_marks(rounds: Sequence[Row]) -> list[alt.Chart]:
    """Return dotted lines where rounds of growth begin, with the layers each has; rows of `series.round_rows`."""
    base = alt.Chart(data(rounds)).encode(x="tokens:Q")
    rule = base.mark_rule(strokeDash=[2, 3], strokeWidth=1, color="#8a8a8a")
    name = base.mark_text(align="left", baseline="top", dx=4, dy=3, color="#8a8a8a", fontSize=11)
    return [rule, name.encode(y=alt.value(0), text="label:N")]
