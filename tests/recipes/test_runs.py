"""Whole runs at a tiny scale: the growth loop, the baselines, the record, and what a killed run leaves behind."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import inheritune as it
from inheritune.data import TrainingWindows, open_shards, prepare, train_tokenizer, validation_windows
from inheritune.decoder import load_tokenizer, save_model
from inheritune.errors import DataError, InherituneError, OutputError, PlanError, RecipeError
from inheritune.evaluation import window_losses
from inheritune.recipes import workspace
from inheritune.records.runs import RunRecord
from inheritune.training import Objective
from inheritune.training.settings import OBJECTIVES
from tiny import perturbed

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]
FROZEN: dict[str, Any] = {
    "steps": 1,
    "batch": 1,
    "length": 8,
    "learning_rate": 1e-30,
    "min_learning_rate": 0.0,
    "weight_decay": 0.0,
}
"""A training that moves nothing, so that a plan can be read off the weights."""
VOLATILE = {"seconds", "created", "environment", "speed", "tokens_per_second"}


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a 6-layer reference, trained enough that six steps on a cut do not reach it."""
    root = tmp_path_factory.mktemp("setting")
    (root / "corpus.txt").write_text("\n\n".join(TEXTS))
    tokenizer = train_tokenizer(TEXTS, 270)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=270, n_positions=32, n_embd=16, n_layer=6, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = perturbed(GPT2LMHeadModel(config))
    learn(model, torch.tensor([i for text in TEXTS for i in [*tokenizer(text)["input_ids"], 0]]))
    save_model(model, root / "reference", tokenizer)
    return root


