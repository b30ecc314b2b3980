"""What all charts share: colours, data, titles, and how a chart is saved as a file."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import altair as alt
import vl_convert

from inheritune import storage
from inheritune.report.rows.series import Row

REFERENCE_COLOURS = ("#8a8a8a", "#5f6b7a", "#a39480")
RUN_COLOURS = ("#1b7fc4", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#b59f00", "#7b5ea7")
COLLAPSED_COLOUR = "#d55e00"
BLUES = ("#d6e6f4", "#6baed6", "#08306b")
"""Light to dark: what is more of a thing is darker in every heat map but those of collapse."""

SAVED_WIDTH = 640
"""Width in pixels of a saved chart that fills its container in the page."""

INK, _LINE = "#2b3138", "#dfe3e8"

Picture: TypeAlias = alt.TopLevelMixin


def colours(references: Sequence[str], runs: Sequence[str]) -> dict[str, str]:
    """Return a colour for each label: references in greys, runs in the palette, the same in every chart."""
    shades = {label: REFERENCE_COLOURS[i % len(REFERENCE_COLOURS)] for i, label in enumerate(references)}
    return shades | {label: RUN_COLOURS[i % len(RUN_COLOURS)] for i, label in enumerate(runs)}


def save_chart(chart: Picture, folder: Path, name: str) -> list[Path]:
    """Write a chart as `name`.svg and, of twice its size, `name`.png into a folder, and return both paths.

    They have a white ground; a chart that fills the page is 640 wide. Neither a browser nor a network is needed.

    Raises:
        OutputError: a file cannot be written.
    """
    svg = vl_convert.vegalite_to_svg(on_white(with_rows(chart.to_dict())))
    written = {folder / f"{name}.svg": svg.encode(), folder / f"{name}.png": vl_convert.svg_to_png(svg, scale=2)}
    for path, content in written.items():
        with storage.written_file(path) as file:
            file.write(content)
    return list(written)


def on_white(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a specification that stands alone: white ground, dark text, a width of its own."""
    text = {"labelColor": INK, "titleColor": INK, "titleFontWeight": 500}
    config = {
        **spec.get("config", {}),
        "title": {"color": INK},
        "view": {"stroke": None},
        "axis": {**text, "gridColor": _LINE, "domainColor": _LINE, "tickColor": _LINE},
        "legend": text,
    }
    sized = {"width": SAVED_WIDTH} if spec.get("width") == "container" else {}
    return {**spec, **sized, "background": "#ffffff", "padding": 12, "config": config}


def data(rows: Sequence[Row]) -> alt.InlineData:
    """Return rows as the data of a chart, as one text: Altair would look at every value of a list several times."""
    text = json.dumps(list(rows), allow_nan=False)
    # Data without a name would be moved into a table of the whole chart, under a name like this one.
    name = f"rows-{zlib.crc32(text.encode()):08x}"
    return alt.InlineData(values=text, name=name, format=alt.JsonDataFormat(type="json"))


