"""Batches hold what the memory allows, and vectors do not depend on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from entropylong_assets.stages.embeddings.batches import (
    Batches,
    measure_tokens,
    most_tokens,
    tokens_within,
)

TEXTS = ["a" * n for n in (3, 9, 1, 12, 5, 7, 2, 11, 4)]
LENGTHS = [len(text) for text in TEXTS]


class Machine:
    """Embeds texts as (length, 1); holds at most `room` padded tokens at once."""

    def __init__(self, room: int, error: BaseException | None = None) -> None:
        self.room, self.error = room, error or torch.OutOfMemoryError("CUDA out of memory")
        self.batches: list[list[int]] = []
        self.refused = 0

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if max(map(len, texts)) * len(texts) > self.room:
            self.refused += 1
            raise self.error
        self.batches.append([len(text) for text in texts])
        return np.array([[len(text), 1] for text in texts], np.float32)


@pytest.mark.parametrize(("tokens", "texts"), [(12, None), (24, None), (999, None), (1, 1), (1, 4)])
def test_batches_keep_the_order_of_the_texts(tokens: int, texts: int | None) -> None:
    machine = Machine(10**9)
    vectors = Batches(tokens, texts).encode(machine, TEXTS, LENGTHS, 2)
    assert vectors[:, 0].tolist() == LENGTHS
    assert sorted(n for batch in machine.batches for n in batch) == sorted(LENGTHS)
    sizes = [len(batch) for batch in machine.batches]
    if texts:
        assert sizes[:-1] == [texts] * (len(sizes) - 1)
    else:
        assert all(max(b) * len(b) <= tokens or len(b) == 1 for b in machine.batches)
        assert (len(sizes) == 1) == (tokens == 999)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        MemoryError(),
    ],
)
def test_a_batch_that_does_not_fit_is_halved(error: BaseException) -> None:
    machine, batches = Machine(24, error), Batches(96, None)
    assert batches.encode(machine, TEXTS, LENGTHS, 2)[:, 0].tolist() == LENGTHS
    assert 0 < machine.refused < 4
    assert batches.tokens < 96
    refused = machine.refused
    batches.encode(machine, TEXTS, LENGTHS, 2)
    assert machine.refused == refused, "the next texts begin with batches that fit"


def test_a_text_that_does_not_fit_alone_ends_in_the_error_of_the_device() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        Batches(96, None).encode(Machine(8), TEXTS, LENGTHS, 2)


def test_another_error_is_not_retried() -> None:
    machine = Machine(8, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        Batches(96, None).encode(machine, TEXTS, LENGTHS, 2)
    assert machine.refused == 1


def test_tokens_within_is_the_largest_power_of_two_that_fits() -> None:
    # One text of 256 tokens takes 100 bytes and each further one 50: 1,000 bytes hold 19.
    assert tokens_within(100, 300, 1000, 256, 2**30) == 4096 <= 19 * 256 < 8192
    assert tokens_within(100, 300, 1000, 256, 2048) == 2048
    assert tokens_within(100, 300, 10, 256, 2**30) == 256, "at least one text"
    assert tokens_within(100, 100, 10**6, 256, 2**14) == 2**14, "no growth at all"


def test_a_cpu_is_not_measured() -> None:
    machine = Machine(1)
    assert measure_tokens(machine, "a", 256, "cpu") == most_tokens("cpu") == 64 * 256
    assert machine.refused == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_cuda_is_measured() -> None:
    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        torch.empty(2**20 * len(texts) * 64, dtype=torch.uint8, device="cuda")
        return np.ones((len(texts), 2), np.float32)

    free, _ = torch.cuda.mem_get_info()
    tokens = measure_tokens(encode, "a", 4, "cuda")
    assert tokens <= free // 2 // 2**26 * 4 < 2 * tokens or tokens == most_tokens("cuda")
