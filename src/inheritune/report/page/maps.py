"""Attention maps: pictures, and the weights that the page's script shows under the pointer."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from inheritune.records.analysis import AttentionMap
from inheritune.report.charts.images import attention_png, data_uri, quantised
from inheritune.report.page.attention import Analysed
from inheritune.report.page.figures import Context
from inheritune.report.text import format as fmt

_ROLES = {
    "potent": "the head of highest rank",
    "laziest": "the head of lowest rank in the laziest layer",
    "collapsed": "the most collapsed head",
}


def maps(analysed: Analysed) -> list[Context]:
    """Return the attention maps of each model that has any, with the text they are of."""
    made: list[Context] = []
    for i, (label, analysis) in enumerate(analysed.items()):
        tokens = next((each.tokens for each in analysis.maps if each.tokens), ())
        text = next((each.text for each in analysis.maps if each.text), "".join(tokens))
        pictures = [_map(f"map-{i}-{j}", each) for j, each in enumerate(analysis.maps)]
        made += [{"label": label, "maps": pictures, "text": text}] if pictures else []
    return made


def _map(name: str, drawn: AttentionMap) -> Context:
    own = fmt.NOTHING if drawn.rank is None else f"{drawn.rank:g}"
    mean = fmt.NOTHING if drawn.mean_rank is None else f"{drawn.mean_rank:.2f}"
    return {
        "id": name,
        "picture": data_uri(attention_png(drawn.values)),
        "bytes": base64.b64encode(quantised(drawn.values).tobytes()).decode("ascii"),
        "tokens": drawn.tokens,
        "place": f"layer {drawn.layer}, head {drawn.head}",
        "role": _ROLES.get(drawn.role, drawn.role),
        "mask": f"{drawn.mask} mask",
        "rank": f"k* = {own} here, Rank {mean}",
        "size": len(drawn.values),
    }


def weights(shown: Sequence[Context]) -> Context:
    """Return what the page's script reads a map's weights from: its bytes, and its tokens, each list of tokens once."""
    drawn = [each for model in shown for each in model["maps"]]
    tokens = list(dict.fromkeys(each["tokens"] for each in drawn))
    by_id = {
        each["id"]: {"size": each["size"], "bytes": each["bytes"], "tokens": tokens.index(each["tokens"])}
        for each in drawn
    }
    return {"maps": by_id, "tokens": tokens}
