"""What a run of any size takes: GPU hours, storage, index, and its cost. Pure arithmetic.

Rates are measured ones, each with the words by which benchmarks/RESULTS.md tells of it, or assumed,
and then called so. `capacity_text.py` puts the plan into words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

HOUR = 3600.0


@dataclass(frozen=True)
class Rate:
    """A number that the plan rests on. source: words of RESULTS.md; empty: assumed."""

    value: float
    unit: str
    meaning: str
    source: str = ""


SCORING = Rate(45_300, "tokens/s", "scoring, Llama-3-8B's shape on an H100", "45.3k tokens/s")
SCREEN = Rate(1.38, "times", "the FP8 screen over the exact pass", "1.38 |")
DISTINCT = Rate(
    31_762 / 58_869,
    "a pair",
    "distinct (root, chunk): anchors of a root nominate the same chunks",
    "58,869 scored pairs were 31,762 distinct",
)
EXACT_SEARCH = Rate(22.8e12, "FLOP/s", "exact search on an H100", "22.8 TFLOP/s")
CALIBRATED_SHARE = Rate(
    4_322 / 5_589,
    "a pair",
    "accepted by the calibrated rule of those that the plain one accepts",
    "4,322 of 5,589 pairs",
)
CUT = Rate(2 / 3, "of a root", "scored behind a context: up to its last anchor that needs it")
CHARS = Rate(4.0, "characters", "a token of English text")
PARQUET = Rate(0.4, "of its size", "text in Parquet under zstd")
PARALLEL = Rate(1.0, "", "share of its speed that a GPU keeps beside others")

Embedder = Literal["minilm", "jina-v3"]
Index = Literal["ivf_flat", "ivf_sq", "ivf_rq"]


@dataclass(frozen=True)
class EncoderRate:
    """dimension of its vectors; tokens a chunk at which the rate was measured."""

    rate: Rate
    dimension: int
    tokens: int


ENCODERS: dict[str, EncoderRate] = {
    "minilm": EncoderRate(
        Rate(47_600, "chunks/s", "all-MiniLM-L6-v2's shape on an H100", "47,600 chunks/s"), 384, 256
    ),
    "jina-v3": EncoderRate(
        Rate(1_549, "chunks/s", "jina-embeddings-v3's shape on an H100", "1,549 chunks/s"),
        1024,
        512,
    ),
}


class PlanError(ValueError):
    """A figure of the workload is wrong. The message is one line and names it."""


class Workload(BaseModel):
    """What is to be made. Defaults: the paper's figures on FineWeb-Edu."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    chunks: int = Field(1_000_000_000, ge=1)
    """Chunks of the pool. The paper: over 1 billion documents."""
    roots: int = Field(100_000, ge=1)
    """Roots. The paper: 100,000."""
    sample_tokens: int = Field(4_000_000_000, ge=1)
    """Tokens of all samples. The paper: 4 billion. Does not follow `roots`: give both."""
    anchors: float = Field(292, gt=0)
    """Anchors a root. The paper: 292 at α = 2.0."""
    top_k: int = Field(8, ge=1)
    """Candidates an anchor. Not in our sources; our default."""
    dependencies: float = Field(46, gt=0)
    """Verified dependencies a root under the plain rule. The paper: 46 at ε = 0.4."""
    root_tokens: int = Field(4096, ge=2)
    """Mean length of a root (tokens). Assumed: our longest; the paper does not tell."""
    chunk_tokens: int = Field(512, ge=1)
    """Mean length of a chunk (tokens). The group's chunker: up to 2,048 characters."""
    controls: int = Field(2, ge=0)
    """Control contexts a root; our default."""
    chunks_a_document: float = Field(5, gt=0)
    """Assumed."""
    shard_rows: int = Field(200_000, ge=1)
    """Documents a shard; our default."""
    embedder: Embedder = "jina-v3"
    """Shape of the embedder: `minilm` (384 dimensions) or `jina-v3` (1,024)."""
    index: Index = "ivf_rq"
    """Type of the vector index: `ivf_flat`, `ivf_sq` or `ivf_rq`."""


def workload_of(figures: Sequence[str]) -> Workload:
    """The workload with these figures, each `name=value`, in the place of the defaults.

    Raises PlanError.
    """
    values = {}
    for figure in figures:
        name, equals, value = figure.partition("=")
        if not equals or name not in Workload.model_fields:
            known = ", ".join(Workload.model_fields)
            raise PlanError(f"'{figure}' is no figure; write name=value with a name of: {known}")
        values[name] = value.replace("_", "").replace(",", "") if value[:1].isdigit() else value
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise PlanError(f"{name}={values[name]}: {first['msg']}") from None


@dataclass(frozen=True)
class IndexRate:
    """Of an index over so many vectors of 384 dimensions, on two cores, at a recall of 0.95."""

    rows: int
    build_seconds: float
    bytes_a_dimension: float
    bytes_more: float
    queries_per_second: float
    source: str


INDEXES: dict[str, IndexRate] = {
    "ivf_flat": IndexRate(1_000_000, 48.2, 4.0, 4, 934, "| 1,000,000 | `ivf_flat` | 48.2 |"),
    "ivf_sq": IndexRate(
        1_000_000, 35.7, 1.0, 4, 1660, "| 1,000,000 | `ivf_sq`, under load | 35.7 |"
    ),
    "ivf_rq": IndexRate(
        1_000_000, 87.1, 0.125, 17, 374, "| 1,000,000 | `ivf_rq`, under load | 87.1 |"
    ),
}

