"""The callback that watches collapse: against `analyze` and `backward()`, and against training without it."""

from __future__ import annotations

import copy
import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from training_data import make_shards
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

import inheritune as it
from inheritune.data import Shards, TrainingWindows, train_tokenizer
from inheritune.decoder import save_model
from inheritune.errors import DataError, InherituneError, ModelError
from inheritune.training import TrainingSettings, collapse, train
from inheritune.training.collapse import WatchCollapse
from tiny import VOCABULARY, make_gpt2, make_llama, perturbed

WINDOWS = torch.randint(3, VOCABULARY, (5, 20), generator=torch.Generator().manual_seed(1))
Line = dict[str, Any]


def lines_of(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def timeless(lines: list[Line]) -> list[Line]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def plain_trainer(model: PreTrainedModel, folder: Path, *callbacks: TrainerCallback, **settings: Any) -> Trainer:
    """Return a Trainer as any user would make it, with dropout where the model has it and half-done steps."""
    rows = torch.randint(3, VOCABULARY, (64, 16), generator=torch.Generator().manual_seed(0))
    arguments = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **settings}
    return Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            learning_rate=1e-2,
            **arguments,
        ),
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=list(callbacks),
    )


def with_dropout() -> PreTrainedModel:
    model = make_gpt2(2)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.2
    return model


class Copies(TrainerCallback):
    """Keeps the model as it is at some steps."""

    def __init__(self, *steps: int) -> None:
        self.steps, self.models = steps, {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step in self.steps:
            kept = copy.deepcopy(model).eval()
            vars(kept).pop("forward", None)  # of mixed precision
            self.models[state.global_step] = kept


def check_line(line: Line, model: PreTrainedModel) -> None:
    """Compare one line with `analyze` and with an ordinary backward pass."""
    spectra = it.analyze(model, WINDOWS, mask="both")
    for mask in ("causal", "full"):
        theirs = getattr(spectra, mask)
        np.testing.assert_allclose(line[mask]["max_rank"], theirs.max_rank, rtol=1e-12)
        np.testing.assert_allclose(line[mask]["collapsed"], theirs.collapsed_heads.mean(axis=1), rtol=1e-12)
    model.zero_grad()
    model(WINDOWS, labels=WINDOWS).loss.backward()
    for layer, block in enumerate(model.transformer.h):
        query, key, _ = block.attn.c_attn.weight.grad.split(32, dim=1)
        assert line["gradients"]["query"][layer] == pytest.approx(float(query.norm()), rel=1e-4)
        assert line["gradients"]["key"][layer] == pytest.approx(float(key.norm()), rel=1e-4)


def test_lines_say_what_analyze_and_backward_say(tmp_path: Path) -> None:
    copies, start = Copies(4, 6), make_gpt2(2)
    watch = WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=4, tokens_per_step=60)
    plain_trainer(copy.deepcopy(start), tmp_path, watch, copies).train()
    lines = lines_of(tmp_path / "c.jsonl")
    assert [(line["step"], line["tokens"]) for line in lines] == [(0, 0), (4, 240), (6, 360)]
    assert watch.seconds == pytest.approx(sum(line["seconds"] for line in lines), abs=1e-4)
    for line, model in zip(lines, (start, copies.models[4], copies.models[6]), strict=True):
        assert line["layers"] == [0, 1]
        check_line(line, model)


def test_weights_are_the_same_bits_with_and_without(tmp_path: Path) -> None:
    watched, unwatched = with_dropout(), with_dropout()
    watch = WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=1)
    plain_trainer(watched, tmp_path, watch).train()
    plain_trainer(unwatched, tmp_path).train()
    assert len(lines_of(tmp_path / "c.jsonl")) == 7
    for (name, left), right in zip(watched.state_dict().items(), unwatched.state_dict().values(), strict=True):
        assert torch.equal(left, right), name
    assert watched.config._attn_implementation == unwatched.config._attn_implementation
    assert [m.training for m in watched.modules()] == [m.training for m in unwatched.modules()]
    assert [p.grad is None for p in watched.parameters()] == [p.grad is None for p in unwatched.parameters()]


def test_mixed_precision_does_not_reach_the_lines(tmp_path: Path) -> None:
    copies = Copies(6)
    plain_trainer(make_gpt2(2), tmp_path, WatchCollapse(tmp_path / "c.jsonl", WINDOWS), copies, bf16=True).train()
    check_line(lines_of(tmp_path / "c.jsonl")[-1], copies.models[6])


def test_training_that_stops_early_ends_with_a_line(tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == 5

    plain_trainer(make_gpt2(2), tmp_path, WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=4), Stop()).train()
    assert [line["step"] for line in lines_of(tmp_path / "c.jsonl")] == [0, 4, 5]


# -- Families ----------------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "state_size": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(family: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return perturbed(AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SMALL | settings)))


