"""The model card: metadata that the hub's own reader understands, true figures, and no private folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from transformers import PreTrainedModel

import inheritune.surgery as surgery
from inheritune.decoder import count_parameters
from inheritune.decoder.source import Place
from inheritune.errors import InherituneWarning
from inheritune.records.surgery import ParameterCounts
from inheritune.surgery import LayerPlan
from inheritune.surgery.card import model_card, without_paths
from tiny import make_llama

COMMIT = "a" * 40


@pytest.fixture
def folder(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "Their Model: v2")
    return tmp_path / "Their Model: v2"


def made_from(folder: Path, out: Path, **options: Any) -> ModelCard:
    plan = options.pop("plan", None) or LayerPlan.first(2, 4)
    return ModelCard.load(surgery.inherit_checkpoint(folder, out, plan=plan, **options) / "README.md")


def test_what_a_card_says(folder: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    plan = LayerPlan.from_layers([0, 3], 4)
    card = made_from(folder, tmp_path / "out", plan=plan, command="inheritune inherit X --layers 0,3")
    assert card.data.to_dict() == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["inheritune"],
    }
    assert card.text.lstrip().startswith("# out\n")
    assert f"```\n{plan}\n```" in card.text
    assert f"| before | {count_parameters(tiny_llama):,} |" in card.text
    assert f"| this model | {count_parameters(surgery.inherit(tiny_llama, plan=plan)):,} |" in card.text
    assert "```\ninheritune inherit X --layers 0,3\n```" in card.text
    assert "**Train it before use.**" in card.text
    assert "made from `Their Model: v2` with" in card.text
    assert "The source states no licence." in card.text


def test_a_whole_copy_needs_no_training(folder: Path, tmp_path: Path) -> None:
    assert "Train it" not in made_from(folder, tmp_path / "out", plan=LayerPlan.first(4, 4)).text
    assert "Train it" in made_from(folder, tmp_path / "turned", plan=LayerPlan.from_layers([1, 0, 2, 3], 4)).text


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ("license: mit", {"license": "mit"}),
        ("license: 'no'\ntags: [a]", {"license": "no"}),
        (
            'license: other\nlicense_name: "of: the # house"\nlicense_link: LICENSE.md',
            {"license": "other", "license_name": "of: the # house", "license_link": "LICENSE.md"},
        ),
        ("language: en", {}),
    ],
)
def test_the_licence_is_carried_over(entries: str, expected: dict[str, str], folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_text(f"---\n{entries}\n---\n# Their words\n")
    card = made_from(folder, tmp_path / "out")
    assert {key: value for key, value in card.data.to_dict().items() if "license" in key} == expected
    assert "Their words" not in card.content


def test_a_licence_file_is_carried_over_and_named(folder: Path, tmp_path: Path) -> None:
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        (folder / name).write_text(f"the terms in {name}")
    card = made_from(folder, tmp_path / "out")
    assert card.data.to_dict()["license"] == "other" and card.data.to_dict()["license_link"] == "LICENSE.txt"
    assert "`license-of-the-source` (see LICENSE.txt)" in card.text
    for name in ("LICENSE.txt", "NOTICE", "USE_POLICY.md"):
        assert (tmp_path / "out" / name).read_text() == f"the terms in {name}"


@pytest.mark.parametrize(
    "content",
    [b"---\nlicense: [mit\n---\n", b"---\nlicense: caf\xe9\n---\n", b"---\n- a\n---\n", b"---\na: b: c\n---\n"],
)
def test_a_card_that_cannot_be_read_stops_nothing(content: bytes, folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(content)
    with pytest.warns(InherituneWarning, match=r"cannot read the licence in .*README\.md: ") as caught:
        card = made_from(folder, tmp_path / "out")
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert "The licence in the source's README.md could not be read: look there." in card.text
    (folder / "LICENSE").write_text("their terms")
    with pytest.warns(InherituneWarning):
        card = made_from(folder, tmp_path / "with")
    assert "`license-of-the-source` (see LICENSE)" in card.text


def test_figures_of_a_trained_model(tmp_path: Path) -> None:
    text = model_card(
        name="x",
        plan=LayerPlan.first(1, 2),
        places={"reference": Place(str(tmp_path), tmp_path)},
        parameters=ParameterCounts(before=2, after=1),
        command="inheritune run recipe.yaml",
        figures={"loss": "3.21 nats a token", "tokens trained": "1,000"},
    )
    assert "## Figures\n\n| | |\n|---|---|\n| loss | 3.21 nats a token |\n| tokens trained | 1,000 |\n\n" in text
    assert "Train it" not in text


def test_no_private_folder_is_shown(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_llama(2).save_pretrained(tmp_path / "grown")
    monkeypatch.chdir(tmp_path)
    plan = LayerPlan.append(2, 4)
    command = f"inheritune inherit '{folder}' --out={tmp_path}/three --layers 2"
    cards = [
        made_from(folder, tmp_path / "one", plan=plan, target=tmp_path / "grown"),
        made_from(Path("Their Model: v2"), tmp_path / "two", plan=plan, target="grown"),
        made_from(folder, tmp_path / "three", command=command),
    ]
    for card in cards:
        assert str(tmp_path) not in card.content and tmp_path.name not in card.content
    assert "The reference is `Their Model: v2`, the target `grown`." in cards[0].text
    assert "head come from `grown`." in cards[1].text
    assert "inheritune inherit 'Their Model: v2' --out=three --layers 2" in cards[2].text


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("inherit org/name --out /home/me/x/out", "inherit org/name --out out"),
        ("inherit ~/models/llama --out=../../secret/out/", "inherit llama --out=out"),
        ('inherit "C:\\Users\\me\\llama" --layers 0:12', 'inherit "llama" --layers 0:12'),
        ("inherit ./llama --layers 1/2", "inherit llama --layers 1/2"),
        ("see https://huggingface.co/org/name --layers 2,", "see https://huggingface.co/org/name --layers 2,"),
    ],
)
def test_commands_lose_their_paths(command: str, shown: str) -> None:
    assert without_paths(command) == shown


def test_a_folder_of_the_hubs_cache_is_named_by_its_id(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--them--llama-1b" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    card = ModelCard(
        model_card(
            name="x",
            plan=LayerPlan.first(1, 2),
            places={"reference": Place(str(snapshot), snapshot)},
            parameters=ParameterCounts(before=2, after=1),
            command="c",
        )
    )
    assert card.data.base_model == "them/llama-1b"
    assert f"(https://huggingface.co/them/llama-1b/tree/{COMMIT}) (commit `{COMMIT}`)" in card.text
