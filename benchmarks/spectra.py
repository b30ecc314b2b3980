"""Attention spectra: our way and the usual one, side by side in one run.

    python benchmarks/spectra.py matrices            # (a) k* and m* of 2,000 matrices, T = 100 and T = 512
    python benchmarks/spectra.py model               # (b) a whole GPT-2-Medium-shaped model, 100 x 100 tokens
    python benchmarks/spectra.py memory              # (c) peak memory above the plain forward pass, T up to 4,096

The usual way is `output_attentions=True` and `torch.linalg.svdvals` on what comes out. Every figure is the median of
`--repeats` runs that take turns, on `--device`; the matrices' counts are compared with float64 ones.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel

import inheritune
from inheritune.decoder import open_decoder
from inheritune.spectra.measure.pieces import DEFAULT_MEMORY
from inheritune.spectra.measure.rank import approximate_rank, rank_and_mass
from inheritune.spectra.watch import capture

COLLAPSED = 0.6
"""Share of the matrices with k* = 1; the others spread evenly from 2 to T / 4."""


def main() -> None:
    """Run the parts that are named, all by default."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=["matrices", "model", "memory", []], default=[])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--count", type=int, default=2000, help="matrices")
    parser.add_argument("--lengths", type=int, nargs="*", default=[100, 512], help="T of the matrices")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(peak_of(**json.loads(options.child))))
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {hardware(options.device)}")
    for part in options.parts or ["matrices", "model", "memory"]:
        {"matrices": compare_matrices, "model": compare_model, "memory": compare_memory}[part](options)


def hardware(device: str) -> str:
    """Return what the figures were measured on."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()} processor cores, {torch.get_num_threads()} threads"


# (a) ------------------------------------------------------------------------------------------------------------------


def compare_matrices(options: argparse.Namespace) -> None:
    """Print the time of both ways on matrices of each length, and that their counts are right."""
    for length in options.lengths:
        matrices = make_matrices(options.count, length).to(options.device)
        exact_rank, exact_mass = exact_counts(matrices)
        ours = rank_and_mass(matrices)
        wrong = int((ours.rank != exact_rank).sum() + (ours.mass != exact_mass).sum())
        lone = float((exact_rank == 1).float().mean())
        spread = exact_rank[exact_rank > 1].float().quantile(torch.tensor([0.0, 0.5, 1.0], device=exact_rank.device))
        print(
            f"\n(a) {len(matrices)} causal matrices, T = {length}: k* = 1 in {lone:.0%}, the others "
            f"{spread[0]:.0f} to {spread[2]:.0f} (median {spread[1]:.0f}); counts that differ from float64: {wrong}"
        )
        times = take_turns({"usual": lambda m=matrices: usual_counts(m), "ours": lambda m=matrices: rank_and_mass(m)},
                           options)  # fmt: skip
        print(f"    svdvals and sorted columns {times['usual']:.3f} s, ours {times['ours']:.3f} s: "
              f"{times['usual'] / times['ours']:.1f} times as fast")  # fmt: skip


def usual_counts(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k* and m* the usual way."""
    squares = torch.linalg.svdvals(matrices).square().cumsum(dim=-1)
    norms = matrices.square().sum(dim=-2).sort(dim=-1, descending=True).values.cumsum(dim=-1)
    return tuple(1 + (each < 0.9 * each[..., -1:]).sum(dim=-1) for each in (squares, norms))  # type: ignore[return-value]


def exact_counts(matrices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return k* and m* from float64 Gram matrices and sums."""
    found = []
    for part in matrices.split(64):
        wide = part.double()
        values = torch.linalg.eigvalsh(wide.mT @ wide).flip(-1).clamp(min=0)
        norms = wide.square().sum(dim=-2).sort(dim=-1, descending=True).values
        sums = [each.cumsum(dim=-1) for each in (values, norms)]
        found.append([1 + (each < 0.9 * each[..., -1:]).sum(dim=-1) for each in sums])
    return tuple(torch.cat(each) for each in zip(*found, strict=True))  # type: ignore[return-value]


def make_matrices(count: int, length: int) -> torch.Tensor:
    """Return (count, T, T) causal softmaxes of random queries and keys with a sink of chosen strength.

    The strength is found by bisection: k* falls from above T / 4 to 1 as the sink grows.
    """
    generator = torch.Generator().manual_seed(length)
    targets = torch.ones(count, dtype=torch.int64)
    others = count - round(COLLAPSED * count)
    targets[:others] = torch.linspace(2, length // 4, others).round().long()
    parts = [_with_rank(target, length, generator) for target in targets.split(50)]
    return torch.cat(parts)[torch.randperm(count, generator=generator)]


def _with_rank(targets: torch.Tensor, length: int, generator: torch.Generator) -> torch.Tensor:
    queries, keys = torch.randn(2, len(targets), length, 64, generator=generator).unbind()
    logits = 3 * queries @ keys.mT / 8
    logits.masked_fill_(torch.ones(length, length).triu(1).bool(), -torch.inf)
    low, high = torch.zeros(len(targets)), torch.full((len(targets),), 24.0)
    for _ in range(9):
        middle = (low + high) / 2
        above = approximate_rank(_with_sink(logits, middle)) > targets
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return _with_sink(logits, high)


def _with_sink(logits: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    logits = logits.clone()
    logits[..., 0] += strength[:, None]
    return logits.softmax(dim=-1)


# (b) ------------------------------------------------------------------------------------------------------------------


def gpt2(
    layers: int = 24, width: int = 1024, heads: int = 16, positions: int = 1024, sharp: float = 1.0
) -> GPT2LMHeadModel:
    """Return a GPT-2 of random weights; `sharp` multiplies queries and keys, for attention that is far from even."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=positions)).eval()
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:, : 2 * width] *= sharp
    return model


