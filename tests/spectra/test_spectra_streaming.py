"""A model run block by block over all chunks, against the same model in memory."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from inheritune.decoder import Decoder
from inheritune.decoder.streaming import StreamedDecoder, load_decoder, open_streamed
from inheritune.errors import ModelError
from inheritune.spectra.analysis import analyze
from inheritune.spectra.measure.pieces import Piece
from inheritune.spectra.watch import capture
from inheritune.spectra.watch.capture import run_by_layer, visit_attention
from tiny import VOCABULARY, make_gpt2, make_llama, perturbed

COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
KINDS = ["sliding_attention", "full_attention"] * 2
FAMILIES: dict[str, dict[str, Any]] = {
    "falcon": {"alibi": True},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": KINDS},
    "gemma3n_text": {  # layers 2 and 3 use the keys and values of layers 0 and 1
        "head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "layer_types": KINDS,
        "activation_sparsity_pattern": [0.0] * 4,
        "sliding_window": 8,
    },
    "gpt_oss": EXPERTS | {"sliding_window": 8, "head_dim": 8, "layer_types": KINDS},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "mixtral": EXPERTS | {"head_dim": 8},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 64},
}


def build(family: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return perturbed(AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**COMMON | FAMILIES[family])))


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": make_gpt2,
    "llama": make_llama,
    "llama in bf16": lambda: make_llama().to(torch.bfloat16),
    **{family: lambda family=family: build(family) for family in FAMILIES},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chunk hold few sequences."""
    monkeypatch.setattr(capture, "CHUNK_BYTES", 150_000)


def tokens(sequences: int = 7, length: int = 24) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(0))


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder


def captured(decoder: Decoder, advance: Callable[[int], None] = lambda count: None) -> dict[Any, torch.Tensor]:
    found: dict[Any, torch.Tensor] = {}

    def consume(piece: Piece) -> None:
        for row, matrices in enumerate(piece.probabilities, start=piece.sequence):
            for head, matrix in enumerate(matrices, start=piece.head):
                assert (piece.layer, row, head) not in found
                found[piece.layer, row, head] = matrix.clone()

    visit_attention(decoder, tokens(), ("causal",), consume, advance)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_attention_is_that_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    folder = save(MODELS[name](), tmp_path)
    expected, found = captured(load_decoder(folder, stream=False)), captured(load_decoder(folder, stream=True))
    assert found.keys() == expected.keys()
    assert {row for _, row, _ in found} == set(range(7))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["gpt2", "gpt_oss", "mixtral"])
def test_ranks_and_masses_are_those_of_the_model_in_memory(name: str, tmp_path: Path) -> None:
    folder = save(MODELS[name](), tmp_path)
    found = analyze(folder, tokens(), mask="both", stream=True)
    expected = analyze(folder, tokens(), mask="both", stream=False)
    for one, two in ((found.causal, expected.causal), (found.full, expected.full)):
        assert np.array_equal(one.rank, two.rank)
        assert np.array_equal(one.mass, two.mass)
        assert one.layers_index == two.layers_index


def test_progress_counts_every_sequence_and_block(tmp_path: Path) -> None:
    counts: list[int] = []
    captured(open_streamed(save(make_llama(), tmp_path)), counts.append)
    assert sum(counts) == 7 * 4
    assert len(counts) > 4  # more than one chunk


def test_the_attention_implementation_comes_back(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    before, modules = decoder.config._attn_implementation, list(decoder.model.named_modules())
    captured(decoder)
    assert decoder.config._attn_implementation == before
    assert list(decoder.model.named_modules()) == modules
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in decoder.blocks)


def test_a_damaged_layer_ends_the_analysis_in_one_line(tmp_path: Path) -> None:
    folder, name = save(make_llama(), tmp_path), "model.layers.2.mlp.up_proj.weight"
    path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    weights = load_file(path)
    weights[name][0, 0] = torch.nan
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=rf"layer 2 \({name}\) holds NaN or infinity"):
        captured(open_streamed(folder))


@contextmanager
def watched(decoder: StreamedDecoder, see: Callable[..., None]) -> Iterator[None]:
    """Call `see(layer, kwargs, output)` after every block."""
    with ExitStack() as stack:
        for layer, block in enumerate(decoder.blocks):

            def hook(module: Any, args: Any, kwargs: Any, output: Any, layer: int = layer) -> None:
                see(layer, kwargs, output)

            stack.enter_context(block.register_forward_hook(hook, with_kwargs=True))
        yield


def run(decoder: StreamedDecoder, see: Callable[..., None], **options: Any) -> None:
    """Push three chunks of two sequences through the model."""
    chunks = tokens(6).split(2)
    with watched(decoder, see):
        run_by_layer(
            decoder, 3, lambda number: decoder.model.base_model(input_ids=chunks[number], use_cache=False), **options
        )