def learn(model: torch.nn.Module, tokens: torch.Tensor, steps: int = 150) -> None:
    """Train `model` a little, the plain way."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - 17, (8, 1), generator=generator)
        batch = tokens[starts + torch.arange(17)]
        loss = F.cross_entropy(model(batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "name": "tiny",
        "method": "inheritune",
        "reference": str(root / "reference"),
        "layers": 2,
        "data": {"source": str(root / "corpus.txt"), "valid_fraction": 0.2, "folder": str(root / "data")},
        "training": {
            "steps": 6, "batch": 4, "length": 16, "learning_rate": 3e-3, "warmup_steps": 2,
            "log_every": 2, "valid_every": 2, "checkpoint_every": 2,
        },
        "growth": {"by": 3},
        "evaluation": {"margin": 0.0, "speed": False, "prompt": "text "},
        "analysis": None,
    }  # fmt: skip
    if changes.get("method", "inheritune") != "inheritune":
        del base["growth"]
    return {**base, **changes}


def stable(record: Any) -> Any:
    """Return a record without what two equal runs may differ in."""
    if isinstance(record, RunRecord):
        record = record.as_json()
    if isinstance(record, dict):
        return {key: stable(value) for key, value in record.items() if key not in VOLATILE}
    return [stable(item) for item in record] if isinstance(record, list) else record


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


# -- Algorithm 1 ----------------------------------------------------------------------------------------------------


def test_the_target_grows_to_the_reference_s_depth_while_it_does_not_match(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, growth={"by": 3, "max_layers": 6}), tmp_path / "r")
    assert [item["layers"] for item in record["rounds"]] == [2, 5, 6]
    assert [item["comparison"]["matches"] for item in record["rounds"][:2]] == [False, False]
    assert record["result"]["tokens"] == 3 * 6 * 4 * 16
    assert json.loads((tmp_path / "r" / "record.json").read_text()) == record.as_json()


def test_growth_without_output_starts_where_the_round_before_ended(setting: Path, tmp_path: Path) -> None:
    growth = {"by": 2, "max_rounds": 2}
    silent, plain = (
        it.run(recipe(setting, growth={**growth, "zero_output": zero}), tmp_path / f"{zero}") for zero in (True, False)
    )
    ends = [[record["rounds"][0]["evaluation"], record["rounds"][1]["start_evaluation"]] for record in (silent, plain)]
    assert ends[0][0]["loss"] == ends[0][1]["loss"]
    assert ends[1][1]["loss"] > ends[1][0]["loss"] + 0.01
    assert silent["rounds"][1]["evaluation"]["loss"] < silent["rounds"][1]["start_evaluation"]["loss"]
    learned = weights(tmp_path / "True" / "round-2" / "model")
    assert all(
        learned[f"transformer.h.{layer}.{part}.c_proj.weight"].any() for layer in (2, 3) for part in ("attn", "mlp")
    )
    with pytest.raises(PlanError, match="growth mode 'restart' keeps no trained layers"):
        it.run(recipe(setting, growth={"mode": "restart", "zero_output": True}), tmp_path / "no")


def test_growth_keeps_the_trained_layers_and_appends_the_reference_s(setting: Path, tmp_path: Path) -> None:
    record = it.run(
        recipe(setting, training=FROZEN, growth={"by": 2, "max_rounds": 2}, evaluation={"margin": 0.0, "speed": False}),
        tmp_path / "r",
    )
    # Nothing learns, so a grown model is the first layers of the reference, whatever the round.
    plan = record["rounds"][1]["plan"]
    assert [(row["model"], row["source"]) for row in plan] == [
        ("target", 0), ("target", 1), ("reference", 2), ("reference", 3),
    ]  # fmt: skip
    reference, grown = weights(setting / "reference"), weights(tmp_path / "r" / "round-2" / "model")
    for key, value in grown.items():
        torch.testing.assert_close(value, reference[key], rtol=0, atol=1e-7)
    assert set(grown) == {key for key in reference if ".h.4." not in key and ".h.5." not in key}


def test_a_match_ends_the_growth_and_the_test_is_of_documents(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, evaluation={"margin": 100.0, "speed": False}), tmp_path / "r")
    assert [item["layers"] for item in record["rounds"]] == [2]
    assert record["result"]["matched"] is True
    shards = open_shards(setting / "data")
    windows = validation_windows(shards, load_tokenizer(shards.tokenizer), 16, 2000)
    ours, reference = (
        window_losses(AutoModelForCausalLM.from_pretrained(folder), windows)
        for folder in (tmp_path / "r" / "round-1" / "model", setting / "reference")
    )
    comparison = record["result"]["comparison"]
    ends = np.cumsum(shards.read("valid", 0, shards.tokens("valid")) == 0)  # a text ends with token 0
    ranges = [(ends[16 * i], ends[16 * i + 15]) for i in range(len(windows))]  # of the targets
    np.testing.assert_array_equal(np.load(tmp_path / "r" / record.data.documents), ranges)
    gaps, count = ours - reference, len(windows)
    share = np.array([[a <= d and c <= b for c, d in ranges] for a, b in ranges])
    rest, pairs = gaps - gaps.mean(), share.mean()
    half = scipy.stats.t.ppf(0.975, 1 / pairs - 1) * (rest @ share @ rest / (1 - pairs)) ** 0.5 / count
    assert (comparison.windows, comparison.clusters) == (count, 1 + ranges[-1][1])
    interval = gaps.mean() - half, gaps.mean() + half
    assert (comparison["ci_low"], comparison["ci_high"]) == pytest.approx(interval, abs=1e-12)


def test_the_result_is_an_ordinary_hugging_face_model(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, growth={"max_rounds": 1}), tmp_path / "r")
    folder = tmp_path / "r" / record["result"]["model"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("text 1", return_tensors="pt")
    with torch.no_grad():
        step = model(**prompt).logits[0, -1].argmax()
    generated = model.generate(**prompt, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert generated[0, prompt["input_ids"].shape[1]] == step
    assert model.config.use_cache is True
    assert json.loads((folder / "training.json").read_text())["tokens"] == 6 * 4 * 16
    lines = [json.loads(x) for x in (tmp_path / "r" / record["rounds"][0]["metrics"]).read_text().splitlines()]
    assert [x["step"] for x in lines] == [2, 4, 6]
    assert all(x["valid_loss"] > 0 for x in lines)


# -- baselines ------------------------------------------------------------------------------------------------------


def test_scratch_sees_the_data_that_the_rounds_saw(
    setting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    start = TrainingWindows.start
    monkeypatch.setattr(TrainingWindows, "start", lambda self, n: seen.append(n) or start(self, n))
    it.run(recipe(setting, growth={"by": 2, "max_rounds": 2}), tmp_path / "grown")
    grown = [*seen]
    seen.clear()
    twice = {**recipe(setting)["training"], "steps": 12}
    it.run(recipe(setting, method="scratch", layers=4, training=twice), tmp_path / "scratch")
    assert grown == seen == list(range(48))


def test_stacking_doubles_the_trained_half(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, method="stacking", layers=4, training=FROZEN), tmp_path / "r")
    assert [item["layers"] for item in record["rounds"]] == [2, 4]
    half, whole = (weights(tmp_path / "r" / f"round-{i}" / "model") for i in (1, 2))
    for layer in range(4):
        for key in (key for key in whole if f".h.{layer}." in key):
            source = half[key.replace(f".h.{layer}.", f".h.{layer % 2}.")]
            torch.testing.assert_close(whole[key], source, rtol=0, atol=1e-7)


def test_hybrid_stacking_starts_from_the_reference(setting: Path, tmp_path: Path) -> None:
    it.run(recipe(setting, method="hybrid-stacking", layers=4, training=FROZEN), tmp_path / "r")
    reference, whole = weights(setting / "reference"), weights(tmp_path / "r" / "round-2" / "model")
    torch.testing.assert_close(
        whole["transformer.h.3.mlp.c_fc.weight"], reference["transformer.h.1.mlp.c_fc.weight"], rtol=0, atol=1e-7
    )


def test_the_distillation_loss_is_the_paper_s_mixture(setting: Path) -> None:
    teacher = AutoModelForCausalLM.from_pretrained(setting / "reference")
    student = it.inherit(teacher, layers=2)
    tokens = torch.randint(0, 270, (3, 9), generator=torch.Generator().manual_seed(0))
    loss = Objective(OBJECTIVES["mix"], teacher)(student, tokens).item()

    def log_softmax(model: torch.nn.Module) -> np.ndarray:
        with torch.no_grad():
            logits = model(tokens[:, :-1]).logits.double().numpy()
        return logits - scipy.special.logsumexp(logits, -1, keepdims=True)

    p, q = log_softmax(teacher), log_softmax(student)
    cross_entropy = -np.take_along_axis(q, tokens[:, 1:, None].numpy(), -1).mean()
    divergence = (np.exp(p) * (p - q)).sum(-1).mean()
    assert loss == pytest.approx(0.6 * cross_entropy + 0.4 * divergence, rel=1e-5)


def test_distill_trains_a_random_student(setting: Path, tmp_path: Path) -> None:
    record = it.run(recipe(setting, method="distill", layers=2), tmp_path / "r")
    (item,) = record["rounds"]
    assert item["layers"] == 2
    assert {row["model"] for row in item["plan"]} == {None}
    assert item["evaluation"]["loss"] < item["start_evaluation"]["loss"]


def test_an_architecture_is_trained_without_a_reference(setting: Path, tmp_path: Path) -> None:
    shape = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip
    changes = {"method": "scratch", "reference": None, "layers": None, "architecture": shape}
    data = {**recipe(setting)["data"], "tokenizer": "train:280", "folder": str(tmp_path / "data")}
    record = it.run(recipe(setting, **changes, data=data), tmp_path / "r")
    assert record["reference"] is None
    assert record["result"]["comparison"] is None
    assert record["result"]["matched"] is None
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "round-1" / "model")
    assert (model.config.model_type, model.config.vocab_size, model.config.eos_token_id) == ("llama", 280, 0)


# -- stopping and going on ------------------------------------------------------------------------------------------


def test_a_run_killed_at_any_moment_ends_like_one_that_was_not(setting: Path, tmp_path: Path) -> None:
    settings = recipe(setting, growth={"by": 2, "max_rounds": 2})
    whole = it.run(settings, tmp_path / "whole")
    (tmp_path / "recipe.json").write_text(json.dumps(settings))
    program = (
        "import json, sys, torch, inheritune as it\n"
        "torch.set_num_threads(1)\n"
        "it.run(json.load(open(sys.argv[1])), sys.argv[2])\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "recipe.json"), str(tmp_path / "cut")]
    for wanted, number in (("round-1/metrics.jsonl", signal.SIGKILL), ("round-2/checkpoints", signal.SIGTERM)):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (tmp_path / "cut" / wanted).exists():
            time.sleep(0.002)
        process.send_signal(number)
        process.wait()
    resumed = it.run(settings, tmp_path / "cut")
    assert stable(resumed) == stable(whole)
    for name in ("round-1", "round-2"):
        one, two = weights(tmp_path / "whole" / name / "model"), weights(tmp_path / "cut" / name / "model")
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert not list((tmp_path / "cut").rglob("*.tmp"))


def test_a_finished_run_is_not_done_again(setting: Path, tmp_path: Path) -> None:
    settings = recipe(setting, growth={"max_rounds": 1})
    first = it.run(settings, tmp_path / "r")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    assert it.run(settings, tmp_path / "r") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == before


def test_a_folder_of_another_run_is_refused(setting: Path, tmp_path: Path) -> None:
    it.run(recipe(setting, growth={"max_rounds": 1}), tmp_path / "r")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")}
    with pytest.raises(OutputError, match=r"holds another run \(its recipe.seed is 0, yours is 1\)"):
        it.run(recipe(setting, growth={"max_rounds": 1}, seed=1), tmp_path / "r")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "r").rglob("*")} == before


# -- mistakes, all before anything is trained -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": 7}, PlanError, "7.*6"),
        ({"layers": "3:3"}, PlanError, "3:3"),
        ({"method": "stacking", "layers": 3}, PlanError, "must be even; try 4"),
        ({"training": {"steps": 1, "length": 33}}, RecipeError, "windows of 33 tokens: .* context, 32"),
        ({"reference": "/nowhere"}, InherituneError, "no folder /nowhere"),
        ({"evaluation": {"length": 32}, "data": {"source": "SHORT", "tokenizer": None}}, DataError, "one window"),
    ],
)
def test_a_mistake_is_one_line_and_trains_nothing(
    setting: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a\n\nb")
    if changes.get("data", {}).get("source") == "SHORT":
        changes = {**changes, "data": {"source": str(short)}}
    with pytest.raises(error, match=message) as caught:
        it.run(recipe(setting, **changes), tmp_path / "r")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "r").glob("round-*"))
    if not (tmp_path / "r" / "data").exists():
        assert not (tmp_path / "r").exists()  # the corrected recipe may have the folder


def test_text_of_another_vocabulary_is_refused(setting: Path, tmp_path: Path) -> None:
    data = {**recipe(setting)["data"], "tokenizer": "train:300", "folder": None}
    with pytest.raises(DataError, match=r"a vocabulary of 270 tokens, .* one of 300 \(37 differ\)"):
        it.run(recipe(setting, data=data), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_text_of_as_many_other_tokens_is_refused(setting: Path, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text("\n\n".join(text.upper().replace("1", "q") for text in TEXTS))
    data = {"source": str(tmp_path / "other.txt"), "valid_fraction": 0.2, "tokenizer": "train:270"}
    with pytest.raises(DataError, match="expected models and data of one vocabulary"):
        it.run(recipe(setting, data=data), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_one_validation_window_is_refused_before_the_training(setting: Path, tmp_path: Path) -> None:
    evaluation = {"length": 32, "windows": 2, "speed": False}
    (tmp_path / "short.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}")
    data = {"source": str(tmp_path / "short.txt"), "valid_fraction": 0.5}
    with pytest.raises(DataError, match=r"too few windows \(1\)"):
        it.run(recipe(setting, data=data, evaluation=evaluation), tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation": {"length": 32, "windows": 2, "speed": False}}, r"too few windows \(1\)"),
        ({"evaluation": {"length": 8, "speed": False}}, r"too few documents \(\d in \d+ windows, which all"),
        ({"training": {**FROZEN, "batch": 4, "micro_batch": 3}}, "a batch of 4 sequences cannot be shared"),
    ],
)
@pytest.mark.parametrize("there", [False, True])
def test_a_run_that_is_refused_gives_back_the_shards_that_it_made(
    changes: dict[str, Any], message: str, there: bool, setting: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}")
    folder = tmp_path / "new" / "data"
    data = {"source": str(tmp_path / "short.txt"), "valid_fraction": 0.5, "folder": str(folder)}
    if there:
        prepare(data["source"], folder, setting / "reference", valid_fraction=0.5)
    with pytest.raises(InherituneError, match=message):
        it.run(recipe(setting, data=data, **changes), tmp_path / "r")
    assert not (tmp_path / "r").exists()
    assert (folder / "manifest.json").is_file() if there else not folder.parent.exists()


def test_growth_goes_on_with_layers_that_are_not_there_yet(setting: Path, tmp_path: Path) -> None:
    changes = {
        "layers": [0, 2],
        "training": FROZEN,
        "evaluation": {"margin": 0.0, "speed": False},
        "parts": "mlp,norms",
    }
    for mode in ("continue", "restart"):
        growth = {"by": 2, "max_rounds": 2, "mode": mode}
        plan = it.run(recipe(setting, **changes, growth=growth), tmp_path / mode).rounds[1].plan
        old = [("target", 0), ("target", 1)] if mode == "continue" else [("reference", 0), ("reference", 2)]
        assert [(row.model, row.source) for row in plan] == [*old, ("reference", 3), ("reference", 4)]
        assert {row.parts for row in plan if row.model == "reference"} == {("mlp", "norms")}


def test_the_reference_is_evaluated_once(setting: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = recipe(setting, growth={"max_rounds": 1})
    whole = it.run(settings, tmp_path / "r")
    evaluated = []
    monkeypatch.setattr(workspace, "evaluate_windows", lambda model, *rest: evaluated.append(model))
    (tmp_path / "r" / "record.json").unlink()
    assert stable(it.run(settings, tmp_path / "r")) == stable(whole)
    assert not evaluated
    # Damaged, it is evaluated again.
    monkeypatch.undo()
    for name in ("record.json", "reference-losses.npy"):
        (tmp_path / "r" / name).unlink()
    assert stable(it.run(settings, tmp_path / "r")) == stable(whole)


@pytest.mark.parametrize(("name", "text"), [("record.json", "{"), ("round-1/round.json", '{"kind": "round"}')])
def test_a_damaged_record_is_one_line(setting: Path, tmp_path: Path, name: str, text: str) -> None:
    settings = recipe(setting, growth={"max_rounds": 1})
    it.run(settings, tmp_path / "r")
    (tmp_path / "r" / name).write_text(text)
    if name != "record.json":
        (tmp_path / "r" / "record.json").unlink()
    with pytest.raises(OutputError, match=name) as caught:
        it.run(settings, tmp_path / "r")
    assert "\n" not in str(caught.value)


def test_the_result_has_the_dtype_of_its_source(setting: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(setting / "reference", dtype=torch.bfloat16)
    save_model(model, tmp_path / "small", load_tokenizer(setting / "reference"))
    settings = recipe(setting, reference=str(tmp_path / "small"), growth={"by": 2, "max_rounds": 2})
    record = it.run(settings, tmp_path / "r")
    folder = tmp_path / "r" / record.result.model
    saved = AutoModelForCausalLM.from_pretrained(folder)
    assert (saved.dtype, record.result.dtype) == (torch.bfloat16, "bfloat16")
    assert (folder / "model.safetensors").stat().st_size < (tmp_path / "small" / "model.safetensors").stat().st_size
    # The loss is that of the weights as they are saved, in float32 arithmetic; the round's is that of float32 weights.
    shards = open_shards(setting / "data")
    windows = validation_windows(shards, load_tokenizer(shards.tokenizer), 16, 2000)
    losses = window_losses(saved.float(), windows)
    assert record.result.evaluation.loss == pytest.approx(losses.mean(), abs=1e-9)
    assert record.result.evaluation.loss != record.rounds[-1].evaluation.loss
    np.testing.assert_allclose(np.load(tmp_path / "r" / record.result.losses), losses, atol=1e-9)
    assert json.loads((folder / "training.json").read_text())["tokens"] == record.result.tokens
    first = AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "round-1" / "model")
    assert first.dtype == torch.float32  # the next round goes on from it
    (tmp_path / "r" / "record.json").unlink()
    assert stable(it.run(settings, tmp_path / "r")) == stable(record)
    plain = it.run({**settings, "save_dtype": "float32"}, tmp_path / "plain")
    assert plain.result.dtype == "float32"
    assert plain.result.evaluation == plain.rounds[-1].evaluation == record.rounds[-1].evaluation


def test_the_result_has_a_card_with_the_figures_of_the_run(setting: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    shutil.copytree(setting / "reference", reference)
    (reference / "LICENSE").write_text("do as you like")
    growth = {"by": 2, "max_rounds": 2}
    record = it.run(recipe(setting, reference=str(reference), growth=growth), tmp_path / "r")
    card = (tmp_path / "r" / record.result.model / "README.md").read_text()
    config = json.loads((tmp_path / "r" / record.result.model / "config.json").read_text())
    assert config["torch_dtype"] == config["dtype"]  # what transformers 4 reads
    assert f"{record.result.evaluation.loss:.4f} nats a token" in card
    assert f"{record.reference.evaluation.loss:.4f} nats a token" in card
    assert f"{record.result.tokens:,} tokens" in card
    assert "reference 0-3" in card  # the layers of both rounds, where they first came from
    assert "Train it before use" not in card
    assert str(tmp_path.parent) not in card
    place = f"r/{record.result.model}"
    assert f"AutoModelForCausalLM.from_pretrained('{place}')" in card and (tmp_path / place).is_dir()
    assert (tmp_path / "r" / record.result.model / "LICENSE").read_text() == "do as you like"
