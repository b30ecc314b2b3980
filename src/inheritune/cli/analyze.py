"""`inheritune analyze`: where has a model's attention collapsed?"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.options import SEPARATOR, Field, Model, PathOption, Separator, SourceOption
from inheritune.errors import DataError, InherituneError
from inheritune.records.analysis import AnalysedText
from inheritune.records.prices import LENGTH, WINDOWS

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

DEFAULT_SOURCE = "stdlib"
DEFAULT_SIZE = 100
"""Sequences and tokens in each, as in the paper (section 2)."""


def analyze(
    model: Model,
    out: Annotated[Path, PathOption(help="Folder for spectra.json and maps.json.")],
    data: Annotated[
        str | None, SourceOption(help="Text file or source to draw sequences from.", show_default=DEFAULT_SOURCE)
    ] = None,
    field: Field = "text",
    separator: Separator = SEPARATOR,
    tokens: Annotated[Path | None, PathOption(help="Token ids instead of text: an (N, T) integer .npy file.")] = None,
    sequences: Annotated[
        int | None, typer.Option(help="Number of sequences N.", show_default=f"{DEFAULT_SIZE}, or all of --tokens")
    ] = None,
    length: Annotated[
        int | None, typer.Option(help="Tokens in each, T.", show_default=f"{DEFAULT_SIZE}, or all of --tokens")
    ] = None,
    tau: Annotated[
        str, typer.Option(help="Share of the squared singular values for the rank k*; several with commas: 0.9,0.8.")
    ] = "0.9",
    eta: Annotated[float, typer.Option(help="Share of the squared column norms for the mass m*.")] = 0.9,
    mask: Annotated[
        str, typer.Option(help="causal (as the model computes), full (the softmax without the mask) or both.")
    ] = "both",
    seed: Annotated[int, typer.Option(help="Which sequences are drawn from the text.")] = 0,
    gradients: Annotated[
        int, typer.Option(help="Sequences for the gradient probe of Theorem H.1, the first of them; 0: none.")
    ] = 0,
    maps: Annotated[
        str, typer.Option(help="More heads to draw attention maps of, as layer.head with commas: 3.0,10.2.")
    ] = "",
    memory: Annotated[
        int, typer.Option(help="MB that the work on attention may take beside the model's own forward pass.")
    ] = 256,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Read the model layer by layer, so that a few blocks of it are in memory.",
            show_default="where it would not fit",
        ),
    ] = None,
    ablate: Annotated[
        bool,
        typer.Option(
            "--ablate", help="Measure what each layer costs too, and which to cut for each depth: prices.json."
        ),
    ] = False,
    depth: Annotated[
        int | None, typer.Option(help="With --ablate: delete layers down to this depth.", show_default="half")
    ] = None,
    beam: Annotated[
        int, typer.Option(help="With --ablate: sets of layers kept at each depth; more may find a better one.")
    ] = 1,
    ablate_windows: Annotated[
        int, typer.Option(help="With --ablate: windows of training text that layers are chosen on.")
    ] = WINDOWS,
    ablate_length: Annotated[
        int | None,
        typer.Option(help="With --ablate: tokens of a window.", show_default=f"{LENGTH}, or the model's context"),
    ] = None,
) -> None:
    """Measure every attention head, MLP and block, say which layers are lazy, and recommend a cut."""
    from inheritune.cli.print_analysis import print_analysis, print_prices
    from inheritune.decoder import NoTokenizerError, load_config, load_tokenizer
    from inheritune.decoder.source import resolve_model
    from inheritune.spectra.advice import recommend_by_price
    from inheritune.spectra.flow import analyze_into
    from inheritune.spectra.folder import from_record
    from inheritune.surgery.ablation import check_ablation
    from inheritune.surgery.config.target import depth_of
    from inheritune.surgery.prices import check_choice, choice_windows, measure_prices

    if data is not None and tokens is not None:
        raise InherituneError("both --data and --tokens are given: expected one of them")
    if seed < 0:
        raise InherituneError(f"--seed {seed}: expected 0 or more")
    priced = {"--depth": depth is not None, "--beam": beam != 1, "--ablate-windows": ablate_windows != WINDOWS}
    _check_priced({**priced, "--ablate-length": ablate_length is not None}, ablate, tokens is not None)
    taus, heads = _read_taus(tau), _read_heads(maps)
    place = resolve_model(model)
    config = load_config(place)  # what is no decoder is refused before any text is read
    if ablate:
        check_ablation(depth_of(config), depth, beam)
    if tokens is not None:
        tokenizer = None
        with suppress(NoTokenizerError):  # the maps' tokens then have no names
            tokenizer = load_tokenizer(place)
        windows, origin = _read_windows(tokens, sequences, length), AnalysedText(source=str(tokens))
    else:
        windows, origin, tokenizer = _draw_windows(
            place, DEFAULT_SOURCE if data is None else data, sequences, length, seed, separator, field
        )
    chosen = windows[:ablate_windows]
    if ablate:
        if tokens is None:
            source = origin.source or DEFAULT_SOURCE
            chosen = choice_windows(place, source, separator, field, ablate_windows, ablate_length)
        check_choice(chosen, config)
    record, drawn = analyze_into(
        out,
        model,
        windows,
        tau=taus,
        eta=eta,
        mask=mask,
        tokenizer=tokenizer,
        heads=heads,
        gradients=gradients,
        memory=memory * 2**20,
        stream=stream,
        data=origin,
        claim=True,
        reuse=ablate,
    )
    held = origin.tokens
    if held is not None and windows.size > held:
        typer.echo(
            f"note: {origin.source} has {held:,} tokens, {len(windows):,} sequences of {windows.shape[1]:,} are "
            f"{windows.size:,}: they overlap, each token is in about {windows.size / held:.1f} of them; standard "
            "errors are too small",
            err=True,
        )
    print_analysis(model, record, drawn, out, recommended=not ablate)
    if not ablate:
        return
    prices = measure_prices(
        out,
        place,
        chosen,
        depth=depth,
        beam=beam,
        spectra=from_record(record),
        name=record.model,
        identity=record.identity,
        data=AnalysedText(source=origin.source),
        stream=stream,
    )
    print_prices(prices, recommend_by_price(prices), out)


def _check_priced(given: dict[str, bool], ablate: bool, tokens: bool) -> None:
    """Refuse an option of the prices that was given and that nothing would look at."""
    for option in (name for name, was_given in given.items() if was_given and not ablate):
        raise InherituneError(f"{option} is given without --ablate, which it belongs to")
    if given["--ablate-length"] and tokens:
        raise InherituneError("--ablate-length and --tokens are both given: the windows are those of --tokens")


def _read_taus(text: str) -> list[float]:
    """Return the numbers of `0.9` or `0.9,0.8`."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InherituneError(f"tau is {text!r}: expected a number such as 0.9, or several with commas") from error


