"""Samples as text, for users of another tokenizer: one JSON object per sample.

    <split>-<nnnnn>.jsonl   UTF-8, plain

    sample_id, shard, domain
    segments       role, root_id, doc_id, chunk_id, source: as in the tables of samples
                   text: without the separator
                   separator: whether the separator follows (`tokenizer` in the manifest has it)
                   original: whether `text` is the corpus' own and its tokens were scored; otherwise
                   it was decoded from the tokens
    anchors        segment: number in `segments`; start, end: characters of the anchor in its text
    dependencies   context, root: numbers in `segments`; start, end: characters of the anchor in the
                   text of the root; the other columns as in the tables of samples

BOS and padding are left out: they belong to the tokenizer that the samples were packed with.
Gains are those of the scoring model at its own tokens.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import polars as pl

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ExportFacts,
    ExportFormat,
    FormatFiles,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.stages.training_data.segment_texts import SegmentText, segment_rows
from entropylong_assets.stages.training_data.source_writers import SourceWriters
from entropylong_assets.stages.training_data.split import split_of
from entropylong_assets.stages.training_data.usage_texts import usage_text

JSONL = "jsonl"

_ORIGIN = ("role", "root_id", "doc_id", "chunk_id", "source")
_MEASURED = ("root_id", "chunk_id", "rank", "gain", "calibrated_gain", "entropy", "entropy_context")


def sample_as_text(sample: Sample) -> dict[str, Any]:
    """Return the object of a sample."""
    assert sample.texts is not None, "samples were read without texts"
    rows = segment_rows(sample)
    kept = [rows[text.segment] for text in sample.texts]
    places = _Places([row["start"] for row in kept], sample.texts)
    columns: Mapping[str, Sequence[Any]] = sample.details["dependencies"][0]
    dependencies = []
    for number, position in enumerate(columns["anchor_position"]):
        anchor = places.find(position)
        dependencies.append(
            {
                "context": places.number(columns["context_start"][number]),
                "root": anchor["segment"],
                "start": anchor["start"],
                "end": anchor["end"],
                **{name: columns[name][number] for name in _MEASURED},
            }
        )
    return {
        "sample_id": sample.sample_id,
        "shard": sample.shard,
        "domain": sample.domain,
        **({} if sample.kind is None else {"kind": sample.kind}),
        "segments": [
            {name: row[name] for name in _ORIGIN}
            | {
                "text": text.text,
                "separator": text.has_separator,
                "original": text.is_original,
            }
            for row, text in zip(kept, sample.texts, strict=True)
        ],
        "anchors": [places.find(position) for position in sample.anchors],
        "dependencies": dependencies,
    }


class _Places:
    """Finds positions of a sample in the texts of its segments."""

    def __init__(self, starts: Sequence[int], texts: Sequence[SegmentText]) -> None:
        self._starts, self._texts = starts, texts

    def number(self, position: int) -> int:
        """Number of the segment that holds a position."""
        return bisect_right(self._starts, position) - 1

    def find(self, position: int) -> dict[str, int]:
        """The segment of a position, and the characters of its token there."""
        number = self.number(position)
        start, end = self._texts[number].spans[position - self._starts[number]]
        return {"segment": number, "start": start, "end": end}


class _JsonlWriter:
    """Writes the files of one split."""

    def __init__(self, folder: FormatFolder, split: str, file_bytes: int) -> None:
        self._folder, self._split, self._file_bytes = folder, split, file_bytes
        self._stack, self._files, self._bytes = ExitStack(), 0, 0
        self._file: Any = None

    def write(self, content: Mapping[str, Any]) -> None:
        line = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        if self._file is None or self._bytes + len(line) > self._file_bytes:
            self.close()
            path = f"{self._split}-{self._files:05d}.jsonl"
            self._file = self._stack.enter_context(self._folder.file(path))
            self._files += 1
            self._bytes = 0
        self._file.write(line)
        self._bytes += len(line)

    def close(self) -> None:
        self._stack.close()


@EXPORT_FORMATS.register(JSONL)
class JsonlFormat(ExportFormat):
    """One or more files per split."""

    description: ClassVar[str] = "Samples as text with roles and dependencies, one JSON per line"
    needs_texts: ClassVar[bool] = True

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        self._writers = SourceWriters(
            lambda split, _: _JsonlWriter(folder, split, settings.export.file_bytes)
        )

    def write(self, sample: Sample, split: str) -> None:
        self._writers.get(split).write(sample_as_text(sample))

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            with files.open(path) as stream:
                yield split_of(path), sum(1 for _ in stream)

    @classmethod
    def read_documents(cls, files: FormatFiles) -> Iterator[tuple[str, pl.Series]]:
        for path in files.paths:
            with files.open(path) as stream:
                doc_ids = {s["doc_id"] for line in stream for s in json.loads(line)["segments"]}
            yield split_of(path), pl.Series("doc_id", sorted(doc_ids), pl.String)

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        return usage_text("jsonl", separator=f"`{json.dumps(facts.tokenizer.separator)}`")

    @classmethod
    def front_matter(cls, facts: ExportFacts) -> Mapping[str, Any]:
        files = [
            {"split": split, "path": f"jsonl/{split}-*.jsonl"}
            for split, samples in facts.splits.items()
            if samples
        ]
        return {"configs": [{"config_name": "text", "data_files": files}]}
