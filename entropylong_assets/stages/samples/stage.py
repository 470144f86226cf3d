"""The stage `long_context_samples`: pack roots and their contexts into samples of one length."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.corpus.removals import removed_from_corpus
from entropylong_assets.stages.corpus.tables import CORPUS_DOCUMENTS
from entropylong_assets.stages.embeddings.settings import QUERY_SETTINGS
from entropylong_assets.stages.entropy.stage import ENTROPY_SCORES_STAGE
from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.retrieval.tables import CANDIDATE_CONTEXTS
from entropylong_assets.stages.samples.registry import IN_FORCE
from entropylong_assets.stages.samples.selection import needs_pool, recipe_of, verifying_rule
from entropylong_assets.stages.samples.settings import SampleSettings
from entropylong_assets.stages.samples.shared_roots import roots_of_other_shards
from entropylong_assets.stages.samples.tables import LONG_CONTEXT_SAMPLES
from entropylong_assets.stages.samples.use_limits import USE_LIMITS
from entropylong_assets.stages.stage import Check, Job, Markdown, Partition, Result, Stage, Step
from entropylong_assets.stages.verification.stage import VERIFIED_DEPENDENCIES_STAGE
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES
from entropylong_assets.storage import duck

LEAK_CHECK_SETTINGS = (
    "retrieval.leak_check",
    "retrieval.leak_ngram_words",
    "retrieval.max_containment",
)


def _compute(step: Step) -> Result:
    from entropylong_assets.stages.entropy.model import load_tokenizer
    from entropylong_assets.stages.entropy.tokenizer_facts import tokenizer_facts
    from entropylong_assets.stages.samples.pool import open_pool
    from entropylong_assets.stages.samples.shard_inputs import open_tables, stored
    from entropylong_assets.stages.samples.shard_packing import pack_shard

    scoring = step.settings.scoring
    tokenizer = tokenizer_facts(
        load_tokenizer(scoring),
        scoring,
        vocab_size=step.store.summary(ENTROPY_SCORES, step.shard).vocab_size,
        sample_tokens=step.settings.samples.tokens,
    )
    with open_tables(step.store, stored(step.shard)) as tables:
        packed = pack_shard(
            tables,
            settings=step.settings,
            shard=step.shard,
            tokenizer=tokenizer,
            writer=step.writer,
            pool=open_pool(step) if needs_pool(step.settings) else None,
            on_sample=step.progress,
        )
    metadata: dict[str, Any] = {"preview": packed.best_dependencies}
    if len(packed.contexts):
        links = _shard_links(step, packed.contexts, packed.summary.samples)
        metadata["samples_and_shards"] = Markdown(links)
    return Result(packed.summary, metadata)


def _shard_links(partition: Partition, contexts: pl.DataFrame, samples: int) -> str:
    """A Markdown table that links samples to the shards of their documents in the UI.

    contexts: sample_id and chunk_id of the first samples' contexts; shard, if not a candidate's.
    samples: number of all samples.
    """
    store, shard = partition.store, partition.shard
    parts = [
        batch.join(contexts.select("chunk_id").unique(), "chunk_id", how="semi")
        for batch in store.batches(CANDIDATE_CONTEXTS, shard, "chunks", ["chunk_id", "shard"])
    ]
    linked = pl.concat([pl.DataFrame(schema={"chunk_id": pl.String, "shard": pl.String}), *parts])
    shards = dict(linked.iter_rows())

    def link(name: str) -> str:
        asset = f"/assets/{store.corpus}/{CORPUS_DOCUMENTS.name}"
        return f"[{name}]({asset}?view=partitions&partition={name})"

    lines = ["| sample | roots from | contexts from |", "| --- | --- | --- |"]
    for (sample,), rows in contexts.group_by("sample_id", maintain_order=True):
        own = {s or shards.get(c) for c, s in rows.select("chunk_id", "shard").iter_rows()}
        links = ", ".join(link(name) for name in sorted(filter(None, own)))
        lines.append(f"| {sample} | {link(shard)} | {links} |")
    hidden = samples - (len(lines) - 2)
    return "\n".join(lines) + (f"\n\n… and {hidden:,} more samples" if hidden > 0 else "")


def _determined_by(settings: Settings) -> tuple[str, ...]:
    recipe = recipe_of(settings)
    paths = [f"samples.{name}" for name in ("recipe", "tokens", "order", "layout", "fill")]
    paths += [f"samples.{name}" for name in USE_LIMITS]
    paths += [f"scoring.{name}" for name in ("model", "bos", "separator")]
    # The rule in force determines the budgets and, by its gain, which contexts are kept.
    paths += ["verification.rule", "seed"]
    if recipe is not None:
        paths = [path for path in paths if path not in recipe.ignores]
        paths += recipe.reads
    if needs_pool(settings):
        paths += [*QUERY_SETTINGS, *LEAK_CHECK_SETTINGS]
    return tuple(dict.fromkeys(paths))


def _identify(partition: Partition) -> Mapping[str, Any]:
    if not needs_pool(partition.settings):
        return {}
    from entropylong_assets.stages.embeddings.embedder import query_identity

    return {
        **query_identity(partition.corpus.embedding),
        # The index that the shard's candidates were searched in: passages are drawn from it.
        "index": partition.store.summary(CANDIDATE_CONTEXTS, partition.shard).index,
    }


def _removals(partition: Partition) -> Mapping[str, Any]:
    """Removals that concern drawn passages. Contexts follow from the candidates."""
    return removed_from_corpus(partition) if needs_pool(partition.settings) else {}


def _validate(settings: Settings) -> None:
    """Reject samples that can't hold a root, and a recipe whose rule is not evaluated."""
    if settings.roots.max_tokens >= settings.samples.tokens:
        raise ValueError(
            f"samples.tokens ({settings.samples.tokens}) must be larger than the longest root, "
            f"roots.max_tokens ({settings.roots.max_tokens})"
        )
    verifying_rule(settings)


