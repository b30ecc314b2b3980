"""Load and save models and tokenizers, with every user's mistake said in one line.

Code that a checkpoint brings along (`auto_map` in its config.json) is run only if `trust_remote_code` is True.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.folder import read_folder
from inheritune.checkpoints.hub import HUB_ID, first_line, hub_can_answer, open_repository
from inheritune.checkpoints.pickled import refusal
from inheritune.checkpoints.stored import refuse_pointer
from inheritune.errors import ModelError, nearest
from inheritune.storage import whole_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_config(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Read the configuration of the decoder at `source`, a local folder or a hub id; no weights are read.

    Args:
        source: a local folder or a hub id.
        revision: the branch, tag or commit of a model on the hub; None for its main branch.
        trust_remote_code: run the code that the checkpoint brings along, if it needs any.

    Raises:
        ModelError: there is no such model, its config.json is missing or wrong, it is not a decoder language model, or
            it needs code that is not trusted.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    settings = _settings(source, revision, trust_remote_code)
    _check_config_file(source)
    try:
        config = AutoConfig.from_pretrained(_place(source), **settings)
    except StrictDataclassError as error:  # its last line says which field holds what
        reason = str(error).splitlines()[-1].strip().partition("Error: ")[2]
        raise ModelError(f"the config.json of {source} is wrong: {reason or first_line(error)}") from error
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(_untrusted(source)) from error
        raise ModelError(f"cannot load a model from {source}: {first_line(error)}") from error
    _check_is_decoder(config, source, trust_remote_code)
    if trust_remote_code:
        _register_own_code(config, source, settings)
    return config


def load_model(
    source: str | Path | PreTrainedModel,
    dtype: str = "auto",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the decoder at `source` in evaluation mode; a model that is passed in comes back as it is.

    Args:
        source: a model, a local folder, or a hub id.
        dtype: `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`.
        revision: the branch, tag or commit of a model on the hub; None for its main branch.
        trust_remote_code: run the code that the checkpoint brings along, if it needs any.

    Raises:
        ModelError: there is no such model, it is not a decoder, a file is missing or corrupt, or weights are missing.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source
    config = load_config(source, revision=revision, trust_remote_code=trust_remote_code)
    settings = _settings(source, revision, trust_remote_code)
    # Else a shape that does not fit is an error that only points at a table; here it is said in a line.
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = AutoModelForCausalLM.from_pretrained(_place(source), config=config, dtype=dtype, **settings)
    except UnpicklingError as error:
        _check_weight_files(source)
        raise ModelError(refusal(source)) from error
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        _check_weight_files(source)
        reason = "they do not fit its config.json" if "above report" in str(error) else first_line(error)
        raise ModelError(f"cannot load the weights in {source}: {reason}") from error
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise ModelError(f"{source} stores {name} as {list(found)}: its config.json asks for {list(expected)}")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"the checkpoint {source} lacks {len(missing)} of the model's weights, {missing[0]!r} first")
    return model.eval()


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load a tokenizer from a model or tokenizer folder, a `tokenizer.json` file, or a hub id.

    Args:
        source: where it is.
        revision: the branch, tag or commit of a model on the hub; None for its main branch.
        trust_remote_code: run the code that the tokenizer brings along, if it needs any.

    Raises:
        ModelError: there is no tokenizer there.
    """
    from transformers import AutoTokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

    path = Path(source).expanduser()
    if path.suffix == ".json" and path.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    check_source(source, revision)
    if path.is_dir() and not any(any(path.glob(pattern)) for pattern in TOKENIZER_FILES):
        # transformers would make an empty tokenizer of the model's class.
        raise ModelError(f"no tokenizer in {source}: expected one of {', '.join(TOKENIZER_FILES)} there")
    if path.is_dir():
        for file in (file for pattern in TOKENIZER_FILES for file in path.glob(pattern)):
            refuse_pointer(file)
    settings = _manners(source, trust_remote_code)
    if revision is not None:
        settings["revision"] = revision
    try:
        if (path / "merges.txt").is_file() and not (path / "tokenizer_config.json").is_file():
            # A bare vocab.json and merges.txt name no class; GPT-2's byte-level BPE is the one that has these files.
            return GPT2TokenizerFast.from_pretrained(str(path))
        return AutoTokenizer.from_pretrained(_place(source), **settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(_untrusted(source)) from error
        raise ModelError(f"no tokenizer in {source}: {_reason(source, error)}") from error


def save_model(
    model: PreTrainedModel,
    folder: Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    max_shard_size: int | str = "5GB",
    finish: Callable[[Path], object] | None = None,
    replace: bool = True,
) -> None:
    """Save `model` (and `tokenizer`) in Hugging Face format, by default in the place of what `folder` held.

    `folder` appears only when it is whole, and what it held is lost only then.

    Args:
        model: what to save.
        folder: where.
        tokenizer: is saved with it.
        max_shard_size: of a file of weights.
        finish: called with the folder before it gets its name, to add files of its own (a model card).
        replace: put it in the place of what `folder` holds; if False, `folder` must be new or empty in the end.

    Raises:
        OutputError: the folder cannot be written, or holds something and is not to be replaced.
    """
    with whole_folder(folder, replace=replace) as temporary:
        _write_model(model, temporary, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if finish is not None:
            finish(temporary)


def _write_model(model: PreTrainedModel, folder: Path, max_shard_size: int | str) -> None:
    """Save `model`; what the system refuses is an OSError, and every file may be read by whom the umask lets."""
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except SafetensorError as error:  # safetensors puts the system's error into its text
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
    for path in folder.glob("*.safetensors"):  # safetensors keeps them to the user
        shutil.copymode(folder / "config.json", path)


def check_source(source: str | Path, revision: str | None = None) -> None:
    """Refuse a path that is not there and a folder that is empty before any library is asked.

    Raises:
        ModelError: `source` is neither a folder with something in it nor, by its form, a hub id; or it is a folder,
            of which there is no `revision`.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not any(path.iterdir()):
            raise ModelError(f"the folder {source} is empty: expected a model in Hugging Face format (config.json ...)")
        if revision is not None:
            raise ModelError(f"{source} is a folder: a revision ({revision}) is for models on the hub")
        return
    if path.is_file():
        raise ModelError(f"{source} is a file: expected a model folder or a hub id")
    if isinstance(source, Path) or not HUB_ID.match(str(source)) or (path.parent.is_dir() and "/" in str(source)):
        siblings = [str(path.parent / p.name) for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ModelError(f"no folder {source}: expected a model folder or a hub id{nearest(str(path), siblings)}")


def _check_config_file(source: str | Path) -> None:
    """Refuse a folder without a configuration, or with one that is not even JSON, naming the file."""
    folder = Path(source).expanduser()
    if not folder.is_dir():
        return
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"no config.json in {source}: expected a model in Hugging Face format")
    refuse_pointer(path)
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is damaged or not JSON: {first_line(error)}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a JSON {type(config).__name__}: expected an object, a model's configuration")


def _check_weight_files(source: str | Path) -> None:
    """Say which of a folder's files is damaged or missing, if one is: the libraries' errors name none."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        read_folder(folder)


def _settings(source: str | Path, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
    """Return the arguments with which transformers finds `source` and nothing else, after confirming that it exists."""
    check_source(source, revision)
    settings = _manners(source, trust_remote_code)
    if Path(source).expanduser().is_dir():
        return settings
    # One commit for everything that is read, and files that are here are not asked for again.
    return settings | {"revision": open_repository(str(source), revision).commit}


def _manners(source: str | Path, trust_remote_code: bool) -> dict[str, Any]:
    """Return whether code may be run and the hub be asked, as arguments of `from_pretrained`."""
    # A folder needs the hub only where its code is in another repository.
    needed = trust_remote_code or not Path(source).expanduser().is_dir()
    return {"trust_remote_code": trust_remote_code, "local_files_only": not (needed and hub_can_answer())}


def _place(source: str | Path) -> str:
    """Return a folder with its `~` resolved, or the hub id, as transformers wants it."""
    path = Path(source).expanduser()
    return str(path if path.is_dir() else source)


def _untrusted(source: str | Path) -> str:
    return (
        f"{source} needs code that comes with it (auto_map in its config.json): read that code, and pass "
        "trust_remote_code=True (--trust-remote-code) if you trust it"
    )


def _register_own_code(config: Any, source: str | Path, settings: dict[str, Any]) -> None:
    """Let transformers build models of a configuration whose code the user trusts, without asking again."""
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    code = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if code is None or type(config).__module__.startswith("transformers.models."):
        return
    own = {key: value for key, value in settings.items() if key != "trust_remote_code"}
    AutoModelForCausalLM.register(
        type(config), get_class_from_dynamic_module(code, _place(source), **own), exist_ok=True
    )


def _check_is_decoder(config: Any, source: str | Path, trust_remote_code: bool = False) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = getattr(config, "model_type", "?")
    names = config.architectures or []
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source} is an encoder-decoder ({kind}): expected a decoder-only language model")
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        if trust_remote_code:
            return
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise ModelError(_untrusted(source))
    heads = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or (names and not heads.intersection(names)):
        found = ", ".join(names) or kind
        raise ModelError(f"{source} is not a decoder language model ({found}): expected a ...ForCausalLM checkpoint")


def _reason(source: str | Path, error: Exception) -> str:
    """Say in one line why a model or tokenizer could not be had."""
    if Path(source).is_dir() or hub_can_answer():
        return first_line(error)
    return "there is no such folder, it is not in the hub's cache, and the hub cannot be reached"
