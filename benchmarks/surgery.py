"""inherit_checkpoint against `cp` of the same bytes: time on the same disk, and peak memory.

    python benchmarks/surgery.py                                  # 4 GB, 5 rounds, the files in the page cache
    python benchmarks/surgery.py --gigabytes 20 --rounds 3 --cold --folder /scratch/surgery

Writes a Llama-shaped checkpoint of random bytes in several shards, then copies all of its layers in turns, each way
once per round: `cp -r`; `cp -r` followed by `sync`; inherit_checkpoint; inherit_checkpoint(sync=True), which waits for
the disk like the second. inherit_checkpoint runs in a fresh process each time. Its time is that of the call once its
libraries are imported; what importing them takes, which does not depend on the size, stands beside it. The peak
resident memory (VmHWM) is that of the whole process, libraries and all. Before each measurement `sync` is run, the disk
is left alone for some seconds, and free memory is touched once, because a virtual machine may have given it back to its
host, which makes whoever uses it first pay. Everything is deleted at the end.
"""

from __future__ import annotations

import argparse
import json
import math
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_checkpoint import write_llama

GB = 10**9
SHAPE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
REST_SECONDS = 4
Result = dict[str, Any]


def main() -> None:
    """Write, measure in turns, print, delete."""
    options = _options()
    if options.child:
        _inherit(options.source, options.out, options.child == "sync")
        return
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="surgery-") as scratch:
        source, out = Path(scratch) / "source", Path(scratch) / "out"
        layers = write_checkpoint(source, int(options.gigabytes * GB))
        size = sum(path.stat().st_size for path in source.iterdir())
        shards = len(list(source.glob("*.safetensors")))
        _say(f"checkpoint: {size / GB:.2f} GB, {layers} layers, {shards} shards; all layers are copied")
        results = _measure(source, out, options.rounds, options.cold)
    _report(results, "not in" if options.cold else "in")


def write_checkpoint(folder: Path, size: int) -> int:
    """Write a bfloat16 Llama of about `size` random bytes; return its number of layers."""
    import torch

    def random_bytes(shape: tuple[int, ...]) -> torch.Tensor:
        bits = torch.randint(-(2**15), 2**15, (math.prod(shape),), dtype=torch.int16)
        return (bits & ~(1 << 14)).view(torch.bfloat16).view(shape)  # below 2, none infinite

    return write_llama(folder, SHAPE, size, "bfloat16", random_bytes)


def _measure(source: Path, out: Path, rounds: int, cold: bool) -> dict[str, list[Result]]:
    """Copy each way once per round, the order turned by one from round to round."""
    ways: dict[str, Callable[[Callable[[], None]], Result]] = {
        "cp": lambda settle: _cp(source, out, settle, sync=False),
        "inherit_checkpoint": lambda settle: _child(source, out, settle, "plain"),
        "cp, then sync": lambda settle: _cp(source, out, settle, sync=True),
        "inherit_checkpoint(sync=True)": lambda settle: _child(source, out, settle, "sync"),
    }
    results: dict[str, list[Result]] = {name: [] for name in ways}
    order = list(ways)
    for number in range(rounds):
        for name in order[number % len(order) :] + order[: number % len(order)]:
            result = ways[name](lambda: _settle(source, out, cold))
            results[name].append(result)
            _say(f"round {number + 1}: {name}: {result['seconds']:.2f} s")
    _compare(source, out)
    return results


def _settle(source: Path, out: Path, cold: bool) -> None:
    """Bring disk, page cache and memory into the state in which every way begins."""
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    time.sleep(REST_SECONDS)
    for path in source.iterdir():
        _forget(path) if cold else _read(path)
    _touch_memory(source)


def _cp(source: Path, out: Path, settle: Callable[[], None], sync: bool) -> Result:
    settle()
    start = time.perf_counter()
    subprocess.run(["cp", "-r", source, out], check=True)
    if sync:
        os.sync()
    return {"seconds": time.perf_counter() - start}


