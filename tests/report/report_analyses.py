"""Analyses as `inheritune analyze` writes them (schema 2), and watched collapse, made by hand from smooth profiles."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from report_records import attention_maps

Record = dict[str, Any]
TAUS = (0.8, 0.85, 0.9, 0.95)


def analysis(
    depth: int = 24,
    heads: int = 16,
    masks: tuple[str, ...] = ("causal", "full"),
    model: str = "acme/medium-24",
    gradients: bool = True,
    seed: int = 0,
) -> Record:
    """A model whose later layers collapse: half of their heads are sinks, some more are uniform without the mask."""
    draw = random.Random(seed)
    layers = [_layer(i, depth, heads, masks, gradients, draw) for i in range(depth)]
    start = depth // 2
    return {
        "kind": "analysis",
        "schema": 2,
        "model": model,
        "tau": 0.9,
        "taus": list(TAUS),
        "eta": 0.9,
        "sequences": 100,
        "length": 100,
        "masks": list(masks),
        "depth": depth,
        "layers": layers,
        "blocks": [_block(i, depth, draw) for i in range(depth)],
        "angular_distance": [
            [
                round(0.03 * n**0.5 * (1.4 - start_layer / depth) + 0.01 * draw.random(), 6)
                for n in _spans(start_layer, depth)
            ]
            for start_layer in range(depth)
        ],
        "recommendation": {
            "depth": depth,
            "start": start,
            "cut": list(range(start + 2, depth - 1)),
            "keep": [*range(start + 2), depth - 1],
            "reason": f"AvgRank of the first {start} layers is 9.1, of the rest 1.6.",
        },
        "environment": {"python": "3.11.2", "versions": {"torch": "2.13.0"}, "command": "inheritune analyze"},
        "created": "2026-11-23T12:00:00+00:00",
    }


def _spans(first: int, depth: int) -> range:
    return range(1, depth - first + 1)


def _layer(i: int, depth: int, heads: int, masks: tuple[str, ...], gradients: bool, draw: random.Random) -> Record:
    share = i / max(depth - 1, 1)
    causal = [1.0 if draw.random() < share**2 else 1.2 + 18 * (1 - share) * draw.random() for _ in range(heads)]
    full = [1.0 if draw.random() < share else max(1.0, rank * 0.6) for rank in causal]
    if depth > 4 and i in (depth - 3, depth - 2):
        full = [1.0] * heads
    tables = {"causal": causal, "full": full}
    layer: Record = {"index": i} | {mask: _part(tables[mask], draw) for mask in masks}
    if len(masks) == 2:
        layer["classes"] = [
            "sink" if a < 1.5 else "uniform" if b < 1.5 else "potent" for a, b in zip(causal, full, strict=True)
        ]
    if gradients:
        epsilons = layer["causal"]["sink_epsilon"] if "causal" in layer else [0.5] * heads
        norms = [0.02 * e**1.2 * (0.3 + draw.random()) for e in epsilons]
        layer["gradients"] = {
            "query": norms,
            "key": [1.3 * norm for norm in norms],
            "query_bound": [0.4 * e for e in epsilons],
            "key_bound": [None] * heads if i == 0 else [0.5 * e for e in epsilons],
        }
    return layer


def _part(rank: list[float], draw: random.Random) -> Record:
    mass = [3 * r + 2 * draw.random() for r in rank]
    return {
        "rank": rank,
        "rank_error": [0.02 * r * draw.random() for r in rank],
        "max_rank": max(rank),
        "mass": mass,
        "avg_mass": sum(mass) / len(mass),
        "lazy": max(rank) == 1.0,
        "entropy": [math.log(r) + 0.3 for r in rank],
        "stable_rank": [1 + 0.4 * (r - 1) for r in rank],
        "sink_column": [0 if r < 1.5 else draw.randrange(100) for r in rank],
        "sink_epsilon": [min(0.999, 0.002 + 0.08 * r * draw.random()) for r in rank],
        "ranks": {f"{tau:g}": [1 + (r - 1) * (tau / 0.9) ** 6 for r in rank] for tau in TAUS},
    }


def _block(i: int, depth: int, draw: random.Random) -> Record:
    return {
        "index": i,
        "influence": 0.4 * math.exp(-4 * i / depth) + 0.03 * draw.random() + (0.2 if i == depth - 1 else 0),
        "mlp_rank": None if i == 1 else 20 + 30 * i / depth + draw.random(),
        "mlp_rank_error": None if i == 1 else 0.8,
        "mlp_mass": None if i == 1 else 60 - 20 * i / depth,
    }


def write_analysis(folder: Path, record: Record, length: int = 20) -> Path:
    """Write an analysis folder."""
    folder.mkdir(parents=True)
    (folder / "spectra.json").write_text(json.dumps(record))
    (folder / "maps.json").write_text(json.dumps(attention_maps(length)))
    return folder


def collapse_lines(layers: int, tokens: int, steps: int, watched: int = 9) -> list[Record]:
    """Watched steps of a round, its first step (0) and its last included; deep layers collapse as training goes on."""
    lines = []
    for i in range(watched):
        time = i / (watched - 1)
        causal = [1 + 14 * (1 - time * layer / layers) for layer in range(layers)]
        share = [round(0.8 * time * layer / layers, 4) for layer in range(layers)]
        lines.append(
            {
                "step": round(time * steps),
                "tokens": round(time * tokens),
                "layers": list(range(layers)),
                "causal": {"max_rank": causal, "collapsed": share},
                "full": {
                    "max_rank": [max(1.0, r / 2) for r in causal],
                    "collapsed": [min(1.0, 1.2 * s) for s in share],
                },
                "gradients": {
                    "query": [0.1 * math.exp(-3 * time * layer / layers) for layer in range(layers)],
                    "key": [0.08 * math.exp(-2 * time * layer / layers) for layer in range(layers)],
                },
                "seconds": 0.4,
            }
        )
    return lines


def watch_run(folder: Path, record: Record) -> None:
    """Add a collapse.jsonl to each round of a run that lies on the disk, and name it in the record."""
    for turn in record["rounds"]:
        turn["collapse"] = str(Path(turn["metrics"]).with_name("collapse.jsonl"))
        lines = collapse_lines(turn["layers"], turn["tokens"], turn["steps"])
        (folder / turn["collapse"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "record.json").write_text(json.dumps(record))
