"""A model in a GGUF file becomes a folder of Hugging Face files, which everything else reads.

transformers' own reader unpacks the weights; they are then saved as safetensors beside the configuration and the
tokenizer, in a temporary folder that is gone when the process ends. So models are read by layer and cut from file to
file as from any folder, for the price of the disk space. Quantised weights become float32, in which their values are
exact; half-precision ones keep their type.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError, library_errors, nearest
from inheritune.progress import note

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_MAGIC = b"GGUF"
_FILE = "model.gguf"
"""What the file is called for transformers, in a folder in which nothing else can be mistaken for a part of it."""

_HALF = {"BF16": "bfloat16", "F16": "float16"}


def find_gguf(path: Path) -> Path | None:
    """Return the GGUF file that `path` is, or the only one of a folder without a config.json; None for anything else.

    Raises:
        ModelError: the folder holds several, or the file's name ends in `.gguf` and it is none.
    """
    if path.is_dir():
        if (path / "config.json").exists():
            return None
        files = sorted(path.glob("*.gguf"))
        if len(files) > 1:
            raise ModelError(f"{path} holds {len(files)} GGUF files and no other model: pass one, such as {files[0]}")
        return files[0] if files else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) == _MAGIC:
            return path
    if path.suffix == ".gguf":
        raise ModelError(f"{path} is not a GGUF file: it does not begin with the letters GGUF")
    return None


def unpack_gguf(path: Path) -> Path:
    """Return a folder in Hugging Face format with the model and the tokenizer of a GGUF file.

    The work is done once in a process, and said on standard error.

    Raises:
        ModelError: the package `gguf` is missing, the file is cut short or damaged, transformers cannot read its
            architecture, or there is no space for the unpacked weights.
    """
    status = path.stat()
    return _unpack(path.resolve(), path, status.st_mtime_ns, status.st_size)


@functools.cache
def _unpack(resolved: Path, name: Path, *version: int) -> Path:
    """Unpack a file; `version` tells it from what had its name before."""
    from transformers import AutoTokenizer

    reader = _read(name)
    kinds = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    dtype = _HALF.get("".join(kinds), "float32")  # of one kind, or of none of these
    needed = sum(int(tensor.n_elements) for tensor in reader.tensors) * (4 if dtype == "float32" else 2)
    if (free := shutil.disk_usage(gettempdir()).free) < needed:
        raise ModelError(
            f"cannot unpack {name}: its weights take {needed:,} bytes in {gettempdir()}, which has {free:,} free; "
            "set TMPDIR to a folder on a larger disk"
        )
    folder = Path(mkdtemp(prefix="inheritune-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "source").mkdir()
    (folder / "source" / _FILE).symlink_to(resolved)
    note(f"the weights of {name} ({', '.join(sorted(kinds))}) are unpacked to {dtype}, in {folder} while this runs")
    with library_errors(f"transformers cannot read {name}"), _asked_once():
        _load(name, folder / "source", dtype).save_pretrained(folder / "model")
        if "tokenizer.ggml.tokens" in reader.fields:
            tokenizer = AutoTokenizer.from_pretrained(folder / "source", gguf_file=_FILE, local_files_only=True)
            tokenizer.save_pretrained(folder / "model")
    return folder / "model"


@contextmanager
def _asked_once() -> Iterator[None]:
    """Let gguf answer again what it was asked before.

    transformers reads the header, word by word of the tokenizer, three times, and makes the table of all tensor names
    anew for every module: that was 15 of the 24 seconds that SmolLM2-135M took.
    """
    import gguf

    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in plain.items():
            setattr(gguf, name, functools.cache(function))
        yield
    finally:
        for name, function in plain.items():
            setattr(gguf, name, function)


def _read(path: Path) -> Any:
    """Return gguf's reader of a file whose header and tensors are all there; transformers converts its architecture."""
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{path} is a GGUF file, which the package gguf reads: pip install 'inheritune[gguf]'")
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{path} is cut short or damaged: {path.stat().st_size:,} bytes do not hold it") from error
    if "general.architecture" not in reader.fields:
        raise ModelError(f"{path} is damaged: it names no architecture")
    architecture, known = str(reader.fields["general.architecture"].contents()), sorted(GGUF_SUPPORTED_ARCHITECTURES)
    if architecture not in known:
        raise ModelError(
            f"{path} is a model of the architecture {architecture!r}, which transformers does not read from GGUF: "
            f"expected one of {', '.join(known)}{nearest(architecture, known)}"
        )
    return reader


def _load(path: Path, source: Path, dtype: str) -> PreTrainedModel:
    """Load the model, all of whose weights are in the file, and leave nothing in it that says it was packed."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoModelForCausalLM
    from transformers.utils import quantization_config

    where: dict[str, Any] = {"gguf_file": _FILE, "local_files_only": True}
    config: PretrainedConfig = AutoConfig.from_pretrained(source, **where)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{path} is not a decoder language model ({config.model_type})")
    if (packing := getattr(quantization_config, "GgufConfig", None)) is not None:  # before it, all was unpacked
        where["quantization_config"] = packing(dequantize=True)
    where |= {"config": config, "dtype": dtype}
    model, info = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **where)
    if missing := sorted(info["missing_keys"]):
        raise ModelError(f"{path} lacks {len(missing)} of the model's weights, {missing[0]!r} first")
    if (quantizer := getattr(model, "hf_quantizer", None)) is not None:
        quantizer.remove_quantization_config(model)
    return model
