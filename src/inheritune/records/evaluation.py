"""What is measured of trained models: loss, the paired comparison, speed, tasks."""

from inheritune.records.base import Document, Environment, Record


class LossSummary(Record):
    """The loss of a model on fixed windows; the losses of single windows are in a file of their own."""

    loss: float  # mean cross-entropy, nats a token
    standard_error: float | None = None  # over documents, or windows where they are not known; None for a single one
    perplexity: float | None = None  # None where a float64 cannot hold it
    windows: int
    clusters: int | None = None
    """Documents that the windows are of; None where windows were taken as independent, as they were to version 0.2."""
    length: int  # predicted tokens of a window
    tokens: int
    data: str


class Comparison(Record):
    """What the paired test says of a target and its reference on the same windows; losses in nats a token."""

    difference: float  # mean of target minus reference; below zero the target is better
    ci_low: float
    ci_high: float
    confidence: float  # the level of the two-sided interval of `difference`
    p_value: float  # of the two-sided paired t test that the difference is zero
    windows: int
    clusters: int | None = None  # as of `LossSummary`
    freedom: float | None = None  # degrees of freedom of the interval; None in files of version 0.2
    margin: float  # by how much the target may be worse and still match
    matches: bool  # whether `ci_high <= margin`


class Speed(Record):
    """How fast a model generates, and what it keeps in memory."""

    generate_tokens_per_second: float  # of the whole batch, after each prompt's first new token
    prefill_tokens_per_second: float  # prompt tokens of the whole batch by the time to the first new token
    parameters: int  # tied ones once
    parameter_bytes: int
    kv_cache_bytes_per_token: float
    """Of one sequence, averaged over the prompt: layers with a sliding window keep less than one entry a token."""
    batch: int
    prompt_length: int
    new_tokens: int
    repeats: int
    device: str
    threads: int
    dtype: str | None = None


class SpeedRatio(Record):
    """How many times as fast as the reference a target generates, measured in turns."""

    ratio: float  # geometric mean over the turns of target's over reference's generated tokens a second
    ci_low: float
    ci_high: float
    confidence: float
    turns: int


class TaskResult(Record):
    """One metric of one task of the evaluation harness."""

    task: str
    metric: str
    value: float | None = None  # None where the harness computes none
    standard_error: float | None = None
    shots: int | None = None
    samples: int | None = None


class TaskResults(Record):
    """Results of the evaluation harness."""

    harness: str
    limit: int | None = None
    results: tuple[TaskResult, ...]


class Evaluated(Record):
    """One model of an evaluation."""

    model: str
    layers: int
    parameters: int
    evaluation: LossSummary
    speed: Speed | None = None
    tasks: TaskResults | None = None
    identity: str | None = None  # the digest of what the model is, wherever it lies


class EvaluatedData(Record):
    """What models were evaluated on."""

    source: str
    windows_sha256: str


class EvaluationSettings(Record):
    """How models were evaluated."""

    length: int | None = None
    windows: int | None = None
    batch: int
    margin: float
    confidence: float


class EvaluationRecord(Document, Evaluated):
    """`evaluation.json`."""

    KIND = "evaluate"

    against: Evaluated | None = None
    comparison: Comparison | None = None
    speed_ratio: SpeedRatio | None = None
    data: EvaluatedData
    settings: EvaluationSettings
    environment: Environment = Environment()
    created: str = ""
