"""What a user calls MODEL: where it lies, and what it is wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from inheritune.checkpoints.folder import read_folder
from inheritune.errors import ModelError

BUNDLED = "stdlib"
"""The name of the reference model that the package ships."""

_LABELS = ("_name_or_path", "transformers_version")
"""What a configuration says that does not change the model."""


def resolve_model(source: str | Path) -> str:
    """Return the folder or hub id that `source` stands for: the package's own folder for `stdlib`, else itself."""
    if str(source) == BUNDLED and not Path(source).exists():
        return str(Path(__file__).resolve().parents[1] / "assets" / "reference")
    return str(source)


def model_identity(source: str | Path) -> str | None:
    """Return a digest of what a model in a local folder is: its configuration, and its weights' names, types and sizes.

    Two copies of a model have one identity wherever they lie; the path is a label. The weights themselves are not read,
    so that models of tens of gigabytes cost no more than small ones.

    Args:
        source: what a user calls MODEL.

    Returns:
        16 hexadecimal digits, or None for what has no files here (a hub id).
    """
    folder = Path(resolve_model(source)).expanduser()
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = read_folder(folder)
    except (OSError, ValueError, ModelError):
        return None
    said = {key: value for key, value in config.items() if key not in _LABELS}
    held = sorted((name, tensor.kind, tensor.shape) for name, tensor in tensors.items())
    return hashlib.sha256(json.dumps([said, held], sort_keys=True).encode()).hexdigest()[:16]
