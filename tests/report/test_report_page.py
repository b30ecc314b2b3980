"""The page as a whole: well-formed, needs no network, escapes what it is given, and says what it does not have."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import typer
from report_records import attention_maps, spectra
from typer.testing import CliRunner

from inheritune.cli import report as command
from inheritune.errors import OutputError
from inheritune.report import write_report
from inheritune.report.page.save import embed_json

Record = dict[str, Any]
Write = Callable[..., Path]
VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = "</script><!--<script>alert(1)</script>\u2028<img src=x onerror=alert(1)>&amp;'\""


class Page(HTMLParser):
    """The elements of a page: whether they nest, their attributes, their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def text(self, *within: str) -> str:
        return "".join(
            data for tag, data in self.texts if tag not in ("script", "style") and (not within or tag in within)
        )

    def scripts(self) -> list[str]:
        return [data for tag, data in self.texts if tag == "script"]

    def ids(self) -> set[str]:
        return {str(attributes["id"]) for _, attributes in self.elements if attributes.get("id")}


@pytest.fixture
def page(tmp_path: Path) -> Callable[..., Page]:
    """`page(run, ...)` writes the page on these runs and parses it."""

    def make(*runs: Path) -> Page:
        return Page(write_report(runs, tmp_path / "report.html").read_text(encoding="utf-8"))

    return make


def data(page: Page) -> Record:
    [text] = [text for text in page.scripts() if text.startswith("{")]
    return dict(json.loads(text))


def specs(page: Page) -> Record:
    return dict(data(page)["charts"])


def test_the_page_is_well_formed_and_has_all_sections_in_order(
    write: Write, page: Callable[..., Page], grown: Record, scratch: Record
) -> None:
    made = page(write(grown, "a"), write(scratch, "b"))
    assert made.open == []
    sections = [attributes["id"] for tag, attributes in made.elements if tag == "section"]
    assert sections == ["models", "training", "layers", "heads", "maps", "samples", "settings"]
    profiles = [
        f"{name}-{place}" for name in ("maxrank", "avgmass") for place in ("of-each-layer", "over-relative-depth")
    ]
    models = ("reference-16x64", "grow")
    drawn = {"training-loss", *(f"classes-of-heads-{model}" for model in models)}
    for mask in ("causal", "full"):
        drawn |= {*(f"{name}-{mask}" for name in profiles), *(f"rank-of-heads-{model}-{mask}" for model in models)}
    assert set(specs(made)) == drawn
    assert drawn <= made.ids()
    assert "The inherited model with 12 layers against 16" in made.text("p")
    assert "torch" in made.text("dt")
    assert "2.13.0" in made.text("dd")
    assert "learning_rate: 0.002" in made.text("pre")


def test_nothing_is_loaded_from_anywhere(write: Write, page: Callable[..., Page], grown: Record) -> None:
    made = page(write(grown))
    for tag, attributes in made.elements:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in "".join(data for tag, data in made.texts if tag == "style")
    assert "$schema" not in json.dumps(data(made))
    assert "://" not in json.dumps(data(made))


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(
    write: Write, page: Callable[..., Page], grown: Record
) -> None:
    made = page(write(grown))
    [policy] = [a["content"] for tag, a in made.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    code = [text for text in made.scripts() if not text.startswith("{")]
    hashes = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code}
    assert len(code) == 2
    assert set(re.findall(r"'sha256-([^']+)'", policy)) == hashes
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy


def test_hostile_text_stays_text(write: Write, page: Callable[..., Page], grown: Record, tmp_path: Path) -> None:
    plain = page(write(grown, "plain"))
    grown["name"] = grown["recipe"]["name"] = grown["reference"]["name"] = HOSTILE
    grown["recipe"][HOSTILE] = HOSTILE
    grown["result"]["sample"] = {"prompt": HOSTILE, "text": HOSTILE + "</pre>"}
    grown["environment"]["command"] = HOSTILE
    grown["rounds"][1]["name"] = HOSTILE
    run = write(grown, "hostile")
    drawn = attention_maps()
    drawn["maps"][0] |= {"tokens": [HOSTILE], "role": HOSTILE}
    (run / "analysis/result/maps.json").write_text(json.dumps(drawn))
    made = page(run)
    assert made.open == []
    assert [tag for tag, _ in made.elements] == [tag for tag, _ in plain.elements]  # not one element more
    raw = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in raw
    assert "<img src=x" not in raw
    assert HOSTILE in made.text("th")
    assert HOSTILE + "</pre>" in made.text("pre", "span")
    drawn_labels = json.dumps(data(made)["tables"], ensure_ascii=False)
    assert json.dumps(HOSTILE, ensure_ascii=False) in drawn_labels


