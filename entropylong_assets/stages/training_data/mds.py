"""MDS, the shard format of MosaicML Streaming (version 2), as ProLong's trainer reads it.

Our own writer: the library's pins (NumPy below 2.2, transformers below 5) don't fit ours. The
tests read its files with the library itself.

A dataset is a folder of `shard.<nnnnn>.mds` and `index.json`. A shard, all numbers little-endian:

    uint32                  n, number of samples
    uint32 [n + 1]          where each sample begins, from the file's first byte; then the end
    JSON                    the shard's configuration (below), up to the first sample
    n samples               each: uint32 size of every column of variable size, in the order of
                            the columns; then the values of all columns in that order

Columns stand in the order of their names. Encodings used here:

    ndarray:<dtype>         one byte (dimensions << 2 | c), c = 0, 1, 2, 3 for a shape written in
                            uint8, uint16, uint32, uint64; the shape; the values, row-major
    int                     int64
    str, json               UTF-8

`index.json` lists each shard's configuration with its file, bytes, sha256 and samples. No column
is a Python list or object: those become pickles, which careful readers refuse.

Columns of a sample:

    input_ids          ndarray:uint32   [T]
    indices            ndarray:int64    [[0, T]]: ONE span. The trainers attend only inside a span,
                                        so spans by document would cut every context from its root
    length             int              T
    domain             str              source of the sample's roots
    mask               ndarray:uint8    [T], 0 where a token is kept from the loss; only in exports
                                        with padding, read by trainers that are told to
    position_weighted  ndarray:float32  [T], on request
    provenance         json             sample_id, shard, segments and dependencies, by column
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.stages.training_data.publication import Publication
from entropylong_assets.stages.training_data.samples import Sample

Pieces = list[bytes | memoryview]

_SHAPE_TYPES = ((0, np.uint8), (1, np.uint16), (2, np.uint32), (3, np.uint64))


def encode_array(values: NDArray[Any]) -> Pieces:
    """An array as MDS stores it. A copy: a view would keep the whole batch that it was read in."""
    code, kind = next(
        (code, kind) for code, kind in _SHAPE_TYPES if max(values.shape) <= np.iinfo(kind).max
    )
    head = bytes([values.ndim << 2 | code]) + np.array(values.shape, kind).tobytes()
    return [head, values.tobytes()]


class MdsWriter:
    """Writes the samples of one folder; `file_bytes` is the size limit of a shard."""

    def __init__(
        self, publication: Publication, folder: str, columns: Mapping[str, str], file_bytes: int
    ) -> None:
        self._publication, self._folder, self._file_bytes = publication, folder, file_bytes
        self._names = sorted(columns)
        self._fixed = {name for name in columns if columns[name] == "int"}
        self._config = {
            "version": 2,
            "format": "mds",
            "compression": None,
            "hashes": ["sha256"],
            "size_limit": file_bytes,
            "column_names": self._names,
            "column_encodings": [columns[name] for name in self._names],
            "column_sizes": [8 if name in self._fixed else None for name in self._names],
        }
        self._header = json.dumps(self._config, sort_keys=True).encode()
        self._shards: list[dict[str, Any]] = []
        self._clear()

    def _clear(self) -> None:
        self._pieces: Pieces = []
        self._sizes: list[int] = []
        self._bytes = 8 + len(self._header)

    def write(self, values: Mapping[str, Sequence[bytes | memoryview]]) -> None:
        """Adds a sample: its columns as encoded pieces."""
        lengths = {name: sum(map(len, values[name])) for name in self._names}
        head = np.array([lengths[n] for n in self._names if n not in self._fixed], "<u4").tobytes()
        size = len(head) + sum(lengths.values())
        if self._sizes and self._bytes + size + 4 > self._file_bytes:
            self._flush()
        self._pieces.append(head)
        for name in self._names:
            self._pieces.extend(values[name])
        self._sizes.append(size)
        self._bytes += size + 4

    def _flush(self) -> None:
        count = len(self._sizes)
        offsets = np.cumsum([0, *self._sizes], dtype=np.int64)
        offsets += 4 + 4 * (count + 1) + len(self._header)
        assert offsets[-1] < 2**32, "offsets are uint32"
        name = f"shard.{len(self._shards):05d}.mds"
        with self._publication.file(f"{self._folder}/{name}") as file:
            file.write(np.uint32(count).tobytes() + offsets.astype("<u4").tobytes() + self._header)
            for piece in self._pieces:
                file.write(piece)
        written = self._publication.files[-1]
        raw = {"basename": name, "bytes": written.bytes, "hashes": {"sha256": written.sha256}}
        self._shards.append(self._config | {"samples": count, "raw_data": raw, "zip_data": None})
        self._clear()

    def close(self) -> None:
        """Writes the last shard and the index."""
        if self._sizes:
            self._flush()
        with self._publication.file(f"{self._folder}/index.json") as file:
            file.write(json.dumps({"version": 2, "shards": self._shards}, sort_keys=True).encode())


def sample_columns(*, mask: bool, weights: bool) -> dict[str, str]:
    """Columns and encodings of a sample."""
    columns = {
        "input_ids": "ndarray:uint32",
        "indices": "ndarray:int64",
        "length": "int",
        "domain": "str",
        "provenance": "json",
    }
    columns |= {"mask": "ndarray:uint8"} if mask else {}
    return columns | ({"position_weighted": "ndarray:float32"} if weights else {})


def encode_sample(sample: Sample, *, mask: bool, anchor_weight: float | None) -> dict[str, Pieces]:
    """A sample's columns; `anchor_weight` None leaves the weights out."""
    assert sample.provenance is not None, "samples were read without provenance"
    length = len(sample.token_ids_T)
    columns: dict[str, Pieces] = {
        "input_ids": encode_array(sample.token_ids_T),
        "indices": encode_array(np.array([[0, length]], np.int64)),
        "length": [np.int64(length).tobytes()],
        "domain": [sample.domain.encode()],
        "provenance": [sample.provenance.encode()],
    }
    if mask:
        columns["mask"] = encode_array(sample.loss_mask)
    if anchor_weight is not None:
        columns["position_weighted"] = encode_array(sample.weights(anchor_weight))
    return columns
