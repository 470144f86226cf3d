"""Every knob of the pipeline, typed once, with its unit and its source.

Settings are laid in three layers, the later winning: the defaults below, a named profile
(`profiles.py`), and a YAML file of the user's. `load_settings` reads the last two. The same
fields appear in the launchpad of the Dagster UI (`automation/resources.py`).

"The paper" is Jia et al., EntropyLong, ICLR 2026 (arXiv 2510.02330);
docs/defaults.md names the measurements behind our own defaults.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from entropylong_assets.settings.profiles import PROFILES
from entropylong_assets.storage.object_storage import CREDENTIALS, holds_credentials


class SettingsError(ValueError):
    """A setting that a person wrote is wrong. The message is one line and names the field."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _no_credentials(uri: str) -> str:
    if holds_credentials(uri):
        # A type of its own, by which `_one_line` knows not to repeat what was given.
        raise PydanticCustomError("credentials", CREDENTIALS)
    return uri


class SourceSettings(_Settings):
    """One source of documents."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")
    """Prefix of the shard keys, `<name>-<nnnnn>`: lower-case letters, digits, `_`, `.`, `-`."""
    kind: Literal["auto", "parquet", "jsonl", "csv", "text", "python_docs"] = "auto"
    """Format of the files; `auto` goes by their names."""
    uri: str = ""
    """Glob on any fsspec URI, e.g. `corpus/*.jsonl.zst` or `hf://datasets/<id>/**/*.parquet`;
    for `python_docs` a comma-separated list of package names."""
    text_field: str = "text"
    """Column or key that holds the text."""
    id_field: str | None = None
    """Column or key that holds the source's own id; none: the row number."""
    license: str = "unknown"
    """Licence of the texts, as the source gives it. Written to the data card."""
    root_fraction: float | None = Field(None, ge=0, le=1)
    """Share of this source's documents that may become roots; none: the corpus' setting."""

    _uri_without_credentials = field_validator("uri")(_no_credentials)

    @model_validator(mode="after")
    def _has_uri(self) -> SourceSettings:
        if not self.uri:
            raise ValueError(f"source '{self.name}' needs a uri")
        return self


class CorpusSettings(_Settings):
    """`corpus_documents`: which texts come in, and which of them are roots."""

    sources: tuple[SourceSettings, ...] = ()
    """The sources, in the order in which their shards are registered."""
    shard_rows: int = Field(200_000, ge=1)
    """Most rows of a source file in one shard (one partition)."""
    on_bad_row: Literal["fail", "skip"] = "fail"
    """`fail`: the first bad row ends the shard; `skip`: bad rows are listed, good ones go on."""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """Under `skip`: a shard with a larger share of bad rows is held back by its check."""
    min_chars: int = Field(200, ge=1)
    """Shorter documents are dropped (characters)."""
    max_chars: int = Field(2_000_000, ge=1)
    """Longer documents are dropped (characters)."""
    root_fraction: float = Field(0.0001, ge=0, le=1)
    """Share of eligible documents that become roots. The paper: 100K of over 1B."""
    root_min_tokens: int = Field(256, ge=2)
    """Shortest root (tokens of the scoring model)."""
    root_max_tokens: int = Field(4096, ge=2)
    """Longest root (tokens). Longer documents stay in the pool but are no roots."""

    @model_validator(mode="after")
    def _ranges(self) -> CorpusSettings:
        if self.min_chars > self.max_chars:
            raise ValueError("min_chars must not exceed max_chars")
        if self.root_min_tokens > self.root_max_tokens:
            raise ValueError("root_min_tokens must not exceed root_max_tokens")
        names = [source.name for source in self.sources]
        if len(set(names)) != len(names):
            raise ValueError("two sources have the same name")
        return self


