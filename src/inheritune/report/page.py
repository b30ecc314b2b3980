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
from typing import TYPE_CHECKING, Any

from inheritune import records
from inheritune.errors import OutputError
from inheritune.report import charts, series, tables
from inheritune.report.images import ANCHORS, attention_png, data_uri
from inheritune.report.load import Model, Run, load_runs, models
from inheritune.report.verdict import verdict
from inheritune.spectra.result import COLLAPSED_RANK

if TYPE_CHECKING:
    import altair as alt

GENERATOR = "inheritune report"
_ROLES = {"potent": "the head of highest rank", "laziest": "the laziest layer"}


def write_report(runs: Sequence[Path], out: Path) -> Path:
    """Write the page on one or more finished runs, and return its path.

    Args:
        runs: folders with a `record.json` of kind `run`.
        out: the HTML file; an earlier report there is replaced, any other file is left alone.

    Raises:
        OutputError: a run is not finished or cannot be read, or `out` is a folder or a file that is not a report.
    """
    out = Path(out)
    _check_out(out)
    records.write_text(out, render(load_runs(runs)))
    return out


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise OutputError(f"{out} is a folder: expected the name of a page, such as {out / 'report.html'}")
    if out.is_file() and GENERATOR not in out.read_text(encoding="utf-8", errors="replace")[:500]:
        raise OutputError(
            f"{out} exists and is not a report: pass another --out file, such as {out.parent / 'report.html'}"
        )


def render(runs: Sequence[Run]) -> str:
    """Return the page on these runs as HTML."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inheritune.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    scripts = [_safe_script(charts.script()), _safe_script(_template("page.js"))]
    specs, context = _context(runs)
    return environment.get_template("report.html.j2").render(
        **context,
        generator=GENERATOR,
        style=Markup(_template("page.css")),
        policy=_policy(scripts),
        scripts=[Markup(text) for text in scripts],
        chart_data=Markup(embed_json(specs)),
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
    return (files("inheritune.report") / "templates" / name).read_text(encoding="utf-8")


def _context(runs: Sequence[Run]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the chart specifications by id, and everything else the template shows."""
    shown = models(runs)
    palette = charts.colours([model.label for model in shown if model.run is None], [run.label for run in runs])
    specs: dict[str, Any] = {}
    context = {
        "title": f"Inheritune report: {', '.join(run.label for run in runs)}",
        "verdict": verdict(runs),
        "models": tables.model_table(shown),
        "rounds": tables.rounds_table(runs) if any(run.rounds for run in runs) else None,
        "grown": any(len(run.rounds) > 1 for run in runs),
        "margins": sorted({f"{each['margin']:g}" for each in _comparisons(runs)}),
        "curves": _curves(runs, shown, palette, specs),
        "analysed": [model.label for model in shown if model.analysis is not None],
        "not_analysed": [model.label for model in shown if model.analysis is None],
        "conditions": _conditions(shown),
        "profiles": _profiles(shown, palette, specs),
        "heads": _heads(shown, specs),
        "maps": _maps(shown),
        "map_colours": ", ".join(ANCHORS),
        "samples": _samples(shown),
        "settings": [_settings(run) for run in runs],
        "created": records.now(),
        "collapsed_below": COLLAPSED_RANK,
    }
    return specs, context


def _comparisons(runs: Sequence[Run]) -> list[dict[str, Any]]:
    found = [part.get("comparison") for run in runs for part in (run.result, *run.rounds)]
    return [each for each in found if each is not None]


def _curves(
    runs: Sequence[Run], shown: Sequence[Model], palette: dict[str, str], specs: dict[str, Any]
) -> dict[str, Any] | None:
    """Add the training curves; None when no run has a loss to draw."""
    rows = [row for run in runs for row in series.curve_rows(run)]
    if not rows:
        return None
    references = series.reference_rows(shown)
    losses = series.loss_range(rows, references)
    marks = [row for run in runs for row in series.round_rows(run)]
    _add(specs, "curves", charts.curves(rows, references, marks, palette, losses))
    return {
        "references": [row["model"] for row in references],
        "rounds": bool(marks),
        "kinds": sorted({row["kind"] for row in rows}),
        "distilled": [run.label for run in runs if run.method == "distill"],
        "bin": max(series.bin_size(run) for run in runs),
        "cut": f"{losses[1]:.2f}" if any(row["loss"] > losses[1] for row in rows) else None,
    }


def _masks(shown: Sequence[Model]) -> list[str]:
    return sorted({mask for model in shown if model.analysis for mask in series.masks(model.analysis)})


