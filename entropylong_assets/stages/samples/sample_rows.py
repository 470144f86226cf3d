"""Rows of samples, as in the tables of the stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import polars as pl

from entropylong_assets.stages.samples.packing import Segment
from entropylong_assets.storage.partition_writer import RowWriter


@dataclass
class SampleRows:
    """Rows of a few samples, as in the tables of samples."""

    samples: list[dict[str, Any]] = field(default_factory=list)
    segments: list[dict[str, Any]] = field(default_factory=list)
    dependencies: list[dict[str, Any]] = field(default_factory=list)

    def write(self, writer: RowWriter) -> None:
        if self.samples:
            token_ids = np.stack([row.pop("input_ids") for row in self.samples])
            frame = pl.DataFrame(self.samples).with_columns(
                pl.Series("input_ids", token_ids).arr.to_list()
            )
            writer.append("samples", frame)
            writer.append("segments", self.segments)
            writer.append("dependencies", self.dependencies)

    def add(self, sample_id: str, segments: Sequence[Segment], source: str) -> Counter[str]:
        """Add the rows of one sample; return its tokens by role. source: of the roots."""
        starts = np.cumsum([0] + [len(segment.token_ids) for segment in segments]).tolist()
        tokens: Counter[str] = Counter()
        root_starts: dict[str, int] = {}
        for number, segment in enumerate(segments):
            tokens[segment.role] += len(segment.token_ids)
            if segment.role == "root":
                assert segment.group is not None
                root_starts.setdefault(segment.group.root_id, starts[number])
            span = {"start": starts[number], "end": starts[number + 1]}
            place = {"sample_id": sample_id, "segment": number, "role": segment.role}
            self.segments.append(place | span | _origin(segment, source))
        for number, segment in enumerate(segments):
            if segment.role == "verified":
                assert segment.group is not None
                root_start = root_starts[segment.group.root_id]
                self.dependencies.extend(
                    _dependency_rows(sample_id, segment, starts[number], root_start)
                )
        self.samples.append(
            {
                "sample_id": sample_id,
                "input_ids": np.concatenate([segment.token_ids for segment in segments]),
                "n_root": tokens["root"],
                "n_verified": tokens["verified"],
                "n_negative": tokens["hard_negative"] + tokens["unverified"] + tokens["filler"],
                "n_padding": tokens["padding"],
            }
        )
        return tokens


def _origin(segment: Segment, source: str) -> dict[str, str | None]:
    """The root that a segment belongs to, and the passage or document that it comes from."""
    context, group = segment.context, segment.group
    root_id = group.root_id if group else None
    return {
        "root_id": root_id,
        "doc_id": context.doc_id if context else root_id,
        "chunk_id": context.chunk_id if context else None,
        "source": context.source if context else (source if group else None),
    }


def _dependency_rows(
    sample_id: str, segment: Segment, start: int, root_start: int
) -> Iterator[dict[str, Any]]:
    """Rows of a verified context that starts at `start` and whose root starts at `root_start`."""
    context = segment.context
    assert context is not None
    end = start + len(segment.token_ids)
    for dependency in context.dependencies:
        position = root_start + dependency.anchor
        row = asdict(dependency)
        evidence = [row.pop(name) for name in ("token_start", "token_end")]
        evidence_start, evidence_end = (None if t is None else start + t for t in evidence)
        yield row | {
            "sample_id": sample_id,
            "root_id": context.root_id,
            "chunk_id": context.chunk_id,
            "anchor_position": position,
            "context_start": start,
            "context_end": end,
            "distance": position - end,
            "evidence_start": evidence_start,
            "evidence_end": evidence_end,
        }