class EmbeddingSettings(_Settings):
    """`chunk_embeddings` and `embedding_index`."""

    model: str = "sentence-transformers/all-MiniLM-L6-v2"
    """Sentence transformer: hub id, folder, or `pkg://<package>/<folder>`."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off: a model that needs it is refused."""
    chunk_tokens: int | None = Field(None, ge=16)
    """Longest chunk (tokens of the embedder, special tokens included); none: its whole window."""
    min_chunk_chars: int = Field(64, ge=1)
    """A shorter last piece of a document joins the piece before it where that fits."""
    batch_size: int = Field(64, ge=1)
    """Texts embedded at once."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    search: Literal["auto", "index", "exact"] = "auto"
    """`exact`: every vector is compared, in blocks, on `device`; practical up to some 10 million
    chunks. `index`: an index nominates. `auto`: exact below `ann_min_rows`, else by index."""
    ann_min_rows: int = Field(100_000, ge=256)
    """Chunks from which on `auto` builds an index."""
    index: Literal["ivf_flat", "ivf_sq", "ivf_rq"] = "ivf_flat"
    """What the index holds of each vector: all of it, a byte a dimension, or about a bit a
    dimension: for tables of which no more fits. The vectors themselves stay in the table."""
    target_recall: float = Field(0.95, gt=0, le=1)
    """Recall@K against exact search that probes and refine factor of the index are raised to
    reach."""
    recall_queries: int = Field(100, ge=1)
    """Rows of the table used as queries to measure recall@K."""


class ScoringModelSettings(_Settings):
    """The causal language model M whose uncertainty is measured."""

    model: str = "HuggingFaceTB/SmolLM2-135M"
    """Hub id, folder, GGUF file, or `pkg://<package>/<file or folder>`."""
    trust_remote_code: bool = False
    """Run Python code that the model's repository ships. Off: a model that needs it is refused."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of weights and activations; `auto`: bfloat16 on CUDA, float32 elsewhere. Entropies are
    always reduced in float32."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin every scored sequence and every sample with the BOS token; `auto`: as the model's
    tokenizer does."""
    separator: str = "\n\n"
    """Text put after every context and every root, when scored and when packed."""
    max_forward_tokens: int = Field(8192, ge=16)
    """Longest sequence that is scored (tokens), where the model takes as many."""
    pack_tokens: int | None = Field(None, ge=16)
    """Tokens of all sequences that share a forward pass; none: by the device. More fills a larger
    device better and takes more of its memory."""
    max_contexts_per_root: int | None = Field(None, ge=1)
    """A root that has so many accepted contexts tries no further candidates; none: it tries all.
    Candidates come by the number of anchors that nominate them, then similarity, then rank."""
    max_forward_tokens_per_root: int | None = Field(None, ge=1)
    """Most tokens that a root's candidates and controls may take in forward passes; none: as
    many as there are. Later candidates are not tried."""
    screen: Literal["off", "bfloat16", "fp8"] = "off"
    """Approximate: score all contexts in this cheaper arithmetic, and exactly only a sample and
    those whose verdict could turn. `fp8` needs a CUDA device of compute capability 8.9 or later."""


class EntropySettings(_Settings):
    """`entropy_scores`: high-entropy positions (paper, section 3.1)."""

    alpha: float = Field(2.0, allow_inf_nan=False)
    """τ = μ + α·σ of the root's entropies. The paper: 2.0."""
    min_anchor_position: int = Field(32, ge=0)
    """Positions before this are no anchors: there any prefix helps a cold model (tokens)."""


class RetrievalSettings(_Settings):
    """`candidate_contexts`: nominating contexts for anchors (paper, section 3.2)."""

    half_window: int = Field(16, ge=0)
    """Query of anchor t: the text of tokens t-w .. t+w. The paper: 16."""
    top_k: int = Field(8, ge=1)
    """Candidates an anchor. K is not in our sources."""
    leak_ngram_words: int = Field(8, ge=1)
    """Words in the n-grams of the leak guard."""
    max_containment: float = Field(0.2, gt=0, le=1)
    """A candidate with at least this share of its word n-grams in the root is refused as a copy."""


