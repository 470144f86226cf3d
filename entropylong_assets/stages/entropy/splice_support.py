"""Whether a model's keys and values fit every context, compared with the plain definition.

Legend: L tokens of a context, T of a root.
"""

from __future__ import annotations

import numpy as np

from entropylong_assets.stages.entropy.attention import line_of
from entropylong_assets.stages.entropy.engine import PackedScorer
from entropylong_assets.stages.entropy.kept_keys import Range
from entropylong_assets.stages.entropy.model import score_plainly
from entropylong_assets.stages.entropy.network import has_rotary_positions
from entropylong_assets.stages.entropy.rotary import depends_on_length
from entropylong_assets.stages.entropy.scoring import ScoringRequest, join_scores
from entropylong_assets.stages.entropy.self_test import Probes, largest_difference
from entropylong_assets.stages.entropy.splice import Kind, SplicedScorer, segments_of

CONTEXT, ROOT = 32, 224
"""Tokens of the compared context and root."""


def splice_fault(scorer: PackedScorer) -> str | None:
    """Return why an engine can't splice, or None if it can.

    Two scores must be the plain ones: those given a context whose keys were kept, and those of
    windows after the root's keys, if these were kept with the context before them.
    """
    import torch

    if scorer.mode != "packed":
        return "it can't compute several sequences per forward pass"
    if not has_rotary_positions(scorer.hf_model):
        return "its positions are not rotary embeddings"
    if any(map(depends_on_length, scorer.hf_model.modules())):
        return "its rotary embeddings depend on the length of the sequence"
    longest = min(CONTEXT + ROOT, scorer.model.max_positions)
    size = min(CONTEXT, longest // 2)
    tokens_T = np.random.default_rng(0).integers(0, scorer.model.input_vocab_size, longest)
    context_L, root_T = tokens_T[:size], tokens_T[size:]
    anchors = list(range(0, len(root_T), 1 + len(root_T) // 8))
    plain = [score_plainly(scorer.model, ScoringRequest(tokens_T, size + np.asarray(anchors)))]
    probes = Probes(scorer.model, longest)
    spliced = SplicedScorer(scorer)
    context, root = Range(0, size), Range(size, len(root_T))
    kinds: dict[Kind, np.ndarray] = {"exact": context_L, "splice": tokens_T}
    for kind, kept_T in kinds.items():
        try:
            kept = spliced.keep([kept_T], [-size])
            parts = spliced.score(
                segments_of(kind, context_L, root_T, anchors, context, root), kept, kept
            )
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            return line_of(error)
        scores = [join_scores(parts)]
        if not probes.agree(scores, plain, scorer.float8):
            off = largest_difference(scores, plain)
            return f"its scores depend on more than distances of tokens (by {off:.2g} nats)"
    return None