def with_rows(spec: dict[str, Any], replace: Callable[[list[Row]], dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a chart's specification with its rows as lists, in place of the text that `data` made of them.

    Args:
        spec: of `to_dict`; it is not changed.
        replace: what to put for the rows of each data set; None puts `{"values": rows}`.
    """
    made = dict(spec)
    values = (spec.get("data") or {}).get("values")
    if isinstance(values, str):
        rows = json.loads(values)
        made["data"] = {"values": rows} if replace is None else replace(rows)
    if "layer" in spec:
        made["layer"] = [with_rows(layer, replace) for layer in spec["layer"]]
    return made


ACROSS = {"orient": "top", "direction": "horizontal", "title": None}
"""A legend of one line above its chart."""


def named_scale(values: Mapping[str, str], rows: Sequence[Row], field: str) -> alt.Scale:
    """Return the scale that draws each name in `field` with its colour or shape; names of no row are left out."""
    domain = [name for name in values if any(row[field] == name for row in rows)]
    return alt.Scale(domain=domain, range=[values[name] for name in domain])


def model_colour(palette: dict[str, str], rows: Sequence[Row]) -> alt.Color:
    """Return the colour of the field `model`; only models that are in the chart stand in its legend."""
    line = {"symbolOpacity": 1, "symbolType": "stroke", "symbolStrokeWidth": 3}
    legend = alt.Legend(orient="top", direction="horizontal", columns=2, labelLimit=150, **line)
    return alt.Color("model:N", title=None, legend=legend, scale=named_scale(palette, rows, "model"))


def layer_axis() -> alt.X:
    """Return the horizontal axis of charts over the layers of a model, counted from 0."""
    axis = alt.Axis(tickMinStep=1, format="d")
    return alt.X("layer:Q", title="layer", axis=axis, scale=alt.Scale(nice=False, padding=8))


def over_layers(rows: Sequence[Row], palette: dict[str, str], y: alt.Y, *fields: str) -> alt.Chart:
    """Return a chart over the layers, in a colour for each model; these fields are its hover values."""
    colour, tooltip = model_colour(palette, rows), tips(rows, *fields)
    return alt.Chart(data(rows)).encode(x=layer_axis(), y=y, color=colour, tooltip=tooltip)


def line_and_points(base: alt.Chart, size: int = 36) -> list[alt.Chart]:
    """Return a line and a point for each of its rows."""
    return [base.mark_line(strokeWidth=2), base.mark_point(filled=True, opacity=1, size=size)]


def framed(title: str, height: int, *layers: alt.Chart) -> Picture:
    """Return layers as one chart that fills the page's width; its title is cut to what a phone's width holds."""
    chart: Picture = alt.layer(*layers) if len(layers) > 1 else layers[0]
    params = alt.TitleParams(text=title, anchor="start", fontSize=13, limit=330)
    return chart.properties(width="container", height=height, title=params)


def gradient_legend(title: str, **options: Any) -> alt.Legend:
    """Return the legend of a heat map: a bar below it."""
    return alt.Legend(**{"orient": "bottom", "title": title, "gradientLength": 180, "tickCount": 4} | options)


_FIELDS: dict[str, tuple[str, str | None]] = {
    **{name: (name, None) for name in ("model", "round", "mask", "lazy", "class", "collapsed")},
    **{name: (name, "d") for name in ("layer", "head", "heads")},
    **{
        f"{heads}_{point}": (title, ".2f")
        for heads in ("rank", "mass")
        for point, title in (
            *(("low", "lowest head"), ("q1", "first quartile"), ("median", "median")),
            *(("q3", "third quartile"), ("high", "highest head")),
        )
    },
    "step": ("step of the round", ","),
    "tokens": ("tokens, all rounds", ","),
    "tau": ("τ", None),
    "rank": ("Rank", ".2f"),
    "error": ("standard error", ".3f"),
    "rank_causal": ("Rank, causal", ".2f"),
    "rank_full": ("Rank, full", ".2f"),
    "max_rank": ("MaxRank", ".2f"),
    "avg_mass": ("AvgMass", ".2f"),
    "top_head": ("head of MaxRank", "d"),
    "rank_error": ("its standard error", ".3f"),
    "mass": ("mass m*", ".1f"),
    "entropy": ("entropy, nats", ".2f"),
    "stable_rank": ("stable rank", ".2f"),
    "sink_column": ("sink column", None),
    "sink_epsilon": ("sink ε", ".3f"),
    "gradient": ("gradient norm", ".3~e"),
    "bound": ("bound", ".3~e"),
    "epsilon": ("ε", ".3f"),
    "influence": ("Block Influence", ".4f"),
    "causal": ("MaxRank, causal", ".2f"),
    "full": ("MaxRank, full", ".2f"),
    "start": ("first layer of the span", "d"),
    "end": ("last layer of the span", "d"),
    "span": ("layers in it, n", "d"),
    "distance": ("angular distance / π", ".4f"),
    "best": ("closest of its length", None),
    "mlp_rank": ("MLP rank", ".2f"),
    "mlp_rank_error": ("standard error", ".3f"),
    "mlp_mass": ("MLP mass, tokens", ".2f"),
}
"""What is shown of a row under the pointer: title and number format of each field, None for a text."""


def tips(rows: Sequence[Row], *fields: str, **others: tuple[str, str | None]) -> list[alt.Tooltip]:
    """Return hover values for those fields that some row has a value of; older records lack some.

    `others` are title and number format of fields that this chart alone has.
    """
    titles = {name: _FIELDS[name] for name in fields} | others
    return [
        alt.Tooltip(f"{name}:{'Q' if number else 'N'}", title=title, **({"format": number} if number else {}))
        for name, (title, number) in titles.items()
        if any(row.get(name) is not None for row in rows)
    ]


@functools.cache
def script() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script (about 0.9 MB), as shipped inside vl-convert."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
