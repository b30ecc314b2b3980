"""Our KL, in pieces, against the plain way, which holds both models' logits whole: peak memory, time, equal gradients.

    python benchmarks/objective.py                       # 131,072 token ids, 256 hidden units, 4 x 512 tokens
    python benchmarks/objective.py --vocabulary 49152 --hidden 576 --rounds 5

Student and teacher are Llamas of one small block with random weights, so that what is measured is the head and the
loss. Each way runs forward and backward in a fresh process: once for the peak resident memory (VmHWM) above what the
process held before the step, then more times for the time, the shortest of which counts; the time of the processors
(all threads, the kernel's work for it included) stands beside it, for machines that others use. The plain way is what a
textbook writes: both logits in float32, two log-softmaxes, `F.kl_div`, `backward`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MB = 10**6


def main() -> None:
    """Measure both ways, compare, print."""
    options = _options()
    if options.child:
        _step(options)
        return
    with tempfile.TemporaryDirectory() as scratch:
        plain, ours = (_child(way, Path(scratch), options) for way in ("plain", "ours"))
        loss, gradients = _difference(Path(scratch))
    for name, found in (("plain", plain), ("ours", ours)):
        took = f"{found['seconds']:.2f} s, {found['processors']:.2f} s of processors"
        print(f"{name}: {found['peak'] / MB:,.0f} MB above {found['base'] / MB:,.0f} MB, {took}")
    print(f"memory: plain / ours = {plain['peak'] / ours['peak']:.1f}")
    ratios = {key: ours[key] / plain[key] for key in ("seconds", "processors")}
    print(f"time: ours / plain = {ratios['seconds']:.2f}, of processors {ratios['processors']:.2f}")
    print(f"loss differs by {loss:.1e} of its size, a gradient by at most {gradients:.1e} of the largest of its weight")
    sys.exit(0 if loss < 1e-5 and gradients < 1e-4 else 1)


def _child(way: str, scratch: Path, options: argparse.Namespace) -> dict[str, float]:
    sizes = {name: value for name, value in vars(options).items() if name not in ("child", "out")}
    arguments = [part for name, value in sizes.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, __file__, "--child", way, "--out", str(scratch / way), *arguments]
    subprocess.run(command, check=True)
    found: dict[str, float] = json.loads((scratch / f"{way}.json").read_text())
    return found


def _step(options: argparse.Namespace) -> None:
    """In the child: forward and backward, measured; loss and gradients are written for the comparison."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(options.threads)
    student, teacher = (_model(options, seed) for seed in (0, 1))
    ids = torch.randint(0, options.vocabulary, (options.batch, options.length + 1))
    loss_of = _ways(teacher)[options.child]
    loss_of(student, ids[:1, :9]).backward()  # what the libraries make once is there before
    student.zero_grad()
    base, seconds, processors, peak = _memory("VmRSS"), [], [], 0
    for _ in range(options.rounds):
        student.zero_grad()
        start, before = time.perf_counter(), time.process_time()
        loss = loss_of(student, ids)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        processors.append(time.process_time() - before)
        peak = peak or _memory("VmHWM") - base
    gradients = {name: weight.grad for name, weight in student.named_parameters()}
    save_file({"loss": loss.detach(), **gradients}, f"{options.out}.safetensors")
    found = {"base": base, "peak": peak, "seconds": min(seconds), "processors": min(processors)}
    Path(f"{options.out}.json").write_text(json.dumps(found))


def _model(options: argparse.Namespace, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    heads, hidden = 4, options.hidden
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=options.vocabulary,
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=1,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=options.length,
            initializer_range=hidden**-0.5,
            tie_word_embeddings=True,
        )
    ).eval()


def _ways(teacher: Any) -> dict[str, Any]:
    import torch
    from torch.nn import functional as F

    from inheritune.training import Objective, ObjectiveSettings

    def plain(model: Any, ids: torch.Tensor) -> torch.Tensor:
        student = model(ids[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        with torch.no_grad():
            taught = teacher(ids[:, :-1], use_cache=False).logits.float().flatten(0, 1)
        ours, theirs = F.log_softmax(student, -1), F.log_softmax(taught, -1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    return {"plain": plain, "ours": Objective(ObjectiveSettings(kl=1.0), teacher)}


def _memory(field: str) -> int:
    """Return a figure of this process from the kernel, in bytes."""
    return int(Path("/proc/self/status").read_text().partition(f"{field}:")[2].split()[0]) * 1024


def _difference(scratch: Path) -> tuple[float, float]:
    """Return how far the losses are apart, and the gradients, each as a share of the plain one's size."""
    from safetensors.torch import load_file

    plain, ours = (load_file(scratch / f"{way}.safetensors") for way in ("plain", "ours"))
    apart = {
        name: float((ours[name] - value).abs().max() / value.abs().max())
        for name, value in plain.items()
        if value.abs().max() > 0
    }
    return apart.pop("loss"), max(apart.values())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=131072)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3, help="how often the step is timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", choices=["plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
