"""What a frontier says: the smallest model that matches, or what each size costs; its table, for page and terminal."""

from __future__ import annotations

from inheritune.layers import plural
from inheritune.records.evaluation import Speed
from inheritune.records.runs import FrontierPoint, FrontierRecord
from inheritune.report.text import format as fmt
from inheritune.report.text.tables import Table
from inheritune.report.text.verdict import ratio_words


def frontier_verdict(record: FrontierRecord) -> str:
    """Return the smallest model that matches and what those below it cost, or what each costs where none does."""
    best, reference = record.smallest, record.reference
    below = [point for point in record.points if best is None or point.layers < best.layers]
    costs = ", ".join(f"{plural(point.layers, 'layer')} {_cost(point)}" for point in below)
    level = fmt.percent(record.points[0].comparison.confidence)
    if best is None:
        margin, size = record.points[0].comparison.margin, plural(reference.layers, "layer")
        undecided = any(point.comparison.ci_low <= 0 for point in below)
        return (
            f"No smaller model {'is shown to match' if undecided else 'matches'} the reference of {size} (margin "
            f"{margin:g}); in nats a token with {level} intervals, {costs}."
        )
    share = fmt.percent(round(best.parameters / reference.parameters, 2))
    spent = f"{fmt.count(best.tokens)} tokens"
    if best.tokens_to_match not in (None, best.tokens):
        spent += f" ({fmt.count(best.tokens_to_match)} to the first match)"
    speed = f", {ratio_words(best.speed_ratio)}" if best.speed_ratio else ""
    return (
        f"The smallest model that matches the reference has {best.layers} of {plural(reference.layers, 'layer')} and "
        f"{share} of its parameters, after {spent}: {_cost(best)} nats a token ({level} interval){speed}."
        + (f" Smaller ones are not shown to match: {costs}." if below else "")
    )


def _cost(point: FrontierPoint) -> str:
    test = point.comparison
    return f"{fmt.signed(test.difference)} [{fmt.signed(test.ci_low)}, {fmt.signed(test.ci_high)}]"


def frontier_notes(record: FrontierRecord) -> list[str]:
    """Say what it means for a match that several depths were tested on the same windows."""
    tests = [point.comparison for point in record.points]
    if len(tests) < 2 or record.smallest is None:
        return []
    chance = fmt.percent(sum((1 - test.confidence) / 2 for test in tests))
    return [
        f"{len(tests)} depths were tested on the same windows: the chance that one worse by more than the margin "
        f"passes is at most {chance}, summed over them."
    ]


def frontier_table(record: FrontierRecord) -> Table:
    """Return a row for the reference and for each depth: size, memory, loss before and after, difference, speed."""
    level = f"{fmt.percent(record.points[0].comparison.confidence)} CI"
    columns = ["layers", "layers kept", "parameters", "memory", "loss before training", "loss"]
    columns += [f"difference, {level}", "matches", f"times as fast, {level}", "tokens", "tokens to match"]
    reference = record.reference
    memory = _memory(record.reference_bytes, reference.speed)
    first = [f"{reference.layers} (reference)", fmt.NOTHING, fmt.count(reference.parameters), memory, fmt.NOTHING]
    first += [fmt.loss(reference.evaluation.loss), *[fmt.NOTHING] * 3, fmt.count(reference.tokens), fmt.NOTHING]
    return Table(columns, [first, *map(_row, record.points)])


def _row(point: FrontierPoint) -> list[str]:
    test, ratio = point.comparison, point.speed_ratio
    bounds = f"{fmt.signed(test.ci_low)} to {fmt.signed(test.ci_high)}"
    return [
        str(point.layers),
        point.kept or fmt.NOTHING,
        fmt.count(point.parameters),
        _memory(point.weight_bytes, point.speed),
        fmt.loss(point.untrained.loss if point.untrained else None),
        fmt.loss(point.evaluation.loss),
        f"{fmt.signed(test.difference)}\n{bounds}",
        "yes" if test.matches else "no",
        f"{ratio.ratio:.2f}\n{ratio.ci_low:.2f} to {ratio.ci_high:.2f}" if ratio else fmt.NOTHING,
        fmt.count(point.tokens),
        fmt.count(point.tokens_to_match),
    ]


def _memory(weights: int, speed: Speed | None) -> str:
    """Write the bytes of the weights and, on a second line, of the keys and values of a token."""
    return f"{fmt.count(weights)}B" + (f"\n{fmt.count(speed.kv_cache_bytes_per_token)}B a token" if speed else "")
