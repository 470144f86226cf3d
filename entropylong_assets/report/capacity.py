"""The capacity plan: GPU hours, storage, index and cost of a run of any size. Pure arithmetic.

Each rate is either measured, and quotes the words of benchmarks/RESULTS.md that report it, or
labelled as assumed. `capacity_text.py` writes the plan as Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from entropylong_assets.report.verification_costs import (
    HOUR,
    PUBLISHED,
    PlanRate,
    Rates,
    Screen,
    candidate_hours,
    contexts,
    of_candidates,
    of_controls,
    of_roots_alone,
)

DISTINCT = PlanRate(
    31_762 / 58_869,
    "per pair",
    "distinct (root, chunk): anchors of a root nominate the same chunks",
    "58,869 scored pairs were 31,762 distinct",
)
EXACT_SEARCH = PlanRate(22.8e12, "FLOP/s", "exact search on an H100", "22.8 TFLOP/s")
CALIBRATED_SHARE = PlanRate(
    4_322 / 5_589,
    "per pair",
    "accepted by the calibrated rule of those that the plain one accepts",
    "4,322 of 5,589 pairs",
)
CHARS = PlanRate(4.0, "characters", "a token of English text")
PARQUET = PlanRate(0.4, "of its size", "text in Parquet under zstd")
PARALLEL = PlanRate(1.0, "", "share of its speed that a GPU keeps beside others")

Embedder = Literal["minilm", "jina-v3"]
Index = Literal["ivf_flat", "ivf_sq", "ivf_rq"]


@dataclass(frozen=True)
class EncoderRate:
    """Rate of an embedder. dimension: of its vectors. tokens: per chunk, when it was measured."""

    rate: PlanRate
    dimension: int
    tokens: int


ENCODERS: dict[str, EncoderRate] = {
    "minilm": EncoderRate(
        PlanRate(47_600, "chunks/s", "all-MiniLM-L6-v2's shape on an H100", "47,600 chunks/s"),
        384,
        256,
    ),
    "jina-v3": EncoderRate(
        PlanRate(1_549, "chunks/s", "jina-embeddings-v3's shape on an H100", "1,549 chunks/s"),
        1024,
        512,
    ),
}


class PlanError(ValueError):
    """A value of the workload is wrong. The message is one line and names it."""


class Workload(BaseModel):
    """The size of a run. Defaults: the paper's figures on FineWeb-Edu."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    chunks: int = Field(1_000_000_000, ge=1)
    """Chunks of the pool. The paper: over 1 billion documents."""
    roots: int = Field(100_000, ge=1)
    """Roots. The paper: 100,000."""
    sample_tokens: int = Field(4_000_000_000, ge=1)
    """Tokens of all samples. The paper: 4 billion. Not derived from `roots`: give both. Roots and
    the contexts of their dependencies are 3.7 billion tokens with the values below."""
    anchors: float = Field(292, gt=0)
    """Anchors per root. The paper: 292 at α = 2.0."""
    top_k: int = Field(32, ge=1)
    """Candidates per anchor. A review of the paper: 32. Our default: 8."""
    dependencies: float = Field(46, gt=0)
    """Verified dependencies per root under the plain rule. The paper: 46 at ε = 0.4."""
    root_tokens: int = Field(13_000, ge=2)
    """Length of a root (tokens). The paper gives none: its counts of anchors at three α (83, 292,
    913) are the tail of a normal distribution over 13,000 positions."""
    chunk_tokens: int = Field(512, ge=1)
    """Mean length of a chunk (tokens). The authors' chunker: up to 2,048 characters."""
    controls: int = Field(2, ge=0)
    """Control contexts per root; our default."""
    chunks_per_document: float = Field(5, gt=0)
    """Chunks per document. Assumed."""
    shard_rows: int = Field(200_000, ge=1)
    """Documents per shard; our default."""
    embedder: Embedder = "jina-v3"
    """Shape of the embedder: `minilm` (384 dimensions) or `jina-v3` (1,024)."""
    index: Index = "ivf_rq"
    """Type of the vector index: `ivf_flat`, `ivf_sq` or `ivf_rq`."""