def _views(partition: Partition) -> Mapping[str, duck.View]:
    store, shard = partition.store, partition.shard
    own = ("samples", "segments", "dependencies", "dropped")
    return {
        "roots": (ENTROPY_SCORES, [shard], "roots"),
        "pairs": (VERIFIED_DEPENDENCIES, [shard], "pairs"),
        "contexts": (VERIFIED_DEPENDENCIES, [shard], "contexts"),
        "passages": lambda: store.read(LONG_CONTEXT_SAMPLES, shard, "passages"),
        "used_elsewhere": lambda: roots_of_other_shards(partition),
        **{name: (LONG_CONTEXT_SAMPLES, [shard], name) for name in own},
    }


def _check_parameters(partition: Partition) -> Mapping[str, Any]:
    from entropylong_assets.stages.entropy.model import load_tokenizer

    settings = partition.settings
    return {
        "sample_tokens": settings.samples.tokens,
        "rule": verifying_rule(settings) or "",
        "in_force": IN_FORCE,
        "separator_ids": list(load_tokenizer(settings.scoring).separator_ids),
    }


LONG_CONTEXT_SAMPLES_STAGE = Stage(
    tables=LONG_CONTEXT_SAMPLES,
    description="""Samples of one exact length, packed from roots and their verified contexts.

Stored with the token ids are the segments of each sample, and every dependency with its anchor, the
span of its context and the distance between them (paper, section 3.4).""",
    compute=_compute,
    inputs=(VERIFIED_DEPENDENCIES_STAGE, ENTROPY_SCORES_STAGE),
    sections={"samples": SampleSettings},
    determined_by=_determined_by,
    identify=_identify,
    removals=_removals,
    code_version=6,
    check_folder=Path(__file__).parent / "checks",
    checks=(
        Check("exact_length", "Every sample has exactly `samples.tokens` tokens."),
        Check("segments_tile", "Segments cover the sample without gaps or overlaps."),
        Check("roles_reconcile", "The tokens of all roles add up to the sample."),
        Check("contexts_before_anchors", "Every context ends before its anchor."),
        Check("tokens_as_verified", "The packed tokens are the scored tokens."),
        Check("dependencies_reconcile", "Verified dependencies = packed + dropped."),
        Check("no_root_used_twice", "Each root is in one sample only."),
    ),
    views=_views,
    check_parameters=_check_parameters,
    validate=_validate,
    job=Job("assemble", "Pack roots and contexts into samples.", hours=6),
    automation="per_shard",
    unit="samples",
    kinds=frozenset({"parquet"}),
)
