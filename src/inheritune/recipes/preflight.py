"""Whether a recipe can run and what it costs, before anything is downloaded, prepared, claimed or trained."""

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.benchmark import Timer
from transformers import PretrainedConfig

from inheritune.data import open_shards, read_documents
from inheritune.data.shards import MANIFEST
from inheritune.data.sources import STDLIB
from inheritune.decoder import count_parameters
from inheritune.errors import RecipeError
from inheritune.evaluation.windows import context_of
from inheritune.recipes.depths import given_prices, recipes_by_depth
from inheritune.recipes.loading import load_recipe
from inheritune.recipes.methods import method_of
from inheritune.recipes.schema import Recipe
from inheritune.recipes.workspace import recipe_config
from inheritune.records.runs import MemoryEstimate, PlannedRound, PlanRecord
from inheritune.storage import user_path
from inheritune.surgery import LayerPlan, blueprint
from inheritune.surgery.config.target import depth_of, target_config
from inheritune.surgery.repair import check_repairable
from inheritune.training import TrainingSettings
from inheritune.training.engine import teaches_in_bfloat16
from inheritune.training.losses import rows_at_once

TRAINING_BYTES = 16
"""Bytes a trained parameter takes: float32 weight, gradient and AdamW's two moments."""
LOGITS, TEACHER_LOGITS = 3, 4
"""Float32 arrays of (B, T, V) that live at once: logits, log-softmax and gradient; with a teacher its logits, its
log-softmax, the student's second log-softmax and that one's gradient as well. No more than `rows_at_once` each; where
the batch makes more, the head's gradients are there twice."""
HIDDEN, MLP, ATTENTION = 10, 4, 3
"""Numbers that a block keeps of a token for the backward pass, by hidden unit, by MLP unit, and, where the matrix of
attention probabilities exists, by head and position. Counted in GPT-2, Llama, GPT-NeoX and Falcon: 0.9 to 1.4 times."""
LIBRARIES = 520_000_000
"""Bytes of memory that Python, torch and transformers take once they are imported, measured on Linux."""
BYTES_PER_TOKEN = 4
"""Of text that is not tokenized yet."""
TIMING_SECONDS = 0.2
UTILISATION = 0.3
"""Share of the matrix product's rate that training is assumed to reach; the quickstart's rounds on a CPU do."""


