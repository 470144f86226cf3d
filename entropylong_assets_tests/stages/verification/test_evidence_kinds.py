"""Kinds of dependencies, by example."""

from __future__ import annotations

import pytest

from entropylong_assets.stages.verification.evidence_kinds import KINDS, classify

EXAMPLES = [
    # English
    ("definition", "Entropy", "Entropy is a measure of disorder."),
    ("definition", "entropy", "In physics, the entropy (S) refers to disorder."),
    ("definition", "eps", "eps : float, default=0.5"),
    ("definition", "quaternion", "a number of this form is called a quaternion"),
    ("definition", "Fourier", "# Fourier transform\nIt maps a function to its frequencies."),
    ("definition", "Cholesky", "Cholesky decomposition\n----------------------"),
    ("definition", "OPTICS", "OPTICS -- finds clusters of varying density."),
    ("code_symbol", "fit", "call `fit` before you predict"),
    ("code_symbol", "fit", "model.fit(X)"),
    ("code_symbol", "samples", "an array of n_samples rows"),
    ("code_symbol", "KMeans", "we train KMeans here"),
    ("verbatim_entity", "Hertzog", "a paper by Hertzog and others"),
    ("verbatim_entity", "1984", "published in 1984 by Wiley"),
    ("verbatim_entity", "BLAS", "BLAS does the work"),
    ("verbatim_word", "copper", "mines gave salt and copper to the town"),
    ("verbatim_word", "The", "The mines gave salt."),
    ("verbatim_word", "salt", "Does the town sell salt? Is it dear?"),
    ("paraphrase", "mines", "the pit was opened when the town grew"),
    ("paraphrase", "cop", "copper"),
    ("other", None, "a = b"),
    # Chinese: a word is one sign
    ("definition", "熵", "熵是衡量混乱程度的量。"),
    ("definition", "阵", "所谓正定矩阵，就是特征值都大于零。"),
    ("verbatim_word", "铜", "矿山出产盐和铜，供应全镇。"),
    ("paraphrase", "铁", "矿山出产盐和铜。"),
    # Russian
    ("definition", "энтропия", "Энтропия — это мера беспорядка."),
    ("verbatim_entity", "Колмогоров", "теорему доказал Колмогоров в молодости"),
    ("verbatim_word", "медь", "город получал соль и медь"),
    # code
    ("definition", "normalize", "def normalize(vector):\n    return vector / vector.norm()"),
    ("definition", "Matrix", "pub struct Matrix {"),
    ("code_symbol", "verbose", "if verbose == 1 then print"),
]


@pytest.mark.parametrize(("kind", "word", "span"), EXAMPLES)
def test_kinds_of_examples(kind: str, word: str | None, span: str) -> None:
    assert classify(word, span, is_boilerplate=False) == kind


def test_wording_that_is_common_is_boilerplate_whatever_the_span_says() -> None:
    assert classify("Entropy", "Entropy is a measure of disorder.", True) == "boilerplate"
    assert {kind for kind, _, _ in EXAMPLES} | {"boilerplate"} == set(KINDS)


def test_a_long_line_is_classified_in_no_time() -> None:
    """Patterns that look back and forth can take time exponential in the length of a line."""
    line = "word " * 20_000
    assert classify("word", line, False) == "verbatim_word"
    assert classify("a", "a_" * 20_000, False) == "code_symbol"
