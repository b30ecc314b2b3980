"""`inheritune analyze`: where has a model's attention collapsed?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.errors import DataError, InherituneError, ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inheritune.decoder import Decoder
    from inheritune.spectra import BothSpectra, Spectra

DEFAULT_SOURCE = "stdlib"
DEFAULT_SIZE = 100
"""Sequences and tokens in each, as in the paper (section 2)."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("analyze")(analyze)


def analyze(
    model: Annotated[str, typer.Argument(help="Model folder in Hugging Face format, or hub id.", metavar="MODEL")],
    out: Annotated[Path, typer.Option(help="Folder for spectra.json and maps.json.")],
    data: Annotated[
        str | None, typer.Option(help="Text file or source to draw sequences from.", show_default=DEFAULT_SOURCE)
    ] = None,
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
    from inheritune import spectra
    from inheritune.decoder import load_config
    from inheritune.records import claim_folder

    if data is not None and tokens is not None:
        raise InherituneError("both --data and --tokens are given: expected one of them")
    taus, heads = _read_taus(tau), _read_heads(maps)
    load_config(model)  # what is no decoder is refused before any text is read
    if tokens is not None:
        windows = _read_windows(tokens, sequences, length)
    else:
        windows = _draw_windows(model, data or DEFAULT_SOURCE, sequences, length, seed)
    budget = memory * 2**20
    decoder, checked, _ = spectra.prepare(model, windows, taus, eta, mask, stream, budget)
    spectra.check_gradients(gradients, len(windows), decoder)
    _check_heads(heads, decoder)
    source = str(tokens or data or DEFAULT_SOURCE)
    claim_folder(out, _identity(model, source, windows, taus, eta, mask, gradients, heads))
    result = spectra.analyze(decoder, checked, taus, eta, mask, memory=budget, gradients=gradients)
    pictures = spectra.attention_maps(decoder, checked, result, _tokenizer(model), heads)
    files = [spectra.save_maps(pictures, out), spectra.save_spectra(result, out, model)]
    _show(model, result)
    typer.echo(f"Written: {', '.join(map(str, reversed(files)))}")


def _read_taus(text: str) -> tuple[float, ...]:
    """Return the numbers of `0.9` or `0.9,0.8`.

    Raises:
        InherituneError: one of them is not a number, or not between 0 and 1.
    """
    from inheritune.spectra.rank import check_taus

    try:
        return check_taus([float(part) for part in text.split(",")])
    except ValueError as error:
        raise InherituneError(f"tau is {text!r}: expected a number such as 0.9, or several with commas") from error


def _read_heads(text: str) -> list[tuple[int, int]]:
    """Return (layer, head) of each item of `3.0,10.2`.

    Raises:
        InherituneError: an item is something else.
    """
    heads = []
    for item in filter(None, text.split(",")):
        layer, dot, head = item.strip().partition(".")
        if not (dot and layer.isdecimal() and head.isdecimal()):
            raise InherituneError(f"--maps {text!r}: expected layer.head, several with commas, such as 3.0,10.2")
        heads.append((int(layer), int(head)))
    return heads


def _check_heads(heads: Sequence[tuple[int, int]], decoder: Decoder) -> None:
    """Refuse, before the analysis, a layer that the model does not have; heads may differ from layer to layer.

    Raises:
        InherituneError: naming it.
    """
    for layer, _ in heads:
        if layer >= decoder.layers:
            raise InherituneError(f"--maps: no layer {layer}, the model has {decoder.layers} (0-{decoder.layers - 1})")


def _draw_windows(model: str, source: str, sequences: int | None, length: int | None, seed: int) -> Any:
    """Return (N, T) token ids of random windows of the text, with the model's own tokenizer."""
    from inheritune.data import sample_windows
    from inheritune.decoder import load_tokenizer

    count, size = (DEFAULT_SIZE if number is None else number for number in (sequences, length))
    return sample_windows(source, load_tokenizer(model), count, size, seed)


def _read_windows(path: Path, sequences: int | None, length: int | None) -> Any:
    """Return the first `sequences` rows and `length` columns of a .npy file, all where None.

    Raises:
        DataError: the file cannot be read, or holds fewer.
    """
    import numpy as np

    try:
        windows = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise DataError(f"no file {path}: expected an (N, T) integer array in NumPy's .npy format") from error
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"cannot read {path}: expected an (N, T) integer array in NumPy's .npy format") from error
    if not isinstance(windows, np.ndarray) or windows.ndim != 2:
        found = f"has shape {windows.shape}" if isinstance(windows, np.ndarray) else "is an archive"
        raise DataError(f"{path} {found}: expected one (N, T) integer array")
    for name, wanted, held in (("--sequences", sequences, len(windows)), ("--length", length, windows.shape[1])):
        if wanted is not None and not 1 <= wanted <= held:
            raise DataError(f"{name} {wanted}: {path} holds {held}, expected 1 to {held}")
    return windows[:sequences, :length]


