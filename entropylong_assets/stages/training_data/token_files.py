"""Common parts of formats of bare token ids: the type of their ids, and `dataset.json`.

A file of bare ids contains neither their type nor the length of a sample. A reader that assumes
another type gets other ids without an error. So both are in `dataset.json`, together with the
special token ids that a trainer needs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from entropylong_assets.stages.training_data.registry import FormatFiles, FormatFolder

if TYPE_CHECKING:
    from entropylong_assets.stages.entropy.tokenizer_facts import TokenizerFacts

DATASET = "dataset.json"


def smallest_dtype(vocab_size: int, at_least: int = 1) -> np.dtype[Any]:
    """Return the smallest little-endian unsigned type of `at_least` bytes that holds every id."""
    for size in (1, 2, 4):
        if size >= at_least and vocab_size <= 1 << 8 * size:
            return np.dtype(f"<u{size}")
    raise ValueError(f"no type of 4 bytes holds the ids of a vocabulary of {vocab_size} tokens")


def write_dataset_json(
    folder: FormatFolder, tokenizer: TokenizerFacts, dtype: np.dtype[Any], stored_tokens: int
) -> None:
    """Write `dataset.json`. stored_tokens: tokens per sample in the files."""
    content = {
        "dtype": dtype.name,
        "sequence_length": tokenizer.sample_tokens,
        "stored_tokens_per_sample": stored_tokens,
        "vocab_size": tokenizer.vocab_size,
        "pad_token_id": tokenizer.pad_id,
        "eos_token_id": tokenizer.eos_id,
        "bos_token_id": tokenizer.bos_id,
    }
    with folder.file(DATASET) as file:
        file.write(json.dumps(content, sort_keys=True, indent=1).encode() + b"\n")


def count_by_size(files: FormatFiles, paths: list[str]) -> Iterator[tuple[str, int]]:
    """Count the samples of files of bare ids by their sizes: (split, samples) per file.

    paths: of the files, each in a folder named like its split.
    """
    content = json.loads(files.read(DATASET))
    size = content["stored_tokens_per_sample"] * np.dtype(content["dtype"]).itemsize
    for path in paths:
        count, rest = divmod(files.fs.size(f"{files.folder}/{path}"), size)
        # An incomplete sample counts as one, so that the check notices it.
        yield path.partition("/")[0], count + (rest > 0)
