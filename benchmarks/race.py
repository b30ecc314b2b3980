"""Train what `recipes/race` holds, and print what each came to: the table of docs/results/match.md.

    python benchmarks/race.py                                  # everything that is not done yet, then the table
    python benchmarks/race.py base beta2-0.99 --seeds 1 2      # two recipes with two more seeds
    python benchmarks/race.py base --steps 2930                # longer
    python benchmarks/race.py --table                          # what is there

Several of these may run at a time: each takes what no other has. A run goes on where it was stopped. Settings are
chosen by the windows of the training split ("chosen on"), the verdict is that of the validation windows. Both tests
take documents, not windows, as independent.
"""

from __future__ import annotations

import argparse
import fcntl
from pathlib import Path

import numpy as np

from inheritune.data import document_mark, open_shards, tuning_windows, window_documents
from inheritune.decoder import load_model, load_tokenizer
from inheritune.evaluation import compare, window_losses
from inheritune.recipes import load_recipe, run
from inheritune.records.base import read_record
from inheritune.records.evaluation import Comparison
from inheritune.records.runs import RunRecord
from inheritune.storage import RECORD

ROOT = Path(__file__).parents[1]
RECIPES, OUT = ROOT / "recipes" / "race", ROOT / "runs" / "race"
BASE, WINDOWS, LENGTH = "base", 2000, 128


def train(names: list[str], seeds: list[int], steps: int | None) -> None:
    """Do each run that no other process does."""
    for name in names:
        for seed in seeds:
            changes = [f"seed={seed}", *([f"training.steps={steps}"] if steps else [])]
            folder = OUT / "-".join([name, *([f"{steps}"] if steps else []), *([f"seed{seed}"] if seed else [])])
            OUT.mkdir(parents=True, exist_ok=True)
            with (OUT / f".{folder.name}").open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue  # another process is at it
                run(load_recipe(RECIPES / f"{name}.yaml", changes), folder)


class Judge:
    """The windows that settings are chosen on, and the models' losses on them."""

    def __init__(self) -> None:
        shards = open_shards(OUT / "data")
        tokenizer = load_tokenizer(shards.tokenizer)
        self.windows = tuning_windows(shards, tokenizer, LENGTH, WINDOWS)
        text = shards.read("train", 0, shards.tokens("train"))
        self.documents = window_documents(text, document_mark(tokenizer), LENGTH, WINDOWS, shards)
        self.reference = self.losses("stdlib", OUT / "reference-chosen-on.npy")

    def losses(self, model: str, stored: Path) -> np.ndarray:
        """Return the loss of each window, (N,) float64, read where it was stored."""
        if not stored.is_file():
            np.save(stored, window_losses(load_model(model, dtype="float32"), self.windows))
        return np.load(stored)

    def compare(self, folder: Path, against: Path | None = None) -> Comparison:
        """Compare the result of a run with the reference, or with that of another run."""
        ours = self.losses(str(folder), folder / "chosen-on.npy")
        theirs = self.reference if against is None else self.losses(str(against), against / "chosen-on.npy")
        return compare(ours, theirs, groups=self.documents)


def said(comparison: Comparison) -> str:
    """Return a difference with its interval."""
    return f"{comparison.difference:+.4f} [{comparison.ci_low:+.4f}, {comparison.ci_high:+.4f}]"


def print_table() -> None:
    """Print a row for each finished run, the best first, by the windows that settings are chosen on."""
    judge, rows = Judge(), []
    for folder in sorted(path.parent for path in OUT.glob(f"*/{RECORD}")):
        record = read_record(folder / RECORD, RunRecord)
        chosen, tokens = judge.compare(folder), sum(each.tokens for each in record.rounds)
        beside = "-" if folder.name == BASE else said(judge.compare(folder, OUT / BASE))
        verdict = said(record.result.comparison) if record.result.comparison else "-"
        cells = (folder.name, str(record.result.layers), f"{tokens / 1e6:.2f}M", said(chosen), beside, verdict)
        rows.append((chosen.difference, cells))
    print("| run | layers | tokens | chosen on: minus the reference | minus `base` | validation: minus the reference |")
    print("|---|---|---|---|---|---|")
    for _, cells in sorted(rows):
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    """Train, unless only the table is asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="recipes, by default all of recipes/race")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, help="in place of the recipe's own")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments = parser.parse_args()
    if not arguments.table:
        names = arguments.names or sorted(path.stem for path in RECIPES.glob("*.yaml"))
        train(names, arguments.seeds, arguments.steps)
    print_table()


if __name__ == "__main__":
    main()
