"""OLMo-core's memory-mapped arrays: bare token ids, and a label mask beside them.

    <split>/<source>.npy             ids of all samples, one after another
    <split>-label-mask/<source>.npy  one byte per token: 1 where it is learnt, 0 elsewhere
    dataset.json                     type of the ids, sequence length, ids of special tokens

The files have no header, in spite of their names. Every sample has the same length, so
`NumpyFSLDataset` of that length gives each sample as one instance. The datasets that look for
documents (`NumpyPaddedFSLDataset`, `NumpyPackedFSLDataset`) expect EOS at their ends, and samples
contain none.

Ids have the smallest type that holds the vocabulary, which is what OLMo-core's builder assumes
(`NumpyDatasetConfig.get_dtype` in ai2-olmo-core 3.0.0).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ExportFacts,
    ExportFormat,
    FormatFiles,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.stages.training_data.source_writers import SourceWriters
from entropylong_assets.stages.training_data.token_files import (
    count_by_size,
    smallest_dtype,
    write_dataset_json,
)
from entropylong_assets.stages.training_data.usage_texts import usage_text, weight_items

_MASK = "-label-mask"


class OlmoWriter:
    """Writes the two files of one split and source."""

    def __init__(self, folder: FormatFolder, split: str, source: str, dtype: np.dtype[Any]) -> None:
        self._stack, self._dtype = ExitStack(), dtype
        self._ids = self._stack.enter_context(folder.file(f"{split}/{source}.npy"))
        self._mask = self._stack.enter_context(folder.file(f"{split}{_MASK}/{source}.npy"))

    def write(self, sample: Sample) -> None:
        self._ids.write(sample.token_ids_T.astype(self._dtype))
        self._mask.write(sample.learnt)

    def close(self) -> None:
        self._stack.close()


@EXPORT_FORMATS.register("olmo")
class OlmoFormat(ExportFormat):
    """One pair of files per split and source."""

    description: ClassVar[str] = "Memory-mapped token ids with label masks, for OLMo-core"

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        dtype = smallest_dtype(facts.tokenizer.vocab_size)
        write_dataset_json(folder, facts.tokenizer, dtype, facts.tokenizer.sample_tokens)
        self._writers = SourceWriters(
            lambda split, source: OlmoWriter(folder, split, source, dtype)
        )

    def write(self, sample: Sample, split: str) -> None:
        self._writers.get(split, sample.group).write(sample)

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        ids = [p for p in files.paths if p.endswith(".npy") and f"{_MASK}/" not in p]
        yield from count_by_size(files, ids)

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        tokenizer = facts.tokenizer
        dtype = smallest_dtype(tokenizer.vocab_size).name
        text = usage_text(
            "olmo",
            bos_id=tokenizer.bos_id,
            dtype=dtype,
            eos_id=tokenizer.pad_id if tokenizer.eos_id is None else tokenizer.eos_id,
            other_dtype="uint32" if dtype == "uint16" else "uint16",
            pad_id=tokenizer.pad_id,
            sample_tokens=tokenizer.sample_tokens,
            vocab_size=tokenizer.vocab_size,
        )
        if facts.sampling_weights is None:
            return text
        return text + usage_text("olmo_mixture", ratios=weight_items(facts.sampling_weights))