def _profiles(shown: Sequence[Model], palette: dict[str, str], specs: dict[str, Any]) -> list[dict[str, Any]]:
    """Add MaxRank and AvgMass per layer: for each quantity a chart for each mask, side by side."""
    groups: list[dict[str, Any]] = []
    for quantity, name in charts.QUANTITIES.items():
        rows = {mask: [row for model in shown for row in series.layer_rows(model, mask)] for mask in _masks(shown)}
        top = max((row[quantity] for each in rows.values() for row in each), default=1.0)
        ids = []
        for mask, drawn in rows.items():
            title = f"{name}, {mask} mask, {_threshold(shown, quantity)}"
            ids.append(_add(specs, f"{quantity}-{mask}", charts.profile(drawn, quantity, palette, title, top)))
        groups.append({"quantity": quantity, "name": name, "charts": ids})
    return groups if _masks(shown) else []


def _threshold(shown: Sequence[Model], quantity: str) -> str:
    """Return `τ = 0.9` or `η = 0.9`; all values where models were analysed with different ones."""
    key, sign = ("tau", "τ") if quantity == "max_rank" else ("eta", "η")
    values = sorted({model.analysis.spectra[key] for model in shown if model.analysis})
    return f"{sign} = {' or '.join(f'{value:g}' for value in values)}"


def _conditions(shown: Sequence[Model]) -> str:
    """Say how each model was analysed; once where all were analysed alike."""
    found: dict[str, list[str]] = {}
    for model in shown:
        if model.analysis is not None:
            s = model.analysis.spectra
            text = f"τ = {s['tau']:g}, η = {s['eta']:g}, {s['sequences']} sequences of {s['length']} tokens"
            found.setdefault(text, []).append(model.label)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(labels)}: {text}" for text, labels in found.items())


def _heads(shown: Sequence[Model], specs: dict[str, Any]) -> list[dict[str, Any]]:
    """Add the heat maps of Rank: for each analysed model a chart for each mask, side by side."""
    highest = series.highest_rank(shown)
    found = []
    for i, model in enumerate(shown):
        if model.analysis is None:
            continue
        ids, counts = [], []
        for mask in series.masks(model.analysis):
            rows = series.head_rows(model.analysis, mask)
            title = f"{model.label[:32]}, {mask} mask, τ = {model.analysis.spectra['tau']:g}"
            ids.append(_add(specs, f"heads-{i}-{mask}", charts.rank_map(rows, highest, title)))
            counts.append(f"{sum(row['collapsed'] for row in rows)} of {len(rows)} under the {mask} mask")
        found.append({"label": model.label, "charts": ids, "counts": ", ".join(counts)})
    return found


def _add(specs: dict[str, Any], name: str, chart: alt.TopLevelMixin) -> str:
    """Keep a chart's specification under an id; without `$schema`, so that the page names no address."""
    spec = chart.to_dict()
    spec.pop("$schema")
    specs[name] = spec
    return name


def _maps(shown: Sequence[Model]) -> list[dict[str, Any]]:
    """Return the attention maps of each model that has any, as pictures with their captions."""
    return [
        {
            "label": model.label,
            "maps": [_map(each) for each in model.analysis.maps],
            "tokens": next((each["tokens"] for each in model.analysis.maps if each.get("tokens")), None),
        }
        for model in shown
        if model.analysis is not None and model.analysis.maps
    ]


def _map(drawn: dict[str, Any]) -> dict[str, str]:
    return {
        "picture": data_uri(attention_png(drawn["values"])),
        "place": f"layer {drawn['layer']}, head {drawn['head']}",
        "role": _ROLES.get(drawn["role"], str(drawn["role"])),
        "mask": f"{drawn['mask']} mask",
        "rank": f"k* = {drawn['rank']} here, Rank {drawn['mean_rank']:.2f}",
        "size": str(len(drawn["values"])),
    }


def _samples(shown: Sequence[Model]) -> list[dict[str, str]]:
    """Return the generated text of each model that has one; a text that repeats its prompt is shown without it."""
    found = []
    for model in shown:
        sample = model.record.get("sample")
        if sample:
            text = str(sample["text"]).removeprefix(str(sample["prompt"]))
            found.append({"label": model.label, "prompt": str(sample["prompt"]), "text": text})
    return found


def _settings(run: Run) -> dict[str, Any]:
    import yaml

    recipe = run.record.get("recipe")
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else "not in the record"
    return {"label": run.label, "pairs": tables.settings(run), "recipe": text}
