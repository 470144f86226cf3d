"""Readers of MDS and Megatron files, written from the documentation of the formats, and a collator
that behaves like ProLong's. They share no code with our writers."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def _decode(encoding: str, data: bytes) -> Any:
    kind, _, dtype = encoding.partition(":")
    if kind == "ndarray":
        n_dimensions, code = divmod(data[0], 4)
        shape_end = 1 + n_dimensions * (1 << code)
        shape = np.frombuffer(data[1:shape_end], f"<u{1 << code}")
        return np.frombuffer(data[shape_end:], dtype).reshape(shape)
    if kind == "int":
        return struct.unpack("<q", data)[0]
    text = data.decode()
    return json.loads(text) if kind == "json" else text


def read_mds(folder: Path) -> Iterator[dict[str, Any]]:
    """Samples of a folder of MDS shards, by its index."""
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert offsets[-1] == len(data)
        config = json.loads(data[4 * (count + 2) : offsets[0]])
        columns = list(
            zip(
                config["column_names"],
                config["column_encodings"],
                config["column_sizes"],
                strict=True,
            )
        )
        assert [c[0] for c in columns] == shard["column_names"]
        for start, end in itertools.pairwise(offsets):
            at, sizes = start, []
            for _, _, size in columns:
                if size is None:
                    (size,) = struct.unpack_from("<I", data, at)
                    at += 4
                sizes.append(size)
            sample = {}
            for (name, encoding, _), size in zip(columns, sizes, strict=True):
                sample[name] = _decode(encoding, data[at : at + size])
                at += size
            assert at == end
            yield sample


def read_megatron(prefix: Path) -> list[np.ndarray]:
    """Sequences of an indexed dataset."""
    index = prefix.with_suffix(".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, n, n_borders = struct.unpack_from("<QBQQ", index, 9)
    assert (version, code) == (1, 4)
    at = 9 + struct.calcsize("<QBQQ")
    lengths = np.frombuffer(index, "<i4", n, at)
    starts = np.frombuffer(index, "<i8", n, at + 4 * n)
    borders = np.frombuffer(index, "<i8", n_borders, at + 12 * n)
    assert len(index) == at + 12 * n + 8 * n_borders
    assert borders.tolist() == list(range(n + 1))
    tokens = prefix.with_suffix(".bin").read_bytes()
    assert len(tokens) == 4 * lengths.sum()
    return [np.frombuffer(tokens, "<i4", k, s) for k, s in zip(lengths, starts, strict=True)]


def collate_like_prolong(item: dict[str, Any], *, apply_masks: bool) -> dict[str, Any]:
    """Return input_ids, labels (-100: not learnt) and span of each token, as in ProLong's trainer.

    Tokens attend inside each span of `indices`, and a span's first token is not predicted. weights:
    factor of each token's own loss in EntropyLong's trainer, from the whole of `position_weighted`,
    in which 0 stands for an unchanged loss.
    """
    ids, labels, spans = [], [], []
    for number, (start, end) in enumerate(item["indices"]):
        piece = item["input_ids"][start:end].astype(np.int64)
        label = piece.copy()
        label[0] = -100
        if apply_masks and "mask" in item:
            label[item["mask"][start:end] == 0] = -100
        ids.append(piece)
        labels.append(label)
        spans.append(np.full(len(piece), number))
    weights = None
    if "position_weighted" in item:
        given = item["position_weighted"]
        assert len(given) == sum(map(len, ids)), "weights of other tokens than those of the spans"
        weights = np.where(given == 0, 1, given).tolist()
    return {
        "input_ids": np.concatenate(ids),
        "labels": np.concatenate(labels),
        "span": np.concatenate(spans),
        "weights": weights,
    }
