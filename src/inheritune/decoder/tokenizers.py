"""Load tokenizers: one that is missing is told from one that is damaged, and neither is replaced in silence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inheritune.checkpoints.stored import read_object, refuse_pointer
from inheritune.decoder.loading import untrusted_code
from inheritune.decoder.source import locate
from inheritune.errors import ModelError, library_errors
from inheritune.storage import user_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""One of these holds the tokens."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


class NoTokenizerError(ModelError):
    """There is a model but no tokenizer beside it; one that is there and damaged is another ModelError."""


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        source: a model's or tokenizer's folder, a `tokenizer.json` file, the folder of a finished run, a hub id, or
            `stdlib`.
        revision: the branch, tag or commit of a model on the hub; None for its main branch.
        trust_remote_code: run the code that the tokenizer brings along, if it needs any.

    Raises:
        NoTokenizerError: there is no tokenizer there.
        ModelError: there is no such folder or model, or its tokenizer is damaged, needs a package that is not
            installed, or code that is not trusted.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

    path = user_path(source, ModelError)
    if path.suffix == ".json" and path.is_file():
        return _load(path, [path], lambda: PreTrainedTokenizerFast(tokenizer_file=str(path)))
    place = locate(source, revision, TOKENIZER_FILES)
    files = sorted(file for pattern in TOKENIZER_FILES for file in place.folder.glob(pattern))
    if not files:
        # transformers would make an empty tokenizer of the model's class.
        raise NoTokenizerError(f"no tokenizer in {source}: expected one of {', '.join(TOKENIZER_FILES)} there")
    held = {file.name for file in place.folder.iterdir()}
    # A bare vocab.json and merges.txt name no class; GPT-2's byte-level BPE is the one that has these files.
    bare = place.repository is None and "merges.txt" in held and not held & {"tokenizer_config.json", "tokenizer.json"}
    kind = GPT2TokenizerFast if bare else AutoTokenizer
    with untrusted_code(place):
        return _load(
            place.folder / files[0].name,
            [*files, *(place.folder / name for name in _SETTINGS if name in held)],
            lambda: kind.from_pretrained(place.address, **place.arguments(trust_remote_code)),
        )


def _load(path: Path, files: Sequence[Path], load: Callable[[], PreTrainedTokenizerBase]) -> PreTrainedTokenizerBase:
    """Load a tokenizer whose tokens are in `path`, with the damaged one of `files` named where that fails."""
    for file in files:
        refuse_pointer(file)
        if not file.is_file() or not file.stat().st_size:
            raise ModelError(f"{file} is {'empty' if file.is_file() else 'a folder'}: expected a tokenizer's file")

    def check() -> None:
        for file in files:
            if file.suffix == ".json":
                read_object(file)

    with library_errors(f"cannot load the tokenizer {path}", check):
        tokenizer = load()
    # Without these files transformers makes a tokenizer of this class that has no tokens, or no merges.
    names = tokenizer.vocab_files_names
    needed = [names[use] for use in ("vocab_file", "merges_file") if use in names]
    missing = [name for name in needed if not (path.parent / name).is_file()]
    if missing and not (path.parent / names.get("tokenizer_file", "tokenizer.json")).is_file():
        raise ModelError(f"cannot load the tokenizer {path}: a {type(tokenizer).__name__} needs {missing[0]} beside it")
    return tokenizer