def workload_of(figures: Sequence[str]) -> Workload:
    """Return the default workload with these figures, each `name=value`. Raises PlanError."""
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
    """Rates of an index over vectors of 384 dimensions, on two cores, at a recall of 0.95."""

    rows: int
    build_seconds: float
    bytes_per_dimension: float
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
LOOKUP_BYTES = PlanRate(24, "bytes per chunk", "lookup index of chunk_id", "24 MB")
PAIR_BYTES = PlanRate(
    60, "bytes per pair", "rows of `pairs` and `candidates` in Parquet", "60 bytes per pair"
)
CONTEXT_BYTES = PlanRate(
    2.83,
    "bytes per token",
    "text and token ids of nominated chunks in Parquet",
    "2.83 bytes per token",
)
EXPORT_BYTES = PlanRate(4, "bytes per token", "an export as MDS or Megatron", "token ids")


@dataclass(frozen=True)
class Plan:
    """Resources that a workload needs. GPU hours are of one H100."""

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
    rates: Rates = PUBLISHED

    @property
    def total_gpu_hours(self) -> float:
        return sum(self.gpu_hours.values())

    def screened_gpu_hours(self, screen: Screen) -> float | None:
        """GPU hours of all stages with a screen; None if its rate was not measured."""
        screened = candidate_hours(self.workload, DISTINCT.value, screen, self.rates)
        if screened is None:
            return None
        exact = of_candidates(self.workload, DISTINCT.value, "none").hours(self.rates.scoring)
        return self.total_gpu_hours - exact + screened

    def hours_per_million(self, dependencies: float) -> float:
        """GPU hours per million dependencies."""
        return self.total_gpu_hours / (dependencies / 1e6)

    def wall_days(self, gpus: int) -> float:
        """Days, if the GPUs never wait for one another or for anything else (assumed)."""
        return self.total_gpu_hours / (gpus * PARALLEL.value) / 24


def plan_capacity(work: Workload, rates: Rates = PUBLISHED) -> Plan:
    """Compute the plan of a workload from the rates above and those of scoring."""
    encoder, index = ENCODERS[work.embedder], INDEXES[work.index]
    pairs = work.roots * work.anchors * work.top_k
    passes = contexts(work, DISTINCT.value)
    candidates = of_candidates(work, DISTINCT.value, "none")
    controls, alone = of_controls(work), of_roots_alone(work)
    size = work.chunks / index.rows
    queries = work.roots * work.anchors
    # Assumes that the embedder's work is proportional to tokens, and ignores that of attention.
    embedded = work.chunks * work.chunk_tokens / encoder.tokens
    text = work.chunks * work.chunk_tokens * CHARS.value
    vector = 4.0 * encoder.dimension
    documents = work.chunks / work.chunks_per_document
    return Plan(
        workload=work,
        pairs=pairs,
        rates=rates,
        passes=passes + work.roots * (work.controls + 1),
        forward_tokens=(candidates + controls + alone).tokens,
        gpu_hours={
            "embedding": embedded / encoder.rate.value / HOUR,
            "entropy": alone.hours(rates.scoring),
            "verification": (candidates + controls).hours(rates.scoring),
        },
        exact_search_hours=queries
        * work.chunks
        * 2
        * encoder.dimension
        / EXACT_SEARCH.value
        / HOUR,
        # With √n partitions, assigning a vector takes √n products, and a query scans lists of √n.
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
            * (index.bytes_more + index.bytes_per_dimension * encoder.dimension),
            "lookup index": work.chunks * LOOKUP_BYTES.value,
            "pairs and candidates (Parquet)": pairs * PAIR_BYTES.value,
            # An upper bound: chunks that several roots of a shard nominate are stored once.
            "nominated chunks (Parquet)": passes * work.chunk_tokens * CONTEXT_BYTES.value,
            "samples and one export": 2 * work.sample_tokens * EXPORT_BYTES.value,
        },
        documents=documents,
        shards=-(-round(documents) // work.shard_rows),
        samples=work.sample_tokens / 131_072,
        dependencies_plain=work.roots * work.dependencies,
        dependencies_calibrated=work.roots * work.dependencies * CALIBRATED_SHARE.value,
    )
