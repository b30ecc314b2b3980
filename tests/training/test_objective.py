"""Objectives against float64 and plain PyTorch: loss and gradients, whole and in pieces, in several families."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from training_data import make_shards
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GraniteConfig, OPTConfig, PreTrainedModel

import inheritune as it
from inheritune.data import TrainingWindows
from inheritune.decoder.head import head_of
from inheritune.errors import ModelError, RecipeError
from inheritune.training import Objective, ObjectiveSettings, TrainingSettings, losses, train
from inheritune.training.settings import OBJECTIVES
from tiny import VOCABULARY, make_gpt2, make_llama, perturbed

SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 8,
    "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip


def make(name: str) -> PreTrainedModel:
    if name in ("gpt2", "llama"):
        return (make_gpt2 if name == "gpt2" else make_llama)(4)
    config = {
        "gemma2": lambda: Gemma2Config(**SHAPE, final_logit_softcapping=2.0, attn_logit_softcapping=5.0),
        "cohere": lambda: CohereConfig(**SHAPE, logit_scale=0.5, pad_token_id=0),
        "granite": lambda: GraniteConfig(**SHAPE, logits_scaling=3.0),
        "opt": lambda: OPTConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, ffn_dim=64,
            word_embed_proj_dim=16, max_position_embeddings=64, dropout=0.0,
        ),
    }[name]()  # fmt: skip
    torch.manual_seed(0)
    return perturbed(AutoModelForCausalLM.from_config(config))


def tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY - 7, (3, 12), generator=torch.Generator().manual_seed(1))


def oracle(
    student: PreTrainedModel, teacher: PreTrainedModel, said: ObjectiveSettings, width: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return loss and gradients in float64, from the definitions."""
    student, teacher = (copy.deepcopy(model).double() for model in (student, teacher))
    ids = tokens()
    ours = student(ids[:, :-1], output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(ids[:, :-1], output_hidden_states=True)
    q = torch.softmax(ours.logits, -1)
    loss = -said.cross_entropy * q.gather(-1, ids[:, 1:, None]).log().mean()
    p, q = (torch.softmax(each.logits[..., :width] / said.temperature, -1) for each in (theirs, ours))
    loss = loss + said.kl * said.temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    if said.hidden:
        far = []
        for a, b in said.pairs(4, 4):
            one, two = ours.hidden_states[a + 1], theirs.hidden_states[b + 1]
            far.append(((one - two).norm(dim=-1) / two.norm(dim=-1)) ** 2)
        loss = loss + said.hidden * torch.stack(far).mean()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in student.named_parameters() if p.grad is not None}


SETTINGS = {
    "cross-entropy": OBJECTIVES["cross-entropy"],
    "kl": OBJECTIVES["kl"],
    "mix": OBJECTIVES["mix"],
    "warm": ObjectiveSettings(kl=0.7, temperature=2.5),
    "hidden": ObjectiveSettings(cross_entropy=0.3, kl=0.5, temperature=0.5, hidden=0.4),
    "pairs": ObjectiveSettings(kl=1.0, hidden=2.0, hidden_pairs=((0, 0), (-2, 1), (-2, 2))),
}


