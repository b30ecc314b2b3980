"""What a recipe costs, before anything is downloaded, prepared or trained: depth, parameters, memory, time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data import open_shards, read_documents
from inheritune.data.shards import MANIFEST
from inheritune.data.sources import STDLIB
from inheritune.decoder import count_parameters
from inheritune.distributed import has_accelerator
from inheritune.errors import RecipeError
from inheritune.recipes.checks import check_recipe
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import method_of
from inheritune.recipes.schema import Recipe
from inheritune.records.runs import MemoryEstimate, PlannedRound, PlanRecord
from inheritune.surgery import LayerPlan, blueprint
from inheritune.surgery.config.fields import depth_of
from inheritune.surgery.config.target import target_config

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from inheritune.training import TrainingSettings

TRAINING_BYTES = 16
"""Bytes a trained parameter takes: float32 weight, gradient and AdamW's two moments."""
LOGITS, TEACHER_LOGITS = 3, 4
"""Float32 arrays of (B, T, V) that live at once: logits, log-softmax and gradient; with a teacher its logits, its
log-softmax, the student's second log-softmax and that one's gradient as well."""
HIDDEN, MLP, ATTENTION = 10, 4, 3
"""Numbers that a block keeps of a token for the backward pass, by hidden unit, by MLP unit, and, where the matrix of
attention probabilities exists, by head and position. Counted in GPT-2, Llama, GPT-NeoX and Falcon: 0.9 to 1.4 times."""
BYTES_PER_TOKEN = 4
"""Of text that is not tokenized yet."""
PRODUCTS, TRIALS = 8, 12
"""Matrix products of one timing, and timings, of which the shortest counts: the others shared the machine."""
UTILISATION = 0.3
"""Share of the matrix product's rate that training is assumed to reach; the quickstart's rounds on a CPU do."""


def plan(recipe: Recipe | Mapping[str, Any] | str | Path, changes: Iterable[str] = ()) -> PlanRecord:
    """Return what running a recipe would take, at worst: all rounds of growth.

    Only the reference's configuration is read. Memory counts weights, gradients and AdamW's moments (16 bytes a
    parameter), the reference, the logits, and the activations of the blocks: of each token of a micro-batch and each
    block, 10 numbers by hidden unit, 4 by MLP unit and, where attention is a matrix, 3 by head and position, in the
    training's precision; two trainings that were measured on a CPU took 1.3 times as much in all.

    Time is the training arithmetic (6 operations per weight and token, 12 per layer, position and hidden unit for
    attention; a third of both for a teacher) at a matrix product's rate measured here and now on the model's own
    shapes, times `UTILISATION`: an order of magnitude, not a promise.

    Args:
        recipe: as for `run`.
        changes: `key=value` settings on top, see `load_recipe`.

    Raises:
        InherituneError: the recipe is wrong or does not fit its reference.
    """
    checked = load_recipe(recipe, changes)
    source = check_recipe(checked)
    method, depth = method_of(checked), depth_of(source)
    config = method.scaled_config(checked, source)
    settings = _settings(checked, source)
    rate = _product_rate(config.get_text_config(decoder=True).hidden_size, settings.tokens_per_step)
    reference = 0 if checked.reference is None else count_parameters(blueprint(source))
    extra = _operations(source, reference, settings.length) / 3 if method.teaches else 0.0
    rounds = tuple(
        _planned_round(_with_depth(config, layers), settings, rate * UTILISATION, extra)
        for layers in method.depths(checked, depth)
    )
    deepest = max(rounds, key=lambda item: item.parameters)
    memory = MemoryEstimate(
        training=deepest.parameters * TRAINING_BYTES,
        reference=reference * 4,
        logits=_logits(config, settings) * (LOGITS + TEACHER_LOGITS * method.teaches),
        activations=_activations(_with_depth(config, deepest.layers), settings),
    )
    return PlanRecord(
        name=checked.name,
        method=checked.method,
        notes=tuple(method.notes(checked, depth)),
        rounds=rounds,
        tokens=sum(item.tokens for item in rounds),
        seconds=sum(item.seconds for item in rounds),
        memory=memory,
        memory_bytes=memory.training + memory.reference + memory.logits + memory.activations,
        memory_available_bytes=_available_memory(),
    )


