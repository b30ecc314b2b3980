"""Finished runs as they lie on the disk, made by hand: a 16-layer reference, a run that grew in rounds, a baseline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

DEPTH, HEADS, LENGTH = 16, 4, 20
Record = dict[str, Any]


def evaluation(loss: float, se: float = 0.02) -> Record:
    return {
        "loss": loss,
        "standard_error": se,
        "perplexity": math.exp(loss),
        "windows": 256,
        "length": 128,
        "tokens": 256 * 127,
        "data": "stdlib/valid",
    }


def comparison(difference: float, half: float, margin: float = 0.01) -> Record:
    return {
        "difference": difference,
        "ci_low": difference - half,
        "ci_high": difference + half,
        "confidence": 0.95,
        "p_value": 0.2,
        "windows": 256,
        "margin": margin,
        "matches": difference + half <= margin,
    }


def speed(rate: float) -> Record:
    return {
        "generate_tokens_per_second": rate,
        "prefill_tokens_per_second": rate * 20,
        "parameters": 1_000_000,
        "parameter_bytes": 4_000_000,
        "kv_cache_bytes_per_token": 8192,
        "batch": 1,
        "prompt_length": 64,
        "new_tokens": 64,
        "repeats": 5,
        "device": "cpu",
        "threads": 2,
    }


def taken(model: str | None, layers: range, first_target: int = 0) -> list[Record]:
    """Plan entries: `model`'s layers, one after another, from target layer `first_target` on."""
    return [
        {
            "target": first_target + i,
            "model": model,
            "source": None if model is None else layer,
            "parts": ["attention", "mlp", "norms"],
        }
        for i, layer in enumerate(layers)
    ]


def training_round(
    number: int, layers: int, losses: tuple[float, float], gap: float | None, plan: list[Record]
) -> Record:
    return {
        "name": f"round-{number}",
        "layers": layers,
        "parameters": 131_072 + layers * 49_984,
        "plan": plan,
        "steps": 600,
        "tokens": 2_457_600,
        "seconds": 130.0,
        "start_evaluation": evaluation(losses[0]),
        "evaluation": evaluation(losses[1]),
        "comparison": None if gap is None else comparison(gap, 0.005),
        "metrics": f"round-{number}/metrics.jsonl",
        "model": f"round-{number}/model",
    }


def base_record(name: str, method: str, rounds: list[Record]) -> Record:
    """A finished run against the 16-layer reference (loss 2.9000, 40M tokens, 900 tokens/s)."""
    last = rounds[-1]
    return {
        "kind": "run",
        "schema": 1,
        "name": name,
        "method": method,
        "recipe": {"name": name, "method": method, "training": {"steps": 600, "learning_rate": 2e-3}},
        "seed": 17,
        "environment": {
            "python": "3.11.2",
            "platform": "Linux x86_64",
            "versions": {"inheritune": "0.1.0", "torch": "2.13.0"},
            "processor_count": 2,
            "memory_bytes": 24 * 2**30,
            "torch_threads": 2,
            "accelerators": [],
            "commit": "9752cfb",
            "command": f"inheritune run {name}.yaml",
        },
        "created": "2026-11-23T10:15:00+00:00",
        "data": {
            "source": "stdlib",
            "tokenizer": "tokenizer",
            "vocabulary": 2048,
            "train_tokens": 9_800_000,
            "valid_tokens": 480_000,
            "digest": "3f2a9c",
        },
        "reference": {
            "model": "assets/reference",
            "name": "reference-16x64",
            "layers": 16,
            "parameters": 930_816,
            "tokens": 40_000_000,
            "evaluation": evaluation(2.9),
            "speed": speed(900.0),
            "sample": {"prompt": "def read(", "text": "self, path):\n    return self._read(path)\n"},
            "analysis": "analysis/reference",
        },
        "rounds": rounds,
        "result": {
            "model": last["model"],
            "layers": last["layers"],
            "parameters": last["parameters"],
            "tokens": sum(each["tokens"] for each in rounds),
            "seconds": sum(each["seconds"] for each in rounds),
            "evaluation": last["evaluation"],
            "comparison": last["comparison"],
            "matched": None if last["comparison"] is None else last["comparison"]["matches"],
            "speed": speed(1260.0),
            "sample": {"prompt": "def read(", "text": "self):\n    if self.closed:\n        raise ValueError\n"},
            "analysis": "analysis/result",
        },
    }


def grown_record() -> Record:
    """Three rounds, 8 to 12 layers; the last is 0.0030 worse than the reference, interval -0.0020 to +0.0080."""
    rounds = [
        training_round(1, 8, (4.6, 2.981), 0.081, taken("reference", range(8))),
        training_round(2, 10, (3.4, 2.9324), 0.0324, taken("target", range(8)) + taken("reference", range(8, 10), 8)),
        training_round(3, 12, (3.2, 2.903), 0.003, taken("target", range(10)) + taken("reference", range(10, 12), 10)),
    ]
    return base_record("grow", "inheritune", rounds)


