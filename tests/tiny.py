"""Tiny random models whose weights sit at no symmetric point, and where the real tiny one is."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import GPT2Config, LlamaConfig, PreTrainedModel

from inheritune.records.analysis import AnalysisRecord, LayerAnalysis, LayerMeasures, Recommendation

VOCABULARY = 97
SHARED = Path(__file__).resolve().parents[2] / "shared"


def perturbed(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Move every weight off its initial value, so that norms are not 1 and biases are not 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def analysis_of(advice: Recommendation | None, depth: int = 4) -> str:
    """Return the `spectra.json` of an analysis that recommends `advice`."""
    one = LayerMeasures(rank=(1.0,), mass=(1.0,), max_rank=1.0, avg_mass=1.0, lazy=True)
    depth = depth if advice is None else advice.depth
    record = AnalysisRecord(
        depth=depth,
        tau=0.9,
        eta=0.9,
        sequences=1,
        length=2,
        masks=("causal",),
        layers=tuple(LayerAnalysis(index=i, causal=one) for i in range(depth)),
        recommendation=advice,
    )
    return record.model_dump_json()


def make_gpt2(layers: int = 4, seed: int = 0, **settings: object) -> PreTrainedModel:
    from transformers import GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=64,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    return perturbed(GPT2LMHeadModel(config), seed)


def make_llama(layers: int = 4, seed: int = 0, **settings: object) -> PreTrainedModel:
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        **settings,
    )
    return perturbed(LlamaForCausalLM(config), seed)
