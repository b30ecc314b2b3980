"""What watching collapse costs: one training whose blocks of steps are watched and unwatched in turn.

    python benchmarks/watch.py                          # the shipped reference's shape: 16 layers x 64
    python benchmarks/watch.py --layers 12 --width 256

A block is as many steps as lie between two looks at the default setting. Watched blocks end with one look, as in a
watched training; the overhead is the difference of the medians of the two kinds of block, and beside it the time of one
look over that of an unwatched block. Times are the processor's on a CPU, so that other programs count for little (to
run with one thread: OMP_NUM_THREADS=1), and the wall's on a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from inheritune.training.collapse import WatchCollapse
from inheritune.training.settings import WATCH_EVERY, TrainingSettings

VOCABULARY = 2048
LENGTH = 128


class Blocks(TrainerCallback):
    """Lets `watch` look at the end of every second block, and times the blocks.

    Attributes:
        times: seconds of the unwatched and of the watched blocks.
        looks: seconds of each look.
    """

    def __init__(self, watch: WatchCollapse) -> None:
        self.watch = watch
        self.times: dict[bool, list[float]] = {False: [], True: []}
        self.looks: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """Take the first look, which every watched training takes once, outside the blocks."""
        self.watch.on_train_begin(*args, **kwargs)
        self._start = clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a block where it ends."""
        if state.global_step % WATCH_EVERY:
            return
        watched = state.global_step // WATCH_EVERY % 2 == 0
        if watched:
            start = clock()
            self.watch.on_step_end(args, state, control, **kwargs)
            self.looks.append(clock() - start)
        end = clock()
        self.times[watched].append(end - self._start)
        show("watched" if watched else "unwatched", f"{end - self._start:.2f} s")
        self._start = end


def clock() -> float:
    """Return seconds: of the processor, or of the wall once a GPU has done its work."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def show(name: str, value: Any) -> None:
    """Print one line at once."""
    sys.stdout.write(f"{name:26s} {value}\n")
    sys.stdout.flush()


def make_model(options: argparse.Namespace) -> PreTrainedModel:
    """Return a GPT-2 of the shape that is asked for, as the shipped reference is made."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=options.width,
        n_layer=options.layers,
        n_head=options.heads,
        scale_attn_by_inverse_layer_idx=True,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train, and return the medians and the overhead in percent."""
    generator = torch.Generator().manual_seed(0)
    windows = TrainingSettings.model_fields["watch_windows"].default
    watch = WatchCollapse(
        folder / "collapse.jsonl", torch.randint(VOCABULARY, (windows, 100), generator=generator), WATCH_EVERY
    )
    blocks = Blocks(watch)
    rows = torch.randint(VOCABULARY, (64 * options.batch, LENGTH), generator=generator)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2 * options.pairs * WATCH_EVERY,
        per_device_train_batch_size=options.batch,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=torch.cuda.is_available(),
    )
    data = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=make_model(options), args=arguments, train_dataset=data, callbacks=[blocks])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    without, watched = statistics.median(blocks.times[False]), statistics.median(blocks.times[True])
    return {
        "shape": f"{options.layers} x {options.width}, {options.heads} heads, batch {options.batch} x {LENGTH}",
        "device": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, {torch.get_num_threads()} thread(s)",
        "steps in a block": WATCH_EVERY,
        "unwatched block, s": round(without, 3),
        "watched block, s": round(watched, 3),
        "one look, s": round(statistics.median(blocks.looks), 3),
        "overhead by blocks, %": round(100 * (watched / without - 1), 2),
        "overhead by the looks, %": round(100 * statistics.median(blocks.looks) / without, 2),
    }


def main() -> None:
    """Read the options, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3, help="unwatched and watched blocks of each kind")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measure(options, Path(folder)).items():
            show(name, value)


if __name__ == "__main__":
    main()
