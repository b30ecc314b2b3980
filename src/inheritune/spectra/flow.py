"""One analysis from a model and tokens to its folder, for the command and for a run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from transformers import PreTrainedTokenizerBase

from inheritune.decoder import Decoder
from inheritune.decoder.source import lasting_place, model_identity, resolve_model
from inheritune.errors import ModelError, library_errors
from inheritune.evaluation.removal import Removed, open_remover
from inheritune.progress import note
from inheritune.records.analysis import AnalysedText, AnalysisRecord, MapsRecord, Recommendation
from inheritune.records.base import read_record
from inheritune.spectra.analysis import Model, Options, Prepared, measure, prepare
from inheritune.spectra.folder import MAPS, SPECTRA, read_analysis, save_maps, save_spectra
from inheritune.spectra.maps import check_heads_of, draw_maps
from inheritune.spectra.recommend import recommend
from inheritune.storage import check_folder, claimed, read_identity, user_path

LOSS_SEQUENCES = 16
"""So many of the analysed sequences, the first, tell what the recommended cut leads to; to choose a cut needs more."""


def analyze_into(
    folder: str | Path,
    model: Model,
    tokens: Any,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    heads: Sequence[tuple[int, int]] = (),
    name: str | None = None,
    identity: str | None = None,
    data: AnalysedText | None = None,
    claim: bool = False,
    reuse: bool = False,
    **options: Unpack[Options],
) -> tuple[AnalysisRecord, MapsRecord]:
    """Analyse a model and write `maps.json`, then `spectra.json`; nothing is written before the analysis is done.

    Args:
        folder: gets the files; made where it is missing.
        model: as `analyze` takes it.
        tokens: (N, T) integer token ids.
        tokenizer: names the tokens of the maps.
        heads: (layer, head) of more heads to draw maps of.
        name: what to call the model; a folder or hub id goes by itself.
        identity: what the model is, wherever it lies; of a folder it is read (`model_identity`).
        data: where the tokens are from.
        claim: hold `folder` for this analysis and no other, as the command does; a run's own folder is held already.
        reuse: with `claim`, read the files where the folder holds this very analysis already.
        options: as `analyze`, but that both masks are analysed where none is named.

    Returns:
        What the two files hold.

    Raises:
        InherituneError: as `analyze` and `draw_maps`, or the folder holds something else.
        OutputError: the files cannot be written.
    """
    folder, source = user_path(folder), resolve_model(model) if isinstance(model, str | Path) else None
    prepared = prepare(source or model, tokens, **options)
    check_heads_of(heads, prepared.decoder)
    if source is not None:  # what is in memory may have been changed since it was loaded
        identity = identity or model_identity(source)
    name = name or _label(prepared.decoder.config.name_or_path if source is None else lasting_place(str(model)))
    work = _work(prepared, identity or name, heads)
    if claim:
        check_folder(folder, work)
        if reuse and (folder / SPECTRA).is_file() and (folder / MAPS).is_file() and read_identity(folder) == work:
            note(f"{folder} has this analysis already")
            return read_analysis(folder), read_record(folder / MAPS, MapsRecord)
    result = measure(prepared)
    maps = draw_maps(prepared, result, tokenizer, heads)
    advice = _with_losses(recommend(result), prepared.decoder, prepared.tokens[:LOSS_SEQUENCES].numpy())
    with claimed(folder, work) if claim else nullcontext():
        drawn = save_maps(maps, folder)
        return save_spectra(result, folder, name, data, identity, advice), drawn


def _with_losses(advice: Recommendation, decoder: Decoder, tokens: np.ndarray) -> Recommendation:
    """Return a recommendation with the losses of its cut and of the others before training, on (N, T) int64 tokens.

    A model that cannot be run without these layers has none.
    """
    cuts = {"whole": (), "keep": advice.cut, **advice.others}
    failure = f"the loss without the layers that are to be cut is not known: this {type(decoder.model).__name__} fails"
    try:
        with library_errors(failure):
            losses = open_remover(decoder, tokens).losses(tokens, [Removed(cut) for cut in cuts.values()])
    except ModelError as error:
        note(str(error))
        return advice
    means = [float(row.mean()) if np.isfinite(row).all() else None for row in losses]
    found = dict(zip(cuts, means, strict=True))
    return advice.model_copy(update={"losses": found, "uniform": math.log(decoder.vocabulary)})


def _label(source: str) -> str:
    """Return a model's absolute path, so that a command that names it works anywhere, or its hub id."""
    place = Path(source).expanduser()
    return str(place.resolve()) if place.exists() else source


def _work(prepared: Prepared, model: str, heads: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return what makes an analysis this one and no other: what the model and the tokens are, not where they lie."""
    digest = hashlib.sha256(prepared.tokens.numpy().astype("<i8").tobytes()).hexdigest()[:16]
    return {
        "kind": "analysis",
        "model": model,
        "tokens": digest,
        "sequences": len(prepared.tokens),
        "length": prepared.tokens.shape[1],
        "tau": list(prepared.taus),
        "eta": prepared.eta,
        "mask": list(prepared.masks),
        **({"gradients": prepared.gradients} if prepared.gradients else {}),
        **({"list of maps": [f"{layer}.{head}" for layer, head in heads]} if heads else {}),
    }
