"""How evenly dependencies are spread over anchors, roots, contexts and documents.

If n_i dependencies use thing i, the *effective number* of things is (Σ n_i)² / Σ n_i², the inverse
of Simpson's index (Simpson, 1949; Hill's number of order 2, 1973): two dependencies drawn at random
use the same thing as often as if there were this many, all used equally. One root that holds most
dependencies brings it near 1, however many others there are. It depends little on things used once,
of which a larger dataset always has more; the exponential of the entropy (order 1) does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl
from pydantic import BaseModel, ConfigDict

THINGS = ("anchors", "roots", "contexts", "documents")
"""What dependencies are spread over: `documents` are those that contexts are cut from."""


class Spread(BaseModel):
    """How dependencies are spread over things of one kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    """Things that at least one dependency uses."""
    effective: float
    """Effective number of them."""
    largest_share: float
    """Share of the dependencies that use the most used thing."""


def spread_of(uses: Sequence[int]) -> Spread:
    """Return the spread. uses: dependencies of each thing that has any; at least one thing."""
    total = sum(uses)
    return Spread(
        number=len(uses),
        effective=total**2 / sum(n**2 for n in uses),
        largest_share=max(uses) / total,
    )


def use_keys(dependencies: pl.DataFrame) -> pl.DataFrame:
    """Return, per dependency, a 64-bit hash of each thing that it uses: the columns THINGS.

    dependencies: root_id, anchor, chunk_id. Of a million dependencies the keys need 32 MB.
    """
    document = pl.col("chunk_id").str.replace("-[^-]*$", "")
    return dependencies.select(
        anchors=pl.struct("root_id", "anchor").hash(),
        roots=pl.col("root_id").hash(),
        contexts=pl.col("chunk_id").hash(),
        documents=document.hash(),
    )


def spreads(keys: Sequence[pl.DataFrame]) -> dict[str, Spread]:
    """Return the spread over each of THINGS; empty without dependencies.

    keys: results of `use_keys`, of different dependencies.
    """
    rows = pl.concat(keys) if keys else pl.DataFrame()
    if rows.is_empty():
        return {}
    return {thing: spread_of(rows[thing].value_counts()["count"].to_list()) for thing in THINGS}


def spread_lines(spreads: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str]]:
    """Return name and text of each spread, for a card or report. spreads: as JSON, by thing."""
    return [
        (
            f"{thing} of dependencies, effective number",
            f"{spread['effective']:,.1f} of {spread['number']:,}; "
            f"the largest has {spread['largest_share']:.1%} of the dependencies",
        )
        for thing, spread in spreads.items()
    ]
