"""The capacity plan as Markdown: what `entropylong plan` prints and docs/scaling.md holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entropylong_assets.report import capacity
from entropylong_assets.report.capacity import ENCODERS, INDEXES, Plan, Rate, Workload

GPUS = (1, 8, 64)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(r) for r in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _bytes(size: float) -> str:
    return f"{size / 1e12:,.2f} TB" if size >= 1e11 else f"{size / 1e9:,.1f} GB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _rate(rate: Rate) -> tuple[str, str, str]:
    value = f"{rate.value:,.0f}" if 100 <= rate.value < 1e9 else f"{rate.value:.3g}"
    told = f"measured: “{rate.source.rstrip(' |')}”" if rate.source else "assumed"
    return rate.meaning, f"{value} {rate.unit}".strip(), told


def _meaning(name: str) -> str:
    return " ".join((Workload.model_fields[name].description or "").split())


@dataclass(frozen=True)
class Limit:
    """Something that stops holding as a run grows."""

    what: str
    when: str
    remedy: str


def limits(plan: Plan) -> list[Limit]:
    """What breaks first, in the order in which it does."""
    work = plan.workload
    embedding = plan.gpu_hours["embedding"]
    return [
        Limit(
            "`chunk_embeddings` embeds inside the pool `lancedb_writer` of one",
            f"at the second GPU: {_number(embedding)} GPU hours of embedding one after another",
            "leave the pool at 1: in a folder a lock lets one shard write at a time anyway. "
            "Several `data_uri`, each with a `DAGSTER_HOME` and a part of the corpus of its own, "
            "embed side by side",
        ),
        Limit(
            "SQLite under Dagster",
            "about ten runs at once",
            "PostgreSQL: docs/operating.md",
        ),
        Limit(
            "one `embedding_index` over all shards",
            f"{_number(plan.index_build_core_hours)} core hours for one build of {work.index}; a "
            "new shard is taken in without it, but an index of older centres finds less",
            "`embedding.search: exact` up to some 10 million chunks; beyond it several "
            "`data_uri` as above: each root is then searched in its own part of the corpus alone",
        ),
        Limit(
            "exact search",
            f"{_number(plan.exact_search_hours)} GPU hours for these queries over these chunks, "
            f"and {_bytes(plan.storage['vectors (LanceDB)'])} to read for every 32,768 of them",
            "an index, or several `data_uri` as above",
        ),
        Limit(
            "a page of an asset's checks in the UI",
            "16 s with 1,000 shards (measured); Dagster's own pages of an asset get slow with "
            "10,000 partitions",
            f"larger shards: `corpus.shard_rows`, {work.shard_rows:,} here, gives {plan.shards:,} "
            "partitions; memory holds to 200,000 documents a shard (measured)",
        ),
        Limit(
            "`no_root_used_twice` reads the segments of all shards for each shard",
            f"{plan.shards:,} shards read {plan.shards**2:,} files over a whole run",
            "run the job without that check, and once over all at the end",
        ),
        Limit(
            "`excluded_shards`, the list of shards in the table but not in the index",
            "thousands of shards written while others are searched: each search carries the list",
            "index once after ingestion, then search: the list is empty",
        ),
        Limit(
            "the export's split",
            f"64 KiB of memory a sample (measured): {_bytes(plan.samples * 65_536)} for "
            f"{_number(plan.samples)} samples",
            "several `data_uri`, each exported by itself",
        ),
    ]


def markdown(plan: Plan, gpu_hour_price: float | None = None) -> str:
    """The plan. gpu_hour_price: the user's, in any currency; none: GPU hours alone."""
    work = plan.workload
    plain, ours = plan.dependencies_plain, plan.dependencies_calibrated

    def cost(hours: float) -> str:
        return f"{hours * gpu_hour_price:,.0f}" if gpu_hour_price is not None else "–"

    counts = [
        ("documents, at " + f"{work.chunks_a_document:g} chunks each", _number(plan.documents)),
        ("chunks", f"{work.chunks:,}"),
        ("shards (partitions)", f"{plan.shards:,}"),
        ("roots", f"{work.roots:,}"),
        ("anchors", _number(work.roots * work.anchors)),
        ("pairs (anchor, chunk)", _number(plan.pairs)),
        ("forward passes", _number(plan.passes)),
        ("forward tokens", f"{plan.forward_tokens:,.3g}"),
        ("samples of 131,072 tokens", _number(plan.samples)),
        ("verified dependencies, plain rule", _number(plain)),
        ("verified dependencies, calibrated rule", _number(ours)),
    ]
    hours = [(name, _number(value), cost(value)) for name, value in plan.gpu_hours.items()]
    hours.append(("these three", _number(plan.total_gpu_hours), cost(plan.total_gpu_hours)))
    screened = plan.screened_gpu_hours
    hours.append(
        ("these three, candidates screened in FP8 (approximate)", _number(screened), cost(screened))
    )
    a_million = [
        (name, _number(plan.hours_a_million(n)), cost(plan.hours_a_million(n)))
        for name, n in (("plain", plain), ("calibrated", ours))
    ]
    wall = [(str(gpus), f"{plan.wall_days(gpus):,.1f} days") for gpus in GPUS]
    stored = [(name, _bytes(size)) for name, size in plan.storage.items()]
    stored.append(("all", _bytes(sum(plan.storage.values()))))
    rates = [
        capacity.SCORING,
        ENCODERS[work.embedder].rate,
        capacity.EXACT_SEARCH,
        capacity.SCREEN,
        capacity.DISTINCT,
        capacity.CALIBRATED_SHARE,
        capacity.PAIR_BYTES,
        capacity.CONTEXT_BYTES,
        capacity.LOOKUP_BYTES,
        capacity.EXPORT_BYTES,
        capacity.CUT,
        capacity.CHARS,
        capacity.PARQUET,
        capacity.PARALLEL,
    ]
    index = INDEXES[work.index]
    workload = [
        (name, value if isinstance(value, str) else f"{value:,}", _meaning(name))
        for name, value in work.model_dump().items()
    ]
    price = (
        f"H100 hours, and their cost at {gpu_hour_price:g} a GPU hour (your own figure)."
        if gpu_hour_price is not None
        else "H100 hours. To see their cost, name a price with `--gpu-hour-price`."
    )
    share = plan.gpu_hours["verification"] / plan.total_gpu_hours
    exact = _number(plan.exact_search_hours)
    build, search = _number(plan.index_build_core_hours), _number(plan.index_search_core_hours)
    return f"""# What a run at scale takes

Printed by `entropylong plan`; `make scaling` writes this page. Every figure follows by plain
arithmetic (`report/capacity.py`) from the workload and the rates below. Nothing here was run at
this size: the largest runs behind it are named in [RESULTS.md](../benchmarks/RESULTS.md).

For your own figures give any names of the table below. `sample_tokens` does not follow `roots`:
scale it too. `entropylong estimate` samples your sources and times this machine instead.

```sh
entropylong plan chunks=50000000 roots=20000 sample_tokens=800000000 --gpu-hour-price 3
```

## The workload

{_table(("", "", ""), workload)}

It comes to:

{_table(("", ""), counts)}

## GPU hours and cost

{price}

{_table(("stage", "GPU hours", "cost"), hours)}

Search and index are not in these. Exact search takes {exact} GPU hours more; or else an index
({work.index}) takes {build} CPU core hours to build and {search} to search.

For a million verified dependencies, by these three stages:

{_table(("rule", "GPU hours", "cost"), a_million)}

Time for these three stages where no GPU ever waits (assumed; *What breaks first* says what makes
them wait):

{_table(("GPUs", "time"), wall)}

Verification is {share:.0%} of these hours. It grows with roots × anchors × K: fewer candidates or a
budget (`scoring.max_contexts_per_root`) save in proportion.

## Search and index

| | hours |
| --- | --- |
| exact search for all anchors, GPU | {exact} |
| search by {work.index}, CPU core | {search} |
| one build of {work.index}, CPU core | {build} |

Measured with {index.rows:,} vectors of 384 dimensions on {capacity.MEASURED_CORES} cores:
{index.build_seconds:g} s to build, {index.queries_per_second:,.0f} queries a second at a recall of
0.95 or more. Scaled by n^1.5 for the build and √n for a query, as √n partitions imply, by
dimensions for the build, and by cores in proportion (all three assumed; between 100,000 and
1,000,000 vectors the build of `ivf_flat` grew 17 times, not 32).

## Storage

{_table(("", ""), stored)}

Each table keeps its last generation beside the present one.

## What breaks first

The remedies were not tried at this size, unless it says so.

{_table(("what", "when", "remedy"), [(x.what, x.when, x.remedy) for x in limits(plan)])}

## The rates

Words in “…” are quoted from RESULTS.md.

{_table(("", "", ""), [_rate(rate) for rate in rates])}
"""