class VerificationSettings(_Settings):
    """`verified_dependencies`: which candidates do lower the entropy (paper, section 3.3)."""

    rule: Literal["plain", "calibrated"] = "calibrated"
    """`plain`: ΔI > ε, as published. `calibrated`: ΔI* > ε, against control contexts."""
    epsilon: float = Field(0.4, allow_inf_nan=False, lt=1)
    """Least gain of an accepted context, as a share of the anchor's entropy. The paper: 0.4."""
    controls: int = Field(2, ge=0, le=32)
    """Control contexts a root: random chunks of other documents, one forward pass each."""
    require_surprisal_drop: bool = True
    """Also refuse a context behind which the true token became less likely (`calibrated` only)."""
    max_false_acceptance: float = Field(0.02, ge=0, le=1)
    """A shard warns when more than this share of (anchor, control) pairs passes the rule."""

    @model_validator(mode="after")
    def _has_controls(self) -> VerificationSettings:
        if self.rule == "calibrated" and self.controls < 2:
            raise ValueError(
                "controls must be at least 2 with rule 'calibrated' (one is held out in turn)"
            )
        return self


RecipeName = Literal[
    "entropylong", "calibrated", "no_verify", "random", "quest", "nextlong", "policylong"
]


class SampleSettings(_Settings):
    """`long_context_samples`: order and packing (paper, section 3.4)."""

    tokens: int = Field(131_072, ge=16)
    """Exact length of a sample (tokens). The paper: 131,072."""
    order: Literal["shuffle", "sequence"] = "shuffle"
    """Order of a root's contexts: random, or by the position of the anchor they serve."""
    layout: Literal["grouped", "interleaved"] = "grouped"
    """`grouped`: each root after its own contexts. `interleaved`: all contexts of the sample's
    roots first, then the roots, so that dependencies span the window."""
    fill: Literal["verified_only", "hard_negatives"] = "hard_negatives"
    """What stands between verified contexts: nothing (the rest of the sample is padding, masked
    from the loss), or candidates of the same roots that failed verification."""
    recipe: RecipeName | None = None
    """How a root's contexts are chosen (`samples/recipes.py`), out of as many tokens as the rule
    in force verified for that root; none: just what that rule verified."""
    meta_chunk_tokens: int = Field(256, ge=1)
    """Longest piece that recipe `nextlong` cuts a root into (tokens)."""


class ExportSettings(_Settings):
    """`training_dataset`: files that trainers load."""

    formats: tuple[Literal["mds", "parquet", "megatron"], ...] = ("mds", "parquet")
    """`mds`: MosaicML Streaming, as ProLong's trainer reads it. `parquet`: Hugging Face datasets.
    `megatron`: Megatron-LM's indexed dataset (.bin and .idx)."""
    destination: str = ""
    """Folder or URI under which each export gets a folder of its own; empty:
    `<data_uri>/exports`."""
    validation_fraction: float = Field(0.01, ge=0, le=0.5)
    """Share of samples held out, at most: samples that share a document stay on one side."""
    max_left_out: float = Field(0.0, ge=0, le=0.5)
    """Share of samples that may be left out of both sides because they share documents with
    both; 0: less is held out instead, on a large corpus perhaps nothing."""
    file_bytes: int = Field(67_108_864, ge=1024, lt=2**31)
    """Most bytes of one MDS shard, and of the token ids in one Parquet file (bytes)."""
    position_weighted: bool = False
    """Add to MDS a weight for each token, `anchor_weight` at anchors and 1 elsewhere."""
    anchor_weight: float = Field(2.0, gt=0, allow_inf_nan=False)
    """Weight of anchors under `position_weighted`."""

    _destination_without_credentials = field_validator("destination")(_no_credentials)

    @field_validator("formats")
    @classmethod
    def _formats_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value):
            raise ValueError("name at least one format, each once")
        return value


