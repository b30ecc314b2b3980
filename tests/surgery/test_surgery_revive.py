"""Revived heads, against weights sliced by hand and the attention that Hugging Face's own models compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from surgery_families import digest, source, tokens
from transformers import PreTrainedModel

import inheritune
from inheritune.errors import PlanError
from inheritune.spectra.folder import save_spectra
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.surgery import LayerPlan, inherit, scratch
from inheritune.surgery.revive import heads_to_revive

# Heads of families of every layout: fused, interleaved, grouped (whole groups), one key head for all (which stays).
FAMILIES = {
    "gpt2": [1, 2],
    "llama": [2, 3],
    "gpt_neox": [0],
    "phi3": [0, 1],
    "falcon": [1],
    "stablelm": [2, 3],
    "bloom": [3],
    "mpt": [1],
    "gptj": [0, 2],
    "gpt_neo": [2],
    "opt": [1],
    "gpt_oss": [0, 1],
    "smollm3": [2, 3],
}


@torch.no_grad()
def attention(model: PreTrainedModel, layer: int) -> torch.Tensor:
    """Return the (n, H, T, T) probabilities of a layer, as the model's own eager attention has them."""
    model.set_attn_implementation("eager")
    return model(tokens(), output_attentions=True, use_cache=False).attentions[layer]


@pytest.mark.parametrize("name", FAMILIES)
def test_revived_heads_attend_as_random_ones_and_the_others_as_before(name: str) -> None:
    heads, reference = FAMILIES[name], source(name)
    before = digest(reference)
    revived = inherit(reference, 2, revive={0: heads}, seed=5)
    random = inherit(reference, 2, parts="mlp,norms", seed=5)
    old, new, fresh = (attention(model, 0) for model in (reference, revived, random))
    others = [head for head in range(4) if head not in heads]
    assert torch.equal(new[:, others], old[:, others])
    if name != "falcon":  # its key head is shared with living heads, and stays
        # gpt-oss: the trained sink of a head takes another share of its rows than the random one.
        new, fresh = (weights / weights.sum(dim=-1, keepdim=True) for weights in (new, fresh))
        torch.testing.assert_close(new[:, heads], fresh[:, heads], rtol=0, atol=2e-7)
    assert (new[:, heads] - old[:, heads]).abs().max() > 1e-3
    assert digest(reference) == before


def test_exactly_the_queries_and_keys_of_the_heads_change(tiny_gpt2: PreTrainedModel) -> None:
    """GPT-2's fused projection by hand: 3 x 32 columns, 8 for each head."""
    revived, fresh = inherit(tiny_gpt2, 4, revive={2: [1]}, seed=3), scratch(tiny_gpt2, 4, seed=3)
    expected = {key: value.clone() for key, value in tiny_gpt2.state_dict().items()}
    for columns in (slice(8, 16), slice(32 + 8, 32 + 16)):
        for key in ("transformer.h.2.attn.c_attn.weight", "transformer.h.2.attn.c_attn.bias"):
            expected[key][..., columns] = fresh.state_dict()[key][..., columns]
    for key, value in revived.state_dict().items():
        assert torch.equal(value, expected[key]), key


def test_a_shared_key_head_stays_while_a_head_that_reads_it_lives(tiny_llama: PreTrainedModel) -> None:
    """Llama with 4 query heads of 8 over 2 key heads: head 0 alone keeps key head 0, heads 2 and 3 free key head 1."""
    revived, fresh = inherit(tiny_llama, 4, revive={1: [0, 2, 3]}, seed=3), scratch(tiny_llama, 4, seed=3)
    old, new, random = (model.state_dict() for model in (tiny_llama, revived, fresh))
    query, key = (f"model.layers.1.self_attn.{name}_proj.weight" for name in "qk")
    assert torch.equal(new[query][8:16], old[query][8:16])
    assert torch.equal(new[query][[*range(8), *range(16, 32)]], random[query][[*range(8), *range(16, 32)]])
    assert torch.equal(new[key][:8], old[key][:8])
    assert torch.equal(new[key][8:], random[key][8:])
    assert all(torch.equal(new[name], old[name]) for name in old if name not in (query, key))


