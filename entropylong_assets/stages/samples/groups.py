"""Groups: a root with the contexts that were scored for it, ready to be packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

TokenIds = NDArray[np.uint32]


class SampleError(ValueError):
    """Samples can't be made of these tables or settings. One line that says what to do."""


@dataclass(frozen=True, kw_only=True)
class Dependency:
    """One accepted (anchor, context) of a root; `anchor` is a token position in the root."""

    anchor: int
    rank: int
    gain: float
    calibrated_gain: float | None
    entropy: float
    entropy_context: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """One passage that was scored for a root, or stands before it `unverified`.

    It is a verified context where `dependencies` holds anything, else a hard negative, unless it
    is `unverified`: chosen without regard to any score. `worth`
    is the sum of its dependencies' gains; `first_anchor` and `first_rank` name the first anchor
    that it serves (a hard negative: that nominated it); `similarity` is its best to any anchor.
    token_ids: uint32 [T], the separator's tokens at the end included.
    """

    root_id: str
    chunk_id: str
    doc_id: str
    source: str
    token_ids: TokenIds
    dependencies: tuple[Dependency, ...]
    worth: float
    first_anchor: int
    first_rank: int
    similarity: float
    unverified: bool = False

    @property
    def role(self) -> str:
        if self.unverified:
            return "unverified"
        return "verified" if self.dependencies else "hard_negative"


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """A root with the contexts chosen for it, and hard negatives to fill up with.

    token_ids: uint32 [T], the root's own tokens without separator. piece_tokens: longest piece
    that the root is cut into, each with the contexts that its anchors nominated behind it; None:
    the root stays whole, behind its contexts.
    """

    root_id: str
    token_ids: TokenIds
    chosen: tuple[Context, ...]
    negatives: tuple[Context, ...]
    piece_tokens: int | None = None


def _token_ids(frame: pl.DataFrame, key: str) -> dict[str, TokenIds]:
    """Token ids by `key`, as views into the frame's one buffer of values."""
    if frame[key].n_unique() != len(frame):
        raise SampleError(f"{key}: not unique in its table; materialise the stage before again")
    lists = frame["token_ids"].cast(pl.List(pl.UInt32))
    values = lists.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    ends = lists.list.len().to_numpy().astype(np.int64).cumsum()
    parts = np.split(values, ends[:-1]) if len(ends) else []
    return dict(zip(frame[key].to_list(), parts, strict=True))


def _by_context(pairs: pl.DataFrame, gain: str) -> pl.DataFrame:
    """One row a (root, chunk) that is a verified context or a hard negative, sorted by both.

    A hard negative was scored for every anchor that nominated it and failed for each. What was
    never scored (near-duplicates, `not_tried`) has no entropy behind the context.
    """
    accepted = pl.col("accepted")
    serving = accepted | ~accepted.any()  # the pairs that say where the context belongs
    details = ["anchor", "rank", "gain", "calibrated_gain", "entropy", "entropy_context"]
    return (
        pairs.sort("root_id", "chunk_id", "anchor", "rank")
        .group_by("root_id", "chunk_id", maintain_order=True)
        .agg(
            pl.col(gain).cast(pl.Float64).filter(accepted).sum().alias("worth"),
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
                "verified_dependencies.contexts; materialise verified_dependencies again"
            )
        details = tuple(Dependency(**detail) for detail in row.pop("dependencies"))
        yield Context(**row, token_ids=token_ids[chunk_id], dependencies=details)


def build_groups(
    roots: pl.DataFrame, pairs: pl.DataFrame, contexts: pl.DataFrame, *, gain: str
) -> list[Group]:
    """All roots with their contexts, by root_id, whatever the order of the rows.

    roots: root_id, token_ids. pairs, contexts: the tables of `verified_dependencies`. gain: the
    column that the rule in force judges by. A chunk that was accepted for one anchor and failed
    for others is a verified context. Raises SampleError where the tables don't fit each other.
    """
    root_tokens = _token_ids(roots.select("root_id", "token_ids"), "root_id")
    by_root: dict[str, list[Context]] = {root_id: [] for root_id in sorted(root_tokens)}
    for context in _contexts(pairs, contexts, gain):
        if context.root_id not in by_root:
            raise SampleError(
                f"root {context.root_id}: scored pairs, but no row in entropy_scores.roots; "
                "materialise verified_dependencies again"
            )
        by_root[context.root_id].append(context)
    return [
        Group(
            root_id=root_id,
            token_ids=root_tokens[root_id],
            chosen=tuple(c for c in found if c.dependencies),
            negatives=tuple(c for c in found if not c.dependencies),
        )
        for root_id, found in by_root.items()
    ]
