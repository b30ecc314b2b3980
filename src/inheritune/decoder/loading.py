"""Load and save models and tokenizers, with every mistake of a user said in one line."""

from __future__ import annotations

import copy
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.checkpoints.folder import WEIGHTS, checkpoint_bytes, read_folder
from inheritune.checkpoints.stored import read_object, refuse_pointer
from inheritune.decoder.source import CONFIG, Place, locate
from inheritune.decoder.view import count_parameters
from inheritune.errors import ModelError, library_errors
from inheritune.progress import note
from inheritune.storage import user_path, whole_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
"""Files of weights that are added to a model's own when it is run; nothing that reads the model's files sees them."""

_LIMITS = (
    (r"num_(hidden_)?layers|n_layers?|num_attention_heads|n_heads?", 1, 10_000),
    (r"(num|n)_(.*_)?(layer|block|expert|head|group)s?", 0, 100_000),  # Doge has 16,384 experts
    (r"hidden_size|n_embd|d_model|max_position_embeddings|n_positions", 1, 1 << 31),
)
"""Least and greatest value of the fields of a configuration that count modules, units or positions.

Building a model of more, even without weights, would take all memory.
"""

_LANGUAGE_MODEL = re.compile(r"For(CausalLM|ConditionalGeneration)\w*$|LMHead|^(?!.*(For[A-Z]\w*|Model)$)")
"""Names of classes that may have a language-model head: they name it, or neither another task nor a model without."""


def load_config(
    source: str | Path | PreTrainedModel, *, revision: str | None = None, trust_remote_code: bool = False
) -> PretrainedConfig:
    """Read the configuration of the decoder at `source`; no weights are read. A model's own comes back as it is.

    Attention that this machine cannot run is left out of it: transformers then takes PyTorch's own, or plain matrices.

    Args:
        source: a model, a local folder, the folder of a finished run, a hub id, or `stdlib`.
        revision: the branch, tag or commit of a model on the hub; None for its main branch.
        trust_remote_code: run the code that the checkpoint brings along (`auto_map` in its config.json), if any.

    Raises:
        ModelError: there is no such model, its config.json is missing or wrong, it is not a decoder language model, it
            is an adapter, or it needs code that is not trusted.
    """
    from transformers import PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source.config
    if not isinstance(source, str | Path):
        raise ModelError(f"the model is a {type(source).__name__}: expected a PreTrainedModel, a folder or a hub id")
    return _read_config(locate(source, revision), trust_remote_code)


