"""How the runs of a trial train. Needs neither torch nor any other package."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What all runs of a trial share. Defaults: the paper's, except for `learning_rate`,
    `batch_tokens` and the length, which are for a model of about 100 million parameters."""

    learning_rate: float = 2e-4
    """Highest learning rate. The paper, with 8 billion parameters: 4e-5."""
    warmup: float = 0.2
    """Share of the steps in which the learning rate rises; it then falls to zero by a cosine."""
    batch_tokens: int = 131_072
    """Tokens per optimizer step. The paper: 4 million."""
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    """Of matrices; norms and biases don't decay."""
    max_gradient_norm: float = 1.0
    max_repeats: int = 4
    """Times that a sample may be learnt if an arm has fewer samples than the others. Up to about
    four epochs repeated text helps nearly as much as new text (Muennighoff et al.,
    arXiv 2305.16264)."""
    micro_batch_tokens: int = 16_384
    """Tokens per forward pass, at least one sample. Does not change the result but for rounding."""
    checkpoint_seconds: float = 300.0
    """Time between checkpoints of a run."""
    log_steps: int = 20