def test_one_block_has_weights_at_a_time_and_chunks_take_turns_in_order(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    seen: list[tuple[int, list[int]]] = []
    told: list[tuple[int, int]] = []

    def see(layer: int, kwargs: Any, output: Any) -> None:
        weights = [[weight.is_meta for weight in block.parameters()] for block in decoder.blocks]
        seen.append((layer, [index for index, meta in enumerate(weights) if not all(meta)]))

    run(decoder, see, at_block=lambda chunk, layer: told.append((layer, chunk)))
    assert seen == [(layer, [layer]) for layer in range(4) for _ in range(3)]
    assert told == [(layer, chunk) for layer in range(4) for chunk in range(3)]
    assert all(weight.is_meta for weight in decoder.blocks.parameters())


def test_all_runs_without_gradients_and_in_the_callers_context(tmp_path: Path) -> None:
    decoder, variable = open_streamed(save(make_llama(), tmp_path)), ContextVar[str]("variable")
    variable.set("caller's")
    embedding: list[tuple[bool, str]] = []
    decoder.model.get_input_embeddings().register_forward_hook(
        lambda *_: embedding.append((torch.is_grad_enabled(), variable.get()))
    )
    run(decoder, lambda *_: None)
    assert set(embedding) == {(False, "caller's")}


def test_nothing_is_kept_for_gradients(tmp_path: Path) -> None:
    outputs: list[torch.Tensor] = []
    assert torch.is_grad_enabled()
    run(open_streamed(save(make_llama(), tmp_path)), lambda layer, kwargs, output: outputs.append(output))
    assert len(outputs) == 12
    assert not any(output.requires_grad for output in outputs)
    assert torch.is_grad_enabled()


def test_within_inference_mode(tmp_path: Path) -> None:
    decoder, outputs = open_streamed(save(make_gpt2(), tmp_path)), []
    run(decoder, lambda layer, kwargs, output: outputs.append(output))
    with torch.inference_mode():
        run(decoder, lambda layer, kwargs, output: outputs.append(output))
    assert all(torch.equal(one, two) for one, two in zip(outputs[:12], outputs[12:], strict=True))


def test_a_model_that_catches_errors_is_stopped_at_its_blocks(tmp_path: Path) -> None:
    decoder, caught = open_streamed(save(make_llama(), tmp_path)), []

    def forward(number: int) -> None:
        try:
            decoder.model.base_model(input_ids=tokens(2), use_cache=False)
        except Exception as error:  # noqa: BLE001 - as a model's code may
            caught.append(error)

    layers: list[int] = []
    run_by_layer(decoder, 2, forward, lambda chunk, layer: layers.append(layer))
    assert layers == [0, 0, 1, 1, 2, 2, 3, 3]
    assert caught == []


def test_a_trial_reads_no_file(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    layers: list[int] = []
    run(decoder, lambda layer, *_: layers.append(layer), trial=True)
    assert layers == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_an_error_outside_the_blocks_comes_out_with_its_traceback(tmp_path: Path) -> None:
    decoder, calls = open_streamed(save(make_llama(), tmp_path)), iter(range(3))
    error = RuntimeError("in the embedding of chunk 1")

    def fail(*_: Any) -> None:
        if next(calls) == 1:
            raise error

    decoder.model.get_input_embeddings().register_forward_hook(fail)
    with pytest.raises(RuntimeError) as caught:
        run(decoder, lambda *_: None)
    assert caught.value is error
    assert "fail" in [frame.name for frame in caught.traceback]


def test_an_error_in_a_block_ends_all_forward_passes(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))

    def fail(layer: int, *_: Any) -> None:
        if layer == 2:
            raise ModelError("in layer 2")

    originals = list(decoder.blocks)
    with pytest.raises(ModelError, match="in layer 2"):
        run(decoder, fail)
    assert all(one is two for one, two in zip(decoder.blocks, originals, strict=True))
    assert all(weight.is_meta for weight in decoder.blocks.parameters())


def test_ctrl_c_ends_all_forward_passes(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(decoder, lambda layer, *_: signal.raise_signal(signal.SIGINT) if layer == 1 else None)


def test_a_model_that_runs_a_block_twice_is_refused(tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    model = decoder.model.base_model

    def twice(number: int) -> None:
        model(input_ids=tokens(2), use_cache=False)
        model(input_ids=tokens(2), use_cache=False)

    with pytest.raises(ModelError, match="LlamaForCausalLM: it runs layer 0 more than once in a forward pass"):
        run_by_layer(decoder, 2, twice, trial=True)


@pytest.mark.parametrize("kind", ["sum", "in place", "backwards"])
def test_a_model_whose_blocks_need_more_than_the_last_output_is_refused(kind: str, tmp_path: Path) -> None:
    decoder = open_streamed(save(make_llama(), tmp_path))
    base = decoder.model.base_model

    def forward(number: int) -> None:
        states = base.embed_tokens(tokens(2))
        positions = base.rotary_emb(states, torch.arange(states.shape[1])[None])
        total = torch.zeros_like(states)
        for block in reversed(base.layers) if kind == "backwards" else base.layers:
            states = block(states + total, position_embeddings=positions)
            if kind == "sum":
                total = total + states
            if kind == "in place":
                states.mul_(2)

    with pytest.raises(ModelError, match=r"cannot read this model by layer: its blocks .* load it whole"):
        run_by_layer(decoder, 1, forward, trial=True)
