"""What each layer costs, our way and the plain one, side by side in one run: block passes, time, equal numbers.

    python benchmarks/ablate.py                                  # 16 layers x 256, leave-one-out and the path to 8
    python benchmarks/ablate.py --layers 24 --width 512 --depth 12

The plain way is a forward pass of the whole model for each set of layers, with those layers taken out of its list. Both
ways run all the windows; a pass is what takes them through as many blocks as the model has. Both measure leave-one-out
(the model as it is, and without each layer), then the same greedy path. Times are medians of runs that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from inheritune.evaluation import window_losses
from inheritune.surgery.ablation import ablate

Losses = dict[frozenset[int], float]
"""The mean loss without each set of layers."""


def main() -> None:
    """Read the options and compare the two ways twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"layers": 16, "width": 256, "depth": 8, "windows": 16, "length": 128, "repeats": 3}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=asked.width, intermediate_size=3 * asked.width, num_hidden_layers=asked.layers,
        num_attention_heads=8, num_key_value_heads=8, max_position_embeddings=asked.length, initializer_range=0.05,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    windows = np.random.default_rng(0).integers(0, 4096, (asked.windows, asked.length + 1))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {asked.layers} layers x {asked.width}, "
          f"{asked.windows} windows of {asked.length} tokens")  # fmt: skip
    compare("leave-one-out", model, windows, asked.layers, asked.repeats)
    compare(f"and the path to {asked.depth} layers", model, windows, asked.depth, asked.repeats)


def compare(name: str, model: PreTrainedModel, windows: np.ndarray, depth: int, repeats: int) -> None:
    """Measure both ways in turns down to `depth` layers and print them with their ratio."""
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    passes, results = {}, {}
    ways: dict[str, Callable[[], Losses]] = {
        "plain": lambda: plainly(model, windows, depth),
        "ours": lambda: our_way(model, windows, depth),
    }
    for _ in range(repeats):
        for way, measure in ways.items():
            with counted(model) as blocks:
                start = time.perf_counter()
                results[way] = measure()
                times[way].append(time.perf_counter() - start)
            passes[way] = blocks[0] / (len(windows) * model.config.num_hidden_layers)
    apart = max(abs(results["ours"][removed] - loss) for removed, loss in results["plain"].items())
    print(f"{name}: {len(results['plain'])} sets of layers, losses at most {apart:.1e} apart")
    for way, seconds in times.items():
        print(f"    {way:6} {passes[way]:7.1f} passes through the blocks {statistics.median(seconds):8.2f} s")
    ratio = statistics.median(p / o for p, o in zip(times["plain"], times["ours"], strict=True))
    print(f"    plain / ours: {passes['plain'] / passes['ours']:.2f} times the passes, {ratio:.2f} times the time")


@contextmanager
def counted(model: PreTrainedModel) -> Iterator[list[int]]:
    """Count how many windows go through blocks while the block of code runs."""
    count = [0]

    def add(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        count[0] += len(args[0])

    handles = [block.register_forward_hook(add) for block in model.model.layers]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def our_way(model: PreTrainedModel, windows: np.ndarray, depth: int) -> Losses:
    """Return what `ablate` measures, the sets of the search's end among them."""
    found = ablate(model, windows, depth=depth)
    cuts = [found.whole, *(cut for cut in found.singles if cut), *found.cuts]
    return {frozenset(cut.removed): cut.loss for cut in cuts}


def plainly(model: PreTrainedModel, windows: np.ndarray, depth: int) -> Losses:
    """Return the losses of leave-one-out and of the greedy path, each by a forward pass of its own."""
    layers, losses, gone = model.config.num_hidden_layers, {}, frozenset[int]()
    tried = [gone, *(frozenset([layer]) for layer in range(layers))]
    losses.update({removed: without(model, windows, removed) for removed in tried})
    kept = {removed: losses[removed] for removed in tried}
    for _ in range(layers - depth):
        children = [gone | {layer} for layer in range(layers) if layer not in gone]
        losses.update({child: without(model, windows, child) for child in children if child not in losses})
        gone = min(children, key=lambda child: losses[child])
        kept[gone] = losses[gone]
    return kept


def without(model: PreTrainedModel, windows: np.ndarray, removed: Sequence[int] | frozenset[int]) -> float:
    """Return the mean loss of the model with these layers taken out of its list."""
    whole = model.model.layers
    kept = [block for layer, block in enumerate(whole) if layer not in removed]
    model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(kept), len(kept)
    try:
        return float(window_losses(model, windows).mean())
    finally:
        model.model.layers, model.config.num_hidden_layers = whole, len(whole)


if __name__ == "__main__":
    main()