def load_model(
    source: str | Path | PreTrainedModel,
    dtype: str = "auto",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load the decoder at `source` in evaluation mode, on the CPU; a model that is passed in comes back as it is.

    `dtype` is `"auto"` (as saved), `"float32"`, `"bfloat16"` or `"float16"`; all else is as in `load_config`.

    Raises:
        ModelError: there is no such model, it is not a decoder, a file is missing or corrupt, or weights are missing.
    """
    from transformers import AutoModelForCausalLM, PreTrainedModel

    if isinstance(source, PreTrainedModel):
        return source
    place = locate(source, revision)
    config = _read_config(place, trust_remote_code)
    # Else a shape that does not fit is an error that only points at a table; here it is said in a line.
    settings = {"output_loading_info": True, "ignore_mismatched_sizes": True, **place.arguments(trust_remote_code)}
    if not trust_remote_code:
        _check_size(place, config)
    with _weight_errors(place):
        model, info = AutoModelForCausalLM.from_pretrained(place.address, config=config, dtype=dtype, **settings)
    if info["mismatched_keys"]:
        name, stored, expected = min(info["mismatched_keys"])
        raise ModelError(f"{source} stores {name} as {list(stored)}: its config.json asks for {list(expected)}")
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise ModelError(f"the checkpoint {source} lacks {len(missing)} of the model's weights, {missing[0]!r} first")
    return model.eval()


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

    `folder` appears only when it is whole, and what it held is lost only then; without `replace` it must be new or
    empty in the end. `finish` is called with the folder before it gets its name, to add files of its own (a model
    card). `max_shard_size` is that of a file of weights.

    Raises:
        OutputError: the folder cannot be written, or holds something and is not to be replaced.
    """
    with whole_folder(folder, replace=replace) as temporary:
        model.save_pretrained(temporary, max_shard_size=max_shard_size)
        for path in temporary.glob("*.safetensors"):  # safetensors keeps them to the user, whatever the umask
            shutil.copymode(temporary / CONFIG, path)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if finish is not None:
            finish(temporary)


def _read_config(place: Place, trust_remote_code: bool) -> PretrainedConfig:
    """Read and check the configuration of the model at `place`."""
    from transformers import AutoConfig

    if place.repository is not None:
        place.repository.fetch_if_there(ADAPTERS[0])
    if held := [name for name in ADAPTERS if (place.folder / name).exists()]:
        raise ModelError(
            f"{place.name} holds an adapter ({held[0]}), whose weights are not in the model's own: merge it first "
            "(peft: merge_and_unload(), then save_pretrained()) and pass the merged model"
        )
    if not (place.folder / CONFIG).exists():
        raise ModelError(f"no config.json in {place.name}: expected a model in Hugging Face format")
    said = read_object(place.folder / CONFIG)
    with untrusted_code(place), library_errors(f"{place.file(CONFIG)} is wrong"):
        _check_counts(said)
        config = AutoConfig.from_pretrained(place.address, **place.arguments(trust_remote_code))
        _check_is_decoder(config, place, trust_remote_code)
        int(config.get_text_config(decoder=True).num_hidden_layers)  # every command asks for it
    if trust_remote_code:
        _register_own_code(config, place)
    return use_available_attention(_text_config(config))


def _text_config(config: PretrainedConfig) -> PretrainedConfig:
    """Return the part of a composite configuration that transformers' causal language model is built of.

    Of a few families (Llama 4, Qwen 3.5) it is the text decoder alone, of others (Gemma 3) the whole.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    part = config.sub_configs.get("text_config")
    if kind is None or part is None or getattr(kind, "config_class", None) is not part:
        return config
    text = config.get_text_config()
    if (quantised := getattr(config, "quantization_config", None)) is not None:
        text.quantization_config = quantised
    text.name_or_path, text.architectures = config.name_or_path, [kind.__name__]
    return text


def build_empty(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model that `config` describes with shapes but no weights (meta device); no memory is needed.

    Raises:
        Exception: whatever transformers trips over, where `config` describes no model; call it in `library_errors`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(copy.deepcopy(config))


def use_available_attention(config: PretrainedConfig) -> PretrainedConfig:
    """Let transformers choose the attention: PyTorch's `sdpa`, or `eager` where the family has no other.

    What a config.json names beside them (`flash_attention_2`, kernels of the hub) is a matter of the machine on which
    it was written. `eager` stays, which runs everywhere. `config` is changed, and returned.
    """
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        named = getattr(part, "_attn_implementation", None)
        if named not in (None, "eager"):
            part._attn_implementation = None
            if named != "sdpa":
                note(f"the attention {named!r} of the config.json is not used: PyTorch's own (sdpa) or eager is")
    return config


def _check_counts(config: dict[str, Any]) -> None:
    """Refuse numbers of layers, heads, experts or units that no model can have."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_counts(value)
        limits = next(((least, most) for names, least, most in _LIMITS if re.fullmatch(names, name)), None)
        if limits and isinstance(value, int | float) and not limits[0] <= value <= limits[1]:
            raise ValueError(f"{name} is {value}, expected {limits[0]} to {limits[1]:,}")


def _check_size(place: Place, config: PretrainedConfig) -> None:
    """Refuse a configuration of far more weights than the files can hold, before memory is taken for them.

    A weight takes a byte at least, where it is not quantised.
    """
    with library_errors(f"{place.file(CONFIG)} is wrong"):
        described, held = count_parameters(build_empty(config)), checkpoint_bytes(place.folder)
    if described > held > 0 and getattr(config, "quantization_config", None) is None:
        read_folder(place.folder)  # a file that is cut short or damaged is said to be so
        raise ModelError(
            f"{place.name} holds {held:,} bytes of weights: its config.json describes a model of {described:,} "
            "parameters, expected the config.json that was saved with the weights"
        )


def _needs_code(place: Place) -> ModelError:
    return ModelError(
        f"{place.name} needs code that comes with it (auto_map in its config.json): read that code, and pass "
        "trust_remote_code=True if you trust it (`inheritune inherit`: --trust-remote-code; no other command runs it)"
    )


@contextmanager
def untrusted_code(place: Place) -> Iterator[None]:
    """Say which option runs the code that a model or tokenizer needs, where it is missing."""
    try:
        yield
    except ModelError as error:
        if "trust_remote_code" in str(error.__cause__):
            raise _needs_code(place) from error.__cause__
        raise


@contextmanager
def _weight_errors(place: Place) -> Iterator[None]:
    """Turn what goes wrong with weights into one line that names the damaged file, which the libraries do not."""
    from transformers import GenerationConfig

    def check() -> None:
        if place.repository is None or any((place.folder / name).exists() for name in WEIGHTS):
            read_folder(place.folder)
        generation = place.folder / "generation_config.json"
        if generation.exists():
            with library_errors(f"{generation} is wrong"):
                GenerationConfig.from_dict(read_object(generation))

    with library_errors(f"cannot load the weights in {place.name}", check):
        try:
            yield
        except RuntimeError as error:
            if "above report" in str(error):  # of tensors that could not be brought to the model's layout
                raise ValueError("they do not fit its config.json") from error
            raise


def _register_own_code(config: Any, place: Place) -> None:
    """Let transformers build models of a configuration whose code the user trusts, without asking again."""
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    code = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if code is None or type(config).__module__.startswith("transformers.models."):
        return
    own = {key: value for key, value in place.arguments(True).items() if key != "trust_remote_code"}
    with library_errors(f"the code {code} of {place.name} cannot be used"):
        own_class = get_class_from_dynamic_module(code, place.address, **own)
        AutoModelForCausalLM.register(type(config), own_class, exist_ok=True)


def _check_is_decoder(config: Any, place: Place, trust_remote_code: bool) -> None:
    """Refuse what transformers builds no causal language model for, or what was saved with another head.

    Names of classes that transformers does not know (a wrapper's, as in FSDPLlamaForCausalLM) are no reason: it goes by
    the `model_type`.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind, names = getattr(config, "model_type", "?"), config.architectures or []
    known = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{place.name} is an encoder-decoder ({kind}): expected a decoder-only language model")
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}) and (trust_remote_code or not known):
        if not trust_remote_code:
            raise _needs_code(place)
    elif not known or (names and not any(map(_LANGUAGE_MODEL.search, names))):
        described = ", ".join(names) or kind
        raise ModelError(
            f"{place.name} is not a decoder language model ({described}): expected a ...ForCausalLM checkpoint"
        )


TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")
"""One of these holds the tokens."""

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")


class NoTokenizerError(ModelError):
    """There is a model but no tokenizer beside it; one that is there and damaged is another ModelError."""


def load_tokenizer(
    source: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model, or one whose folder or `tokenizer.json` file `source` is; see `load_config`.

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
