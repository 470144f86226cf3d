"""The capacity plan as Markdown, as `entropylong estimate --at paper` prints it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from entropylong_assets.report import capacity
from entropylong_assets.report.capacity import (
    DISTINCT,
    ENCODERS,
    INDEXES,
    Plan,
    Workload,
    plan_capacity,
)
from entropylong_assets.report.verification_costs import (
    CUT,
    RESCORED,
    PlanRate,
    Screen,
    of_candidates,
)

GPUS = (1, 8, 64)
ROOT_TOKENS = (4096, 13_000)
TOP_K = (8, 32)
SCREENS: tuple[Screen, ...] = ("none", "fp8", "splice", "splice_fp8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(head), " | ".join("---" for _ in head), *(" | ".join(r) for r in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _bytes(size: float) -> str:
    return f"{size / 1e12:,.2f} TB" if size >= 1e11 else f"{size / 1e9:,.1f} GB"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _rate(rate: PlanRate) -> tuple[str, str, str]:
    value = f"{rate.value:,.0f}" if 100 <= rate.value < 1e9 else f"{rate.value:.3g}"
    source = f"measured: “{rate.source.rstrip(' |')}”" if rate.source else "assumed"
    source = f"measured: {rate.file}" if rate.file else source
    return rate.meaning, f"{value} {rate.unit}".strip(), source


def _meaning(name: str) -> str:
    return " ".join((Workload.model_fields[name].description or "").split())


@dataclass(frozen=True)
class Limit:
    """Something that limits the size of a run."""

    what: str
    when: str
    remedy: str


def limits(plan: Plan) -> list[Limit]:
    """Return the limits of a run, in the order in which a growing run meets them."""
    work = plan.workload
    return [
        Limit(
            "SQLite under Dagster",
            "about ten simultaneous runs",
            "PostgreSQL ([deployment.md](deployment.md))",
        ),
        Limit(
            "one `embedding_index` over all shards",
            f"{_number(plan.index_build_core_hours)} core hours per build of {work.index} in one "
            "step; a new shard is added without a build",
            "`index_segments` builds the parts of all shards at the same time (measured with "
            "1,000,000 chunks in 8 segments); check `centroids_fit` says when to build again",
        ),
        Limit(
            "segments of the index",
            f"{plan.shards:,} shards of {work.shard_rows:,} documents may have a segment each; "
            "every query compares the centroids of every segment (8 segments were measured)",
            "`ivf_flat`, whose segments are merged; or larger shards; or several corpora, whose "
            "roots retrieve from their own corpus only",
        ),
        Limit(
            "exact search",
            f"{_number(plan.exact_search_hours)} GPU hours for these queries over these chunks, "
            f"and {_bytes(plan.storage['vectors (LanceDB)'])} to read per 32,768 queries",
            "an index, or several corpora",
        ),
        Limit(
            "a page of an asset's checks in the UI",
            "16 s with 1,000 shards (measured); Dagster's own pages of an asset are slow with "
            "10,000 partitions",
            f"larger shards: `corpus.shard_rows`, {work.shard_rows:,} here, gives {plan.shards:,} "
            "partitions; memory suffices for 200,000 documents per shard (measured)",
        ),
        Limit(
            "`excluded_shards`, the list of shards in the table but not in the index",
            "thousands of shards are written while others are searched: each search filters by it",
            "build the index once after ingestion, then search: the list is empty",
        ),
        Limit(
            "the export's split",
            f"8 KiB of memory per sample (measured): {_bytes(plan.samples * 8_192)} for "
            f"{_number(plan.samples)} samples",
            "several corpora, whose datasets are exported separately",
        ),
    ]


def _comparison(plan: Plan) -> str:
    """Length of the roots, K and screens side by side."""
    work = plan.workload
    density = work.anchors / work.root_tokens, work.dependencies / work.root_tokens
    rows = []
    for root_tokens in ROOT_TOKENS:
        for top_k in TOP_K:
            figures = {
                "root_tokens": root_tokens,
                "top_k": top_k,
                "anchors": density[0] * root_tokens,
                "dependencies": density[1] * root_tokens,
            }
            other = plan_capacity(work.model_copy(update=figures), plan.rates)
            sized = other.workload
            samples = sized.roots * (root_tokens + sized.dependencies * sized.chunk_tokens)
            for screen in SCREENS:
                candidates = of_candidates(sized, DISTINCT.value, screen)
                hours = other.screened_gpu_hours(screen)
                per = (other.dependencies_plain / 1e6, samples / 1e9)
                rows.append(
                    (
                        f"{root_tokens:,}",
                        f"{top_k}",
                        f"{sized.anchors:,.0f}",
                        screen,
                        f"{candidates.tokens:.3g}",
                        f"{candidates.flop:.3g}",
                        *(
                            ["not measured"] * 3
                            if hours is None
                            else [_number(hours), *(_number(hours / n) for n in per)]
                        ),
                    )
                )
    head = ["root tokens", "K", "anchors", "screen", "tokens of candidates", "FLOP of them"]
    head += ["GPU hours", "per million dependencies", "per billion sample tokens"]
    unmeasured = (
        ""
        if plan.rates.splice
        else """

The screen `splice` was never timed on a GPU, so its rows have no hours; a rate of tokens from
another kind of pass would be a guess. After `python -m benchmarks.splice --device cuda --out
splice.json`, `--rates splice.json` fills them for the lengths of roots that were timed."""
    )
    return f"""## Roots, candidates and screens

Anchors and dependencies per token are those of the workload above, so that shorter roots have
fewer. Hours are those of all three stages; sample tokens are those of roots and of the contexts of
their dependencies. The number of dependencies does not change with K here: the paper's
count belongs to its own K, and with fewer candidates there are fewer, so that hours per million
dependencies with K = 8 are a lower bound. The share of distinct contexts was measured with K = 8.