def compare_model(options: argparse.Namespace) -> None:
    """Print the time of a whole analysis beside one plain forward pass over the same tokens, and the usual way's."""
    tokens = torch.randint(50257, (100, 100), generator=torch.Generator().manual_seed(0)).to(options.device)
    for sharp in (1.0, 8.0):
        model = gpt2(sharp=sharp).to(options.device)
        ranks = inheritune.analyze(model, tokens[:8]).max_rank
        print(f"\n(b) GPT-2 Medium shape, 100 x 100 tokens, MaxRank {ranks.min():.0f} to {ranks.max():.0f}")
        ways: dict[str, Callable[[], object]] = {
            "plain SDPA forward pass": lambda model=model: forward(model, tokens),
            "analyze, causal": lambda model=model: inheritune.analyze(model, tokens),
            "analyze, both masks": lambda model=model: inheritune.analyze(model, tokens, mask="both"),
        }
        if sharp == 1.0:
            ways["usual way, causal"] = lambda model=model: usual_model(model, tokens)
        times = take_turns(ways, options)
        plain = times["plain SDPA forward pass"]
        for name, seconds in times.items():
            print(f"    {name:24} {seconds:7.2f} s  {seconds / plain:5.2f} times the forward pass")


@torch.no_grad()
def forward(model: GPT2LMHeadModel, tokens: torch.Tensor, size: int = 16) -> None:
    """Run the model without its head, as the analysis does, under SDPA."""
    for chunk in tokens.split(size):
        model.base_model(input_ids=chunk, use_cache=False)


@torch.no_grad()
def usual_model(model: GPT2LMHeadModel, tokens: torch.Tensor) -> None:
    """Analyse the causal attention of a model the usual way."""
    model.config._attn_implementation = "eager"
    for chunk in tokens.split(16):
        for weights in model.base_model(input_ids=chunk, use_cache=False, output_attentions=True).attentions:
            usual_counts(weights)
    model.config._attn_implementation = "sdpa"


def take_turns(ways: dict[str, Callable[[], object]], options: argparse.Namespace) -> dict[str, float]:
    """Return the median time of each way, in seconds; one after the other, `repeats` times."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if options.device != "cpu":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


# (c) ------------------------------------------------------------------------------------------------------------------


def cases() -> Iterator[dict[str, int]]:
    """Yield models and tokens of different shapes: many sequences, many heads, many layers, long sequences."""
    yield {"sequences": 60, "length": 100, "layers": 4, "width": 1024, "heads": 16}
    yield {"sequences": 400, "length": 100, "layers": 4, "width": 256, "heads": 16}
    yield {"sequences": 40, "length": 100, "layers": 32, "width": 256, "heads": 64}
    yield {"sequences": 8, "length": 1024, "layers": 2, "width": 768, "heads": 12}
    yield {"sequences": 1, "length": 4096, "layers": 2, "width": 256, "heads": 4}


def compare_memory(options: argparse.Namespace) -> None:
    """Print the peak memory of an analysis above that of a plain forward pass, each in a process of its own."""
    print(f"\n(c) peak memory above the plain forward pass, budget {DEFAULT_MEMORY / 2**20:.0f} MB")
    for case in cases():
        peaks = {way: child_peak(case, way) for way in ("forward", "causal", "both")}
        above = {way: peaks[way]["peak"] - peaks["forward"]["peak"] for way in ("causal", "both")}
        print(
            f"    N = {case['sequences']}, T = {case['length']}, {case['layers']} layers of {case['heads']} heads: "
            f"causal {above['causal'] / 2**20:.0f} MB, both masks {above['both'] / 2**20:.0f} MB "
            f"({peaks['causal']['seconds']:.0f} s, {peaks['both']['seconds']:.0f} s, "
            f"forward {peaks['forward']['seconds']:.0f} s)"
        )


def child_peak(case: dict[str, int], way: str) -> dict[str, float]:
    """Return what `peak_of` measures in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(case | {"way": way})],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def peak_of(sequences: int, length: int, layers: int, width: int, heads: int, way: str) -> dict[str, float]:
    """Return the peak resident memory, in bytes, and the time, in seconds, of one way to run a model."""
    model = gpt2(layers, width, heads, max(length, 1024), sharp=4.0)
    tokens = torch.randint(50257, (sequences, length), generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    if way == "forward":
        per_sequence = capture._bytes_per_sequence(open_decoder(model), length, 0)
        forward(model, tokens, max(1, capture.CHUNK_BYTES // per_sequence))
    else:
        inheritune.analyze(model, tokens, mask=way)
    seconds = time.perf_counter() - start
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "seconds": seconds}


if __name__ == "__main__":
    main()
