"""A checkpoint larger than the memory allowed: peak memory, time, and whether the result is the in-memory one.

    python benchmarks/big_model.py                 # 4 GB of random float32 weights under 2 GB of memory
    python benchmarks/big_model.py --gigabytes 8 --limit 3 --dtype bfloat16 --folder /scratch/big

Writes a Llama-shaped checkpoint of random weights shard by shard, analyses it in three child processes and prints one
line for each: layer by layer under the limit; in memory under the same limit, which must fail; in memory without one.
The limit is RLIMIT_DATA, which the kernel enforces on what a process allocates (heap, anonymous and private writable
mappings) but not on pages of libraries. Beside it stands the peak resident memory, libraries and all (VmHWM). The two
results have to be the same numbers, bit for bit. The checkpoint is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llama_checkpoint import write_llama

if TYPE_CHECKING:
    from torch import Tensor

GB = 10**9
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
}


def main() -> None:
    """Write, measure, compare, print, delete."""
    options = _options()
    if options.child:
        _analyse(options.folder, options.child, options.out, options.sequences, options.length, options.limit)
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="big-model-") as scratch:
        folder = Path(scratch) / "checkpoint"
        size = write_checkpoint(folder, int(options.gigabytes * GB), options.dtype)
        _say(f"checkpoint: {size / GB:.2f} GB of random {options.dtype} weights, {len(_shards(folder))} shards")
        limited = _child(folder, "stream", options, options.limit)
        whole = _child(folder, "memory", options, options.limit)
        free = _child(folder, "memory", options, 0.0)
    _row(f"layer by layer, limit {options.limit:g} GB", limited)
    _row(f"in memory, limit {options.limit:g} GB", whole)
    _row("in memory, no limit", free)
    same = limited is not None and free is not None and limited["values"] == free["values"]
    _say(f"ranks and masses equal bit for bit: {same}")
    sys.exit(0 if same else 1)


def write_checkpoint(folder: Path, size: int, dtype: str) -> int:
    """Write a Llama of about `size` bytes and random weights, and return its bytes."""
    import torch

    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    write_llama(folder, SHAPE, size, dtype, lambda shape: _random(shape, kind))
    return sum(path.stat().st_size for path in _shards(folder))


def _random(shape: tuple[int, ...], kind: object) -> Tensor:
    """Return ones for a norm, else normal values of deviation 1 / sqrt(columns), at which signals keep their size."""
    import torch

    return torch.ones(shape, dtype=kind) if len(shape) == 1 else torch.randn(shape, dtype=kind) * shape[1] ** -0.5


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _child(folder: Path, way: str, options: argparse.Namespace, limit: float) -> dict[str, object] | None:
    """Analyse in a process of its own and return what it measured, or None if it failed."""
    out = folder / "result.json"
    out.unlink(missing_ok=True)
    sizes = ["--sequences", str(options.sequences), "--length", str(options.length), "--limit", str(limit)]
    command = [sys.executable, __file__, "--child", way, "--folder", str(folder), "--out", str(out), *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if out.is_file():
        return json.loads(out.read_text())
    sys.stderr.write(f"[{way}, limit {limit:g}] status {done.returncode}: {done.stderr.strip()[-300:]}\n")
    return None


def _analyse(folder: Path, way: str, out: Path, sequences: int, length: int, limit: float) -> None:
    """In the child: set the limit, analyse, and write time, peak memory and all values in full precision."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit * GB), int(limit * GB)))
    import numpy as np

    import inheritune as it

    tokens = np.random.default_rng(0).integers(0, SHAPE["vocab_size"], (sequences, length))
    start = time.perf_counter()
    found = it.analyze(folder, tokens, mask="both", stream=way == "stream")
    seconds = time.perf_counter() - start
    values = {
        name: [[value.hex() for value in row] for row in table.tolist()]
        for name, table in {
            "rank": found.causal.rank,
            "mass": found.causal.mass,
            "full rank": found.full.rank,
            "full mass": found.full.mass,
        }.items()
    }
    out.write_text(json.dumps({"seconds": seconds, "peak": _peak_memory(), "values": values}))


def _peak_memory() -> int:
    """Return the process's largest resident memory in bytes, from its own start on (a child's ru_maxrss is not)."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _row(label: str, result: dict[str, object] | None) -> None:
    if result is None:
        _say(f"{label}: failed (see above)")
    else:
        _say(f"{label}: peak resident memory {result['peak'] / GB:.2f} GB, {result['seconds']:.1f} s")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint, 10^9 bytes")
    parser.add_argument("--limit", type=float, default=2.0, help="memory the analysis may allocate, 10^9 bytes")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="float32")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where to write the checkpoint for a while")
    parser.add_argument("--child", choices=["stream", "memory"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if not options.child and free < 1.5 * GB * options.gigabytes:
        parser.error("not enough disk for the checkpoint")
    return options


if __name__ == "__main__":
    main()
