"""Sources of text -> tokens -> memory-mapped shards -> batches."""

from inheritune.data.prepare import prepare as prepare
from inheritune.data.shards import Shards as Shards
from inheritune.data.shards import open_shards as open_shards
from inheritune.data.sources import Document as Document
from inheritune.data.sources import read_documents as read_documents
from inheritune.data.tokenizer import document_mark as document_mark
from inheritune.data.tokenizer import train_tokenizer as train_tokenizer
from inheritune.data.windows import TrainingWindows as TrainingWindows
from inheritune.data.windows import draw_windows as draw_windows
from inheritune.data.windows import read_tokens as read_tokens
from inheritune.data.windows import sample_windows as sample_windows
from inheritune.data.windows import tuning_windows as tuning_windows
from inheritune.data.windows import validation_windows as validation_windows
from inheritune.data.windows import window_documents as window_documents
