"""Load and save models and tokenizers, with every user's mistake said in one line."""

from __future__ import annotations

import functools
import re
import shutil
import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.errors import ModelError, OutputError, nearest

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")


def load_config(source: str | Path) -> PretrainedConfig:
    """Read the configuration of the decoder at `source`, a local folder or a hub id; no weights are read.

    Raises:
        ModelError: there is no such model, or it is not a decoder language model.
    """
    from transformers import AutoConfig

    _check_source(source)
    try:
        config = AutoConfig.from_pretrained(str(source), local_files_only=not hub_can_answer())
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load a model from {source}: {_reason(source, error)}") from error
    _check_is_decoder(config, source)
    return config


def load_model(source: str | Path | PreTrainedModel, dtype: str = "auto") -> PreTrainedModel:
    """Load the decoder at `source` in evaluation mode; a model that is passed in comes back as it is.

    Args:
        source: a model, a local folder, or a hub id.
        dtype: `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        ModelError: there is no such model, it is not a decoder, a file is missing or corrupt, or weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source
    config = load_config(source)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(source),
            config=config,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=not hub_can_answer(),
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the weights in {source}: {_first_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"the checkpoint {source} lacks {len(missing)} of the model's weights, {missing[0]!r} first")
    return model.eval()


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a model or tokenizer folder, a `tokenizer.json` file, or a hub id.

    Raises:
        ModelError: there is no tokenizer there.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

    path = Path(source).expanduser()
    if path.suffix == ".json" and path.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    _check_source(source)
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in TOKENIZER_FILES):
        # transformers would make an empty tokenizer of the model's class.
        raise ModelError(f"no tokenizer in {source}: expected one of {', '.join(TOKENIZER_FILES)} there")
    try:
        if (path / "merges.txt").is_file() and not (path / "tokenizer_config.json").is_file():
            # A bare vocab.json and merges.txt name no class; GPT-2's byte-level BPE is the one that has these files.
            return GPT2TokenizerFast.from_pretrained(str(path))
        return AutoTokenizer.from_pretrained(str(source), local_files_only=not hub_can_answer())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"no tokenizer in {source}: {_reason(source, error)}") from error


def save_model(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Save `model` (and `tokenizer`) in Hugging Face format; `folder` appears only when it is whole.

    Raises:
        OutputError: the folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write the model to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _check_source(source: str | Path) -> None:
    """Refuse a path that is not there and a folder that is empty before any library is asked."""
    path = Path(source).expanduser()
    if path.is_dir():
        if not any(path.iterdir()):
            raise ModelError(f"the folder {source} is empty: expected a model in Hugging Face format (config.json ...)")
        return
    if path.is_file():
        raise ModelError(f"{source} is a file: expected a model folder or a hub id")
    if isinstance(source, Path) or not _HUB_ID.match(str(source)) or (path.parent.is_dir() and "/" in str(source)):
        siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"no folder {source}: expected a model folder or a hub id{nearest(str(path), siblings)}")


@functools.cache
def hub_can_answer() -> bool:
    """Return whether the hub's name resolves (or a proxy would do it).

    Without a network the hub's client asks again for half a minute before it gives up; its cache is all there is then.
    """
    from huggingface_hub import constants

    if urllib.request.getproxies().get("https"):
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _check_is_decoder(config: Any, source: str | Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = getattr(config, "model_type", "?")
    names = config.architectures or []
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({kind}): expected a decoder-only language model")
    heads = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (names and not heads.intersection(names)):
        found = ", ".join(names) or kind
        raise ModelError(f"{source} is not a decoder language model ({found}): expected a ...ForCausalLM checkpoint")


def _reason(source: str | Path, error: Exception) -> str:
    """Say in one line why a model or tokenizer could not be had."""
    if Path(source).is_dir() or hub_can_answer():
        return _first_line(error)
    return "there is no such folder, it is not in the hub's cache, and the hub cannot be reached"


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