def test_json_in_a_script_can_neither_end_nor_open_one() -> None:
    text = embed_json({HOSTILE: [HOSTILE, 1.5]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {HOSTILE: [HOSTILE, 1.5]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        embed_json([float("nan")])


def test_a_run_without_reference_analysis_speed_or_sample_says_so(
    write: Write, page: Callable[..., Page], scratch: Record
) -> None:
    scratch["reference"] = None
    scratch["result"] |= {"comparison": None, "speed": None, "sample": None, "analysis": None, "matched": None}
    scratch["rounds"][0] |= {"comparison": None, "start_evaluation": None}
    made = page(write(scratch))
    assert made.open == []
    text = made.text()
    for line in (
        "No model was compared with a reference.",
        "There is no reference to draw a line for.",
        "The attention of these models was not analysed.",
        "No attention maps were recorded.",
        "No text was generated in these runs.",
        "its generation speed was not measured.",
    ):
        assert line in text
    assert set(specs(made)) == {"training-loss"}
    assert "heads" not in made.ids()


def test_missing_files_and_losses_are_named(write: Write, page: Callable[..., Page], scratch: Record) -> None:
    scratch["rounds"][0] |= {"start_evaluation": None}
    run = write(scratch, "a")
    (run / "round-1/metrics.jsonl").unlink()
    made = page(run)
    assert "scratch-12: round-1/metrics.jsonl is named in the record but is not on the disk." in made.text()
    assert "training-loss" in made.ids()  # the evaluation after the round
    assert "No losses were logged in these runs." in page(write(scratch | {"rounds": []}, "b")).text()


def test_one_mask_is_enough(write: Write, page: Callable[..., Page], grown: Record) -> None:
    run = write(grown)
    for role, depth in (("reference", 16), ("result", 12)):
        content = spectra(depth, masks=("full",))
        (run / f"analysis/{role}/spectra.json").write_text(json.dumps(content))
    made = page(run)
    assert {"maxrank-of-each-layer-full", "rank-of-heads-reference-16x64-full"} <= made.ids()
    assert not {name for name in made.ids() if "causal" in name}
    assert "Only one mask was analysed here." in " ".join(made.text().split())
    assert "under the full mask:" in made.text("li")


def test_only_an_earlier_report_is_replaced(write: Write, grown: Record, tmp_path: Path) -> None:
    run = write(grown)
    before = (run / "record.json").read_bytes()
    with pytest.raises(OutputError, match="exists and is not a report"):
        write_report([run], run / "record.json")
    assert (run / "record.json").read_bytes() == before
    with pytest.raises(OutputError, match="is a folder"):
        write_report([run], tmp_path)
    out = write_report([run], tmp_path / "new" / "report.html")
    assert write_report([run], out) == out


def test_the_command_prints_the_verdict(write: Write, grown: Record, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(command.report)
    app.callback()(lambda: None)
    out = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(write(grown)), "--out", str(out)])
    assert done.exit_code == 0
    assert "matches the reference after training on 7.37M tokens" in " ".join(done.stdout.split())
    assert out.stat().st_size < 4_000_000
    failed = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert isinstance(failed.exception, OutputError)
    assert str(failed.exception) == (
        f"{tmp_path} is neither a finished run nor an analysis: it has no record.json and no spectra.json"
    )


def test_each_cell_of_a_table_has_its_label_for_narrow_screens(
    write: Write, page: Callable[..., Page], grown: Record
) -> None:
    made = page(write(grown))
    cells = [attributes.get("data-label") for tag, attributes in made.elements if tag == "td"]
    assert all(cells) and {"valid loss ± SE", "difference to reference", "matched"} <= set(cells)
    style = "".join(data for tag, data in made.texts if tag == "style")
    narrow = style[style.index("@media (max-width: 640px)") :]
    assert "content: attr(data-label)" in narrow and "td, td.left { display: grid" in narrow


def test_the_page_opens_with_the_verdict_and_what_to_do(write: Write, page: Callable[..., Page], grown: Record) -> None:
    text = page(write(grown)).text()
    places = [text.index(words) for words in ("matches the reference", "One seed", "Next", "inheritune evaluate")]
    assert places == sorted(places) and places[-1] < text.index("Models")