def _touch_memory(source: Path) -> None:
    """Use as much free memory as a copy of `source` will, half as much again, and give it back."""
    import psutil

    size = sum(path.stat().st_size for path in source.iterdir()) * 3 // 2
    size = min(size, psutil.virtual_memory().available // 2)
    page = b"x" * (1 << 20)
    with mmap.mmap(-1, size) as memory:
        for start in range(0, size - len(page), len(page)):
            memory[start : start + len(page)] = page


def _read(path: Path) -> None:
    """Bring a file into the page cache."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(1 << 20)
        while file.readinto(buffer):
            pass


def _forget(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _compare(source: Path, out: Path) -> None:
    """Confirm that the last copy holds as many bytes of tensors as the source."""
    from inheritune.checkpoints.folder import read_folder

    sizes = [{name: tensor.size for name, tensor in read_folder(folder).items()} for folder in (source, out)]
    if sizes[0] != sizes[1]:
        raise SystemExit("the copy holds other tensors than the source")


def _child(source: Path, out: Path, settle: Callable[[], None], way: str) -> Result:
    """Let a fresh process import its libraries, settle, and let it make the call."""
    command = [sys.executable, __file__, "--child", way, "--source", str(source), "--out", str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        settle()
        answer, _ = child.communicate("go\n")
    return json.loads(answer)


def _inherit(source: Path, out: Path, sync: bool) -> None:
    """In the child: import what the call needs, make the call, and print times and peak memory."""
    start = time.perf_counter()
    from importlib import import_module

    from inheritune import inherit_checkpoint
    from inheritune.decoder import load_config

    import_module("transformers.models.llama.modeling_llama")
    layers = load_config(source).num_hidden_layers
    imports = time.perf_counter() - start
    _say("ready")
    sys.stdin.readline()
    start = time.perf_counter()
    inherit_checkpoint(source, out, layers, sync=sync)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "imports": imports, "peak": _peak_memory()}))


def _peak_memory() -> int:
    """Return the process's largest resident memory in bytes, from its own start on (a child's ru_maxrss is not)."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _report(results: dict[str, list[Result]], cache: str) -> None:
    rounds = len(results["cp"])
    _say(f"median (least - most) of {rounds} rounds, source {cache} the page cache:")
    medians = {name: statistics.median(each["seconds"] for each in runs) for name, runs in results.items()}
    for name, runs in results.items():
        seconds = [each["seconds"] for each in runs]
        line = f"  {name}: {medians[name]:.2f} s ({min(seconds):.2f} - {max(seconds):.2f})"
        if "peak" in runs[0]:
            imports = statistics.median(each["imports"] for each in runs)
            peak = max(each["peak"] for each in runs)
            line += f", after {imports:.1f} s of imports; peak resident memory {peak / 1e6:.0f} MB"
        _say(line)
    ours, durable = "inherit_checkpoint", "inherit_checkpoint(sync=True)"
    _say(f"inherit_checkpoint / cp: {medians[ours] / medians['cp']:.2f} (asked for: at most 1.30)")
    _say(f"inherit_checkpoint(sync=True) / cp, then sync: {medians[durable] / medians['cp, then sync']:.2f}")
    _say(f"inherit_checkpoint(sync=True) / cp: {medians[durable] / medians['cp']:.2f}")
    _say(f"load of the machine in the last minutes: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def _say(line: str) -> None:
    print(line, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint, 10^9 bytes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="take the source out of the page cache before each copy")
    parser.add_argument("--folder", type=Path, help="where to write; by default the folder for temporary files")
    parser.add_argument("--child", choices=["plain", "sync"], help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    free = shutil.disk_usage(options.folder or tempfile.gettempdir()).free
    if not options.child and free < 2.2 * GB * options.gigabytes:
        parser.error("not enough disk for the checkpoint and a copy")
    return options


if __name__ == "__main__":
    main()
