"""`inheritune analyze`: where has a model's attention collapsed?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inheritune.errors import DataError, InherituneError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from inheritune.decoder import Decoder
    from inheritune.spectra import BothSpectra, GradientProbe, Spectra

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
    from inheritune.decoder.source import resolve_model
    from inheritune.storage import check_folder, claim_folder, release_folder

    if data is not None and tokens is not None:
        raise InherituneError("both --data and --tokens are given: expected one of them")
    if seed < 0:
        raise InherituneError(f"--seed {seed}: expected 0 or more")
    taus, heads = _read_taus(tau), _read_heads(maps)
    place = resolve_model(model)
    load_config(place)  # what is no decoder is refused before any text is read
    if tokens is not None:
        windows, origin = _read_windows(tokens, sequences, length), {"source": str(tokens)}
    else:
        windows, origin = _draw_windows(place, data or DEFAULT_SOURCE, sequences, length, seed)
    budget = memory * 2**20
    decoder, checked, _ = spectra.prepare(place, windows, taus, eta, mask, stream, budget)
    spectra.check_gradients(gradients, len(windows), decoder)
    _check_heads(heads, decoder)
    identity = _identity(model, origin["source"], windows, taus, eta, mask, gradients, maps)
    check_folder(out, identity)
    result = spectra.analyze(decoder, checked, taus, eta, mask, memory=budget, gradients=gradients)
    pictures = spectra.attention_maps(decoder, checked, result, _tokenizer(place), heads)
    claim_folder(out, identity)  # there is nothing to continue from before, so nothing to hold the folder for
    try:
        spectra.save_maps(pictures, out)
        file = spectra.save_spectra(result, out, place, origin)
    except BaseException:
        release_folder(out)
        raise
    _show(model, result)
    _show_more(result, pictures, origin, file)


def _read_taus(text: str) -> tuple[float, ...]:
    """Return the numbers of `0.9` or `0.9,0.8`.

    Raises:
        InherituneError: one of them is not a number, or not between 0 and 1.
    """
    from inheritune.spectra.measure.rank import check_taus

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
    """Refuse, before the analysis, a layer or head that the model does not have.

    Where the heads differ from layer to layer, the configuration has no one number and the maps are checked later.

    Raises:
        InherituneError: naming it.
    """
    count = getattr(decoder.config, "num_attention_heads", None)
    for layer, head in heads:
        if layer >= decoder.layers:
            raise InherituneError(f"--maps: no layer {layer}, the model has {decoder.layers} (0-{decoder.layers - 1})")
        if isinstance(count, int) and head >= count:
            raise InherituneError(f"--maps: no head {head} in layer {layer}, it has {count} (0-{count - 1})")


def _draw_windows(
    model: str, source: str, sequences: int | None, length: int | None, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Return (N, T) token ids of random windows of the text, with the model's own tokenizer, and where they are from.

    Raises:
        DataError: there is too little text for one window, or a count is too small.
    """
    from inheritune.data import draw_windows, read_tokens
    from inheritune.decoder import load_tokenizer

    count, size = (DEFAULT_SIZE if number is None else number for number in (sequences, length))
    for option, number, least in (("--sequences", count, 1), ("--length", size, 2)):
        if number < least:
            raise DataError(f"{option} {number}: expected at least {least}")
    found = read_tokens(source, load_tokenizer(model))
    windows = draw_windows(found, count, size, seed, source)
    if windows.size > len(found):
        typer.echo(
            f"note: {source} has {len(found):,} tokens, {count:,} sequences of {size:,} are {windows.size:,}: they "
            f"overlap, each token is in about {windows.size / len(found):.1f} of them; standard errors are too small",
            err=True,
        )
    return windows, {"source": source, "tokens": len(found), "seed": seed}


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
    options = (("--sequences", sequences, len(windows), 1), ("--length", length, windows.shape[1], 2))
    for name, wanted, held, least in options:
        if wanted is not None and not least <= wanted <= held:
            raise DataError(f"{name} {wanted}: {path} holds {held}, expected {least} to {held}")
    return windows[:sequences, :length]


def _identity(
    model: str,
    source: str,
    windows: Any,
    taus: Sequence[float],
    eta: float,
    mask: str,
    gradients: int,
    maps: str,
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
        **({"list of maps": maps} if maps else {}),
    }


def _tokenizer(model: str) -> Any:
    """Return the model's tokenizer, or None where it has none: the maps' tokens then have no names."""
    from inheritune.decoder import NoTokenizerError, load_tokenizer

    try:
        return load_tokenizer(model)
    except NoTokenizerError:
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


def _show_more(
    result: Spectra | BothSpectra, pictures: Sequence[dict[str, Any]], origin: dict[str, Any], file: Path
) -> None:
    """Print a line on the text and on each further thing that was asked for, and the files."""
    from inheritune.spectra import BothSpectra
    from inheritune.spectra.reading import MAPS
    from inheritune.storage import IDENTITY

    parts = [result.causal, result.full] if isinstance(result, BothSpectra) else [result]
    first = parts[0]
    for tau in first.ranks:
        if tau != first.tau:
            typer.echo(
                f"At tau {tau:g}: {' '.join(_summary(part.at(tau)) for part in parts)} Ranks: `ranks` in {file}."
            )
    if first.gradients is not None:
        typer.echo(_gradients(first.gradients))
    masks = [
        f"{part.mask} {', '.join(_picture(drawn) for drawn in pictures if drawn['mask'] == part.mask)}"
        for part in parts
    ]
    typer.echo(f"Maps (layer.head): {'; '.join(masks)}.")
    size = f"{first.sequences} sequences of {first.length} tokens"
    drawn = f"{origin['tokens']:,} tokens; {size} drawn with seed {origin['seed']}" if "tokens" in origin else size
    typer.echo(f"Text: {origin['source']}, {drawn}.")
    typer.echo(f"Written: {', '.join(str(file.with_name(name)) for name in (file.name, MAPS, IDENTITY))}")


def _picture(drawn: dict[str, Any]) -> str:
    place = f"{drawn['layer']}.{drawn['head']}"
    return place if drawn["role"].startswith("layer") else f"{place} ({drawn['role']})"


def _gradients(probe: GradientProbe) -> str:
    """Return one line: how far the heads' gradients lie under the bounds of Theorem H.1."""
    import numpy as np

    found = []
    for name, norms, bounds in (("query", probe.query, probe.query_bound), ("key", probe.key, probe.key_bound)):
        known = (norms > 0) & (bounds > 0)  # NaN is neither
        times = bounds[known] / norms[known]
        least, middle, most = (_rounded(value) for value in np.quantile(times, [0, 0.5, 1])) if times.size else [""] * 3
        spread = f"{least} to {most} times (median {middle}) under" if times.size else ""
        found.append(f"{name} of {known.sum()} heads {spread or 'without'} the bound of Theorem H.1")
    return f"Gradients on {probe.sequences} sequences, loss {probe.loss:.3f} nats a token: {'; '.join(found)}."


def _rounded(value: float) -> str:
    """Return three significant digits, thousands separated: `8,720`, `3.14`."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"


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
