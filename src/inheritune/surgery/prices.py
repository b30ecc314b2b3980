"""The price list of a model, `prices.json`: from the losses of cuts to a record.

Rank, Block Influence and angular distance stand beside the prices, with their rank correlations, so that one sees
whether they predict the price in this model. `spectra.advice` recommends a cut from it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from transformers import PretrainedConfig, PreTrainedModel

from inheritune.data import tuning_windows
from inheritune.data.readers import BLANK_LINE
from inheritune.decoder import Decoder, load_config, load_tokenizer
from inheritune.decoder.streaming import load_decoder
from inheritune.errors import DataError, ModelError
from inheritune.evaluation.loss import check_windows
from inheritune.evaluation.paired import CONFIDENCE, mean_interval
from inheritune.evaluation.windows import context_of
from inheritune.layers import plural
from inheritune.progress import note
from inheritune.records.analysis import AnalysedText
from inheritune.records.base import environment, now, read_record
from inheritune.records.prices import LENGTH, WINDOWS, Agreement, Cost, DepthPrice, LayerPrice, OtherCut, PricesRecord
from inheritune.spectra.analysis import analyze
from inheritune.spectra.folder import PART, PRICES
from inheritune.spectra.measure.blocks import rank_correlation
from inheritune.spectra.recommend import rival_cuts
from inheritune.spectra.result import BothSpectra, Spectra
from inheritune.surgery.ablation import Ablation, Cut, Order, ablate

FIRST = "first layers"
"""The paper's choice of as many layers (Algorithm 1)."""