def test_a_family_that_shows_less_is_watched_on_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the softmax without the mask cannot be told; BLOOM's gradients cannot."""
    visit = collapse.visit_attention

    def visit_causal(decoder: Any, tokens: Any, masks: Any, *rest: Any) -> None:
        if "full" in masks:
            raise ModelError("only the causal softmax can be analysed")
        visit(decoder, tokens, masks, *rest)

    monkeypatch.setattr(collapse, "visit_attention", visit_causal)
    model, copies = build("bloom"), Copies(2)
    watch = WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=2)
    plain_trainer(model, tmp_path, watch, copies, max_steps=2).train()
    first, last = lines_of(tmp_path / "c.jsonl")
    assert set(first) == set(last) == {"step", "tokens", "layers", "causal", "seconds"}
    assert last["causal"]["max_rank"] == pytest.approx(it.analyze(copies.models[2], WINDOWS).max_rank.tolist())


def test_layers_without_attention_have_no_place(tmp_path: Path) -> None:
    kinds = ["conv", "full_attention", "full_attention"]
    model = build("lfm2", num_hidden_layers=3, num_key_value_heads=2, layer_types=kinds)
    plain_trainer(model, tmp_path, WatchCollapse(tmp_path / "c.jsonl", WINDOWS), max_steps=1).train()
    line = lines_of(tmp_path / "c.jsonl")[0]
    assert line["layers"] == [1, 2]
    assert [len(values) for part in ("causal", "full", "gradients") for values in line[part].values()] == [2] * 6


def test_a_model_without_attention_is_trained_all_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "inheritune"):
        trainer = plain_trainer(build("mamba"), tmp_path, WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=1))
        trainer.train()
    assert trainer.state.global_step == 6
    assert lines_of(tmp_path / "c.jsonl") == []
    (message,) = [record.getMessage() for record in caplog.records if record.name.startswith("inheritune")]
    assert "MambaForCausalLM" in message


# -- Several processes -------------------------------------------------------------------------------------------------


def begin(path: Path, model: torch.nn.Module, **state: Any) -> None:
    """Let a callback see the beginning of a training."""
    arguments = TrainingArguments(output_dir=str(path.parent), use_cpu=True, report_to=[])
    WatchCollapse(path, WINDOWS).on_train_begin(
        arguments, TrainerState(max_steps=9, **state), TrainerControl(), model=model
    )


def test_a_wrapped_model_is_watched_through_its_wrapper(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        begin(tmp_path / "wrapped.jsonl", DistributedDataParallel(make_llama(2)))
    finally:
        torch.distributed.destroy_process_group()
    begin(tmp_path / "plain.jsonl", make_llama(2))
    wrapped, plain = (timeless(lines_of(tmp_path / f"{name}.jsonl")) for name in ("wrapped", "plain"))
    assert wrapped == plain and len(plain) == 1


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "c.jsonl", make_llama(2), is_world_process_zero=False)
    assert not (tmp_path / "c.jsonl").exists()


def test_weights_in_shards_are_not_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = make_llama(2)
    model.lm_head.weight.ds_id = 0  # as DeepSpeed marks them
    with caplog.at_level(logging.WARNING, "inheritune"):
        begin(tmp_path / "c.jsonl", model)
    assert not (tmp_path / "c.jsonl").exists()
    assert "shards" in caplog.text


# -- In the engine -----------------------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return make_shards(tmp_path / "shards")


def settings(**changes: object) -> TrainingSettings:
    base = {"steps": 12, "batch": 4, "length": 16, "learning_rate": 1e-2, "warmup_steps": 3, "log_every": 2}
    return TrainingSettings(**{**base, "valid_every": 0, "checkpoint_every": 4, "watch_every": 3, **changes})


class Breaking(TrainingWindows):
    """Data whose reading at one step is interrupted."""

    def __init__(self, shards: Shards, s: TrainingSettings, step: int, error: Exception | None) -> None:
        super().__init__(shards, s.length, s.steps * s.batch, seed=5)
        self.place, self.error = step * s.batch, error

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if n == self.place:
            if self.error is not None:
                raise self.error
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__getitem__(n)


@pytest.mark.parametrize(
    ("step", "error"), [(4, None), (6, None), (10, OSError("power cut")), (11, OSError("power cut"))]
)
def test_a_stopped_run_s_file_reads_as_an_uninterrupted_one(
    shards: Shards, tmp_path: Path, step: int, error: Exception | None
) -> None:
    s, windows = settings(), WINDOWS.numpy()
    data = TrainingWindows(shards, s.length, s.steps * s.batch, seed=5)
    train(make_gpt2(2), data, s, tmp_path / "whole", seed=0, watch=windows)
    with pytest.raises((KeyboardInterrupt, OSError)):
        train(make_gpt2(2), Breaking(shards, s, step, error), s, tmp_path / "cut", seed=0, watch=windows)
    with (tmp_path / "cut" / "collapse.jsonl").open("a") as log:
        log.write('{"step": 11, "lay')  # a line without its end
    train(make_gpt2(2, seed=9), data, s, tmp_path / "cut", seed=0, watch=windows)
    whole, cut = (timeless(lines_of(tmp_path / name / "collapse.jsonl")) for name in ("whole", "cut"))
    assert cut == whole
    assert [(line["step"], line["tokens"]) for line in whole] == [(n, n * 64) for n in (0, 3, 6, 9, 12)]