def test_latent_attention_keeps_its_shared_latents() -> None:
    """DeepSeek: 12 query rows a head in q_b_proj; of kv_b_proj the 8 key rows a head, not its 8 value rows."""
    reference = source("deepseek_v3")
    revived, fresh = inherit(reference, 1, revive={0: [1]}, seed=3), scratch(reference, 1, seed=3)
    old, new, random = (model.state_dict() for model in (reference, revived, fresh))
    rows = {"q_b_proj": range(12, 24), "kv_b_proj": range(16, 24)}
    for name, value in new.items():
        expected = old[name].clone()
        for projection, mine in rows.items():
            if name == f"model.layers.0.self_attn.{projection}.weight":
                expected[list(mine)] = random[name][list(mine)]
        assert torch.equal(value, expected), name


def test_the_plan_goes_with_its_layers_and_says_so(tiny_llama: PreTrainedModel) -> None:
    plan = LayerPlan.from_layers([2, 0, 2], 4).revive({2: [3, 2], 0: ()})
    assert [row.revived for row in plan] == [(2, 3), (), (2, 3)]
    assert "queries, keys of heads 2-3 random" in str(plan)
    assert LayerPlan.from_records(plan.as_records()) == plan
    assert not plan.copies_all
    built = inherit(tiny_llama, plan=plan, seed=1).state_dict()
    again = inherit(tiny_llama, [2, 0, 2], revive={2: [2, 3]}, seed=1).state_dict()
    assert all(torch.equal(built[key], again[key]) for key in built)
    rows = built["model.layers.0.self_attn.q_proj.weight"], built["model.layers.2.self_attn.q_proj.weight"]
    assert torch.equal(rows[0][:16], rows[1][:16])
    assert not torch.equal(rows[0][16:], rows[1][16:])


def spectra(rank: list[list[float]], mask: str = "causal") -> Spectra:
    table = np.array(rank)
    return Spectra(table, table, 0.9, 0.9, mask, 3, 8, tuple(range(len(rank))))  # type: ignore[arg-type]


def test_a_spectra_result_names_the_collapsed_heads(tmp_path: Path) -> None:
    causal, full = spectra([[1.0, 4.0], [3.0, 1.2], [9.0, 2.0]]), spectra([[1.0, 1.0]] * 3, "full")
    assert heads_to_revive(causal, 3) == {0: (0,), 1: (1,)}
    assert heads_to_revive(BothSpectra(causal, full), 3) == {0: (0,), 1: (1,)}
    save_spectra(BothSpectra(causal, full), tmp_path, "a model")
    assert heads_to_revive(tmp_path, 3) == {0: (0,), 1: (1,)}
    with pytest.raises(PlanError, match=r"analyses a model of 3 layers, this model has 4"):
        heads_to_revive(tmp_path, 4)


def test_a_model_with_a_planted_sink(tiny_gpt2: PreTrainedModel) -> None:
    """A head made to look at token 0 alone is found by `analyze`, revived, and then no longer collapsed."""
    model = inherit(tiny_gpt2, 4)
    attn = model.transformer.h[1].attn.c_attn
    with torch.no_grad():
        # Every query is 40 e_0 and the key of a token grows with how early it is, through its position alone.
        attn.weight[:, 8:16] = attn.weight[:, 40:48] = 0
        attn.bias[8] = 300.0
        model.transformer.wpe.weight[0] += 3.0 * torch.arange(32).sub(15.5).sign()
        attn.weight[:, 40] = torch.arange(32).sub(15.5).sign()
    windows = tokens(16, 6)
    found = inheritune.analyze(model, windows)
    assert found.collapsed_heads[1, 1]
    healed = inherit(model, 4, revive=found)
    assert not inheritune.analyze(healed, windows).collapsed_heads[1, 1]


@pytest.mark.parametrize(
    ("revive", "line"),
    [
        ({0: [4]}, r"asked to revive head 4, layer 0 of LlamaForCausalLM has 4 \(0 to 3\)"),
        ({9: [0]}, r"asked to revive heads of layer 9, the model has 4 layers \(0-3\)"),
        ({0: []}, r"no head to revive"),
        ({3: [0]}, r"the heads to revive \(3\.0, .* are in layers whose attention the plan does not take"),
        ({0: [-1]}, r"cannot revive heads \[-1\]"),
    ],
)
def test_mistakes(tiny_llama: PreTrainedModel, revive: dict[int, list[int]], line: str) -> None:
    with pytest.raises(PlanError, match=line):
        inherit(tiny_llama, 2, revive=revive)


def test_layers_without_attention_have_no_heads_to_revive() -> None:
    from transformers import AutoModelForCausalLM, Lfm2Config

    config = Lfm2Config(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, layer_types=["conv", "full_attention"], pad_token_id=0,
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"layer 0 of Lfm2ForCausalLM: it has no attention"):
        inherit(AutoModelForCausalLM.from_config(config), 2, revive={0: [0]})
