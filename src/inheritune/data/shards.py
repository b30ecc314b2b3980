"""Token shards: raw little-endian uint16 or uint32 files and a manifest that is written last.

A shard is a plain array of token ids without a header, one document after the other, each ended by the end-of-text
token; tools that read nanoGPT's `train.bin` read it. `manifest.json` names the shards of both splits with their token
counts and SHA-256, the tokenizer and the source; a folder without it is unfinished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inheritune.errors import DataError, OutputError
from inheritune.storage import read_json, write_json

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
    """

    folder: Path
    manifest: dict[str, Any]
    _maps: dict[str, list[np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def tokenizer(self) -> Path:
        """The folder of the tokenizer that made the tokens."""
        return self.folder / TOKENIZER

    @property
    def vocabulary(self) -> int:
        """The number of token ids of the tokenizer."""
        return int(self.manifest["vocabulary"])

    @property
    def digest(self) -> str:
        """SHA-256 over the digests of all shards: equal digests mean equal tokens in both splits."""
        sums = [shard["sha256"] for split in ("train", "valid") for shard in self.manifest["splits"][split]["shards"]]
        return hashlib.sha256("".join(sums).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """Return the number of tokens of `"train"` or `"valid"`."""
        return int(self.manifest["splits"][split]["tokens"])

    def read(self, split: str, start: int, count: int) -> np.ndarray:
        """Return tokens `start` to `start + count - 1` of a split, across shards, as int64."""
        parts = []
        for shard in self._arrays(split):
            if start < len(shard) and count > 0:
                part = shard[start : start + count]
                parts.append(part)
                count -= len(part)
            start = max(start - len(shard), 0)
        return np.concatenate(parts).astype(np.int64)

    def _arrays(self, split: str) -> list[np.ndarray]:
        if split not in self._maps:
            dtype = np.dtype(self.manifest["dtype"])
            names = [shard["name"] for shard in self.manifest["splits"][split]["shards"]]
            self._maps[split] = [np.memmap(self.folder / name, dtype=dtype, mode="r") for name in names]
        return self._maps[split]


def open_shards(folder: str | Path) -> Shards:
    """Open a folder of finished shards.

    Raises:
        DataError: the folder is not one, or a shard is missing or of another length than the manifest says.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise DataError(f"{folder} holds no token shards: expected a folder made by 'inheritune prepare'")
    manifest = read_json(folder / MANIFEST)
    width = np.dtype(manifest["dtype"]).itemsize
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            path = folder / shard["name"]
            size = path.stat().st_size if path.is_file() else -1
            if size != shard["tokens"] * width:
                raise DataError(f"shard {path} is missing or cut short: expected {shard['tokens'] * width} bytes")
    return Shards(folder, manifest)


def write_split(folder: Path, split: str, documents: Iterable[np.ndarray], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Write one split's documents as shards and return its part of the manifest.

    A document is never cut at a shard's end, so a shard may be longer than `SHARD_TOKENS` by part of a document.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    writer = _Writer(folder, split, dtype)
    try:
        for tokens in documents:
            writer.add(tokens)
        writer.close()
    except OSError as error:
        raise OutputError(f"cannot write shards to {folder}: {error.strerror or error}") from error
    return {"tokens": sum(shard["tokens"] for shard in writer.shards), "shards": writer.shards}


class _Writer:
    """Appends documents to the current shard and starts another when it is full."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype[Any]) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self.shards: list[dict[str, Any]] = []
        self._waiting: list[np.ndarray] = []
        self._count = 0

    def add(self, tokens: np.ndarray) -> None:
        self._waiting.append(tokens.astype(self.dtype))
        self._count += len(tokens)
        if self._count >= SHARD_TOKENS:
            self.close()

    def close(self) -> None:
        """Write what waits as one shard."""
        if not self._count:
            return
        name = f"{self.split}-{len(self.shards):05d}.bin"
        data = np.concatenate(self._waiting)
        data.tofile(self.folder / name)
        self.shards.append({"name": name, "tokens": len(data), "sha256": hashlib.sha256(data.tobytes()).hexdigest()})
        self._waiting, self._count = [], 0


def write_manifest(folder: Path, manifest: dict[str, Any]) -> Shards:
    """Write the manifest, the last file of a finished folder, and open the folder."""
    write_json(folder / MANIFEST, manifest)
    return open_shards(folder)