class AuditSettings(_Settings):
    """`null_calibration`, `cross_model_audit` and `long_range_audit`: proof on a sample."""

    roots: int = Field(16, ge=1)
    """Most roots of a shard that are audited, chosen by hash."""
    controls: int = Field(2, ge=1, le=32)
    """Held-out controls of each kind a root."""
    wished_false_acceptance: float = Field(0.05, ge=0, lt=1)
    """Rate of random contexts for which `null_calibration` gives the ε that holds it."""
    pairs: int = Field(64, ge=1)
    """Most pairs of a shard that `cross_model_audit` scores of each kind: accepted by both rules,
    by the plain one alone, by neither."""
    model: str = ""
    """Second scoring model, of another family, of `cross_model_audit`; empty: no such audit."""
    recipes: tuple[RecipeName, ...] = get_args(RecipeName)
    """Recipes that `long_range_audit` compares."""
    short_tokens: int = Field(4096, ge=16)
    """Short window of LongPPL's key tokens, never less than the root (tokens)."""
    segment_tokens: int = Field(64, ge=2)
    """Length of the segments of the dependency score (tokens)."""
    segment_pairs: int = Field(4, ge=0)
    """Pairs of segments a window for the dependency score."""


class StepResources(_Settings):
    """What one step of an asset asks of a cluster's node, and is alone in having there."""

    num_cpus: float = Field(1.0, gt=0, allow_inf_nan=False)
    """CPU cores; the models' threads are set to as many."""
    num_gpus: float = Field(0.0, ge=0, allow_inf_nan=False)
    """GPUs; on Ray a part of one too, for steps that share it. With 0 a step sees none."""
    memory: ByteSize | None = None
    """Main memory, e.g. `16GiB`; none: whatever the node has."""

    @field_validator("num_gpus")
    @classmethod
    def _whole_or_part(cls, value: float) -> float:
        if value > 1 and value != int(value):
            raise ValueError("must be a part of one GPU or a whole number of them")
        return value


class GpuStepResources(StepResources):
    """As StepResources, of an asset that runs a model."""

    num_gpus: float = Field(1.0, ge=0, allow_inf_nan=False)
    """GPUs; 0: the model runs on the CPU."""


class ClusterResources(_Settings):
    """What the steps of each asset ask for, and those of all checks."""

    corpus_documents: StepResources = StepResources()
    chunk_embeddings: GpuStepResources = GpuStepResources()
    embedding_index: StepResources = StepResources()
    entropy_scores: GpuStepResources = GpuStepResources()
    candidate_contexts: StepResources = StepResources()
    verified_dependencies: GpuStepResources = GpuStepResources()
    long_context_samples: StepResources = StepResources()
    training_dataset: StepResources = StepResources()
    null_calibration: GpuStepResources = GpuStepResources()
    cross_model_audit: GpuStepResources = GpuStepResources()
    long_range_audit: GpuStepResources = GpuStepResources()
    checks: StepResources = StepResources()


class ClusterSettings(_Settings):
    """Where the steps of a run are executed. What they make does not depend on it."""

    engine: Literal["local", "ray", "kubernetes"] = "local"
    """`local`: in the process of the run. `ray`: each step is a job of a Ray cluster (extra
    `ray`). `kubernetes`: each step is a Kubernetes job (extra `k8s`). docs/cluster.md."""
    address: str = ""
    """Address of Ray's job server, e.g. `http://head:8265`; empty: the run launcher's, else the
    one in RAY_ADDRESS."""
    resources: ClusterResources = ClusterResources()
    """What a step of each asset asks for."""

    _address_without_credentials = field_validator("address")(_no_credentials)


