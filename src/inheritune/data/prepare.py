"""Text to token shards, once: read, split by document, tokenize, write."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from inheritune.data.readers import BLANK_LINE
from inheritune.data.shards import MANIFEST, TOKENIZER, Shards, open_shards, token_dtype, write_split
from inheritune.data.sources import VALID_FRACTION, Document, read_documents, source_content
from inheritune.data.tokenizer import TRAIN_PREFIX, encode, resolve_tokenizer, tokenizer_digest, vocabulary_size
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError, ModelError, OutputError
from inheritune.progress import note, progress
from inheritune.records.runs import Manifest, PrepareSettings, SourceContent, Splits
from inheritune.storage import difference, is_being_filled, user_path, whole_folder

WAIT_SECONDS = 0.5


def prepare(
    source: str | Path,
    out: str | Path,
    tokenizer: str | Path,
    *,
    validation: str | Path | None = None,
    valid_fraction: float = VALID_FRACTION,
    separator: str = BLANK_LINE,
    field: str = "text",
) -> Shards:
    r"""Tokenize `source` into the folder `out`; a folder that already holds exactly this is reused.

    Where another process is filling `out`, this one waits and reuses what it made.

    Documents, not windows, are split: a document goes to validation when the hash of its key falls below
    `valid_fraction`. A source so small that no document falls there gives the one with the least hash.

    Args:
        source: see `read_documents`.
        out: the folder to make; it appears only when it is whole.
        tokenizer: a tokenizer or model folder, a hub id, or `"train:SIZE"` for a byte-level BPE of the training split.
        validation: a second source that is the whole validation split; all of `source` is then for training.
        valid_fraction: the share of documents for validation, in (0, 1).
        separator: what stands between two documents of a `.txt` file.
        field: the field of rows that holds the text.

    Raises:
        DataError: no text, a bad fraction, or too few documents to split.
        ModelError: no tokenizer at `tokenizer`.
        OutputError: `out` holds something else or shards of another source, or cannot be written.
    """
    if not 0 < valid_fraction < 1:
        raise DataError(f"valid fraction {valid_fraction}: expected a number between 0 and 1, both excluded")
    settings = PrepareSettings(
        source=str(source),
        tokenizer=str(tokenizer),
        validation=None if validation is None else str(validation),
        valid_fraction=valid_fraction,
        separator=separator,
        field=field,
    )
    out = user_path(out)
    while is_being_filled(out):
        note(f"another process is preparing {out}: waiting for it")
        time.sleep(WAIT_SECONDS)
    if (out / MANIFEST).is_file():
        return _reuse(out, settings)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OutputError(f"{out} holds something else: pass a new or empty folder")
    try:
        with whole_folder(out) as temporary:
            _write(temporary, settings)
    except OutputError:
        if not (out / MANIFEST).is_file():
            raise
        return _reuse(out, settings)  # another process began in the same moment and was faster
    return replace(open_shards(out), new=True)


def _contents(settings: PrepareSettings) -> dict[str, SourceContent]:
    """Return what the files of the source and of the validation source are now, by the setting that names them."""
    named = {"source": settings.source, "validation": settings.validation}
    contents = {key: source_content(source) for key, source in named.items() if source is not None}
    return {key: content for key, content in contents.items() if content is not None}


def _reuse(out: Path, settings: PrepareSettings) -> Shards:
    """Open the shards in `out` if `settings` would make the same ones: sources and tokenizers are known by content.

    Raises:
        OutputError: they would make others.
    """
    shards = open_shards(out)
    known = shards.manifest.sources
    held, asked = shards.manifest.settings.as_json(), settings.as_json()
    contents, gone = {}, ""
    try:
        contents = _contents(settings) if known else {}
    except DataError as error:
        gone = str(error)
    for key in known.keys() & contents.keys():
        held[key], asked[key] = known[key].as_json(), contents[key].as_json()
    if not settings.tokenizer.startswith(TRAIN_PREFIX):
        with suppress(ModelError):  # it is gone, or the hub cannot be reached: the shards have a copy
            digest = tokenizer_digest(load_tokenizer(settings.tokenizer))
            copy = tokenizer_digest(load_tokenizer(shards.tokenizer))
            same = digest in (shards.manifest.tokenizer_sha256, copy)
            asked["tokenizer"] = held["tokenizer"] if same else f"{settings.tokenizer} with other content"
    if why := difference(held, asked):
        raise OutputError(f"{out} holds other shards ({why}): pass another folder, or delete it to make it again")
    if gone:
        note(f"{gone}; the shards in {out} are used as they are")
    return shards


def _write(folder: Path, settings: PrepareSettings) -> None:
    """Write both splits and the tokenizer into `folder`, the manifest last."""
    named = not settings.tokenizer.startswith(TRAIN_PREFIX)
    encoder = resolve_tokenizer(settings.tokenizer, ()) if named else None  # a wrong name is said before any reading
    sources = _contents(settings)
    train, valid = _split(settings)
    if encoder is None:
        encoder = resolve_tokenizer(settings.tokenizer, (document.text for document in train))
    documents = {"train": train, "valid": valid}
    size = vocabulary_size(encoder)
    dtype = token_dtype(size)
    encoder.save_pretrained(folder / TOKENIZER)
    with progress("tokenizing", len(train) + len(valid)) as advance:

        def tokens(part: list[Document]) -> Iterator[np.ndarray]:
            for ids in encode((document.text for document in part), encoder):
                yield ids
                advance()

        splits = {name: write_split(folder, name, tokens(part), dtype) for name, part in documents.items()}
    Manifest(
        dtype=dtype.str,
        vocabulary=size,
        splits=Splits(**splits),
        settings=settings,
        sources=sources,
        tokenizer_sha256=tokenizer_digest(encoder),
    ).write(folder / MANIFEST)


def _split(settings: PrepareSettings) -> tuple[list[Document], list[Document]]:
    """Return the documents for training and for validation."""
    documents, fraction = _read(settings.source, settings), settings.valid_fraction
    if settings.validation is not None:
        return documents, _read(settings.validation, settings)
    if len(documents) < 2:
        raise DataError(f"{settings.source} is a single document and cannot be split: name a validation source beside")
    threshold = max(fraction, min(document.position() for document in documents) + 1e-15)
    valid = [document for document in documents if document.position() < threshold]
    train = [document for document in documents if document.position() >= threshold]
    if not train:
        raise DataError(f"valid fraction {fraction} leaves no training document of {len(documents)}: pass less")
    return train, valid


def _read(source: str, settings: PrepareSettings) -> list[Document]:
    documents = list(read_documents(source, settings.separator, settings.field))
    if not documents:
        raise DataError(f"{source} holds no text")
    return documents
