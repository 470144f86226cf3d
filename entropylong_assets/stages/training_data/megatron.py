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

The format has no mask: padding, if any, is learnt unless the trainer masks its id.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.training_data.publication import Publication

_INT32 = 4


class MegatronWriter:
    """Writes one pair of files at `prefix`."""

    def __init__(self, publication: Publication, prefix: str) -> None:
        self._publication, self._prefix = publication, prefix
        self._stack = ExitStack()
        self._bin = self._stack.enter_context(publication.file(f"{prefix}.bin"))
        self._lengths: list[int] = []

    def write(self, token_ids_T: NDArray[np.uint32]) -> None:
        """Adds a sequence. Ids must be below 2^31, as every vocabulary's are."""
        self._bin.write(np.ascontiguousarray(token_ids_T, dtype="<u4"))
        self._lengths.append(len(token_ids_T))

    def close(self) -> None:
        """Ends `.bin` and writes `.idx`."""
        self._stack.close()
        lengths = np.array(self._lengths, "<i4")
        count = len(lengths)
        starts = np.zeros(count, "<i8")
        np.cumsum(lengths[:-1], dtype=np.int64, out=starts[1:])
        with self._publication.file(f"{self._prefix}.idx") as file:
            file.write(b"MMIDIDX\0\0" + np.uint64(1).tobytes() + bytes([_INT32]))
            file.write(np.array([count, count + 1], "<u8").tobytes())
            file.write(lengths.tobytes() + (4 * starts).tobytes())
            file.write(np.arange(count + 1, dtype="<i8").tobytes())