class Settings(_Settings):
    """All settings of one pipeline."""

    profile: str = "calibrated"
    """Named profile that these settings started from."""
    data_uri: str = "data"
    """Folder or fsspec URI under which all tables are kept."""
    seed: int = Field(20251002, ge=0)
    """Seed of every random choice: roots, controls, order."""
    corpus: CorpusSettings = CorpusSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    scoring: ScoringModelSettings = ScoringModelSettings()
    entropy: EntropySettings = EntropySettings()
    retrieval: RetrievalSettings = RetrievalSettings()
    verification: VerificationSettings = VerificationSettings()
    samples: SampleSettings = SampleSettings()
    export: ExportSettings = ExportSettings()
    audit: AuditSettings = AuditSettings()
    cluster: ClusterSettings = ClusterSettings()

    @field_validator("data_uri")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must name a folder or URI")
        return _no_credentials(value).rstrip("/")

    @model_validator(mode="after")
    def _root_fits_sample(self) -> Settings:
        if self.corpus.root_max_tokens >= self.samples.tokens:
            raise ValueError(
                f"samples.tokens ({self.samples.tokens}) must be larger than the longest root, "
                f"corpus.root_max_tokens ({self.corpus.root_max_tokens})"
            )
        return self

    @model_validator(mode="after")
    def _nodes_share_what_steps_read_and_write(self) -> Settings:
        shared = [("data_uri", self.data_uri), ("export.destination", self.export.destination)]
        shared += [
            (f"uri of source '{source.name}'", source.uri)
            for source in self.corpus.sources
            if source.kind != "python_docs"
        ]
        for name, uri in shared:
            relative = uri and "://" not in uri and not Path(uri).is_absolute()
            if self.cluster.engine != "local" and relative:
                raise ValueError(
                    f"{name} ({uri}) must be a URI or the full path of a folder that all nodes "
                    f"share, with cluster.engine '{self.cluster.engine}'"
                )
        return self


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both_maps = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(old, value) if both_maps else value  # type: ignore[arg-type]
    return merged


def _one_line(error: ValidationError) -> str:
    """The first fault of a validation error: field, what is wrong, what was given."""
    fault = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in fault["loc"]) or "settings"
    if fault["type"] == "extra_forbidden":
        return f"{where}: no such setting"
    message = re.sub(r"^Value error, ", "", fault["msg"])
    given = fault["input"]
    tellable = isinstance(given, str | int | float | bool) and fault["type"] != "credentials"
    shown = f" (got {given!r})" if tellable else ""
    more = f"; and {error.error_count() - 1} more" if error.error_count() > 1 else ""
    return f"{where}: {message}{shown}{more}"


def _printable(text: str, limit: int = 500) -> str:
    """One line of at most `limit` characters, whatever keys and values it quotes."""
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def make_settings(profile: str = "calibrated", overrides: Mapping[str, Any] = {}) -> Settings:
    """Settings of a named profile with `overrides` laid over it.

    Raises SettingsError, in one line that names the field and what is allowed.
    """
    if profile not in PROFILES:
        raise SettingsError(
            f"profile: no profile '{_printable(profile, 60)}'; there are {', '.join(PROFILES)}"
        )
    merged = _merge(_merge(PROFILES[profile], overrides), {"profile": profile})
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError(_printable(_one_line(error))) from None
    except RecursionError:
        raise SettingsError("settings: values are nested too deeply; write them out") from None


def load_settings(path: str | os.PathLike[str] | None = None) -> Settings:
    """Settings from a YAML file, whose key `profile` names the profile that it changes.

    Without a path the file is the one that ENTROPYLONG_SETTINGS names; without that, the profile
    is the one that ENTROPYLONG_PROFILE names, else `calibrated`.
    """
    path = path or os.environ.get("ENTROPYLONG_SETTINGS")
    if not path:
        return make_settings(os.environ.get("ENTROPYLONG_PROFILE", "calibrated"))
    try:
        loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"settings file {path}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        # Without the line that PyYAML quotes: it may hold a secret.
        where = error.problem_mark or error.context_mark
        place = f" in line {where.line + 1}, column {where.column + 1}" if where else ""
        reason = _printable(" ".join(str(error.problem or error.context).split()))
        raise SettingsError(f"settings file {path} is not YAML: {reason}{place}") from None
    except Exception as error:  # of values and depths PyYAML lets others through than its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingsError(f"settings file {path} is not YAML: {_printable(reason)}") from None
    if not isinstance(loaded, dict):
        raise SettingsError(f"settings file {path}: expected keys and values at the top level")
    profile = loaded.pop("profile", "calibrated")
    try:
        return make_settings(str(profile), loaded)
    except SettingsError as error:
        raise SettingsError(f"settings file {path}: {error}") from None


def fingerprint(*determinants: Any) -> str:
    """16 hex digits that change with anything in `determinants` (JSON values or settings)."""
    plain = [d.model_dump(mode="json") if isinstance(d, BaseModel) else d for d in determinants]
    text = json.dumps(plain, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