def plan(recipe: Recipe | Mapping[str, Any] | str | Path, changes: Iterable[str] = ()) -> PlanRecord:
    """Return what running a recipe would take, at worst: all rounds of growth, all depths of a frontier.

    Only the reference's configuration is read. Memory counts weights, gradients and AdamW's moments, the reference, the
    logits, and what each block keeps of each token of a micro-batch (`HIDDEN`, `MLP`, `ATTENTION`), in the training's
    precision, and on a CPU Python with its libraries. Four trainings measured there took 0.96 to 1.11 times as much.

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
    source, method = recipe_config(checked), method_of(checked)
    depth = depth_of(source)
    split = recipes_by_depth(checked, depth, given_prices(checked))
    for each in split:
        check_recipe(each)
    config = method.scaled_config(checked, source)
    asked = checked.training
    of_text = _text_tokens(checked) if None in (asked.steps, asked.batch, asked.length) else (0, 0)
    settings = asked.resolved(context_of(source), *of_text)
    reference = 0 if checked.reference is None else count_parameters(blueprint(source))
    teaches = method.objective(checked).needs_teacher
    teacher = _operations(source, reference, settings.length) / 3 if teaches else 0.0
    rate = UTILISATION * _product_rate(config.get_text_config(decoder=True).hidden_size, settings.tokens_per_step)
    made = (itertools.accumulate(method.plans(each, depth), lambda target, plan: plan.traced(target)) for each in split)
    rounds, needs = [], []
    for plan in itertools.chain.from_iterable(made):  # of the reference's layers
        target = target_config({"reference": config}, LayerPlan.random(len(plan)))
        tokens, parameters = settings.steps_spent * settings.tokens_per_step, count_parameters(blueprint(target))
        seconds = tokens * (_operations(target, parameters, settings.length) + teacher) / rate
        rounds.append(
            PlannedRound(
                layers=depth_of(target),
                parameters=parameters,
                tokens=tokens,
                seconds=seconds,
                reference_layers=plan.reference_layers,
            )
        )
        needs.append(_memory(target, settings, parameters, reference, teaches))
    memory = max(needs, key=lambda need: sum(dict(need).values()))
    on_gpu = torch.cuda.is_available()
    return PlanRecord(
        name=checked.name,
        method=checked.method,
        notes=tuple(line for each in split for line in method.notes(each, depth)),
        rounds=tuple(rounds),
        tokens=sum(item.tokens for item in rounds),
        seconds=sum(item.seconds for item in rounds),
        memory=memory,
        memory_bytes=sum(dict(memory).values()),
        memory_available_bytes=torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available,
    )


def check_recipe(recipe: Recipe) -> PretrainedConfig:
    """Confirm that a recipe fits its reference (or that its architecture can be built), and return the configuration.

    Raises:
        ModelError: the reference cannot be read.
        RecipeError: the architecture is wrong, windows are longer than the model's context, or the objective compares
            hidden states that are not there or not of one size.
        PlanError: the layers are not there, or the method cannot train so many, or the width leaves no whole heads.
    """
    config, method = recipe_config(recipe), method_of(recipe)
    plans, scaled = method.plans(recipe, depth_of(config)), method.scaled_config(recipe, config)
    if (objective := method.objective(recipe)).hidden:
        ours, theirs = (each.get_text_config(decoder=True).hidden_size for each in (scaled, config))
        if ours != theirs:
            raise RecipeError(
                f"objective.hidden: the target has {ours} hidden units and the reference {theirs}: expected 0"
            )
        for layers in map(len, plans):
            objective.pairs(layers, depth_of(config))
    if recipe.repair:
        check_repairable(plans[0], depth_of(config))
    context = context_of(config)
    longest = max(recipe.training.length or 0, recipe.evaluation.length or 0)
    if context and longest > context:
        raise RecipeError(f"windows of {longest} tokens: expected at most the model's context, {context}")
    return config


def _text_tokens(recipe: Recipe) -> tuple[int, int]:
    """Return the tokens for training and for validation: of prepared shards, or guessed from the bytes of the text."""
    data = recipe.data
    if data.folder is not None and (user_path(data.folder) / MANIFEST).is_file():
        shards = open_shards(data.folder)
        return shards.tokens("train"), shards.tokens("valid")
    tokens = _text_bytes(data.source) // BYTES_PER_TOKEN
    if data.validation is not None:
        return tokens, _text_bytes(data.validation) // BYTES_PER_TOKEN
    return int(tokens * (1 - data.valid_fraction)), int(tokens * data.valid_fraction)


def _text_bytes(source: str) -> int:
    path = user_path(source)
    if source == STDLIB and not path.exists():
        return sum(len(document.text) for document in read_documents(source))
    if not path.exists():
        raise RecipeError(f"training leaves its steps to the size of {source}, which is not here: set training.steps")
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _operations(config: PretrainedConfig, parameters: int, length: int) -> float:
    """Return the operations of training on one token, forward and backward."""
    text = config.get_text_config(decoder=True)
    return 6.0 * parameters + 12.0 * text.num_hidden_layers * length * text.hidden_size


def _memory(
    config: PretrainedConfig, settings: TrainingSettings, parameters: int, reference: int, teaches: bool
) -> MemoryEstimate:
    """Return what training takes: the target has `parameters` of them, the reference beside it `reference`."""
    text = config.get_text_config(decoder=True)
    tokens = (settings.micro_batch or settings.batch) * settings.length
    hidden = int(text.hidden_size)
    units = int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * hidden)
    kept = HIDDEN * hidden + MLP * units
    # Attention is a matrix if it is `eager`, and on a CPU also with dropout.
    dropout = getattr(text, "attn_pdrop", 0) or getattr(text, "attention_dropout", 0)
    if blueprint(config).config._attn_implementation == "eager" or (dropout and not torch.accelerator.is_available()):
        kept += ATTENTION * int(text.num_attention_heads) * settings.length
    width = 2 if torch.accelerator.is_available() and settings.precision != "float32" else 4
    vocabulary = int(text.vocab_size)
    rows = min(tokens, rows_at_once(vocabulary, not torch.accelerator.is_available()))
    logits = (LOGITS + TEACHER_LOGITS * teaches) * rows * vocabulary
    return MemoryEstimate(
        training=parameters * (TRAINING_BYTES + 4 * (settings.average > 0)),
        reference=reference * (6 if teaches and teaches_in_bfloat16(settings) else 4),
        logits=4 * (logits + 2 * (rows < tokens) * hidden * vocabulary),
        activations=tokens * depth_of(config) * kept * width,
        libraries=0 if torch.accelerator.is_available() else LIBRARIES,
    )


def _product_rate(hidden: int, tokens: int) -> float:
    """Measure the rate of a block's matrix product, tokens x hidden by hidden x 4 hidden, in operations a second.

    The shortest of several timings counts: the others shared the machine.
    """
    on_gpu = torch.cuda.is_available()
    kind = {"device": "cuda", "dtype": torch.bfloat16} if on_gpu else {"device": "cpu", "dtype": torch.float32}
    rows = 16384 if on_gpu else max(256, 2**29 // hidden**2)  # more are no faster there, and take minutes
    left, right = torch.randn(min(tokens, rows), hidden, **kind), torch.randn(hidden, 4 * hidden, **kind)
    timer = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    return 2.0 * left.numel() * 4 * hidden / min(timer.blocked_autorange(min_run_time=TIMING_SECONDS).times)
