"""Put the page together: records in, one HTML file out that needs neither a network nor a server.

Text from models, data and records reaches the page in three ways, each escaped for its place: HTML by Jinja2's
autoescaping, chart data as JSON in a data block (`embed_json`), recipes as YAML inside escaped HTML. A content security
policy allows only the page's own two scripts, by their hashes, and no address at all to load anything from.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from inheritune import storage
from inheritune.errors import OutputError
from inheritune.report.charts.base import save_chart, script
from inheritune.report.charts.maps import attention_picture
from inheritune.report.page import analyses, sections
from inheritune.report.page.figures import page_data
from inheritune.report.read.models import Sources, load

GENERATOR = "inheritune report"


def write_report(paths: Sequence[str | Path] | str | Path, out: str | Path) -> Path:
    """Write the page on finished runs and analyses, one or more, and return its path.

    Args:
        paths: folders with a `record.json` of `run`, `quickstart` or `reproduce`, a `frontier.json`, or a
            `spectra.json` of `analyze`.
        out: the HTML file; an earlier report there is replaced, any other file is left alone.

    Raises:
        OutputError: a folder is none of these, or cannot be read, or `out` is a folder or a file that is not a report.
    """
    out = storage.user_path(out)
    check_page(out)
    storage.write_text(out, render(load(paths)))
    return out


def check_page(out: Path) -> None:
    """Refuse a folder, and a file that is not a report, with an OutputError: no page can be written there."""
    if out.is_dir():
        raise OutputError(f"{out} is a folder: expected the name of a page, such as {out / 'report.html'}")
    if out.is_file() and GENERATOR not in out.read_text(encoding="utf-8", errors="replace")[:500]:
        raise OutputError(
            f"{out} exists and is not a report: pass another --out file, such as {out.parent / 'report.html'}"
        )


def save_figures(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write every chart of a report, and every attention map, as an SVG and a PNG file on a white ground.

    Nothing is loaded from a network. The folder is made, or must be one that this function made: files of the same
    names are replaced, others are left.

    Args:
        paths: folders of finished runs or analyses, as `write_report` takes them.
        folder: where the files go; their names say what is drawn and of which model.

    Returns:
        The files that were written, in the order of the page.

    Raises:
        OutputError: a path is neither a run nor an analysis, or the folder holds other files or cannot be written.
    """
    sources, folder = load(paths), storage.user_path(folder)
    with storage.claimed(folder, {"kind": "figures"}, "--figures"):
        figures = sections.build(sources)[0]
        for label, analysis in sources.analysed.items():
            for drawn in analysis.maps:
                title = f"{label[:24]}: layer {drawn.layer}, head {drawn.head}, {drawn.mask} mask"
                figures.add(attention_picture(drawn.values, title), "attention", label, drawn.mask, drawn.role)
        return [path for name, chart in figures.charts.items() for path in save_chart(chart, folder, name)]


def render(sources: Sources) -> str:
    """Return the page on these runs and analyses as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inheritune.report.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    scripts = [_safe_script(script()), _safe_script(_template("page.js"))]
    figures, context = sections.build(sources)
    data = page_data(figures) | {"weights": analyses.weights(context["maps"])}
    return environment.get_template("report.html.j2").render(
        **context,
        generator=GENERATOR,
        style=Markup(_template("page.css")),
        policy=_policy(scripts),
        scripts=[Markup(text) for text in scripts],
        chart_data=Markup(embed_json(data)),
    )


def embed_json(data: Any) -> str:
    """Return JSON that can stand inside a `<script>` element: no character of it can end or open anything.

    `<`, `>` and `&` become escapes, so neither `</script>` nor `<!--` can appear; so does all that is not ASCII, with
    U+2028 and U+2029 among it.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _safe_script(text: str) -> str:
    """Return a script that cannot end its own element; inside strings and patterns the escapes mean the same."""
    return text.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "\\x3c!--")


def _policy(scripts: Sequence[str]) -> str:
    """Return the content security policy: the page's own scripts by hash, its inline style, pictures it holds."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:"


def _template(name: str) -> str:
    return (files("inheritune.report.page") / "templates" / name).read_text(encoding="utf-8")