def test_the_engine_s_weights_are_the_same_bits_with_and_without(shards: Shards, tmp_path: Path) -> None:
    models, s = (make_llama(2), make_llama(2)), settings(watch_every=1)
    data = TrainingWindows(shards, s.length, s.steps * s.batch, seed=5)
    for model, windows in zip(models, (WINDOWS.numpy(), None), strict=True):
        train(model, data, s, tmp_path / str(windows is None), seed=0, watch=windows)
    assert not (tmp_path / "True" / "collapse.jsonl").exists()
    for (name, left), right in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(left, right), name


def test_time_spent_watching_is_not_time_spent_training(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which each look takes an hour: training must be that much shorter than by the wall's."""
    hours = iter(range(100))
    monkeypatch.setattr(collapse, "_clock", lambda: 3600.0 * next(hours))
    s = settings(steps=4, watch_every=2)
    data = TrainingWindows(shards, s.length, s.steps * s.batch, seed=5)
    outcome = train(make_gpt2(1), data, s, tmp_path / "run", seed=0, watch=WINDOWS.numpy())
    # Step 0 is before the clock of training starts.
    assert outcome.seconds == pytest.approx(-2 * 3600, abs=600)


def test_nothing_is_watched_when_it_is_turned_off(shards: Shards, tmp_path: Path) -> None:
    s = settings(steps=2, watch_every=0)
    data = TrainingWindows(shards, s.length, s.steps * s.batch, seed=5)
    train(make_gpt2(1), data, s, tmp_path / "run", seed=0, watch=WINDOWS.numpy())
    assert not (tmp_path / "run" / "collapse.jsonl").exists()


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InherituneError, match="every 0 steps"):
        WatchCollapse(tmp_path / "c.jsonl", WINDOWS, every=0)
    with pytest.raises(InherituneError, match=r"tau is 1\.5"):
        WatchCollapse(tmp_path / "c.jsonl", WINDOWS, tau=1.5)
    with pytest.raises(DataError, match="float32"):
        WatchCollapse(tmp_path / "c.jsonl", WINDOWS.float())
    small = make_llama(2)
    small.resize_token_embeddings(50)
    with pytest.raises(DataError, match="outside the vocabulary"):
        begin(tmp_path / "c.jsonl", small)


# -- In a run ----------------------------------------------------------------------------------------------------------

TEXTS = [f"text {i}: " + " ".join(str((i * 89 + j * j * 31) % 97) for j in range(30 + i % 7)) for i in range(60)]


def test_every_round_and_run_is_watched_on_the_same_windows(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(TEXTS))
    torch.manual_seed(0)
    config = CONFIG_MAPPING["gpt2"](vocab_size=270, n_positions=32, n_embd=16, n_layer=4, n_head=2)
    save_model(perturbed(AutoModelForCausalLM.from_config(config)), tmp_path / "ref", train_tokenizer(TEXTS, 270))
    recipe: dict[str, Any] = {
        "name": "r", "method": "hybrid-stacking", "reference": str(tmp_path / "ref"), "layers": 4,
        "data": {"source": str(tmp_path / "text.txt"), "valid_fraction": 0.2},
        "training": {"steps": 4, "batch": 2, "length": 16, "learning_rate": 1e-30, "min_learning_rate": 0.0,
                     "weight_decay": 0.0, "warmup_steps": 2, "log_every": 2, "valid_every": 2, "checkpoint_every": 2,
                     "watch_every": 3},
        "evaluation": {"speed": False, "prompt": None}, "analysis": None,
    }  # fmt: skip
    record = it.run(recipe, tmp_path / "one")
    assert [item["collapse"] for item in record["rounds"]] == ["round-1/collapse.jsonl", "round-2/collapse.jsonl"]
    first, second = (lines_of(tmp_path / "one" / item["collapse"]) for item in record["rounds"])
    assert [line["step"] for line in first] == [0, 3, 4]
    assert [line["tokens"] for line in second] == [0, 96, 128]
    # Nothing learns, so all lines of the first round are alike, and the second round stacks its two layers: the first
    # two of its four see what the first round's saw. Ranks do not move with a rounding; gradients are of another model.
    assert first[0]["causal"] == first[1]["causal"] == first[2]["causal"]
    assert second[0]["causal"]["max_rank"][:2] == first[0]["causal"]["max_rank"]
    other = it.run({**recipe, "evaluation": {**recipe["evaluation"], "windows": 3, "length": 8}}, tmp_path / "two")
    assert timeless(lines_of(tmp_path / "two" / other["rounds"][0]["collapse"])) == timeless(first)
    unwatched = {**recipe, "training": {**recipe["training"], "watch_every": 0}}
    assert [item["collapse"] for item in it.run(unwatched, tmp_path / "off")["rounds"]] == [None, None]