@pytest.mark.parametrize("at_once", [1000, 7])
@pytest.mark.parametrize(
    ("family", "objective"),
    [("gpt2", name) for name in SETTINGS]
    + [("llama", "mix"), ("llama", "hidden"), ("gemma2", "mix"), ("gemma2", "pairs"), ("cohere", "warm")]
    + [("granite", "mix"), ("opt", "mix")],
)
def test_loss_and_gradients_are_those_of_the_definitions(
    family: str, objective: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one piece, and in pieces of 7 tokens; the vocabulary has 7 padding rows."""
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: at_once)
    said, width = SETTINGS[objective], VOCABULARY - 7
    student, teacher = make(family), perturbed(make(family), seed=3)
    before = copy.deepcopy(teacher.state_dict())
    loss = Objective(said, teacher, width)(student, tokens())
    (2 * loss).backward()
    expected, gradients = oracle(student, teacher, said, width)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    largest = max(each.abs().max() for each in gradients.values())
    for name, weight in student.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad.double() / 2, gradients[name], rtol=1e-4, atol=2e-6 * float(largest))
        else:
            assert weight.grad is None or not weight.grad.any()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())


def test_no_piece_is_larger_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = F.kl_div
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: 7)
    monkeypatch.setattr(F, "kl_div", lambda a, b, **how: sizes.append(len(a)) or plain(a, b, **how))
    student, teacher = make_gpt2(2), make_gpt2(2, seed=1)
    widths: list[int] = []
    for model in (student, teacher):
        model.lm_head.register_forward_hook(lambda module, args, output: widths.append(output.shape[-2]))
    Objective(OBJECTIVES["kl"], teacher)(student, tokens()).backward()
    assert sizes == [7, 7, 7, 7, 5]
    assert max(widths[2:]) == 7  # the first two are the trials of the heads, with 2 tokens


def test_cross_entropy_of_one_piece_has_the_bits_of_the_plain_one() -> None:
    one, two, ids = make_gpt2(), make_gpt2(), tokens()
    plain = F.cross_entropy(one(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
    ours = it.training.next_token_loss(two, ids)
    plain.backward()
    ours.backward()
    assert torch.equal(plain, ours)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class Restless(type(make_gpt2(1))):  # type: ignore[misc]
    """A family whose logits need more than the last hidden states: the tokens themselves."""

    def forward(self, input_ids: torch.Tensor, **how: Any) -> Any:
        output = super().forward(input_ids, **how)
        output.logits = output.logits + 0.01 * input_ids[:, -output.logits.shape[1] :, None]
        return output


def test_a_head_that_cannot_run_alone_gives_its_own_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: 7)
    student = make_gpt2(4)
    student.__class__ = Restless
    student.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.detach().clone())
    assert head_of(student) is None and head_of(make_gpt2(4)) is not None
    teacher = make_gpt2(4, seed=2)
    loss = Objective(OBJECTIVES["mix"], teacher)(student, tokens())
    loss.backward()
    expected, gradients = oracle(student, teacher, OBJECTIVES["mix"], VOCABULARY)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    for name, weight in student.named_parameters():
        torch.testing.assert_close(weight.grad.double(), gradients[name], rtol=1e-4, atol=1e-6)


def test_dropout_is_not_touched_by_the_trial_of_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: 7)
    model = make_gpt2(2).train()
    state = torch.get_rng_state()
    assert head_of(model) is not None
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert "forward" not in vars(model.transformer)


def test_too_few_logits_for_the_vocabulary_are_refused() -> None:
    with pytest.raises(ModelError, match="the teacher has 97 logits and the student 97: expected at least the 98"):
        Objective(OBJECTIVES["kl"], make_gpt2(), 98)(make_gpt2(), tokens())


def test_pairs_count_from_both_ends() -> None:
    assert ObjectiveSettings(kl=1, hidden=1).pairs(8, 16) == [(5, 13)]
    assert ObjectiveSettings(kl=1, hidden=1).pairs(2, 1) == [(0, 0)]
    said = ObjectiveSettings(kl=1, hidden=1, hidden_pairs=((-1, 2), (0, -16)))
    assert said.pairs(8, 16) == [(7, 2), (0, 0)]
    with pytest.raises(RecipeError, match=r"\[-1, 2\]: the reference of 2 layers has no block 2, expected -2 to 1"):
        said.pairs(8, 2)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_stopped_training_with_pieces_goes_on_to_the_same_bits(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "rows_at_once", lambda *_: 10)
    shards = make_shards(tmp_path / "shards")
    s = TrainingSettings(
        steps=6, batch=2, length=8, learning_rate=1e-2, warmup_steps=1, log_every=2, checkpoint_every=2, average=3,
        precision=precision, valid_every=0, watch_every=0,
    )  # fmt: skip
    teacher = make_gpt2(3, seed=4)
    said = ObjectiveSettings(kl=1.0, hidden=0.5)

    def go(name: str, model: PreTrainedModel, stop: int | None) -> PreTrainedModel:
        class Stopping(TrainingWindows):
            def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
                if stop is not None and n == stop * s.batch:
                    raise KeyboardInterrupt
                return super().__getitem__(n)

        data = Stopping(shards, s.length, s.steps * s.batch, seed=5)
        try:
            train(model, data, s, tmp_path / name, seed=0, loss=Objective(said, teacher))
        except KeyboardInterrupt:
            return go(name, make_gpt2(2, seed=9), None)
        return model

    whole, cut = go("whole", make_gpt2(2), None), go("cut", make_gpt2(2), 5)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), cut.parameters(), strict=True))