MEASURED_CORES = 2
LOOKUP_BYTES = Rate(24, "bytes a chunk", "lookup index of chunk_id", "24 MB")
PAIR_BYTES = Rate(
    60, "bytes a pair", "rows of `pairs` and `candidates` in Parquet", "60 bytes a pair"
)
CONTEXT_BYTES = Rate(
    2.83,
    "bytes a token",
    "text and token ids of nominated chunks in Parquet",
    "2.83 bytes a token",
)
EXPORT_BYTES = Rate(4, "bytes a token", "an export as MDS or Megatron", "token ids")


def verification_tokens(
    roots: float,
    pairs: float,
    distinct: float,
    context_tokens: float,
    root_tokens: float,
    controls: int,
) -> tuple[float, float]:
    """Forward tokens behind candidates, and behind controls and of roots alone.

    pairs: (anchor, chunk) of all roots; `distinct` of them are passes of their own. Each pass is
    the context and `CUT` of the root; a control needs the whole root.
    """
    behind = pairs * distinct * (context_tokens + CUT.value * root_tokens)
    return behind, roots * (controls * (context_tokens + root_tokens) + root_tokens)


@dataclass(frozen=True)
class Plan:
    """GPU hours are of one GPU as it was measured; bytes are plain bytes."""

    workload: Workload
    pairs: float
    passes: float
    forward_tokens: float
    gpu_hours: dict[str, float] = field(default_factory=dict)
    exact_search_hours: float = 0.0
    index_search_core_hours: float = 0.0
    index_build_core_hours: float = 0.0
    storage: dict[str, float] = field(default_factory=dict)
    documents: float = 0.0
    shards: int = 0
    samples: float = 0.0
    dependencies_plain: float = 0.0
    dependencies_calibrated: float = 0.0

    @property
    def total_gpu_hours(self) -> float:
        return sum(self.gpu_hours.values())

    @property
    def screened_gpu_hours(self) -> float:
        """With candidates screened in FP8 first, which is an approximation."""
        verification = self.gpu_hours["verification"]
        return self.total_gpu_hours - verification + verification / SCREEN.value

    def hours_a_million(self, dependencies: float) -> float:
        """GPU hours for a million of them."""
        return self.total_gpu_hours / (dependencies / 1e6)

    def wall_days(self, gpus: int) -> float:
        """Days, where the GPUs never wait for one another or for anything else (assumed)."""
        return self.total_gpu_hours / (gpus * PARALLEL.value) / 24


def plan_capacity(work: Workload) -> Plan:
    """The plan of a workload; its rates are those above."""
    encoder, index = ENCODERS[work.embedder], INDEXES[work.index]
    pairs = work.roots * work.anchors * work.top_k
    behind, rest = verification_tokens(
        work.roots, pairs, DISTINCT.value, work.chunk_tokens, work.root_tokens, work.controls
    )
    alone = work.roots * work.root_tokens
    size = work.chunks / index.rows
    queries = work.roots * work.anchors
    # The encoder's work goes by tokens; its attention's share over a chunk's length is left out.
    embedded = work.chunks * work.chunk_tokens / encoder.tokens
    text = work.chunks * work.chunk_tokens * CHARS.value
    vector = 4.0 * encoder.dimension
    documents = work.chunks / work.chunks_a_document
    return Plan(
        workload=work,
        pairs=pairs,
        passes=pairs * DISTINCT.value + work.roots * (work.controls + 1),
        forward_tokens=behind + rest,
        gpu_hours={
            "embedding": embedded / encoder.rate.value / HOUR,
            "entropy": alone / SCORING.value / HOUR,
            "verification": (behind + rest - alone) / SCORING.value / HOUR,
        },
        exact_search_hours=queries
        * work.chunks
        * 2
        * encoder.dimension
        / EXACT_SEARCH.value
        / HOUR,
        # √n partitions: to assign a vector takes √n products, and a query looks at lists of √n.
        index_build_core_hours=index.build_seconds
        * size**1.5
        * (encoder.dimension / 384)
        * MEASURED_CORES
        / HOUR,
        index_search_core_hours=queries
        / index.queries_per_second
        * size**0.5
        * MEASURED_CORES
        / HOUR,
        storage={
            "documents (Parquet)": text * PARQUET.value,
            "text of chunks (LanceDB)": text,
            "vectors (LanceDB)": work.chunks * vector,
            f"index ({work.index})": work.chunks
            * (index.bytes_more + index.bytes_a_dimension * encoder.dimension),
            "lookup index": work.chunks * LOOKUP_BYTES.value,
            "pairs and candidates (Parquet)": pairs * PAIR_BYTES.value,
            # At most: chunks that several roots of a shard nominate are kept once.
            "nominated chunks (Parquet)": pairs
            * DISTINCT.value
            * work.chunk_tokens
            * CONTEXT_BYTES.value,
            "samples and one export": 2 * work.sample_tokens * EXPORT_BYTES.value,
        },
        documents=documents,
        shards=-(-round(documents) // work.shard_rows),
        samples=work.sample_tokens / 131_072,
        dependencies_plain=work.roots * work.dependencies,
        dependencies_calibrated=work.roots * work.dependencies * CALIBRATED_SHARE.value,
    )
