"""Samples that are mostly padding say why, and what to do."""

from __future__ import annotations

import re

import pytest

from entropylong_assets.stages.samples.padding import padding_note


def test_the_demo_explains_its_padding() -> None:
    """Tokens of `make demo`, from its card: 3 samples of 131,072 tokens."""
    note = padding_note(
        3, {"root": 1_969, "verified": 2_143, "negative": 11_862, "padding": 377_242}
    )
    assert note == (
        "95.9% of the tokens are padding: a sample holds 131,072, but the roots of a shard "
        "and their contexts fill only 5,324 on average. To have less, draw more roots "
        "(roots.number) or set samples.tokens to a smaller number, e.g. 8192"
    )


@pytest.mark.parametrize(("samples", "padding"), [(0, 0), (1, 0), (2, 1000)])
def test_little_padding_needs_no_explanation(samples: int, padding: int) -> None:
    assert padding_note(samples, {"root": 1000 * samples - padding, "padding": padding}) is None


@pytest.mark.parametrize("content", [1, 15, 16, 255, 256, 400, 511])
def test_the_suggested_length_is_less_and_fits_the_content(content: int) -> None:
    note = padding_note(1, {"root": content, "padding": 1024 - content})
    assert note is not None
    (length,) = map(int, re.findall(r"e\.g\. (\d+)$", note))
    assert content < length < 1024
    assert length >= 16, "the minimum of the setting"
    assert length <= 2 * max(content, 16)


def test_no_length_is_suggested_if_none_is_smaller() -> None:
    note = padding_note(1, {"root": 4, "padding": 20})
    assert note is not None
    assert note.endswith("To have less, draw more roots (roots.number)")
