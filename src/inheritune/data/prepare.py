"""Text to token shards, once: read, split by document, tokenize, write."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.data.shards import MANIFEST, TOKENIZER, Shards, open_shards, token_dtype, write_manifest, write_split
from inheritune.data.sources import VALID_FRACTION, Document, read_documents
from inheritune.data.tokenizer import TRAIN_PREFIX, encode, resolve_tokenizer
from inheritune.decoder import load_tokenizer
from inheritune.errors import DataError, OutputError
from inheritune.progress import Advance, progress
from inheritune.storage import read_json


def prepare(
    source: str | Path,
    out: str | Path,
    tokenizer: str | Path,
    *,
    validation: str | Path | None = None,
    valid_fraction: float = VALID_FRACTION,
    separator: str = "\n\n",
    field: str = "text",
) -> Shards:
    r"""Tokenize `source` into the folder `out`; a folder that already holds exactly this is reused.

    Documents, not windows, are split: a document goes to validation when the hash of its key falls below
    `valid_fraction`. A source so small that no document falls there gives the one with the least hash.

    Args:
        source: see `read_documents`.
        out: the folder to make; it appears only when it is whole.
        tokenizer: a tokenizer or model folder, a hub id, or `"train:SIZE"` for a byte-level BPE of the training split.
        validation: a second source that is the whole validation split; all of `source` is then for training.
        valid_fraction: the share of documents for validation, in (0, 1).
        separator: what stands between two documents of a `.txt` file.
        field: the field of JSON lines and tables that holds the text.

    Raises:
        DataError: no text, a bad fraction, or too few documents to split.
        ModelError: no tokenizer at `tokenizer`.
        OutputError: `out` holds something else, or cannot be written.
    """
    if not 0 < valid_fraction < 1:
        raise DataError(f"valid fraction {valid_fraction}: expected a number between 0 and 1, both excluded")
    settings = {
        "source": str(source),
        "tokenizer": str(tokenizer),
        "validation": None if validation is None else str(validation),
        "valid_fraction": valid_fraction,
        "separator": separator,
        "field": field,
    }
    out = Path(out)
    if (out / MANIFEST).is_file():
        return _reuse(out, settings)
    if out.exists() and any(out.iterdir()):
        raise OutputError(f"{out} holds something else: pass a new or empty folder")
    train, valid = _split(source, validation, valid_fraction, separator, field)
    return _write(out, train, valid, settings)


def _reuse(out: Path, settings: dict[str, Any]) -> Shards:
    held = read_json(out / MANIFEST)["settings"]
    differing = [key for key in settings if held.get(key) != settings[key]]
    if differing == ["tokenizer"] and _same_tokenizer(out / TOKENIZER, settings["tokenizer"]):
        return open_shards(out)  # it only lies elsewhere now
    if differing:
        key = differing[0]
        raise OutputError(f"{out} holds other shards (its {key} is {held.get(key)!r}, yours is {settings[key]!r})")
    return open_shards(out)


def _same_tokenizer(held: Path, spec: str) -> bool:
    """Return whether `spec` names a tokenizer that equals the one the shards were made with, wherever it is."""
    if spec.startswith(TRAIN_PREFIX):
        return False
    one, two = (getattr(load_tokenizer(place), "backend_tokenizer", None) for place in (held, spec))
    return one is not None and two is not None and one.to_str() == two.to_str()


def _split(
    source: str | Path, validation: str | Path | None, fraction: float, separator: str, field: str
) -> tuple[list[Document], list[Document]]:
    documents = list(read_documents(source, separator, field))
    if not documents:
        raise DataError(f"{source} holds no text")
    if validation is not None:
        valid = list(read_documents(validation, separator, field))
        if not valid:
            raise DataError(f"{validation} holds no text")
        return documents, valid
    if len(documents) < 2:
        raise DataError(f"{source} is a single document and cannot be split: name a validation source beside it")
    threshold = max(fraction, min(document.position() for document in documents) + 1e-15)
    valid = [document for document in documents if document.position() < threshold]
    train = [document for document in documents if document.position() >= threshold]
    if not train:
        raise DataError(
            f"valid fraction {fraction} leaves no training document of {len(documents)}: pass a smaller one"
        )
    return train, valid


def _write(out: Path, train: list[Document], valid: list[Document], settings: dict[str, Any]) -> Shards:
    """Write both splits and the tokenizer into a temporary folder, and rename it when it is whole."""
    encoder = resolve_tokenizer(settings["tokenizer"], (document.text for document in train))
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a preparation that was killed
    dtype = token_dtype(len(encoder))
    try:
        temporary.mkdir(parents=True)
        encoder.save_pretrained(temporary / TOKENIZER)
        splits = {}
        with progress("tokenizing", len(train) + len(valid)) as advance:
            for name, documents in (("train", train), ("valid", valid)):
                encoded = encode((document.text for document in documents), encoder)
                splits[name] = write_split(temporary, name, _counted(encoded, advance), dtype)
                splits[name]["documents"] = len(documents)
        write_manifest(
            temporary,
            {"schema": 1, "dtype": dtype.str, "vocabulary": len(encoder), "splits": splits, "settings": settings},
        )
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise OutputError(f"cannot write shards to {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_shards(out)


def _counted(documents: Iterable[np.ndarray], advance: Advance) -> Iterator[np.ndarray]:
    for document in documents:
        yield document
        advance()
