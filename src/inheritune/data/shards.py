"""Token shards: raw little-endian uint16 or uint32 files and a manifest that is written last.

A shard is a plain array of token ids without a header, one document after the other, each ended by the end-of-text
token; tools that read nanoGPT's `train.bin` read it. `manifest.json` names the shards of both splits with their token
counts and SHA-256, the tokenizer and the source; a folder without it is unfinished.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.errors import DataError
from inheritune.records.base import read_record
from inheritune.records.runs import Manifest, ShardFile, Split
from inheritune.storage import user_path

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer"
SHARD_TOKENS = 1 << 27  # 256 MB a shard at two bytes a token


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest shard dtype that holds ids below `vocabulary`: little-endian uint16 or uint32."""
    return np.dtype("<u2") if vocabulary <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class Shards:
    """The token shards of one folder, memory-mapped on use.

    Attributes:
        folder: where they are.
        manifest: what `manifest.json` says.
        new: whether `prepare` made them just now.
    """

    folder: Path
    manifest: Manifest
    new: bool = False
    _maps: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return str(self.folder)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that made the tokens."""
        return self.folder / TOKENIZER

    @property
    def vocabulary(self) -> int:
        """One more than the largest token id of the tokenizer."""
        return self.manifest.vocabulary

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all shards: equal digests mean equal tokens in both splits."""
        sums = [shard.sha256 for _, split in self.manifest.splits for shard in split.shards]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """Return the number of tokens of `"train"` or `"valid"`."""
        return int(self.manifest.splits[split].tokens)

    def read(self, split: str, start: int, count: int) -> np.ndarray:
        """Return tokens `start` to `start + count - 1` of a split, across shards: int64 of shape (count,)."""
        parts = [np.zeros(0, dtype=np.int64)]
        for shard in self._arrays(split):
            if start < len(shard) and count > 0:
                part = shard[start : start + count]
                parts.append(part)
                count -= len(part)
            start = max(start - len(shard), 0)
        return np.concatenate(parts).astype(np.int64, copy=False)

    def _arrays(self, split: str) -> list[np.ndarray]:
        if split not in self._maps:
            dtype = np.dtype(self.manifest.dtype)
            shards = self.manifest.splits[split].shards
            self._maps[split] = [np.memmap(self.folder / shard.name, dtype=dtype, mode="r") for shard in shards]
        return self._maps[split]


def is_shards(source: str | Path) -> bool:
    """Return whether `source` is a folder of finished shards; any text may be asked for."""
    with suppress(OSError, RuntimeError):  # a name may be too long, or no user behind ~
        folder = Path(source).expanduser()
        return (folder / MANIFEST).is_file() and (folder / TOKENIZER).is_dir()
    return False


def open_shards(folder: str | Path) -> Shards:
    """Open a folder of finished shards.

    Raises:
        DataError: the folder is not one, or a shard is missing or of another length than the manifest says.
        OutputError: the manifest is damaged, or of a later version.
    """
    folder = user_path(folder, DataError)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} holds no token shards: expected a folder made by 'inheritune prepare'")
    manifest = read_record(folder / MANIFEST, Manifest)
    width = np.dtype(manifest.dtype).itemsize
    for shard in (shard for _, split in manifest.splits for shard in split.shards):
        path = folder / shard.name
        size = path.stat().st_size if path.is_file() else -1
        if size != shard.tokens * width:
            raise DataError(f"shard {path} is missing or cut short: expected {shard.tokens * width} bytes")
    return Shards(folder, manifest)


def write_split(folder: Path, split: str, documents: Iterable[np.ndarray], dtype: np.dtype[Any]) -> Split:
    """Write one split's documents, integers of shape (tokens,) each, as shards and return its part of the manifest.

    A document is never cut at a shard's end, so a shard may be longer than `SHARD_TOKENS` by part of a document.

    Raises:
        DataError: a token does not fit into `dtype`.
        OSError: the disk is full or the folder cannot be written.
    """
    shards: list[ShardFile] = []
    count = 0
    for group in _groups(documents, dtype):
        name, data = f"{split}-{len(shards):05d}.bin", np.concatenate(group)
        data.tofile(folder / name)
        shards.append(ShardFile(name=name, tokens=len(data), sha256=hashlib.sha256(data.data).hexdigest()))
        count += len(group)
    return Split(tokens=sum(shard.tokens for shard in shards), shards=tuple(shards), documents=count)


def _groups(documents: Iterable[np.ndarray], dtype: np.dtype[Any]) -> Iterator[list[np.ndarray]]:
    """Yield the documents of one shard after the other, `dtype` of shape (tokens,) each."""
    group: list[np.ndarray] = []
    size, most = 0, np.iinfo(dtype).max
    for tokens in documents:
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() <= most:
            raise DataError(f"the tokenizer gave ids {tokens.min()} to {tokens.max()}: expected 0 to {most}")
        group.append(tokens.astype(dtype))
        size += len(tokens)
        if size >= SHARD_TOKENS:
            yield group
            group, size = [], 0
    if size:
        yield group
