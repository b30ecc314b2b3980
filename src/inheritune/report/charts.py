"""Altair charts made from rows of records: one specification is drawn in the page and saved as SVG or PNG.

Colours follow the palette of Okabe and Ito (its blue a little lighter, to show on dark ground), which colour-blind
readers can tell apart. Vermillion is kept for one meaning, collapsed attention, and grey for the reference.
Backgrounds are transparent and text colours are left to the page, which has a light and a dark side.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inheritune.errors import OutputError
from inheritune.report.series import Row

if TYPE_CHECKING:
    import altair as alt

Quantity = Literal["max_rank", "avg_mass"]
REFERENCE_COLOURS = ("#8a8a8a", "#5f6b7a", "#a39480")
RUN_COLOURS = ("#1b7fc4", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#b59f00", "#7b5ea7")
COLLAPSED_COLOUR = "#d55e00"
LOSS_TITLE = "loss, nats per token"
QUANTITIES: dict[Quantity, str] = {"max_rank": "MaxRank", "avg_mass": "AvgMass"}


def colours(references: Sequence[str], runs: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label: references in greys, runs in the palette, the same in every chart."""
    shades = {label: REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)] for i, label in enumerate(references)}
    return shades | {label: RUN_COLOURS[i % len(RUN_COLOURS)] for i, label in enumerate(runs)}


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Save a chart as SVG or PNG, whichever the name of `path` ends in; no browser and no network is used.

    A chart that is as wide as its container in the page is saved 640 pixels wide.

    Raises:
        OutputError: `path` ends in neither, or cannot be written.
    """
    import vl_convert

    spec = chart.to_dict()
    if spec.get("width") == "container":
        spec["width"] = 640
    if path.suffix == ".svg":
        data = vl_convert.vegalite_to_svg(spec).encode()
    elif path.suffix == ".png":
        data = vl_convert.vegalite_to_png(spec, scale=2)
    else:
        raise OutputError(f"cannot save a chart as {path.name!r}: expected a name that ends in .svg or .png")
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def _rows(rows: Sequence[Row]) -> alt.Data:
    import altair as alt

    return alt.Data(values=list(rows))


def _model_colour(palette: dict[str, str], shown: Sequence[str]) -> alt.Color:
    """Return the colour of the field `model`; only models that are in the chart stand in its legend."""
    import altair as alt

    domain = [label for label in palette if label in shown]
    legend = alt.Legend(
        orient="top",
        direction="horizontal",
        columns=2,
        symbolOpacity=1,
        labelLimit=150,
        symbolType="stroke",
        symbolStrokeWidth=3,
    )
    return alt.Color(
        "model:N", title=None, legend=legend, scale=alt.Scale(domain=domain, range=[palette[x] for x in domain])
    )


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
    import altair as alt

    shown = {row["model"] for row in [*rows, *references]}
    x = alt.X("tokens:Q", title="tokens trained on, all rounds together", axis=alt.Axis(format="~s", tickCount=6))
    y = alt.Y("loss:Q", title=LOSS_TITLE, scale=alt.Scale(domain=list(losses), zero=False, nice=False))
    base = alt.Chart(_rows(rows)).encode(x=x, y=y, color=_model_colour(palette, list(shown)), detail="round:N")
    lines = [
        base.transform_filter(f"datum.kind === '{kind}'").mark_line(clip=True, strokeWidth=width, opacity=opacity)
        for kind, width, opacity in (("training", 1, 0.6), ("check", 2, 1))
        if any(row["kind"] == kind for row in rows)
    ]
    layers = [*lines, _measured(base)]
    if references:
        layers.insert(0, _dashed(references, palette, list(shown)))
    if rounds:
        layers[:0] = _round_marks(rounds)
    return alt.layer(*layers).properties(width="container", height=320)


def _dashed(references: Sequence[Row], palette: dict[str, str], shown: Sequence[str]) -> alt.Chart:
    import altair as alt

    rule = alt.Chart(_rows(references)).mark_rule(strokeDash=[7, 5], strokeWidth=2, clip=True)
    tooltip = [alt.Tooltip("model:N"), alt.Tooltip("loss:Q", title="validation loss", format=".4f")]
    return rule.encode(y="loss:Q", color=_model_colour(palette, shown), tooltip=tooltip)


def _measured(base: alt.Chart) -> alt.Chart:
    """Return the validation losses as points, evaluations on all windows large; the nearest to the pointer grows."""
    import altair as alt

    nearest = alt.selection_point(nearest=True, on="pointerover", fields=["tokens", "model", "kind"], empty=False)
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("round:N"),
        alt.Tooltip("kind:N"),
        alt.Tooltip("tokens:Q", format=","),
        alt.Tooltip("loss:Q", title="validation loss", format=".4f"),
    ]
    sizes = alt.Size("kind:O", scale=alt.Scale(domain=["check", "validation"], range=[16, 70]), legend=None)
    points = base.transform_filter("datum.kind !== 'training'").mark_point(filled=True, clip=True, opacity=1)
    return points.add_params(nearest).encode(size=alt.condition(nearest, alt.value(150), sizes), tooltip=tooltip)


def _round_marks(rounds: Sequence[Row]) -> list[alt.Chart]:
    import altair as alt

    base = alt.Chart(_rows(rounds)).encode(x="tokens:Q")
    rule = base.mark_rule(strokeDash=[2, 3], strokeWidth=1, color="#8a8a8a")
    name = base.mark_text(align="left", baseline="top", dx=4, dy=3, color="#8a8a8a", fontSize=11)
    return [rule, name.encode(y=alt.value(0), text="label:N")]


def profile(
    rows: Sequence[Row],
    quantity: Quantity,
    palette: dict[str, str],
    title: str,
    top: float,
) -> alt.LayerChart:
    """Draw MaxRank (eq. 3 of the paper) or AvgMass (App. C) of each layer, a line for each model.

    Args:
        rows: the layers of every model under one mask, of `series.layer_rows`.
        quantity: what to draw.
        palette: a colour for each model.
        title: what stands above the chart; it should name the mask.
        top: the highest value of the vertical axis, the same for charts that stand side by side.
    """
    import altair as alt

    name = QUANTITIES[quantity]
    x = alt.X(
        "layer:Q", title="layer", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(nice=False, padding=8)
    )
    y = alt.Y(f"{quantity}:Q", title=name, scale=alt.Scale(domain=[0, top], nice=True))
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip(f"{quantity}:Q", title=name, format=".2f"),
        alt.Tooltip("lazy:N"),
    ]
    colour = _model_colour(palette, [row["model"] for row in rows])
    base = alt.Chart(_rows(rows)).encode(x=x, y=y, color=colour, tooltip=tooltip)
    points = base.mark_point(filled=True, opacity=1, size=36)
    layers = [base.mark_line(strokeWidth=2), points]
    if quantity == "max_rank" and any(row["lazy"] for row in rows):
        lazy = base.transform_filter("datum.lazy")
        layers.append(
            lazy.mark_point(shape="diamond", size=130, strokeWidth=2, opacity=1).encode(
                color=alt.value(COLLAPSED_COLOUR)
            )
        )
    return alt.layer(*layers).properties(width="container", height=220, title=_title(title))


def rank_map(rows: Sequence[Row], highest: float, title: str) -> alt.Chart:
    """Draw the Rank of each head, layers down and heads across, collapsed heads in red (the paper's Fig. 11, 21, 22).

    Args:
        rows: the heads of one model under one mask, of `series.head_rows`.
        highest: the Rank at the dark end of the colour scale (logarithmic from 1).
        title: what stands above the chart; it should name the model and the mask.
    """
    import altair as alt

    depth = len({row["layer"] for row in rows})
    legend = alt.Legend(orient="bottom", title="Rank (log scale)", gradientLength=180, format=".3~g", tickCount=4)
    scale = alt.Scale(
        type="log", domain=[1, max(2.0, highest)], range=["#d6e6f4", "#6baed6", "#08306b"], interpolate="lab"
    )
    tooltip = [
        alt.Tooltip("layer:O"),
        alt.Tooltip("head:O"),
        alt.Tooltip("rank:Q", title="Rank", format=".2f"),
        alt.Tooltip("collapsed:N"),
    ]
    chart = alt.Chart(_rows(rows)).mark_rect(stroke="#ffffff", strokeOpacity=0.35, strokeWidth=1)
    return chart.encode(
        x=alt.X("head:O", axis=alt.Axis(title="head", labelAngle=0, labelOverlap=True)),
        y=alt.Y("layer:O", axis=alt.Axis(title="layer", labelOverlap=True)),
        color=alt.condition(
            "datum.collapsed", alt.value(COLLAPSED_COLOUR), alt.Color("rank:Q", scale=scale, legend=legend)
        ),
        tooltip=tooltip,
    ).properties(width="container", height=max(110, min(16 * depth, 520)), title=_title(title))


def _title(text: str) -> alt.TitleParams:
    import altair as alt

    return alt.TitleParams(text=text, anchor="start", fontSize=13, limit=330)


@functools.cache
def script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script (about 0.9 MB), as shipped inside vl-convert."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
