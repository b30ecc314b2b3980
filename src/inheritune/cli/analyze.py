"""`inheritune analyze`: where has a model's attention collapsed?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inheritune.cli.options import SEPARATOR, Field, Separator
from inheritune.errors import DataError, InherituneError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from transformers import PreTrainedTokenizerBase

    from inheritune.records.analysis import AnalysedText, AnalysisRecord, AttentionMap, LayerAnalysis, MapsRecord

DEFAULT_SOURCE = "stdlib"
DEFAULT_SIZE = 100
"""Sequences and tokens in each, as in the paper (section 2)."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("analyze")(analyze)


def analyze(
    model: Annotated[
        str,
        typer.Argument(
            help="Model folder in Hugging Face format, hub id, or stdlib: the model that is shipped.", metavar="MODEL"
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for spectra.json and maps.json.")],
    data: Annotated[
        str | None, typer.Option(help="Text file or source to draw sequences from.", show_default=DEFAULT_SOURCE)
    ] = None,
    field: Field = "text",
    separator: Separator = SEPARATOR,
    tokens: Annotated[Path | None, typer.Option(help="Token ids instead of text: an (N, T) integer .npy file.")] = None,
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
) -> None:
    """Measure every attention head, MLP and block, say which layers are lazy, and recommend a cut."""
    from inheritune.decoder import load_config
    from inheritune.decoder.source import resolve_model
    from inheritune.records.analysis import AnalysedText
    from inheritune.spectra.flow import analyze_into

    if data is not None and tokens is not None:
        raise InherituneError("both --data and --tokens are given: expected one of them")
    if seed < 0:
        raise InherituneError(f"--seed {seed}: expected 0 or more")
    taus, heads = _read_taus(tau), _read_heads(maps)
    place = resolve_model(model)
    load_config(place)  # what is no decoder is refused before any text is read
    if tokens is not None:
        tokenizer = _tokenizer(place)
        windows, origin = _read_windows(tokens, sequences, length), AnalysedText(source=str(tokens))
    else:
        windows, origin, tokenizer = _draw_windows(
            place, data or DEFAULT_SOURCE, sequences, length, seed, separator, field
        )
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
    )
    _show(model, record)
    _show_more(record, drawn, out)


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
    from inheritune.records.analysis import AnalysedText

    count, size = (DEFAULT_SIZE if number is None else number for number in (sequences, length))
    for option, number, least in (("--sequences", count, 1), ("--length", size, 2)):
        if number < least:
            raise DataError(f"{option} {number}: expected at least {least}")
    tokenizer = load_tokenizer(model)
    tokens = read_tokens(source, tokenizer, separator, field)
    windows = draw_windows(tokens, count, size, seed, source)
    if windows.size > len(tokens):
        typer.echo(
            f"note: {source} has {len(tokens):,} tokens, {count:,} sequences of {size:,} are {windows.size:,}: they "
            f"overlap, each token is in about {windows.size / len(tokens):.1f} of them; standard errors are too small",
            err=True,
        )
    return windows, AnalysedText(source=source, tokens=len(tokens), seed=seed), tokenizer


def _read_windows(path: Path, sequences: int | None, length: int | None) -> np.ndarray:
    """Return the first `sequences` rows and `length` columns of an (N, T) integer .npy file, all where None.

    Raises:
        DataError: the file cannot be read, or holds fewer.
    """
    import numpy as np

    expected = "expected an (N, T) integer array in NumPy's .npy format"
    try:
        windows = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: {expected}") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: {expected}") from error
    if not isinstance(windows, np.ndarray) or windows.ndim != 2:
        what = f"has shape {windows.shape}" if isinstance(windows, np.ndarray) else "is an archive"
        raise DataError(f"{path} {what}: expected one (N, T) integer array")
    options = (("--sequences", sequences, len(windows), 1), ("--length", length, windows.shape[1], 2))
    for name, wanted, held, least in options:
        if wanted is not None and not least <= wanted <= held:
            raise DataError(f"{name} {wanted}: {path} holds {held}, expected {least} to {held}")
    return windows[:sequences, :length]


def _tokenizer(model: str) -> PreTrainedTokenizerBase | None:
    """Return the model's tokenizer, or None where it has none: the maps' tokens then have no names."""
    from inheritune.decoder import NoTokenizerError, load_tokenizer

    try:
        return load_tokenizer(model)
    except NoTokenizerError:
        return None


def _show(model: str, record: AnalysisRecord) -> None:
    """Print the table of layers and what it comes to."""
    from inheritune.cli.console import print_table

    columns = ["layer", *(f"{mask}\n{name}" for mask in record.masks for name in ("MaxRank", "AvgMass", "coll."))]
    columns += ["block\ninfluence", "MLP\nrank"]
    title = f"{model}: {record.sequences} sequences of {record.length} tokens, tau {record.tau}, eta {record.eta}"
    layers = {layer.index: layer for layer in record.layers}
    print_table(title, columns, [_row(record, layers.get(i), i) for i in range(record.depth or 0)])
    for mask in record.masks:
        typer.echo(_summary(mask, {layer.index: layer[mask].rank for layer in record.layers}))
    classes = [name for layer in record.layers for name in layer.classes or ()]
    if classes:
        counts = ", ".join(f"{classes.count(name)} {name}" for name in ("sink", "uniform", "potent"))
        typer.echo(f"Heads: {counts}.")
    typer.echo(f"Recommended: {record.recommendation}")


