"""Groups: a root with the contexts that were scored for it, ready to be packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from entropylong_assets.stages.entropy.tables import ENTROPY_SCORES
from entropylong_assets.stages.verification.tables import VERIFIED_DEPENDENCIES

TokenIds = NDArray[np.uint32]


class SampleError(ValueError):
    """Samples can't be made of these tables or settings. The message is one line that says what to
    do."""


EVIDENCE = pl.Schema({"kind": pl.String, "token_start": pl.Int32, "token_end": pl.Int32})
"""Columns of `evidence` that are copied to dependencies."""


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """One accepted (anchor, context) of a root; `anchor` is a token position in the root."""

    anchor: int
    rank: int
    gain: float
    calibrated_gain: float | None
    entropy: float
    entropy_context: float
    kind: str | None = None
    token_start: int | None = None
    """First token of the evidence span in the context; None without a span."""
    token_end: int | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """A passage placed before a root, with the dependencies that it resolves."""

    root_id: str
    chunk_id: str
    doc_id: str
    source: str
    token_ids: TokenIds
    """uint32 [T], including the separator's tokens at the end."""
    dependencies: tuple[Dependency, ...]
    priority: float
    """If not all contexts fit, those with the highest priority are kept: the sum of the gains of
    its dependencies; for an unverified context its similarity."""
    first_anchor: int
    """First anchor that it serves; for a hard negative, that nominated it."""
    first_rank: int
    """Its rank among the candidates of that anchor."""
    similarity: float
    """Highest similarity to any anchor."""
    unverified: bool = False
    """Whether it was chosen without regard to any score."""
    filler: bool = False
    """Whether it is a random chunk that only fills the sample."""

    @property
    def role(self) -> str:
        """Role of its tokens: a context that is neither verified nor unverified failed
        verification, and is a hard negative."""
        if self.filler:
            return "filler"
        if self.unverified:
            return "unverified"
        return "verified" if self.dependencies else "hard_negative"


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A root with the contexts chosen for it, and hard negatives to fill a sample with."""

    root_id: str
    token_ids: TokenIds
    """uint32 [T], the root's own tokens without separator."""
    chosen: tuple[Context, ...]
    negatives: tuple[Context, ...]
    piece_tokens: int | None = None
    """Maximum length of the pieces that the root is cut into, each followed by the contexts that
    its anchors nominated. None: the root stays whole, after its contexts."""


def unverified(
    *,
    root_id: str,
    chunk_id: str,
    doc_id: str,
    source: str,
    token_ids: Sequence[int],
    similarity: float = 0.0,
    anchor: int = 0,
    rank: int = 0,
) -> Context:
    """Make a context that was chosen without regard to any score."""
    return Context(
        root_id=root_id,
        chunk_id=chunk_id,
        doc_id=doc_id,
        source=source,
        token_ids=np.asarray(token_ids, np.uint32),
        dependencies=(),
        priority=similarity,
        first_anchor=anchor,
        first_rank=rank,
        similarity=similarity,
        unverified=True,
    )


def _token_ids(frame: pl.DataFrame, key: str) -> dict[str, TokenIds]:
    """Token ids by `key`, as views of the frame's buffer of values."""
    if frame[key].n_unique() != len(frame):
        raise SampleError(f"{key}: not unique in its table; materialize the stage before again")
    lists = frame["token_ids"].cast(pl.List(pl.UInt32))
    values = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    ends = lists.list.len().to_numpy().astype(np.int64).cumsum()
    parts = np.split(values, ends[:-1]) if len(ends) else []
    return dict(zip(frame[key].to_list(), parts, strict=True))


def _by_context(pairs: pl.DataFrame, gain: str) -> pl.DataFrame:
    """One row per (root, chunk) that is a verified context or a hard negative, sorted by both.

    A hard negative was scored for every anchor that nominated it and failed for each. Pairs that
    were never scored (near-duplicates, `not_tried`) have no entropy given the context.
    """
    accepted = pl.col("accepted")
    serving = accepted | ~accepted.any()  # the pairs that say where the context belongs
    details = ["anchor", "rank", "gain", "calibrated_gain", "entropy", "entropy_context"]
    details += EVIDENCE
    missing = [pl.lit(None, t).alias(n) for n, t in EVIDENCE.items() if n not in pairs.columns]
    return (
        pairs.with_columns(missing)
        .sort("root_id", "chunk_id", "anchor", "rank")
        .group_by("root_id", "chunk_id", maintain_order=True)
        .agg(
            pl.col(gain).cast(pl.Float64).filter(accepted).sum().alias("priority"),
            pl.col("anchor").filter(serving).first().alias("first_anchor"),
            pl.col("rank").filter(serving).first().alias("first_rank"),
            pl.col("similarity").max(),
            pl.col("entropy_context").is_not_null().all().alias("all_scored"),
            pl.struct(details).filter(accepted).alias("dependencies"),
        )
        .filter((pl.col("dependencies").list.len() > 0) | pl.col("all_scored"))
    )


def _contexts(pairs: pl.DataFrame, contexts: pl.DataFrame, gain: str) -> Iterator[Context]:
    wanted = _by_context(pairs, gain)
    known = contexts.select("chunk_id", "doc_id", "source", "token_ids")
    token_ids = _token_ids(known, "chunk_id")
    rows = wanted.join(known.drop("token_ids"), on="chunk_id", how="left", maintain_order="left")
    for row in rows.drop("all_scored").iter_rows(named=True):
        chunk_id = row["chunk_id"]
        if chunk_id not in token_ids:
            raise SampleError(
                f"chunk {chunk_id} of root {row['root_id']}: scored, but its tokens are not in "
                f"{VERIFIED_DEPENDENCIES.name}.contexts; materialize {VERIFIED_DEPENDENCIES.name} "
                "again"
            )
        details = tuple(Dependency(**detail) for detail in row.pop("dependencies"))
        yield Context(**row, token_ids=token_ids[chunk_id], dependencies=details)


def no_such_root(root_id: str) -> SampleError:
    """The error for a pair whose root was not scored."""
    return SampleError(
        f"root {root_id}: scored pairs, but no row in {ENTROPY_SCORES.name}.roots; materialize "
        f"{VERIFIED_DEPENDENCIES.name} again"
    )


def build_groups(
    roots: pl.DataFrame, pairs: pl.DataFrame, contexts: pl.DataFrame, *, gain: str
) -> list[Group]:
    """Make a group of each root with its contexts, sorted by root_id.

    The order of the rows has no effect. A chunk that is accepted for one anchor and rejected for
    others is a verified context.

    roots: root_id, token_ids. pairs, contexts: tables of `verified_dependencies`; `accepted` says
    which pairs are dependencies, and the columns of `EVIDENCE` are optional. gain: column of
    `pairs` that gives contexts their priority. Raises SampleError if the tables contradict each
    other.
    """
    root_tokens = _token_ids(roots.select("root_id", "token_ids"), "root_id")
    by_root: dict[str, list[Context]] = {root_id: [] for root_id in sorted(root_tokens)}
    for context in _contexts(pairs, contexts, gain):
        if context.root_id not in by_root:
            raise no_such_root(context.root_id)
        by_root[context.root_id].append(context)
    return [
        Group(
            root_id=root_id,
            token_ids=root_tokens[root_id],
            chosen=tuple(c for c in of_root if c.dependencies),
            negatives=tuple(c for c in of_root if not c.dependencies),
        )
        for root_id, of_root in by_root.items()
    ]
