"""An export format of another package: one JSON object per sample."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

from entropylong_assets.stages.training_data.registry import ExportFormat, FormatFiles


class JsonLines(ExportFormat):
    """One file per split: `<split>.jsonl`."""

    description: ClassVar[str] = "JSON Lines, one object with ids per sample"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._stack = ExitStack()
        self._files = {
            split: self._stack.enter_context(self.folder.file(f"{split}.jsonl"))
            for split in self.facts.splits
        }

    def write(self, sample, split):
        row = {"id": sample.sample_id, "input_ids": sample.token_ids_T.tolist()}
        self._files[split].write(json.dumps(row).encode() + b"\n")

    def close(self):
        self._stack.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            yield path.removesuffix(".jsonl"), files.read(path).count(b"\n")
