"""The verdict on hand-written records, one for each way a run can end; the numbers are computed by hand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import comparison

from inheritune.records.runs import RunRecord
from inheritune.report.read.folders import load_runs
from inheritune.report.text import verdict as words
from inheritune.report.text.verdict import verdict

Record = dict[str, Any]
Write = Callable[..., Path]


def sentence(record: Record) -> str:
    return words.sentence(RunRecord.model_validate(record))


def judge(record: Record) -> str:
    return words.judge(RunRecord.model_validate(record))


def compared(record: Record, difference: float, half: float) -> Record:
    """The record with another outcome of its last test: the difference and half the width of its interval."""
    record["result"]["comparison"] = comparison(difference, half)
    record["result"]["evaluation"]["loss"] = 2.9 + difference
    return record


def test_a_match_is_told_with_size_loss_interval_tokens_and_speed(grown: Record) -> None:
    # 131072 + 12 * 49984 = 730880 parameters, 0.785 of 930816; 3 * 2457600 = 7372800 tokens
    assert sentence(grown) == (
        "The inherited model with 12 layers against 16 (731K parameters against 931K, 79 %) matches the reference "
        "after training on 7.37M tokens (the reference: 40.0M): validation loss 2.9030 against 2.9000, a difference of "
        "+0.0030 nats per token (95 % CI −0.0020 to +0.0080, 256 windows, taken as independent; margin 0.01); it "
        "generates 1,260 tokens/s, the reference 900 (2 threads; measured one after the other, so a few per cent mean "
        "nothing)."
    )


@pytest.mark.parametrize(
    ("difference", "half", "outcome", "words"),
    [
        (-0.02, 0.005, "better", "is better than the reference after"),
        (0.003, 0.005, "matched", "matches the reference after"),
        (0.005, 0.005, "matched", "matches the reference after"),  # the upper end lies on the margin
        (0.003, 0.0091, "undecided", "is not shown to match the reference after"),
        (0.08, 0.005, "worse", "does not match the reference within its budget after"),
    ],
)
def test_each_outcome_of_the_test_has_its_words(
    grown: Record, difference: float, half: float, outcome: str, words: str
) -> None:
    record = compared(grown, difference, half)
    assert judge(record) == outcome
    assert words in sentence(record)


def test_a_match_that_is_measurably_worse_says_so(grown: Record) -> None:
    text = sentence(compared(grown, 0.005, 0.002))
    assert "+0.0070, 256 windows, taken as independent; margin 0.01), measurably worse but by less than the mar" in text


def test_a_test_says_of_how_many_documents_it_is(grown: Record) -> None:
    record = compared(grown, 0.005, 0.002)
    record["result"]["comparison"]["clusters"] = 87
    assert "(95 % CI +0.0030 to +0.0070, 256 windows of 87 documents; margin" in sentence(record)


def test_an_interval_that_holds_zero_but_passes_the_margin_is_not_called_worse(grown: Record) -> None:
    text = sentence(compared(grown, 0.004, 0.012))
    assert "+0.0040 nats per token (95 % CI −0.0080 to +0.0160, 256 windows, " in text
    assert "; margin 0.01), an interval that holds 0" in text
    assert "does not match" not in text


def test_without_a_paired_test_nothing_is_claimed(grown: Record) -> None:
    grown["result"]["comparison"] = None
    text = sentence(grown)
    assert judge(grown) == "untested"
    assert "was not tested against the reference after" in text
    assert "validation loss 2.9030 against 2.9000 nats per token, without a paired test;" in text


def test_without_a_reference_the_run_stands_alone(scratch: Record) -> None:
    scratch["reference"] = None
    scratch["result"]["comparison"] = None
    assert sentence(scratch) == (
        "The model trained from scratch with 12 layers and 731K parameters, after training on 7.37M tokens without a "
        "reference to measure it against, has validation loss 3.0030 nats per token; it generates 1,260 tokens/s "
        "(2 threads)."
    )


def test_what_was_not_measured_is_said_not_to_have_been(grown: Record) -> None:
    grown["result"]["speed"] = None
    grown["reference"]["tokens"] = None
    text = sentence(grown)
    assert text.endswith("; its generation speed was not measured.")
    assert "after training on 7.37M tokens (the reference's own are not recorded):" in text


def test_speeds_under_different_conditions_are_not_divided(grown: Record) -> None:
    grown["reference"]["speed"]["threads"] = 8
    assert sentence(grown).endswith(
        "generates 1,260 tokens/s, the reference 900, under other conditions (2 threads and 8 threads: not comparable)."
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (1.31, 1.49, "(float32, 2 threads): 1.40 times as fast (95 % CI 1.31 to 1.49, 7 turns)."),
        (
            0.98,
            1.49,
            "(float32, 2 threads): no difference is shown, 1.40 times as fast (95 % CI 0.98 to 1.49, 7 turns).",
        ),
        (0.60, 0.98, "(float32, 2 threads): 1.40 times as fast (95 % CI 0.60 to 0.98, 7 turns)."),
    ],
)
def test_speeds_measured_in_turns_are_compared_by_their_interval(
    grown: Record, low: float, high: float, words: str
) -> None:
    ratio = {"ratio": 1.4, "ci_low": low, "ci_high": high, "confidence": 0.95, "turns": 7}
    for part in (grown["result"], grown["reference"]):
        part["speed"] |= {"dtype": "float32"}
    grown["result"]["speed_ratio"] = ratio
    assert sentence(grown).endswith(f"it generates 1,260 tokens/s, the reference 900 {words}")


def test_weak_evidence_is_called_weak(write: Write, grown: Record) -> None:
    assert verdict(load_runs([write(grown, "a")])).cautions == [
        "One seed (17): how far another seed's result would differ is not known."
    ]
    grown["result"]["evaluation"]["windows"] = 20
    grown["result"]["comparison"] |= {"clusters": 30, "freedom": 2.41}
    for each, steps in zip(grown["rounds"], (5, 2, 1), strict=True):
        each["steps"] = steps
    weak = verdict(load_runs([write(grown, "b")]))
    assert weak.cautions[0] == (
        "Weak evidence: 20 validation windows (fewer than 100) and 8 training steps (fewer than 100) and 30 documents "
        "that count as 3.4 equal ones (fewer than 10)."
    )
    assert [str(step) for step in weak.steps] == [
        "Train longer: raise training.steps (1 a round here) in its recipe, and run it into a new folder"
    ]


def test_a_second_seed_is_no_single_seed(write: Write, grown: Record) -> None:
    runs = load_runs([write(grown, "a"), write(grown | {"seed": 18}, "b")])
    assert verdict(runs).cautions == []


@pytest.mark.parametrize(
    ("difference", "half", "options"),
    [(0.003, 0.005, ["--speed"]), (0.003, 0.02, ["--windows", "1024"])],
)
def test_the_next_command_is_quoted_and_names_whole_paths(
    write: Write, grown: Record, difference: float, half: float, options: list[str]
) -> None:
    folder = write(compared(grown, difference, half), "a run")
    grown["data"]["source"] = "it's.txt"
    (folder / "record.json").write_text(json.dumps(grown))
    [step] = verdict(load_runs([folder])).steps
    assert shlex.split(step.command or "") == [
        "inheritune", "evaluate", str(folder / "round-3/model"), "--against", "assets/reference", "--data", "it's.txt",
        *options,
    ]  # fmt: skip


def test_unequal_budgets_and_data_are_named(write: Write, grown: Record, scratch: Record) -> None:
    scratch["result"] |= {"tokens": 14_745_600, "layers": 10}
    runs = load_runs([write(grown, "a"), write(scratch, "b")])
    notes = verdict(runs).notes
    assert any("scratch-12 (scratch, 10 layers, 14.7M tokens, 2.00 times as many)" in note for note in notes)
    assert any(note.startswith("No model of the same depth trained from scratch") for note in notes)
    scratch["data"]["digest"] = "other"
    other = verdict(load_runs([write(grown, "c"), write(scratch, "d")])).notes
    assert any("measured on other data or windows: the losses are not comparable" in note for note in other)


def test_without_the_losses_of_both_no_interval_is_given(write: Write, grown: Record, scratch: Record) -> None:
    notes = verdict(load_runs([write(grown, "a"), write(scratch, "b")])).notes
    assert notes[-1] == (
        "scratch-12 (scratch, the same depth and as many tokens) reaches validation loss 3.0030: that of grow is "
        "0.1000 nats lower; no interval can be given for this difference."
    )


def test_the_verdict_is_about_the_inherited_run_wherever_it_stands(
    write: Write, grown: Record, scratch: Record
) -> None:
    a, b = write(grown, "a"), write(scratch, "b")
    assert verdict(load_runs([b, a])).sentence == verdict(load_runs([a, b])).sentence
    assert verdict(load_runs([b])).sentence.startswith("The model trained from scratch")


def test_lazy_layers_are_told_mask_by_mask(write: Write, grown: Record) -> None:
    notes = verdict(load_runs([write(grown, lazy=range(10, 13))])).notes
    assert notes[0] == (
        "Of the reference's 16 layers, counted from 0, lazy (MaxRank = 1 at τ = 0.9) are none under the causal mask "
        "and 3 under the full mask (10–12)."
    )


def test_no_lazy_layer_at_this_scale_is_a_finding(write: Write, grown: Record) -> None:
    notes = verdict(load_runs([write(grown)])).notes
    assert notes[0].startswith(
        "No layer of the reference is lazy at this scale (MaxRank = 1 at τ = 0.9) under the causal or the full mask:"
    )


def test_an_analysis_that_was_not_made_is_not_a_finding(write: Write, grown: Record) -> None:
    grown["reference"]["analysis"] = None
    assert verdict(load_runs([write(grown)])).notes[0].startswith("The attention of the reference was not analysed")


def test_a_test_after_each_round_gives_chance_more_tries(write: Write, grown: Record) -> None:
    notes = verdict(load_runs([write(grown)])).notes
    assert any("after each of 3 rounds" in note and "is at most 7.5 %" in note for note in notes)  # 3 * 2.5 %
    grown["result"]["comparison"] = comparison(0.08, 0.005)  # no match: nothing to take back
    assert not any("after each of" in note for note in verdict(load_runs([write(grown, "b")])).notes)


def test_growing_to_the_full_depth_saves_nothing(write: Write, grown: Record) -> None:
    grown["result"]["layers"] = 16
    notes = verdict(load_runs([write(grown)])).notes
    assert "The model grew to all 16 layers of the reference: nothing was saved in depth." in notes


@pytest.mark.parametrize(
    ("mean", "words"),
    [(0.02, "grow is better by"), (-0.02, "grow is worse by"), (0.0, "the two cannot be told apart, ")],
)
def test_runs_that_kept_the_loss_of_each_window_are_tested_in_pairs(
    grown: Record, scratch: Record, write: Write, mean: float, words: str
) -> None:
    ours = np.random.default_rng(0).normal(2.9, 0.5, 40)
    gap = np.random.default_rng(1).normal(0, 0.01, 40)
    gap += mean - gap.mean() + 0.0001  # the mean to the last digit shown
    folders = []
    for record, name, losses in ((grown, "a", ours), (scratch, "b", ours + gap)):
        record["result"]["losses"] = "losses.npy"
        folders.append(write(record, name))
        np.save(folders[-1] / "losses.npy", losses)
    # The half-width of the t interval of the paired differences, with 39 degrees of freedom.
    half = 2.0226909 * gap.std(ddof=1) / np.sqrt(40)
    low, high = (f"{-gap.mean() + sign * half:+.4f}".replace("-", "−") for sign in (-1, 1))
    note = verdict(load_runs(folders)).notes[-1]
    assert words in note and f"(95 % CI {low} to {high}, paired over 40 windows, taken as independent)" in note
    assert f"{abs(gap.mean()):.4f} nats" in note


def test_runs_that_kept_their_documents_are_tested_by_document(grown: Record, scratch: Record, write: Write) -> None:
    ours, gap = (np.random.default_rng(seed).normal(2.9, 0.5, 40) for seed in (0, 1))
    folders = []
    for record, name, losses in ((grown, "a", ours), (scratch, "b", ours + gap)):
        record["result"]["losses"] = "losses.npy"
        record["data"]["documents"] = "documents.npy"
        folders.append(write(record, name))
        np.save(folders[-1] / "losses.npy", losses)
        np.save(folders[-1] / "documents.npy", np.arange(40) // 5)
    means = gap.reshape(8, 5).mean(1)  # of equal documents: the t test of their means
    half = 2.3646243 * means.std(ddof=1) / np.sqrt(8)
    low, high = (f"{-means.mean() + sign * half:+.4f}".replace("-", "−") for sign in (-1, 1))
    note = verdict(load_runs(folders)).notes[-1]
    assert f"(95 % CI {low} to {high}, paired over 40 windows of 8 documents)" in note
    for folder in folders:
        np.save(folder / "documents.npy", np.zeros(40))
    assert "no interval can be given" in verdict(load_runs(folders)).notes[-1]