def _row(record: AnalysisRecord, layer: LayerAnalysis | None, index: int) -> list[str]:
    """Return a line of the table: what was measured of a block, a dash for what it does not have."""
    cells = [str(index)]
    for mask in record.masks:
        if layer is None:
            cells += ["-"] * 3
            continue
        part = layer[mask]
        cells += [f"{part.max_rank:.2f}{' lazy' if part.lazy else ''}", f"{part.avg_mass:.1f}"]
        cells.append(f"{_collapsed(part.rank)}/{len(part.rank)}")
    if record.blocks is not None:
        influence, rank = record.blocks[index].influence, record.blocks[index].mlp_rank
        cells += ["-" if influence is None else f"{influence:.3f}", "-" if rank is None else f"{rank:.1f}"]
    return cells


def _collapsed(ranks: Sequence[float]) -> int:
    from inheritune.spectra.result import COLLAPSED_RANK

    return sum(rank < COLLAPSED_RANK for rank in ranks)


def _summary(mask: str, ranks: dict[int, tuple[float, ...]]) -> str:
    """Return one line on a mask from the ranks of each layer's heads: its lazy layers and its collapsed heads."""
    lazy = [layer for layer, heads in ranks.items() if max(heads) == 1]
    nearly = [layer for layer, heads in ranks.items() if 1 < max(heads) < 2]
    also = f"; nearly lazy (MaxRank below 2): {', '.join(map(str, nearly))}" if nearly else ""
    heads = [rank for layer in ranks.values() for rank in layer]
    collapsed = f"{_collapsed(heads)} of {len(heads)} heads collapsed ({_collapsed(heads) / len(heads):.0%})"
    listed = ", ".join(map(str, lazy)) or "none"
    return f"{mask.capitalize()}: lazy layers (MaxRank 1): {listed}{also}; {collapsed}."


def _show_more(record: AnalysisRecord, drawn: MapsRecord, out: Path) -> None:
    """Print a line on each further thing that was asked for, on the text, and the files."""
    from inheritune.spectra.folder import MAPS, SPECTRA
    from inheritune.storage import IDENTITY

    for tau in record.taus[1:]:
        ranks = {mask: {each.index: each[mask].ranks[f"{tau:g}"] for each in record.layers} for mask in record.masks}
        lines = " ".join(_summary(mask, ranks[mask]) for mask in record.masks)
        typer.echo(f"At tau {tau:g}: {lines} Ranks: `ranks` in {out / SPECTRA}.")
    if record.gradients is not None:
        sides = "; ".join(_gradients(record, side) for side in ("query", "key"))
        run = record.gradients
        typer.echo(f"Gradients on {run.sequences} sequences, loss {run.loss:.3f} nats a token: {sides}.")
    masks = [f"{mask} {', '.join(_place(each) for each in drawn.maps if each.mask == mask)}" for mask in record.masks]
    typer.echo(f"Maps (layer.head): {'; '.join(masks)}.")
    size, data = f"{record.sequences} sequences of {record.length} tokens", record.data
    if data is not None and data.tokens is not None:
        size = f"{data.tokens:,} tokens; {size} drawn with seed {data.seed}"
    typer.echo(f"Text: {data and data.source}, {size}.")
    typer.echo(f"Written: {', '.join(str(out / name) for name in (SPECTRA, MAPS, IDENTITY))}")


def _place(drawn: AttentionMap) -> str:
    place = f"{drawn.layer}.{drawn.head}"
    return place if drawn.role.startswith("layer") else f"{place} ({drawn.role})"


def _gradients(record: AnalysisRecord, side: str) -> str:
    """Return how far the gradients of the heads' queries or keys lie under the bounds of Theorem H.1."""
    import numpy as np

    layers = [layer.gradients for layer in record.layers if layer.gradients is not None]
    pairs = [pair for layer in layers for pair in zip(layer[side], layer[f"{side}_bound"], strict=True)]
    times = [bound / norm for norm, bound in pairs if norm and bound]
    if not times:
        return f"{side} of 0 heads without the bound of Theorem H.1"
    least, middle, most = (_rounded(value) for value in np.quantile(times, [0, 0.5, 1]))
    spread = f"{least} to {most} times (median {middle}) under"
    return f"{side} of {len(times)} heads {spread} the bound of Theorem H.1"


def _rounded(value: float) -> str:
    """Return three significant digits, thousands separated: `8,720`, `3.14`."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
