"""Models on the hub: what is asked for and in which order, every refusal in one line, and uploads."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_hub import COMMIT, TOKEN, FakeHub, fake_hub
from huggingface_hub import constants
from surgery_families import assert_same_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

import inheritune.surgery as surgery
from inheritune.checkpoints.hub import check_push, push
from inheritune.data import train_tokenizer
from inheritune.decoder import NoTokenizerError, load_config, load_model, load_tokenizer
from inheritune.decoder.source import locate, model_identity
from inheritune.errors import ModelError, OutputError, PlanError
from inheritune.records.surgery import ParameterCounts
from inheritune.surgery import LayerPlan
from inheritune.surgery.card import model_card
from inheritune.surgery.files.carried import fetch_files

INDEX = "model.safetensors.index.json"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with fake_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


@pytest.fixture
def sharded(tiny_llama: PreTrainedModel, tmp_path: Path) -> Path:
    tiny_llama.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    (tmp_path / "sharded" / "README.md").write_text("---\nlicense: apache-2.0\n---\nTheir own text.\n")
    (tmp_path / "sharded" / "pictures.bin").write_bytes(b"of no use")
    return tmp_path / "sharded"


def shards_of(folder: Path, *layers: int) -> set[str]:
    """Return the shards with tensors of these layers, or of no layer."""
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    wanted = tuple(f"model.layers.{layer}." for layer in layers)
    return {name for key, name in index.items() if key.startswith(wanted) or ".layers." not in key}


def test_only_what_the_plan_needs_is_downloaded(
    hub: FakeHub, sharded: Path, tmp_path: Path, tiny_llama: PreTrainedModel
) -> None:
    hub.add("them/llama", sharded)
    out = surgery.inherit_checkpoint("them/llama", tmp_path / "out", [2, 0])
    assert_same_weights(load_model(out).state_dict(), surgery.inherit(tiny_llama, [2, 0]).state_dict())
    asked = hub.asked_for()
    assert asked[:3] == ["config.json", "adapter_config.json", INDEX]
    assert set(asked[3:]) == shards_of(sharded, 0, 2) | {"README.md", "generation_config.json"}
    assert shards_of(sharded, 0, 2) < shards_of(sharded, 0, 1, 2, 3)
    card = (out / "README.md").read_text()
    assert f"[them/llama](https://huggingface.co/them/llama/tree/{COMMIT})" in card
    assert "base_model: them/llama\n" in card and "license: apache-2.0\n" in card and "Their own text" not in card


@pytest.mark.parametrize(
    ("layers", "line"),
    [([4], "asked for layer 4, the model has 4"), ("0:9", "asked for layers 0 to 8"), ([], "no layers")],
)
def test_a_plan_that_does_not_fit_downloads_nothing_but_the_configuration(
    layers: Any, line: str, hub: FakeHub, sharded: Path, tmp_path: Path
) -> None:
    hub.add("them/llama", sharded)
    with pytest.raises(PlanError, match=line):
        surgery.inherit_checkpoint("them/llama", tmp_path / "out", layers)
    assert hub.asked_for() == ["config.json", "adapter_config.json"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_checkpoints_without_an_index_of_safetensors(
    kind: str, hub: FakeHub, tmp_path: Path, tiny_llama: PreTrainedModel
) -> None:
    folder = tmp_path / "source"
    tiny_llama.save_pretrained(folder)
    state = tiny_llama.state_dict()
    if kind != "model.safetensors":
        (folder / "model.safetensors").unlink()
        parts = {"pytorch_model.bin": state}
        if kind != "pytorch_model.bin":
            keys = sorted(state)
            parts = {f"pytorch_model-{i}.bin": {key: state[key].clone() for key in keys[i::2]} for i in range(2)}
            index = {key: name for name, part in parts.items() for key in part}
            (folder / kind).write_text(json.dumps({"weight_map": index}))
        for name, part in parts.items():
            torch.save(part, folder / name)
    hub.add("them/one", folder)
    with pytest.raises(PlanError):
        surgery.inherit_checkpoint("them/one", tmp_path / "out", 5)
    assert hub.asked_for() == ["config.json", "adapter_config.json"]
    out = surgery.inherit_checkpoint("them/one", tmp_path / "out", 2)
    assert_same_weights(load_model(out).state_dict(), surgery.inherit(tiny_llama, 2).state_dict())


def test_the_second_time_comes_from_the_cache_even_offline(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("them/llama", sharded)
    first = surgery.inherit_checkpoint("them/llama", tmp_path / "first", 2)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    second = surgery.inherit_checkpoint("them/llama", tmp_path / "second", 2)
    pinned = surgery.inherit_checkpoint("them/llama", tmp_path / "pinned", 2, revision=COMMIT)
    assert not hub.requests
    for out in (second, pinned):
        for path in first.glob("*.safetensors"):
            assert (out / path.name).read_bytes() == path.read_bytes()
    with pytest.raises(ModelError, match=r"file model-\d+-of-\d+.safetensors of them/llama .*HF_HUB_OFFLINE forbids"):
        surgery.inherit_checkpoint("them/llama", tmp_path / "more", 4)
    with pytest.raises(ModelError, match=r"them/other: there is no such folder, .*cache, and HF_HUB_OFFLINE"):
        surgery.inherit_checkpoint("them/other", tmp_path / "more", 2)
    assert not (tmp_path / "more").exists()


def test_a_revision_is_heeded(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    hub.add("them/llama", sharded, branches={"main", "v2"})
    surgery.inherit_checkpoint("them/llama", tmp_path / "out", 1, revision="v2")
    assert ("HEAD", "/them/llama/resolve/v2/config.json") in hub.requests
    assert not any("/main" in path for _, path in hub.requests)
    assert load_config("them/llama", revision="v2").num_hidden_layers == 4
    with pytest.raises(ModelError, match=r"sharded is a folder: a revision \(v2\) is for models on the hub"):
        surgery.inherit_checkpoint(sharded, tmp_path / "more", 1, revision="v2")


def test_private_models_are_read_with_the_users_token(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/secret", sharded, private=True)
    with pytest.raises(ModelError, match=r"no model on the hub is called me/secret; if it is private, log in"):
        surgery.inherit_checkpoint("me/secret", tmp_path / "out", 1)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    surgery.inherit_checkpoint("me/secret", tmp_path / "out", 1)
    assert load_model("me/secret").config.num_hidden_layers == 4


def test_a_target_may_be_on_the_hub(hub: FakeHub, sharded: Path, tmp_path: Path, tiny_llama: PreTrainedModel) -> None:
    target = surgery.scratch(tiny_llama.config, 2, seed=5)
    target.save_pretrained(tmp_path / "target")
    hub.add("them/llama", sharded)
    hub.add("me/half", tmp_path / "target")
    plan = LayerPlan.append(2, 3)
    out = surgery.inherit_checkpoint("them/llama", tmp_path / "out", plan=plan, target="me/half")
    expected = surgery.inherit(tiny_llama, plan=plan, target=target)
    assert_same_weights(load_model(out).state_dict(), expected.state_dict())
    index = json.loads((sharded / INDEX).read_text())["weight_map"]
    fetched = {
        path.rsplit("/", 1)[1] for method, path in hub.requests if method == "GET" and "them/llama/resolve" in path
    }
    wanted = {name for key, name in index.items() if key.startswith("model.layers.2.")}
    assert {name for name in fetched if name.endswith(".safetensors")} == wanted


def test_a_card_for_a_model_made_in_memory_names_its_licence(hub: FakeHub, sharded: Path) -> None:
    hub.add("them/llama", sharded)
    (sharded / "README.md").unlink()  # it is the hub's that counts
    place = locate("them/llama")
    fetch_files(place)
    card = model_card(
        name="cut",
        plan=LayerPlan.first(1, 4),
        places={"reference": place},
        parameters=ParameterCounts(before=2, after=1),
        command="a command",
    )
    assert "license: apache-2.0\n" in card and "base_model: them/llama\n" in card
    assert sorted(hub.asked_for()) == ["README.md", "config.json", "generation_config.json"]


def mistakes(hub: FakeHub, sharded: Path, tmp_path: Path) -> dict[str, str]:
    hub.add("them/llama", sharded)
    hub.add("them/gated", sharded, gated=True)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("nothing else")
    hub.add("them/bare", tmp_path / "bare")
    return {
        "them/lama": r"no folder and no model on the hub is called them/lama; if it is private, log in",
        "them/gated": r"them/gated is gated: ask for access at http://.*/them/gated, then log in",
        "them/bare": r"them/bare is no model for transformers: it has no config.json on the hub",
        "them/llama@v3": r"them/llama has no revision 'v3' on the hub: expected a branch, a tag or a commit",
    }


def test_every_mistake_is_one_line_wherever_it_is_made(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    for given, line in mistakes(hub, sharded, tmp_path).items():
        name, _, revision = given.partition("@")
        for attempt in (
            partial(surgery.inherit_checkpoint, dst_dir=tmp_path / "out", layers=2),
            load_config,
            load_model,
        ):
            with pytest.raises(ModelError, match=line) as caught:
                attempt(name, revision=revision or None)
            assert "\n" not in str(caught.value), given
    assert not (tmp_path / "out").exists()


def test_a_model_without_weights_is_one_line(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    repository = hub.add("them/llama", sharded)
    repository.files = {name: data for name, data in repository.files.items() if "safetensors" not in name}
    with pytest.raises(ModelError, match=r"them/llama has no weights on the hub: expected one of model.safeten"):
        surgery.inherit_checkpoint("them/llama", tmp_path / "out", 2)


def test_without_a_network_the_refusal_comes_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: FakeHub
) -> None:
    def no_name(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    line = "cannot load a model from them/llama: there is no such folder, .* and the hub cannot be reached"
    with pytest.raises(ModelError, match=line):
        surgery.inherit_checkpoint("them/llama", tmp_path / "out", 2)
    with pytest.raises(OutputError, match="cannot upload to me/new: "):
        check_push("me/new", TOKEN)


def test_a_tokenizer_comes_from_its_revision(hub: FakeHub, stories: Path, tmp_path: Path) -> None:
    hub.add("them/stories", stories, branches={"main", "v2"})
    text = "Once upon a time"
    expected = load_tokenizer(stories)(text).input_ids
    assert load_tokenizer("them/stories", revision="v2")(text).input_ids == expected
    out = surgery.inherit_checkpoint("them/stories", tmp_path / "out", 3)
    assert load_tokenizer(out)(text).input_ids == expected


# -- upload -----------------------------------------------------------------------------------------------------------


def test_a_pushed_model_comes_back_from_the_hub(
    hub: FakeHub, sharded: Path, tmp_path: Path, tiny_llama: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = surgery.inherit_checkpoint(sharded, tmp_path / "out", 2)
    (out / "inherit.json").write_text('{"source": "/home/me/private"}')
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    check_push("me/new")
    address = push(out, "me/new", private=True, leave_out=["inherit.json"])
    assert address == f"{constants.ENDPOINT}/me/new"
    held = hub.repositories["me/new"]
    assert held.private and held.files["README.md"] == (out / "README.md").read_bytes()
    assert b"AutoTokenizer.from_pretrained('me/new')" in held.files["README.md"]
    assert held.files.keys() - {".gitattributes"} == {path.name for path in out.iterdir()} - {"inherit.json"}
    back = AutoModelForCausalLM.from_pretrained("me/new")
    assert_same_weights(back.state_dict(), surgery.inherit(tiny_llama, 2).state_dict())
    push(out, "new", revision="v2", token=TOKEN)
    assert "v2" in held.branches and "inherit.json" in held.files


def test_uploads_that_cannot_work_are_one_line(
    hub: FakeHub, sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(line: str, name: str = "me/new", folder: Path = sharded, **options: Any) -> None:
        with pytest.raises(OutputError, match=line) as caught:
            push(folder, name, **options)
        assert "\n" not in str(caught.value)

    refused("me/new: not logged in; run hf auth login or set HF_TOKEN")
    with pytest.raises(OutputError, match="me/new: not logged in; run hf auth login or set HF_TOKEN"):
        check_push("me/new")
    refused("'no/such/name' names no repository on the hub: expected USER/NAME", "no/such/name", token=TOKEN)
    refused("holds no model to upload: expected a config.json there", folder=tmp_path, token=TOKEN)
    hub.add("me/public", sharded)
    refused("me/public exists on the hub and is public", "me/public", private=True, token=TOKEN)
    hub.read_only = True
    refused("cannot upload to you/new: you may not write there", "you/new", token=TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused("cannot upload to me/new: HF_HUB_OFFLINE forbids to ask the hub", token=TOKEN)


def test_a_tokenizer_comes_from_the_hub_also_without_a_model_and_offline(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_tokenizer(["some text"], 257).save_pretrained(tmp_path / "t")
    hub.add("them/tokenizer", tmp_path / "t")
    assert len(load_tokenizer("them/tokenizer")) == 257
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(load_tokenizer("them/tokenizer")) == 257
    with pytest.raises(ModelError, match=r"them/other: there is no such folder, it is not in the hub's cache, and HF_"):
        load_tokenizer("them/other")


def test_a_tokenizer_on_the_hub_that_is_missing_is_told_from_a_damaged_one(hub: FakeHub, sharded: Path) -> None:
    hub.add("them/none", sharded)
    with pytest.raises(NoTokenizerError, match=r"^no tokenizer in them/none: expected one of "):
        load_tokenizer("them/none")
    (sharded / "tokenizer.json").write_text('{"version": "9.0"}')
    hub.add("them/damaged", sharded)
    with pytest.raises(ModelError, match=r"^cannot load the tokenizer .*tokenizer\.json: ") as caught:
        load_tokenizer("them/damaged")
    assert not isinstance(caught.value, NoTokenizerError)


def test_an_adapter_on_the_hub_is_refused(hub: FakeHub, sharded: Path, tmp_path: Path) -> None:
    (sharded / "adapter_config.json").write_text("{}")
    hub.add("them/adapted", sharded)
    for attempt in (load_config, load_model, lambda name: surgery.inherit_checkpoint(name, tmp_path / "out", 1)):
        with pytest.raises(
            ModelError, match=r"^them/adapted holds an adapter \(adapter_config\.json\), .*merge it first"
        ):
            attempt("them/adapted")


def test_a_model_on_the_hub_is_known_by_its_commit_once_it_is_here(hub: FakeHub, sharded: Path) -> None:
    hub.add("them/llama", sharded)
    assert model_identity("them/llama") is None and not hub.requests
    load_config("them/llama")
    assert model_identity("them/llama") == f"them/llama@{COMMIT}"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/cache/x"), "Permission denied: /cache/x"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_system_refuses_is_not_blamed_on_the_hub(
    error: OSError, line: str, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    for attempt in (load_config, load_tokenizer):
        with pytest.raises(ModelError) as caught:
            attempt("them/llama")
        assert str(caught.value) == f"cannot keep them/llama in the hub's cache: {line}"
