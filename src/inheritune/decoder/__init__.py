"""One view of any Hugging Face decoder: where its blocks, embeddings, final norm and head are, and how to load it."""

from inheritune.decoder.loading import NoTokenizerError, load_config, load_model, load_tokenizer, save_model
from inheritune.decoder.view import Decoder, check_finite, compute_buffers, count_parameters, evaluating, open_decoder

__all__ = [
    "Decoder",
    "NoTokenizerError",
    "check_finite",
    "compute_buffers",
    "count_parameters",
    "evaluating",
    "load_config",
    "load_model",
    "load_tokenizer",
    "open_decoder",
    "save_model",
]
