"""Megatron-LM's indexed dataset: token ids in `<prefix>.bin`, their borders in `<prefix>.idx`.

`.bin` holds the int32 token ids of all sequences, one after another. `.idx`, little-endian:

    9 bytes        "MMIDIDX", 0, 0
    uint64         version, 1
    uint8          type of the ids: 4, int32
    uint64         n, number of sequences
    uint64         number of document borders, n + 1
    int32 [n]      tokens of each sequence
    int64 [n]      first byte of each sequence in `.bin`
    int64 [n + 1]  document borders: every sample is a document of one sequence, so 0 .. n

The format has no mask: the trainer must know the padding's id (`usage/megatron.md`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

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
from entropylong_assets.stages.training_data.split import TRAIN, VALIDATION, split_of
from entropylong_assets.stages.training_data.usage_texts import (
    paths_of,
    usage_text,
    weight_list,
    weight_text,
)

_INT32 = 4
_HEAD = struct.Struct("<9sQBQ")
"""Magic bytes, version, type of the ids, number of sequences."""


class MegatronWriter:
    """Writes one pair of files, `<prefix>.bin` and `<prefix>.idx`."""

    def __init__(self, folder: FormatFolder, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        self._stack = ExitStack()
        self._bin = self._stack.enter_context(folder.file(f"{prefix}.bin"))
        self._lengths: list[int] = []

    def write(self, token_ids_T: NDArray[np.int32]) -> None:
        """Add a sequence."""
        self._bin.write(np.ascontiguousarray(token_ids_T, dtype="<i4"))
        self._lengths.append(len(token_ids_T))

    def close(self) -> None:
        """Finish `.bin` and write `.idx`."""
        self._stack.close()
        lengths = np.array(self._lengths, "<i4")
        count = len(lengths)
        starts = np.zeros(count, "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
        with self._folder.file(f"{self._prefix}.idx") as file:
            file.write(b"MMIDIDX\0\0" + np.uint64(1).tobytes() + bytes([_INT32]))
            file.write(np.array([count, count + 1], "<u8").tobytes())
            file.write(lengths.tobytes() + (4 * starts).tobytes())
            file.write(np.arange(count + 1, dtype="<i8").tobytes())


@EXPORT_FORMATS.register("megatron")
class MegatronFormat(ExportFormat):
    """One pair of files per split and source: `<split>-<source>.bin` and `.idx`."""

    description: ClassVar[str] = "Megatron-LM's indexed dataset, one document per sample"

    has_mask: ClassVar[bool] = False

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        self._writers = SourceWriters(
            lambda split, source: MegatronWriter(folder, f"{split}-{source}")
        )

    def write(self, sample: Sample, split: str) -> None:
        self._writers.get(split, sample.group).write(sample.token_ids_T)

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            if path.endswith(".idx"):
                with files.open(path) as stream:
                    yield split_of(path), _HEAD.unpack(stream.read(_HEAD.size))[3]

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        tokenizer = facts.tokenizer
        paths = paths_of("megatron/train-", facts.sources[TRAIN])
        if facts.sampling_weights is not None:
            weights = map(weight_text, facts.sampling_weights.values())
            paths = [f"{weight} {path}" for weight, path in zip(weights, paths, strict=True)]
        marks_borders = tokenizer.pad_id in (tokenizer.eos_id, tokenizer.bos_id)
        text = usage_text(
            "megatron",
            ambiguous="    allow_ambiguous_pad_tokens=True,\n" if marks_borders else "",
            blends=_blends(facts),
            pad_id=tokenizer.pad_id,
            paths=" ".join(paths),
            sample_tokens=tokenizer.sample_tokens,
        )
        return text if facts.sampling_weights is None else text + usage_text("megatron_mixture")


def _blends(facts: ExportFacts) -> str:
    """The value of `blend_per_split` in Python: train, validation, and no test split."""
    blends = []
    for split in (TRAIN, VALIDATION):
        prefixes = [f'f"{{folder}}/megatron/{split}-{source}"' for source in facts.sources[split]]
        weights = "None"
        if split == TRAIN and facts.sampling_weights is not None:
            weights = weight_list(facts.sampling_weights.values())
        blends.append(f"([{', '.join(prefixes)}], {weights})" if prefixes else "None")
    return "[\n" + "".join(f"        {blend},\n" for blend in [*blends, "None"]) + "    ]"
