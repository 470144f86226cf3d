"""MDS, the shard format of MosaicML Streaming (version 2), as ProLong's trainer reads it.

This is our own writer, because the library pins NumPy below 2.2 and transformers below 5. The
tests read its files with the library itself.

A dataset is a folder of `shard.<nnnnn>.mds` and `index.json`. A shard, all numbers little-endian:

    uint32                  n, number of samples
    uint32 [n + 1]          offset of each sample from the file's first byte; then the end
    JSON                    the shard's configuration (below), up to the first sample
    n samples               each: uint32 size of every column of variable size, in the order of
                            the columns; then the values of all columns in that order

Columns are ordered by name. Encodings used here:

    ndarray:<dtype>         one byte (dimensions << 2 | c), c = 0, 1, 2, 3 for a shape written in
                            uint8, uint16, uint32, uint64; the shape; the values, row-major
    int                     int64
    str, json               UTF-8

`index.json` lists each shard's configuration with its file, bytes, sha256 and samples. No column
is a Python list or object: those are pickled, and careful readers refuse pickles.

Columns of a sample:

    input_ids          ndarray:int32    [T]
    indices            ndarray:int64    [[0, R]]: ONE span of the R tokens before the padding.
                                        Trainers read and learn the tokens in a span, and attend
                                        only inside it: spans per document would cut contexts from
                                        their root
    length             int              T
    domain             str              source of the sample's roots
    mask               ndarray:uint8    [T], 0 where a token is excluded from the loss; only in
                                        exports with padding. Needed by readers that don't stop at
                                        the end of a span (ProLong's `--single_seq`)
    position_weighted  ndarray:float32  [R], with `export.loss_weights`, as EntropyLong's trainer
                                        reads them: 0 at ordinary tokens, whose loss it leaves as
                                        it is, the weight at the others. It is as long as the
                                        span because that trainer takes it whole
    provenance         json             sample_id, shard, segments and dependencies, by column
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from entropylong_assets.settings.section import Settings
from entropylong_assets.stages.training_data.registry import (
    EXPORT_FORMATS,
    ID_DTYPE,
    ExportFacts,
    ExportFormat,
    FormatFiles,
    FormatFolder,
)
from entropylong_assets.stages.training_data.samples import Sample
from entropylong_assets.stages.training_data.settings import ExportSettings
from entropylong_assets.stages.training_data.source_writers import SourceWriters
from entropylong_assets.stages.training_data.split import TRAIN
from entropylong_assets.stages.training_data.usage_texts import (
    paths_of,
    usage_text,
    weight_items,
    weight_text,
)

Pieces = list[bytes | memoryview]

_SHAPE_TYPES = ((0, np.uint8), (1, np.uint16), (2, np.uint32), (3, np.uint64))


def encode_array(values: NDArray[Any]) -> Pieces:
    """An array as MDS stores it. A copy: a view would keep its whole batch in memory."""
    code, kind = next(
        (code, kind) for code, kind in _SHAPE_TYPES if max(values.shape) <= np.iinfo(kind).max
    )
    head = bytes([values.ndim << 2 | code]) + np.array(values.shape, kind).tobytes()
    return [head, values.tobytes()]


class MdsWriter:
    """Writes one MDS dataset."""

    def __init__(
        self, folder: FormatFolder, path: str, columns: Mapping[str, str], file_bytes: int
    ) -> None:
        """path: of the dataset, relative to the folder. file_bytes: size limit of a shard."""
        self._folder, self._path, self._file_bytes = folder, path, file_bytes
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
        """Add a sample: its columns as encoded pieces."""
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
        with self._folder.file(f"{self._path}/{name}") as file:
            file.write(np.uint32(count).tobytes() + offsets.astype("<u4").tobytes() + self._header)
            for piece in self._pieces:
                file.write(piece)
        written = file.exported(name)
        raw = {"basename": name, "bytes": written.bytes, "hashes": {"sha256": written.sha256}}
        self._shards.append(self._config | {"samples": count, "raw_data": raw, "zip_data": None})
        self._clear()

    def close(self) -> None:
        """Write the last shard and the index."""
        if self._sizes:
            self._flush()
        with self._folder.file(f"{self._path}/index.json") as file:
            file.write(json.dumps({"version": 2, "shards": self._shards}, sort_keys=True).encode())


def sample_columns(*, mask: bool, weights: bool) -> dict[str, str]:
    """Columns and encodings of a sample."""
    columns = {
        "input_ids": f"ndarray:{ID_DTYPE}",
        "indices": "ndarray:int64",
        "length": "int",
        "domain": "str",
        "provenance": "json",
    }
    columns |= {"mask": "ndarray:uint8"} if mask else {}
    return columns | ({"position_weighted": "ndarray:float32"} if weights else {})


def encode_sample(sample: Sample, export: ExportSettings, *, mask: bool) -> dict[str, Pieces]:
    """The columns of a sample; with weights if `export.loss_weights` asks for them."""
    assert sample.provenance is not None, "samples were read without provenance"
    length = len(sample.token_ids_T)
    columns: dict[str, Pieces] = {
        "input_ids": encode_array(sample.token_ids_T),
        "indices": encode_array(np.array([[0, sample.real_tokens]], np.int64)),
        "length": [np.int64(length).tobytes()],
        "domain": [sample.domain.encode()],
        "provenance": [sample.provenance.encode()],
    }
    if mask:
        columns["mask"] = encode_array(sample.learnt.astype(np.uint8))
    if export.loss_weights != "uniform":
        weights = sample.weights(export)[: sample.real_tokens]
        columns["position_weighted"] = encode_array(np.where(weights == 1, np.float32(0), weights))
    return columns


@EXPORT_FORMATS.register("mds")
class MdsFormat(ExportFormat):
    """One MDS dataset per split and source: `<split>/<source>/`."""

    description: ClassVar[str] = (
        "MosaicML Streaming shards, read by the trainers of ProLong and EntropyLong"
    )
    needs_provenance: ClassVar[bool] = True

    def __init__(self, folder: FormatFolder, settings: Settings, facts: ExportFacts) -> None:
        super().__init__(folder, settings, facts)
        self._writers = SourceWriters(self._open)

    def _open(self, split: str, source: str) -> MdsWriter:
        weights = self.settings.export.loss_weights != "uniform"
        columns = sample_columns(mask=self.facts.has_padding, weights=weights)
        path = f"{split}/{source}"
        return MdsWriter(self.folder, path, columns, self.settings.export.file_bytes)

    def write(self, sample: Sample, split: str) -> None:
        values = encode_sample(sample, self.settings.export, mask=self.facts.has_padding)
        self._writers.get(split, sample.group).write(values)

    def close(self) -> None:
        self._writers.close()

    @classmethod
    def count_samples(cls, files: FormatFiles) -> Iterator[tuple[str, int]]:
        for path in files.paths:
            if path.endswith("/index.json"):
                shards = json.loads(files.read(path))["shards"]
                yield path.partition("/")[0], sum(shard["samples"] for shard in shards)

    @classmethod
    def usage(cls, facts: ExportFacts) -> str:
        weights = facts.loss_weights != "uniform"
        columns = sample_columns(mask=facts.has_padding, weights=weights)
        optional = [f", `{name}`" for name in ("mask", "position_weighted") if name in columns]
        paths, drawn = paths_of(f"mds/{TRAIN}/", facts.sources[TRAIN]), facts.sampling_weights
        if drawn is not None:
            shares = map(weight_text, drawn.values())
            paths = [f"{path}@{share}" for path, share in zip(paths, shares, strict=True)]
        text = usage_text(
            "mds",
            optional="".join(optional),
            paths=" ".join(paths),
            sample_tokens=facts.tokenizer.sample_tokens,
        )
        text += usage_text("mds_weights") if weights else ""
        return (
            text if drawn is None else text + usage_text("mds_mixture", streams=weight_items(drawn))
        )
