"""One view of any Hugging Face decoder: where its blocks, embeddings, final norm and head are, and how to load it."""

from inheritune.decoder.loading import NoTokenizerError as NoTokenizerError
from inheritune.decoder.loading import load_config as load_config
from inheritune.decoder.loading import load_model as load_model
from inheritune.decoder.loading import load_tokenizer as load_tokenizer
from inheritune.decoder.loading import save_model as save_model
from inheritune.decoder.view import Decoder as Decoder
from inheritune.decoder.view import check_finite as check_finite
from inheritune.decoder.view import compute_buffers as compute_buffers
from inheritune.decoder.view import count_parameters as count_parameters
from inheritune.decoder.view import evaluating as evaluating
from inheritune.decoder.view import open_decoder as open_decoder
