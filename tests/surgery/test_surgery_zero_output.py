"""Appended blocks that are silent at first: the model's own logits are the oracle."""

from __future__ import annotations

import pytest
import torch
from surgery_families import DEPTH, FAMILIES, build, logits, source, tiny_config, tokens
from transformers import PreTrainedModel

from inheritune import surgery
from inheritune.decoder import Decoder, open_decoder
from inheritune.errors import PlanError
from inheritune.surgery.build import check_identity, zero_output, zero_outputs

NEVER = {"deepseek_v4", "doge", "gemma3n_text", "minimax", "openai-gpt"}
"""Families that do not add their branches to an untouched stream: after-norms, scaled or several streams."""

ROWS = (DEPTH, DEPTH + 1)


def grown(name: str, model: PreTrainedModel | None = None) -> Decoder:
    layers = (*range(DEPTH), *FAMILIES[name].grown)
    return open_decoder(surgery.inherit(model or source(name), layers))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - NEVER))
def test_logits_stay_the_same_until_a_block_learns(name: str) -> None:
    decoder, expected = grown(name), logits(source(name))
    assert not torch.equal(logits(decoder.model), expected)
    zero_outputs(decoder, ROWS)
    assert torch.equal(logits(decoder.model), expected)

    decoder.model(tokens(), labels=tokens(), use_cache=False).loss.backward()
    block = decoder.blocks[DEPTH]
    learns = {key: weight for key, weight in block.named_parameters() if not weight.any() and weight.grad is not None}
    assert any(weight.grad is not None and weight.grad.any() for weight in learns.values())
    torch.optim.SGD(learns.values(), lr=0.1).step()
    assert not torch.equal(logits(decoder.model), expected)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - NEVER))
def test_nothing_is_silenced_that_need_not_be(name: str) -> None:
    decoder, expected = grown(name), logits(source(name))
    others = {id(p) for i, b in enumerate(decoder.blocks) if i not in ROWS for p in b.parameters()}
    before = {key: weight.clone() for key, weight in decoder.blocks[DEPTH].state_dict().items()}
    zero_output(decoder.blocks[DEPTH + 1], others)
    names = zero_output(decoder.blocks[DEPTH], others)
    state = decoder.blocks[DEPTH].state_dict()
    assert names and all(torch.equal(weight, before[key]) for key, weight in state.items() if key not in names)
    for key in names:
        state[key].copy_(before[key])
        assert torch.equal(logits(decoder.model), expected) is not bool(before[key].any())
        state[key].zero_()


@pytest.mark.parametrize("name", sorted(NEVER))
def test_families_that_cannot_be_silent_are_named(name: str) -> None:
    with pytest.raises(PlanError, match=f"{name} cannot grow with its function preserved: layer 4 changes"):
        zero_outputs(grown(name), ROWS)


def test_opt_with_norms_behind_the_sum_is_refused() -> None:
    decoder = grown("opt", build(tiny_config("opt", do_layer_norm_before=False)))
    with pytest.raises(PlanError, match="opt cannot grow with its function preserved"):
        zero_outputs(decoder, ROWS)


def test_the_check_finds_a_block_that_is_not_silent_and_leaves_no_trace() -> None:
    decoder = grown("llama")
    decoder.model.train()
    zero_output(decoder.blocks[4])
    state = torch.get_rng_state()
    check_identity(decoder, [4])
    with pytest.raises(PlanError, match=r"llama cannot grow .* layer 5 changes"):
        check_identity(decoder, iter([4, 5]))
    assert torch.equal(torch.get_rng_state(), state)
    assert decoder.model.training and not any(block._forward_hooks for block in decoder.blocks)


def test_shared_projections_are_left_to_the_other_blocks() -> None:
    decoder = grown("zamba")
    weight = decoder.blocks[0].shared_transf.self_attn.o_proj.weight.clone()
    zero_outputs(decoder, ROWS)
    assert torch.equal(decoder.blocks[0].shared_transf.self_attn.o_proj.weight, weight)