def _planned_round(config: PretrainedConfig, settings: TrainingSettings, rate: float, extra: float) -> PlannedRound:
    """Return what one round takes at `rate` operations a second; `extra` operations a token are not the target's."""
    tokens, parameters = settings.steps * settings.tokens_per_step, count_parameters(blueprint(config))
    return PlannedRound(
        layers=depth_of(config),
        parameters=parameters,
        tokens=tokens,
        seconds=tokens * (_operations(config, parameters, settings.length) + extra) / rate,
    )


def _settings(recipe: Recipe, config: PretrainedConfig) -> TrainingSettings:
    """Return the settings of a round, what they leave to the text being taken from its size."""
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    train, valid = (0, 0) if recipe.training.is_resolved else _text_tokens(recipe)
    return recipe.training.resolved(context, train, valid)


def _text_tokens(recipe: Recipe) -> tuple[int, int]:
    """Return the tokens for training and for validation: of prepared shards, or guessed from the bytes of the text."""
    data = recipe.data
    if data.folder is not None and (Path(data.folder) / MANIFEST).is_file():
        shards = open_shards(data.folder)
        return shards.tokens("train"), shards.tokens("valid")
    sizes = [_text_bytes(source) // BYTES_PER_TOKEN for source in (data.source, data.validation) if source]
    if len(sizes) == 2:
        return sizes[0], sizes[1]
    return int(sizes[0] * (1 - data.valid_fraction)), int(sizes[0] * data.valid_fraction)


def _text_bytes(source: str) -> int:
    path = Path(source)
    if source == STDLIB and not path.exists():
        return sum(len(document.text) for document in read_documents(source))
    if not path.exists():
        raise RecipeError(f"training leaves its steps to the size of {source}, which is not here: set training.steps")
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _with_depth(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    return target_config({"reference": config}, LayerPlan.random(layers))


def _operations(config: PretrainedConfig, parameters: int, length: int) -> float:
    """Return the operations of training on one token, forward and backward."""
    text = config.get_text_config(decoder=True)
    return 6.0 * parameters + 12.0 * text.num_hidden_layers * length * text.hidden_size


def _micro_tokens(settings: TrainingSettings) -> int:
    """Return the tokens that a device holds at once."""
    return (settings.micro_batch or settings.batch) * settings.length


def _logits(config: PretrainedConfig, settings: TrainingSettings) -> int:
    """Return the bytes of one float32 array of a micro-batch's logits."""
    return _micro_tokens(settings) * int(config.get_text_config(decoder=True).vocab_size) * 4


def _activations(config: PretrainedConfig, settings: TrainingSettings) -> int:
    """Return the bytes that the blocks keep of a micro-batch for the backward pass."""
    text = config.get_text_config(decoder=True)
    hidden = int(text.hidden_size)
    units = int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden)
    kept = HIDDEN * hidden + MLP * units
    if _has_matrices(config):
        kept += ATTENTION * int(text.num_attention_heads) * settings.length
    width = 2 if has_accelerator() and settings.precision != "float32" else 4
    return _micro_tokens(settings) * depth_of(config) * kept * width


def _has_matrices(config: PretrainedConfig) -> bool:
    """Return whether attention is computed as a matrix: `eager`, and on a CPU also with dropout."""
    text = config.get_text_config(decoder=True)
    dropout = getattr(text, "attn_pdrop", 0) or getattr(text, "attention_dropout", 0)
    return blueprint(config).config._attn_implementation == "eager" or (bool(dropout) and not has_accelerator())


def _product_rate(hidden: int, tokens: int) -> float:
    """Measure the rate of a block's matrix product, tokens x hidden by hidden x 4 hidden, in operations a second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    left = torch.randn(min(tokens, 16384), hidden, device=device, dtype=dtype)
    right = torch.randn(hidden, 4 * hidden, device=device, dtype=dtype)
    operations = 2.0 * left.shape[0] * right.shape[1] * hidden * PRODUCTS
    return operations / min(_seconds(left, right) for _ in range(TRIALS))


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    """Time `PRODUCTS` matrix products, one after the other."""
    import torch

    start = time.perf_counter()
    for _ in range(PRODUCTS):
        left @ right
    if left.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _available_memory() -> int:
    """Return the free memory of the device that would train, in bytes."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
