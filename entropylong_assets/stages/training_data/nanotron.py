"""Datatrove's tokenized files, as nanotron reads them: T + 1 token ids per sample.

    <split>/<source>/samples.ds        ids of all samples, uint16 or uint32, without header
    <split>/<source>/samples.ds.index  uint64 ends of documents (tokens from the file's start)
    dataset.json                       type of the ids, sequence length, ids of special tokens

Readers step by T + 1 tokens and give the first T as input, the last T as labels. So each sample of
T tokens is followed by one EOS, the label of its last token; without it each sample would start
one token later than the one before it.

The files have no mask. Nanotron does not learn a token at position 0 of its document, so padding is
written as EOS, and every padding token is a document of its own:

- Positions from the index (nanotron without an EOS id, datatrove's default): padding is not learnt.
- Positions from EOS (nanotron with a tokenizer that has one): the EOS after the last real token is
  learnt, the others are not.

Either way all other tokens of a sample are one document, since text never encodes to EOS. The
source is `DatatroveFileDataset` of datatrove 0.10.1 and `DataCollatorForCLMWithPositionIds` of
nanotron (GitHub, commit 2411b022; the release 0.4 on PyPI has no reader of such files).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar

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
from entropylong_assets.stages.training_data.split import TRAIN
from entropylong_assets.stages.training_data.token_files import (
    count_by_size,
    smallest_dtype,
    write_dataset_json,
)
from entropylong_assets.stages.training_data.usage_texts import paths_of, usage_text, weight_list

_SMALLEST = 2
"""Bytes of a token id: datatrove reads 2 or 4."""


class NanotronWriter:
    """Writes the two files of one split and source."""

    def __init__(self, folder: FormatFolder, path: str, facts: ExportFacts) -> None:
        """path: of the `.ds` file, relative to the folder."""
        tokenizer = facts.tokenizer
        self._end = tokenizer.pad_id if tokenizer.eos_id is None else tokenizer.eos_id
        self._dtype = smallest_dtype(tokenizer.vocab_size, _SMALLEST)
        self._stack, self._tokens = ExitStack(), 0
        self._ids = self._stack.enter_context(folder.file(path))
        self._index = self._stack.enter_context(folder.file(f"{path}.index"))

    def write(self, sample: Sample) -> None:
        length, real = len(sample.token_ids_T), sample.real_tokens
        ids = np.full(length + 1, self._end, self._dtype)
        ids[:real] = sample.token_ids_T[:real]
        self._ids.write(ids)
        ends = np.arange(real, length + 2, dtype="<u8") + np.uint64(self._tokens)
        self._index.write(ends)
        self._tokens += length + 1

    def close(self) -> None:
        self._stack.close()


@EXPORT_FORMATS.register("nanotron")
class NanotronFormat(ExportFormat):
    """One folder with a pair of files per split and source."""

    description: ClassVar[str] = "Datatrove's .ds files with T + 1 tokens per sample, for nanotron"

    has_mask: ClassVar[bool] = False

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        tokenizer = facts.tokenizer
        dtype = smallest_dtype(tokenizer.vocab_size, _SMALLEST)
        write_dataset_json(folder, tokenizer, dtype, tokenizer.sample_tokens + 1)
        self._writers = SourceWriters(
            lambda split, source: NanotronWriter(folder, f"{split}/{source}/samples.ds", facts)
        )

    def write(self, sample: Sample, split: str) -> None:
        self._writers.get(split, sample.group).write(sample)

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        yield from count_by_size(files, [path for path in files.paths if path.endswith(".ds")])

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        tokenizer = facts.tokenizer
        sources = facts.sources[TRAIN]
        total = sum(sources.values())
        by_size = {source: count / total for source, count in sources.items()}
        return usage_text(
            "nanotron",
            end="padding" if tokenizer.eos_id is None else "EOS",
            folders=", ".join(paths_of("nanotron/train/", sources)),
            sample_tokens=tokenizer.sample_tokens,
            token_size=smallest_dtype(tokenizer.vocab_size, _SMALLEST).itemsize,
            vocab_size=tokenizer.vocab_size,
            weights=weight_list((facts.sampling_weights or by_size).values()),
        )
