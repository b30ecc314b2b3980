"""`analyze` against NumPy on the models' own eager attention; results, files and the user's mistakes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import inheritune as it
from inheritune.data import train_tokenizer
from inheritune.errors import DataError, InherituneError, ModelError, OutputError, PlanError
from inheritune.records.analysis import AttentionMap
from inheritune.spectra.analysis import prepare
from inheritune.spectra.folder import SPECTRA, load_spectra, read_analysis, read_maps, save_maps, save_spectra
from inheritune.spectra.maps import draw_maps
from inheritune.spectra.result import BothSpectra, Spectra
from tiny import make_gpt2


def attention_maps(
    model: PreTrainedModel,
    tokens: Any,
    spectra: Spectra | BothSpectra,
    tokenizer: Any = None,
    heads: Sequence[tuple[int, int]] = (),
) -> tuple[AttentionMap, ...]:
    return draw_maps(prepare(model, tokens), spectra, tokenizer, heads)


def windows(sequences: int = 5, length: int = 20, vocabulary: int = 97) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocabulary, (sequences, length))


def reach(parts: np.ndarray, share: float) -> np.ndarray:
    cumulative = np.cumsum(parts, axis=-1)
    return 1 + (cumulative < share * parts.sum(-1, keepdims=True)).sum(-1)


def by_numpy(model: PreTrainedModel, ids: np.ndarray, tau: float, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Return Rank and mean m* (layers, heads) of the eager attention, by definition."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        attentions = model(torch.from_numpy(ids), output_attentions=True).attentions
    stacked = np.stack([weights.double().numpy() for weights in attentions])  # layers, N, heads, T, T
    ranks = reach(np.linalg.svd(stacked, compute_uv=False) ** 2, tau)
    masses = reach(np.sort((stacked**2).sum(-2), axis=-1)[..., ::-1], eta)
    return ranks.mean(axis=1), masses.mean(axis=1)


def spectra(rank: Any, mask: str = "causal", index: tuple[int, ...] | None = None) -> Spectra:
    table = np.array(rank, dtype=np.float64)
    return Spectra(table, table + 1, 0.9, 0.9, mask, 4, 8, index or tuple(range(len(table))))


@pytest.mark.parametrize(("tau", "eta"), [(0.9, 0.9), (0.7, 0.95)])
def test_rank_and_mass_equal_numpy_on_gpt2(tiny_gpt2: PreTrainedModel, tau: float, eta: float) -> None:
    found = it.analyze(tiny_gpt2, windows(), tau=tau, eta=eta)
    rank, mass = by_numpy(tiny_gpt2, windows(), tau, eta)
    assert found.rank.dtype == found.mass.dtype == np.float64
    np.testing.assert_array_equal(found.rank, rank)
    np.testing.assert_array_equal(found.mass, mass)
    np.testing.assert_array_equal(found.max_rank, rank.max(axis=1))
    np.testing.assert_array_equal(found.avg_mass, mass.mean(axis=1))
    assert (found.tau, found.eta, found.mask, found.sequences, found.length) == (tau, eta, "causal", 5, 20)


def test_rank_and_mass_equal_numpy_on_a_trained_model(stories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = np.array(tokenizer((stories / "tinystories_sample.txt").read_text())["input_ids"])
    ids = ids[: 8 * 50].reshape(8, 50)
    found = it.analyze(stories, ids, mask="both")
    rank, mass = by_numpy(AutoModelForCausalLM.from_pretrained(stories, dtype=torch.float32), ids, 0.9, 0.9)
    np.testing.assert_array_equal(found.causal.rank, rank)
    np.testing.assert_array_equal(found.causal.mass, mass)
    assert found.full.rank.shape == (5, 8)
    assert not np.array_equal(found.full.rank, rank)


def test_both_is_causal_and_full(tiny_llama: PreTrainedModel) -> None:
    both = it.analyze(tiny_llama, windows(), mask="both")
    assert isinstance(both, BothSpectra)
    for part in (both.causal, both.full):
        alone = it.analyze(tiny_llama, windows(), mask=part.mask)
        np.testing.assert_array_equal(alone.rank, part.rank)
        np.testing.assert_array_equal(alone.mass, part.mass)


def test_a_head_without_queries_is_uniform_and_its_layer_lazy_in_full() -> None:
    model = make_gpt2()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.mul_(10)  # sharp attention everywhere else
        attention = model.transformer.h[2].attn.c_attn
        attention.weight[:, :32] = 0
        attention.bias[:32] = 0
    both = it.analyze(model, windows(4, 50), mask="both")
    assert both.full.lazy_layers == [2]
    assert both.full.rank[2].tolist() == [1.0] * 4
    assert (both.head_classes[2] == "uniform").all()
    uniform = np.tril(np.ones((50, 50))) / np.arange(1, 51)[:, None]
    assert both.causal.rank[2].tolist() == [reach(np.linalg.svd(uniform, compute_uv=False) ** 2, 0.9)] * 4
    assert both.causal.lazy_layers == []


def test_tokens_may_be_torch_numpy_of_any_integer_type_or_lists(tiny_gpt2: PreTrainedModel) -> None:
    expected = it.analyze(tiny_gpt2, windows()).rank
    for tokens in (torch.from_numpy(windows()), windows().astype(np.uint16), windows().tolist()):
        np.testing.assert_array_equal(it.analyze(tiny_gpt2, tokens).rank, expected)


def test_lazy_collapsed_and_groups_by_hand() -> None:
    found = spectra([[3.0, 7.5], [1.0, 1.0], [1.0, 1.25], [1.4, 2.6], [1.5, 1.0]], index=(0, 2, 4, 5, 7))
    assert found.max_rank.tolist() == [7.5, 1.0, 1.25, 2.6, 1.5]
    assert found.lazy_layers == [2]
    assert found.collapsed_heads.tolist() == [[False] * 2, [True] * 2, [True] * 2, [True, False], [False, True]]
    assert found.collapsed_share.tolist() == [0.0, 1.0, 1.0, 0.5, 0.5]
    assert found.collapsed_total == 0.6
    assert found.avg_rank([2, 4, 5]) == pytest.approx((1.0 + 1.25 + 2.6) / 3)
    assert found.is_lazy_group([2, 4, 5])
    assert not found.is_lazy_group([0, 2])
    with pytest.raises(PlanError, match="layer 1 was not analysed: expected some of 0, 2, 4, 5, 7"):
        found.avg_rank([0, 1])
    with pytest.raises(PlanError, match="the group of layers is empty"):
        found.avg_rank([])


def test_head_classes_by_hand() -> None:
    both = BothSpectra(
        spectra([[1.0, 4.0, 5.0], [1.2, 1.0, np.nan]]), spectra([[1.0, 1.3, 5.0], [9.0, 1.0, np.nan]], "full")
    )
    assert both.head_classes.tolist() == [["sink", "uniform", "potent"], ["sink", "sink", ""]]


def test_spectra_file_has_the_published_keys_and_reads_back(tmp_path: Path) -> None:
    both = BothSpectra(
        spectra([[3.0, 2.0], [1.0, np.nan]], index=(1, 3)), spectra([[1.0, 1.5], [1.0, np.nan]], "full", (1, 3))
    )
    saved = save_spectra(both, tmp_path / "new", "some/model")
    record = json.loads((tmp_path / "new" / "spectra.json").read_text())
    assert saved == read_analysis(tmp_path / "new") and saved.as_json() == record
    assert {key: record[key] for key in ("model", "tau", "eta", "sequences", "length", "masks")} == {
        "model": "some/model", "tau": 0.9, "eta": 0.9, "sequences": 4, "length": 8, "masks": ["causal", "full"],
    }  # fmt: skip
    one_head = {"rank": [1.0], "max_rank": 1.0, "mass": [2.0], "avg_mass": 2.0, "lazy": True, "ranks": {}}
    for mask in ("causal", "full"):  # what was not measured is null
        assert {key: value for key, value in record["layers"][1][mask].items() if value is not None} == one_head
    assert (record["layers"][1]["index"], record["layers"][1]["classes"]) == (3, ["sink"])
    assert record["schema"] == 2
    assert record["recommendation"]["keep"] == list(range(record["recommendation"]["start"]))
    assert torch.__version__.startswith(record["environment"]["versions"]["torch"])
    again = load_spectra(tmp_path / "new")
    for part, read in ((both.causal, again.causal), (both.full, again.full)):
        np.testing.assert_array_equal(read.rank, part.rank)
        np.testing.assert_array_equal(read.mass, part.mass)
        assert (read.mask, read.layers_index, read.lazy_layers) == (part.mask, part.layers_index, part.lazy_layers)
    save_spectra(both.full, tmp_path / "one", "m")
    assert load_spectra(tmp_path / "one").mask == "full"


def test_reading_what_is_no_analysis_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no file"):
        load_spectra(tmp_path)
    (tmp_path / SPECTRA).write_text('{"masks": ["causal"]}')
    with pytest.raises(OutputError, match=r"spectra\.json is damaged .*tau is missing"):
        load_spectra(tmp_path)
    (tmp_path / SPECTRA).write_text('{"schema": 3, "masks": ["causal"]}')
    with pytest.raises(OutputError, match="has schema 3: this version reads schema 1 to 2; update inheritune"):
        load_spectra(tmp_path)


def test_maps_are_the_chosen_heads_own_matrices(tiny_gpt2: PreTrainedModel, tmp_path: Path) -> None:
    both = it.analyze(tiny_gpt2, windows(), mask="both")
    maps = attention_maps(tiny_gpt2, windows(), both)
    assert [(entry["mask"], entry["role"]) for entry in maps] == [
        ("causal", "potent"), ("causal", "laziest"), ("full", "potent"), ("full", "laziest"),
    ]  # fmt: skip
    tiny_gpt2.config._attn_implementation = "eager"
    with torch.no_grad():
        attentions = tiny_gpt2(torch.from_numpy(windows()[:1]), output_attentions=True).attentions
    for entry in maps[:2]:
        matrix = attentions[entry["layer"]][0, entry["head"]].double().numpy()
        np.testing.assert_allclose(entry["values"], matrix, atol=5.1e-5)
        assert entry["rank"] == reach(np.linalg.svd(matrix, compute_uv=False) ** 2, 0.9)
        assert entry["mean_rank"] == both.causal.rank[entry["layer"], entry["head"]]
    assert maps[0]["mean_rank"] == both.causal.rank.max()
    assert maps[1]["layer"] == both.causal.max_rank.argmin()
    assert maps[3]["mean_rank"] == both.full.rank[maps[3]["layer"]].min()
    assert save_maps(maps, tmp_path).maps == read_maps(tmp_path) == maps


def test_maps_of_long_windows_are_cut_and_tokens_named(stories: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(stories)
    ids = np.array([tokenizer((stories / "tinystories_sample.txt").read_text())["input_ids"][:150]])
    found = it.analyze(stories, ids, mask="full")
    maps = attention_maps(stories, ids, found, tokenizer)
    assert len(maps) == 2
    assert np.shape(maps[0]["values"]) == (128, 128)
    assert "".join(maps[0]["tokens"]).startswith("".join(tokenizer.decode([i]) for i in ids[0, :20]))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tau": 1.0}, InherituneError, "tau is 1.0: expected a number between 0 and 1"),
        ({"eta": 0}, InherituneError, "eta is 0: expected a number between 0 and 1"),
        ({"mask": "casual"}, InherituneError, "unknown mask 'casual'.*did you mean 'causal'"),
        ({"tokens": np.zeros(7, int)}, DataError, r"shape \(7,\): expected \(N, T\)"),
        ({"tokens": np.zeros((2, 5))}, DataError, "tokens are float64: expected integer token ids"),
        ({"tokens": torch.zeros(2, 5)}, DataError, "tokens are float32: expected integer token ids"),
        ({"tokens": np.zeros((2, 5), bool)}, DataError, "tokens are bool: expected integer token ids"),
        ({"tokens": [[1, 2], [3]]}, DataError, "different lengths"),
        ({"tokens": [["a", "b"]]}, DataError, "expected integer token ids"),
        ({"tokens": np.zeros((0, 5), int)}, DataError, "0 sequences: expected at least 1"),
        ({"tokens": np.zeros((2, 1), int)}, DataError, "T = 1 tokens: expected at least 2"),
        ({"tokens": np.zeros((2, 65), int)}, DataError, "65 tokens: the model's context is 64"),
        ({"tokens": np.full((2, 5), 97)}, DataError, "token id 97 .* outside the vocabulary of 97 tokens"),
        ({"tokens": np.full((2, 5), -1)}, DataError, "token id -1 .* outside the vocabulary of 97 tokens"),
        ({"model": 5}, ModelError, "the model is a int: expected a PreTrainedModel"),
        ({"model": "no/such/folder/at/all"}, ModelError, "no folder no/such/folder/at/all"),
    ],
)
def test_a_users_mistake_is_one_line(
    tiny_gpt2: PreTrainedModel, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        it.analyze(**({"model": tiny_gpt2, "tokens": windows()} | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_damaged_weights_name_their_layer(tiny_llama: PreTrainedModel, value: float) -> None:
    with torch.no_grad():
        tiny_llama.model.layers[3].mlp.up_proj.weight[1, 2] = value
    with pytest.raises(ModelError, match=r"^layer 3 \(model.layers.3.mlp.up_proj.weight\) holds NaN or infinity"):
        it.analyze(tiny_llama, windows())


def test_models_that_are_not_decoders_are_refused() -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertForMaskedLM(BertConfig(vocab_size=97, **small))
    with pytest.raises(ModelError, match="BertForMaskedLM attends to later tokens: expected a decoder"):
        it.analyze(bert, windows())
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))
    with pytest.raises(ModelError, match="encoder-decoder"):
        it.analyze(t5, windows())


def test_layers_without_attention_are_left_out() -> None:
    from spectra_families import build

    found = it.analyze(build("lfm2"), windows(), mask="both")
    assert found.causal.layers_index == found.full.layers_index
    assert len(found.causal.layers_index) < found.causal.blocks.depth
    assert found.causal.rank.shape[0] == len(found.causal.layers_index)


def eager_matrices(model: PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    """Return the eager attention, (layers, N, heads, T, T) float64."""
    model.config._attn_implementation = "eager"
    with torch.no_grad():
        attentions = model(torch.from_numpy(ids), output_attentions=True).attentions
    return np.stack([weights.double().numpy() for weights in attentions])


def test_everything_else_of_a_head_equals_numpy(tiny_llama: PreTrainedModel) -> None:
    ids = windows(6, 30)
    found = it.analyze(tiny_llama, ids, tau=(0.9, 0.6))
    matrices = eager_matrices(tiny_llama, ids)
    values = np.linalg.svd(matrices, compute_uv=False) ** 2
    ranks = {tau: reach(values, tau) for tau in (0.9, 0.6)}
    for tau, expected in ranks.items():
        np.testing.assert_array_equal(found.ranks[tau], expected.mean(axis=1))
        np.testing.assert_array_equal(found.at(tau).rank, expected.mean(axis=1))
    np.testing.assert_allclose(found.rank_error, ranks[0.9].std(axis=1, ddof=1) / np.sqrt(6), rtol=1e-12)
    logs = np.log(np.where(matrices > 0, matrices, 1))
    np.testing.assert_allclose(found.entropy, -(matrices * logs).sum(-1).mean((1, 3)), rtol=1e-5)
    np.testing.assert_allclose(found.stable_rank, (values.sum(-1) / values[..., 0]).mean(1), rtol=1e-5)
    least = matrices.min(axis=-2)
    np.testing.assert_allclose(found.sink_epsilon, (1 - least.max(-1)).mean(1), atol=1e-6)
    assert (found.sink_column == 0).all()  # the first row sees the first column alone
    with pytest.raises(InherituneError, match=r"tau 0.7 was not analysed: expected one of 0.9, 0.6"):
        found.at(0.7)


def test_one_sequence_has_no_standard_error(tiny_gpt2: PreTrainedModel) -> None:
    assert np.isnan(it.analyze(tiny_gpt2, windows(1)).rank_error).all()


def test_a_small_memory_budget_changes_no_number(tiny_gpt2: PreTrainedModel) -> None:
    whole = it.analyze(tiny_gpt2, windows(7, 30), mask="both")
    little = it.analyze(tiny_gpt2, windows(7, 30), mask="both", memory=2 * 14 * 30 * 30)
    for one, two in ((whole.causal, little.causal), (whole.full, little.full)):
        np.testing.assert_array_equal(one.rank, two.rank)
        np.testing.assert_array_equal(one.mass, two.mass)
        np.testing.assert_allclose(one.entropy, two.entropy, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_models_in_half_precision_run_on_the_cpu(tiny_llama: PreTrainedModel, dtype: torch.dtype) -> None:
    exact = it.analyze(tiny_llama, windows())
    found = it.analyze(tiny_llama.to(dtype), windows())
    assert next(tiny_llama.parameters()).dtype == dtype
    assert np.abs(found.rank - exact.rank).max() <= 1  # the model itself computes other queries and keys


def test_gradients_and_blocks_come_along_and_are_saved(tiny_gpt2: PreTrainedModel, tmp_path: Path) -> None:
    found = it.analyze(tiny_gpt2, windows(), mask="both", gradients=2)
    alone = it.gradient_probe(tiny_gpt2, windows()[:2])
    np.testing.assert_allclose(found.causal.gradients.query, alone.query, rtol=1e-6)
    record = json.loads(save_spectra(found, tmp_path, "m").model_dump_json())
    np.testing.assert_allclose([layer["gradients"]["key_bound"] for layer in record["layers"]], alone.key_bound)
    assert [block["influence"] for block in record["blocks"]] == found.full.blocks.influence.tolist()
    assert record["depth"] == len(record["blocks"]) == 4
    assert record["layers"][1]["causal"]["ranks"] == {"0.9": found.causal.rank[1].tolist()}
    again = load_spectra(tmp_path)
    for name in ("rank_error", "entropy", "stable_rank", "sink_column", "sink_epsilon"):
        np.testing.assert_array_equal(getattr(again.causal, name), getattr(found.causal, name))
    np.testing.assert_array_equal(again.full.blocks.angular_distance, found.full.blocks.angular_distance)
    np.testing.assert_array_equal(again.causal.ranks[0.9], found.causal.rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 1000}, "a memory budget of .* MB is too small: one 20 x 20 attention matrix"),
        ({"gradients": 6}, "gradients of 6 sequences: expected 0 to 5"),
        ({"tau": (0.9, 1.5)}, "tau is 1.5: expected a number between 0 and 1"),
        ({"stream": True}, "the model is in memory already: pass a folder or a hub id to read it layer by layer"),
    ],
)
def test_a_mistake_in_an_option_is_one_line(tiny_gpt2: PreTrainedModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InherituneError, match=message) as caught:
        it.analyze(tiny_gpt2, windows(), **change)
    assert "\n" not in str(caught.value)


def test_maps_of_chosen_heads(tiny_gpt2: PreTrainedModel) -> None:
    found = it.analyze(tiny_gpt2, windows(), mask="both")
    maps = attention_maps(tiny_gpt2, windows(), found, heads=[(2, 1)])
    chosen = [entry for entry in maps if entry["role"] == "layer 2, head 1"]
    assert [(entry["mask"], entry["layer"], entry["head"]) for entry in chosen] == [("causal", 2, 1), ("full", 2, 1)]
    np.testing.assert_allclose(chosen[0]["values"], eager_matrices(tiny_gpt2, windows()[:1])[2, 0, 1], atol=5.1e-5)
    with pytest.raises(PlanError, match="a map of layer 9: expected a layer that has attention, one of 0, 1, 2, 3"):
        attention_maps(tiny_gpt2, windows(), found, heads=[(9, 0)])
    with pytest.raises(PlanError, match="a map of head 4 of layer 0: expected 0 to 3"):
        attention_maps(tiny_gpt2, windows(), found, heads=[(0, 4)])


def test_one_mask_says_how_to_get_the_other() -> None:
    causal, full = spectra([[3.0, 2.0]]), spectra([[1.0, 1.0]], "full")
    assert causal.causal is causal and full.full is full
    with pytest.raises(
        InherituneError, match=r"no spectra under the full mask, causal alone: pass mask='both' to analyze"
    ):
        _ = causal.full


def test_the_text_of_the_maps_keeps_characters_that_tokens_split() -> None:
    model = make_gpt2(1)
    model.resize_token_embeddings(300)
    tokenizer = train_tokenizer(["plain text and nothing else"] * 3, 260)
    text = "naïve café"
    ids = np.array([tokenizer(text)["input_ids"]])
    [first, *_] = attention_maps(model, ids, it.analyze(model, ids), tokenizer)
    assert any("\ufffd" in name for name in first["tokens"])
    assert text in first["text"]