def measure_prices(
    folder: Path | None,
    model: PreTrainedModel | Decoder | str | Path,
    windows: np.ndarray,
    *,
    depth: int | None = None,
    beam: int = 1,
    spectra: Spectra | BothSpectra | None = None,
    name: str | None = None,
    identity: str | None = None,
    data: AnalysedText | None = None,
    stream: bool | None = None,
) -> PricesRecord:
    """Measure what each layer costs and write `prices.json`, or read it where the same work is done already.

    Args:
        folder: gets the file, and meanwhile what is measured so far, so that work that was stopped goes on; None writes
            nothing.
        model: as `ablate` takes it.
        windows: (N, T + 1) int64, N at least 2: windows that choose, never those that judge.
        depth: layers that are left at the end of the path; None takes half of them, Algorithm 1's default.
        beam: as `ablate` takes it.
        spectra: the model's analysis, for the cuts of other measures and for the correlations; None makes one of these
            windows.
        name: what to call the model.
        identity: what the model is (`model_identity`).
        data: where the windows are from.
        stream: as `ablate` takes it.

    Raises:
        InherituneError: as `ablate`.
        OutputError: a file cannot be written, or the one there is damaged.
    """
    decoder = load_decoder(model, stream)
    layers, path = decoder.layers, folder and folder / PRICES
    least = max(layers // 2, 1) if depth is None else depth
    digest = hashlib.sha256(windows.astype("<i8").tobytes()).hexdigest()[:16]
    if path and path.is_file():
        held = read_record(path, PricesRecord)
        if (held.digest, held.beam, held.identity) == (digest, beam, identity) and held.least <= least:
            note(f"{path} has these prices already")
            return held
    if spectra is None:
        try:
            spectra = analyze(decoder, windows[:, :-1])
        except ModelError as error:
            note(f"ranks and distances do not stand beside the prices: {error}")
    blocks = None if spectra is None else spectra.parts[0].blocks
    sets = {
        (kept, rule): cut
        for kept in range(layers - 1, least - 1, -1)
        for rule, cut in {FIRST: tuple(range(kept, layers)), **rival_cuts(blocks, layers - kept, layers)}.items()
    }
    store = folder and folder / PART
    found = ablate(decoder, windows, depth=least, beam=beam, others=sets.values(), store=store)
    others = dict(zip(sets, zip(sets.values(), found.others, strict=True), strict=True))
    record = PricesRecord(
        model=name,
        identity=identity,
        depth=layers,
        loss=found.loss,
        uniform=math.log(decoder.vocabulary),
        windows=len(windows),
        length=found.length,
        digest=digest,
        least=least,
        beam=beam,
        confidence=CONFIDENCE,
        layers=tuple(_layer(found, layer) for layer in range(layers)),
        cuts=tuple(_depth(found, cut, others) for cut in found.cuts if math.isfinite(cut.loss)),
        path=tuple(step for step in found.path if math.isfinite(step[1])),
        agreements=() if spectra is None else tuple(_agreements(found.prices, spectra)),
        data=data,
        environment=environment(),
        created=now(),
    )
    if path and store:
        record.write(path)
        store.unlink(missing_ok=True)
    return record


def choice_windows(
    model: str,
    source: str | Path,
    separator: str = BLANK_LINE,
    field: str = "text",
    count: int = WINDOWS,
    length: int | None = None,
) -> np.ndarray:
    """Return `count` windows of a text to choose layers of a model on, (N, T + 1) int64; see `tuning_windows`.

    Raises:
        DataError: there is too little text for one window, or a count is too small.
        ModelError: there is no such model, or it has no tokenizer.
    """
    for name, number, least in (("windows", count, 2), ("tokens in a window", length or 1, 1)):
        if number < least:
            raise DataError(f"{name} to choose layers on: {number}, expected at least {least}")
    length = length or min(LENGTH, context_of(load_config(model)) or LENGTH)
    return tuning_windows(source, load_tokenizer(model), length, count, separator, field)


def check_choice(windows: np.ndarray, config: PretrainedConfig) -> None:
    """Refuse windows, (N, T + 1) integers, that layers of a model cannot be chosen on.

    Raises:
        DataError: there is one alone, or the model cannot read them.
    """
    if len(windows) < 2:
        raise DataError(f"{plural(len(windows), 'window')} to choose layers on: expected at least 2, for their spread")
    check_windows(windows, context_of(config), config.get_text_config(decoder=True).vocab_size)


def _layer(found: Ablation, layer: int) -> LayerPrice:
    cut = found.singles[layer]
    if cut is None:
        return LayerPrice(index=layer, refused=found.refused[layer])
    if not math.isfinite(cut.loss):
        return LayerPrice(index=layer, refused="without it the loss is not a finite number")
    return LayerPrice(index=layer, cost=_cost(found.whole, cut))


def _depth(found: Ablation, cut: Cut, others: Mapping[tuple[int, str], tuple[Order, Cut | None]]) -> DepthPrice:
    """Return the cheapest of the search's cut and the other rules' cuts to its depth."""
    kept = found.layers - len(cut.removed)
    there = {rule: pair for (depth, rule), pair in others.items() if depth == kept}
    finite = [other for _, other in there.values() if other and math.isfinite(other.loss)]
    best = min([cut, *finite], key=lambda each: each.loss)  # the search's own is finite
    rivals = {
        rule: OtherCut(cut=removed, loss=other.loss if other and math.isfinite(other.loss) else None)
        for rule, (removed, other) in there.items()
    }
    return DepthPrice(depth=kept, cut=best.removed, cost=_cost(found.whole, best), others=rivals)


def _cost(whole: Cut, cut: Cut) -> Cost:
    difference = cut.losses - whole.losses
    low, high, _ = mean_interval(difference, CONFIDENCE)
    return Cost(loss=cut.loss, difference=float(difference.mean()), ci_low=low, ci_high=high)


def _agreements(prices: np.ndarray, spectra: Spectra | BothSpectra) -> Iterator[Agreement]:
    """Yield how each measure orders the layers beside their prices, (layers,) float64, NaN for none."""
    measures: dict[str, np.ndarray] = {}
    for part in spectra.parts:
        ranks = np.full(len(prices), np.nan)  # NaN for a layer without attention
        ranks[list(part.layers_index)] = part.max_rank
        measures[f"MaxRank, {part.mask} mask"] = ranks
    if (blocks := spectra.parts[0].blocks) is not None:
        measures |= {"Block Influence": blocks.influence, "angular distance": blocks.angular_distance[:, 1]}
    for measure, values in measures.items():
        both = np.isfinite(prices) & np.isfinite(values)
        correlation, p_value = rank_correlation(prices[both].tolist(), values[both].tolist()) or (None, None)
        yield Agreement(measure=measure, layers=int(both.sum()), correlation=correlation, p_value=p_value)