def scratch_record() -> Record:
    """As deep as the grown model, as many tokens, in one round; 0.1030 worse than the reference, half-width 0.006."""
    turn = training_round(1, 12, (7.63, 3.003), None, taken(None, range(12)))
    turn |= {"tokens": 3 * 2_457_600, "steps": 1800, "seconds": 400.0, "comparison": comparison(0.103, 0.006)}
    record = base_record("scratch-12", "scratch", [turn])
    record["reference"] |= {"analysis": None, "speed": None, "sample": None}
    record["result"] |= {"analysis": None}
    return record


def metric_lines(turn: Record, count: int = 60) -> list[Record]:
    """Logged steps of a round whose loss falls from its first to its last evaluation."""
    first, last = ((turn[key] or evaluation(3.0))["loss"] for key in ("start_evaluation", "evaluation"))
    lines = []
    for i in range(1, count + 1):
        loss = last + (first - last) * math.exp(-7 * i / count) + 0.05 * math.sin(i * 2.4)
        line = {
            "step": i * turn["steps"] // count,
            "tokens": i * turn["tokens"] // count,
            "loss": loss,
            "learning_rate": 1e-3,
            "grad_norm": 0.8,
            "tokens_per_second": 19_000.0,
        }
        if i % (count // 4) == 0 and i < count:
            line["valid_loss"] = last + (first - last) * math.exp(-7 * i / count)
        lines.append(line)
    return lines


def spectra(depth: int, lazy: range = range(0), masks: tuple[str, ...] = ("causal", "full")) -> Record:
    """An analysis in which the layers `lazy` have rank 1 without the mask, and no layer has with it."""

    def part(layer: int, mask: str) -> Record:
        top = max(2.0, 16 - layer * 0.9) * (1.0 if mask == "causal" else 0.45)
        rank = [max(1.0, top * (1 - 0.22 * head)) for head in range(HEADS)]
        rank[3] = 1.2 if layer > 8 else rank[3]
        if mask == "full" and layer in lazy:
            rank = [1.0] * HEADS
        mass = [4 * r + 3 for r in rank]
        lazy_here = max(rank) == 1.0
        return {"rank": rank, "max_rank": max(rank), "mass": mass, "avg_mass": sum(mass) / HEADS, "lazy": lazy_here}

    return {
        "model": "model",
        "tau": 0.9,
        "eta": 0.9,
        "sequences": 100,
        "length": 100,
        "masks": list(masks),
        "layers": [_classed({"index": i, **{mask: part(i, mask) for mask in masks}}) for i in range(depth)],
    }


def _classed(layer: Record) -> Record:
    if "causal" in layer and "full" in layer:
        pairs = zip(layer["causal"]["rank"], layer["full"]["rank"], strict=True)
        layer["classes"] = ["sink" if a < 1.5 else "uniform" if b < 1.5 else "potent" for a, b in pairs]
    return layer


def attention_maps(length: int = LENGTH) -> Record:
    """A potent head that looks at near tokens and a laziest head that looks at the first, under both masks."""
    maps = []
    for role, layer in (("potent", 1), ("laziest", 13)):
        for mask in ("causal", "full"):
            values = []
            for i in range(length):
                raw = [
                    0.0
                    if mask == "causal" and j > i
                    else (math.exp(-abs(i - j) / 3) if role == "potent" else (1.0 if j == 0 else 0.004))
                    for j in range(length)
                ]
                values.append([round(x / sum(raw), 4) for x in raw])
            maps.append(
                {
                    "layer": layer,
                    "head": 2,
                    "mask": mask,
                    "role": role,
                    "rank": 11 if role == "potent" else 1,
                    "mean_rank": 10.6 if role == "potent" else 1.04,
                    "tokens": [f"t{i} " for i in range(length)],
                    "values": values,
                }
            )
    return {"maps": maps}


def write_run(folder: Path, record: Record, lazy: range = range(0), length: int = LENGTH) -> Path:
    """Write a run as `inheritune run` leaves it: metrics and analyses where the record names them, record.json last."""
    folder.mkdir(parents=True)
    for turn in record["rounds"]:
        path = folder / turn["metrics"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in metric_lines(turn)))
    for model, layers in ((record.get("reference"), lazy), (record["result"], range(0))):
        if model and model.get("analysis"):
            target = folder / model["analysis"]
            target.mkdir(parents=True)
            (target / "spectra.json").write_text(json.dumps(spectra(model["layers"], layers)))
            (target / "maps.json").write_text(json.dumps(attention_maps(length)))
    (folder / "record.json").write_text(json.dumps(record))
    return folder