{_table(head, rows)}

Tokens and operations are counted, not measured (`report/verification_costs.py`). Those of `splice`
are an upper bound: chunks that several roots share and windows that overlap count apart. They
include the exact scores of {RESCORED.value:.1%} of the contexts, a share that a trial on 21 short
roots found, but not the roots that calibrate the screen. Whether 99.5% of the accepted pairs are
kept at this share is not established: the screen decides it in each run, and scores everything
exactly where it can't promise it (docs/screens.md).{unmeasured}

All candidates are counted, as the paper's rule needs them. Rule `genuine` scores only those that it
may accept by their text: 32% of the demo's, 25% of those of ten roots of documentation
(docs/screens.md). What the share would be on this corpus is not known."""


def markdown(plan: Plan, hour_price: float | None = None) -> str:
    """Return the plan. hour_price: the user's, in any currency; None: GPU hours only."""
    work = plan.workload
    plain, ours = plan.dependencies_plain, plan.dependencies_calibrated

    def cost(hours: float) -> str:
        return f"{hours * hour_price:,.0f}" if hour_price is not None else "–"

    counts = [
        ("documents, at " + f"{work.chunks_per_document:g} chunks each", _number(plan.documents)),
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
    hours.append(("all three stages", _number(plan.total_gpu_hours), cost(plan.total_gpu_hours)))
    for screen in SCREENS[1:]:
        screened = plan.screened_gpu_hours(screen)
        name = f"all three stages, candidates screened by `{screen}` (approximate)"
        if screened is None:
            hours.append((name, "not measured", "–"))
        else:
            hours.append((name, _number(screened), cost(screened)))
    per_million = [
        (name, _number(plan.hours_per_million(n)), cost(plan.hours_per_million(n)))
        for name, n in (("plain", plain), ("calibrated", ours))
    ]
    wall = [(str(gpus), f"{plan.wall_days(gpus):,.1f} days") for gpus in GPUS]
    stored = [(name, _bytes(size)) for name, size in plan.storage.items()]
    stored.append(("all", _bytes(sum(plan.storage.values()))))
    rates = [
        plan.rates.scoring,
        ENCODERS[work.embedder].rate,
        capacity.EXACT_SEARCH,
        plan.rates.fp8,
        *plan.rates.splice.values(),
        capacity.DISTINCT,
        capacity.CALIBRATED_SHARE,
        capacity.PAIR_BYTES,
        capacity.CONTEXT_BYTES,
        capacity.LOOKUP_BYTES,
        capacity.EXPORT_BYTES,
        CUT,
        RESCORED,
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
        f"H100 hours, and their cost at {hour_price:g} per GPU hour (your own figure)."
        if hour_price is not None
        else "H100 hours. To see their cost, give a price with `--hour-price`."
    )
    share = plan.gpu_hours["verification"] / plan.total_gpu_hours
    exact = _number(plan.exact_search_hours)
    build, search = _number(plan.index_build_core_hours), _number(plan.index_search_core_hours)
    return f"""# Capacity plan

`entropylong estimate --at paper` prints this page; `make scaling` writes it. Every figure follows
by plain arithmetic (`report/capacity.py`) from the workload and the rates below. No run had this
size: the largest ones are listed in [RESULTS.md](../benchmarks/RESULTS.md).

To plan with your own figures, pass any names of the table below. `sample_tokens` is not derived
from `roots`: scale it too. `entropylong estimate` samples your sources and times this machine
instead, also at another size: `--at '1e9 documents'`.

```sh
entropylong estimate --at chunks=50000000 --at roots=20000 --at sample_tokens=800000000 \\
  --hour-price 3
```

## The workload

{_table(("", "", ""), workload)}

Counts that follow:

{_table(("", ""), counts)}

## GPU hours and cost

{price}

{_table(("stage", "GPU hours", "cost"), hours)}

Search and index are not included. Exact search takes {exact} GPU hours more; alternatively an index
({work.index}) takes {build} CPU core hours to build and {search} to search.

Per million verified dependencies, in all three stages:

{_table(("rule", "GPU hours", "cost"), per_million)}

Time for all three stages if no GPU ever waits (assumed; see *Limits*):

{_table(("GPUs", "time"), wall)}

Verification takes {share:.0%} of these hours. It grows with roots × anchors × K: fewer candidates
or a budget (`verification.max_contexts_per_root`) reduce it in proportion.

{_comparison(plan)}

## Search and index

| | hours |
| --- | --- |
| exact search for all anchors, GPU | {exact} |
| search by {work.index}, CPU core | {search} |
| one build of {work.index}, CPU core | {build} |

Measured with {index.rows:,} vectors of 384 dimensions on {capacity.MEASURED_CORES} cores:
{index.build_seconds:g} s to build, {index.queries_per_second:,.0f} queries per second at a recall
of 0.95 or more. Scaled by n^1.5 for the build and √n for a query, as √n partitions imply, by
dimensions for the build, and by cores in proportion (all three assumed; from 100,000 to 1,000,000
vectors the build time of `ivf_flat` grew 17 times, not 32).

## Storage

{_table(("", ""), stored)}

Each table also keeps its previous version, which is not counted here.

## Limits

In the order in which a growing run meets them. The remedies were not tried at this size, unless
noted.

{_table(("limit", "when", "remedy"), [(x.what, x.when, x.remedy) for x in limits(plan)])}

## The rates

Words in quotation marks are from RESULTS.md.

{_table(("", "", ""), [_rate(rate) for rate in rates])}
"""