def _identity(
    model: str,
    source: str,
    windows: Any,
    taus: Sequence[float],
    eta: float,
    mask: str,
    gradients: int,
    heads: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """Return what makes an analysis this one and no other."""
    import hashlib

    return {
        "kind": "analysis",
        "model": model,
        "source": source,
        "tokens": hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest()[:16],
        "sequences": len(windows),
        "length": windows.shape[1],
        "tau": taus[0] if len(taus) == 1 else list(taus),
        "eta": eta,
        "mask": mask,
        **({"gradients": gradients} if gradients else {}),
        **({"maps": heads} if heads else {}),
    }


def _tokenizer(model: str) -> Any:
    """Return the model's tokenizer, or None where it has none: the maps' tokens then have no names."""
    from inheritune.decoder import load_tokenizer

    try:
        return load_tokenizer(model)
    except ModelError:
        return None


def _show(model: str, result: Spectra | BothSpectra) -> None:
    """Print the table of layers and what it comes to."""
    from inheritune.cli.console import print_table
    from inheritune.spectra import BothSpectra, recommend

    parts = [result.causal, result.full] if isinstance(result, BothSpectra) else [result]
    first = parts[0]
    columns = ["layer", *(f"{part.mask}\n{name}" for part in parts for name in ("MaxRank", "AvgMass", "coll."))]
    columns += ["block\ninfluence", "MLP\nrank"]
    title = f"{model}: {first.sequences} sequences of {first.length} tokens, tau {first.tau}, eta {first.eta}"
    depth = range(len(first.layers_index) if first.blocks is None else first.blocks.depth)
    print_table(title, columns, [_row(parts, layer) for layer in depth])
    for part in parts:
        typer.echo(_summary(part))
    if isinstance(result, BothSpectra):
        classes = result.head_classes.ravel().tolist()
        counts = ", ".join(f"{classes.count(name)} {name}" for name in ("sink", "uniform", "potent"))
        typer.echo(f"Heads: {counts}.")
    typer.echo(f"Recommended: {recommend(result)}")


def _row(parts: Sequence[Spectra], layer: int) -> list[str]:
    """Return a line of the table: what was measured of a block, a dash for what it does not have."""
    cells, index = [str(layer)], parts[0].layers_index
    for part in parts:
        if layer not in index:
            cells += ["-"] * 3
            continue
        row = index.index(layer)
        cells += [
            f"{part.max_rank[row]:.2f}{' lazy' if layer in part.lazy_layers else ''}",
            f"{part.avg_mass[row]:.1f}",
            f"{part.collapsed_heads[row].sum()}/{_heads(part, [row])}",
        ]
    if (blocks := parts[0].blocks) is not None:
        values = (f"{blocks.influence[layer]:.3f}", f"{blocks.mlp_rank[layer]:.1f}")
        cells += ["-" if value == "nan" else value for value in values]
    return cells


def _heads(part: Spectra, rows: Iterable[int]) -> int:
    """Return the number of heads in some rows (a place that a layer lacks is NaN, and NaN is not itself)."""
    return sum(int((part.rank[row] == part.rank[row]).sum()) for row in rows)


def _summary(part: Spectra) -> str:
    """Return one line on a mask: its lazy layers and its share of collapsed heads."""
    collapsed = int(part.collapsed_heads.sum())
    heads = _heads(part, range(len(part.rank)))
    lazy = f"lazy layers (MaxRank 1): {_listed(part.lazy_layers)}"
    nearly = [layer for layer in part.layers_index if part.is_lazy_group([layer]) and layer not in part.lazy_layers]
    also = f"; nearly lazy (MaxRank below 2): {_listed(nearly)}" if nearly else ""
    return f"{part.mask.capitalize()}: {lazy}{also}; {collapsed} of {heads} heads collapsed ({collapsed / heads:.0%})."


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"