def _read_heads(text: str) -> list[tuple[int, int]]:
    """Return (layer, head) of each item of `3.0,10.2`."""
    items = [item.strip() for item in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"[0-9]+\.[0-9]+", item) for item in items):
        raise InherituneError(f"--maps {text!r}: expected layer.head, several with commas, such as 3.0,10.2")
    return [(int(layer), int(head)) for layer, head in (item.split(".") for item in items)]


def _draw_windows(
    model: str, source: str, sequences: int | None, length: int | None, seed: int, separator: str, field: str
) -> tuple[np.ndarray, AnalysedText, PreTrainedTokenizerBase]:
    """Return (N, T) int64 token ids of random windows of the text, where they are from, and the model's own tokenizer.

    Raises:
        DataError: there is too little text for one window, or a count is too small.
    """
    from inheritune.data import draw_windows, read_tokens
    from inheritune.decoder import load_tokenizer

    count, size = (DEFAULT_SIZE if number is None else number for number in (sequences, length))
    for option, number, least in (("--sequences", count, 1), ("--length", size, 2)):
        if number < least:
            raise DataError(f"{option} {number}: expected at least {least}")
    tokenizer = load_tokenizer(model)
    tokens = read_tokens(source, tokenizer, separator, field)
    windows = draw_windows(tokens, count, size, seed, source)
    return windows, AnalysedText(source=source, tokens=len(tokens), seed=seed), tokenizer


def _read_windows(path: Path, sequences: int | None, length: int | None) -> np.ndarray:
    """Return the first `sequences` rows and `length` columns of an (N, T) integer .npy file, all where None.

    Raises:
        DataError: the file cannot be read, or holds fewer.
    """
    import numpy as np

    expected = "expected an (N, T) integer array in NumPy's .npy format"
    try:
        with path.open("rb") as file:
            windows = np.load(file, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: {expected}") from error
    except Exception as error:
        raise DataError(f"cannot read {path}: {expected}") from error
    if not isinstance(windows, np.ndarray) or windows.ndim != 2:
        what = f"has shape {windows.shape}" if isinstance(windows, np.ndarray) else "is an archive"
        raise DataError(f"{path} {what}: expected one (N, T) integer array")
    options = (("--sequences", sequences, len(windows), 1), ("--length", length, windows.shape[1], 2))
    for name, wanted, held, least in options:
        if wanted is not None and not least <= wanted <= held:
            raise DataError(f"{name} {wanted}: {path} holds {held}, expected {least} to {held}")
    return windows[:sequences, :length]
