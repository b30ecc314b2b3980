"""The chart of a frontier: what each depth costs in loss, against how much faster, or smaller, it is."""

from __future__ import annotations

import altair as alt

from inheritune.layers import plural
from inheritune.records.runs import FrontierRecord
from inheritune.report.charts import base
from inheritune.report.rows.series import Row

_TICKS = (-1, -0.3, -0.1, -0.03, 0, 0.03, 0.1, 0.3, 1, 3, 10)
_SHADES = {"matches": "#009e73", "not shown to match": base.COLLAPSED_COLOUR, "reference": "#5f6b7a"}
_SHAPES = {"matches": "circle", "not shown to match": "circle", "reference": "square"}


def frontier_rows(record: FrontierRecord) -> list[Row]:
    """Return a row for the reference and each depth: `gain` is the speed, or where that is not measured the shrinkage.

    Both are times the reference: tokens a second, with an interval, and the reference's parameters by the model's own.
    """
    whole = record.reference
    rows: list[Row] = [{"layers": whole.layers, "kind": "reference", "gain": 1.0, "difference": 0.0}]
    for point in record.points:
        test, speed = point.comparison, point.speed_ratio
        row: Row = {"layers": point.layers, "kind": "matches" if test.matches else "not shown to match"}
        row |= {"difference": test.difference, "low": test.ci_low, "high": test.ci_high}
        row["gain"] = whole.parameters / point.parameters
        rows.append(row | ({"gain": speed.ratio, "slow": speed.ci_low, "fast": speed.ci_high} if speed else {}))
    return [row | {"name": plural(row["layers"], "layer")} for row in rows]


def frontier(record: FrontierRecord) -> base.Picture:
    """Draw the difference to the reference over the gain, with the intervals of both and the margin.

    The axis of differences is linear near zero and logarithmic beyond, so that the margin and a bad cut are both seen.
    """
    rows, measured = frontier_rows(record), all(point.speed_ratio for point in record.points)
    margin = record.points[0].comparison.margin
    scale = alt.Scale(type="symlog", constant=max(margin, 0.01), nice=False, padding=16)
    gain = "times as fast as the reference" if measured else "times fewer parameters than the reference"
    x = alt.X("gain:Q", title=gain, scale=alt.Scale(zero=False, padding=24)).axis(tickCount=8)
    y = alt.Y("difference:Q", title="nats a token above the reference", scale=scale)
    y = y.axis(values=sorted({*_TICKS, margin}), format="~g")
    colours, shapes = (base.named_scale(values, rows, "kind") for values in (_SHADES, _SHAPES))
    number = {name: (name, ".4f") for name in ("difference", "low", "high")}
    shown = base.tips(rows, layers=("layers", "d"), kind=("kind", None), gain=(gain, ".2f"), **number)
    chart = alt.Chart(base.data(rows)).encode(
        color=alt.Color("kind:N", scale=colours, legend=alt.Legend(**base.ACROSS)), tooltip=shown
    )
    points = chart.mark_point(filled=True, opacity=1, size=80).encode(
        x=x, y=y, shape=alt.Shape("kind:N", legend=None, scale=shapes)
    )
    bars = chart.mark_rule(strokeWidth=2, opacity=0.6)
    names = chart.mark_text(align="left", dx=8, dy=-8, fontSize=11).encode(x=x, y=y, text="name:N")
    line = alt.Chart(base.data([{"margin": margin}])).mark_rule(strokeDash=[6, 4], color="#8a8a8a")
    layers = [line.encode(y=alt.Y("margin:Q", scale=scale)), bars.encode(x=x, y=alt.Y("low:Q", scale=scale), y2="high")]
    if measured:
        layers.append(bars.encode(x=alt.X("slow:Q", scale=alt.Scale(zero=False)), x2="fast", y=y))
    return base.framed(f"{record.name[:28]}: what each depth costs", 320, *layers, points, names)
