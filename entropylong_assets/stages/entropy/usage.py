"""Cost of scoring: tokens, passes, seconds, floating-point operations, and the hardware's peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from entropylong_assets.stages.entropy.network import decoder_of, field_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class ModelCost:
    """Floating-point operations of a decoder, from its shape; a multiply-add counts as 2.

    Of a shape that is not that of a transformer, only the linear layers are counted.
    """

    flop_per_token: float
    """All linear layers of the trunk; of a mixture of experts, all experts."""
    flop_per_pair: float
    """Attention, per pair of a query and a key that it attends to."""
    flop_per_position: float
    """The LM head."""

    @classmethod
    def of(cls, hf_model: PreTrainedModel) -> ModelCost:
        import torch

        config = hf_model.config.get_text_config(decoder=True)
        linears = [m for m in decoder_of(hf_model).modules() if isinstance(m, torch.nn.Linear)]
        heads = field_of(config, "num_attention_heads")
        size = field_of(config, "head_dim") or field_of(config, "hidden_size") // max(heads, 1)
        layers = field_of(config, "num_hidden_layers")
        head = getattr(hf_model.get_output_embeddings(), "weight", None)
        return cls(
            flop_per_token=2.0 * sum(m.weight.numel() for m in linears),
            flop_per_pair=4.0 * heads * size * layers,
            flop_per_position=0.0 if head is None else 2.0 * head.numel(),
        )

    def flop(self, lengths: Sequence[int], positions: int) -> float:
        """Return the operations for whole sequences; sliding windows count as full attention."""
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        return (
            sum(lengths) * self.flop_per_token
            + pairs * self.flop_per_pair
            + positions * self.flop_per_position
        )


class Usage:
    """Running totals of one engine; `since` returns those of one partition."""

    def __init__(self, cost: ModelCost) -> None:
        self.cost = cost
        self.passes = self.sequences = self.tokens = self.positions = 0
        self.seconds = self.flop = 0.0

    def add(self, lengths: Sequence[int], positions: int, seconds: float) -> None:
        """Count one forward pass over sequences of these lengths, packed without padding."""
        self.passes += 1
        self.sequences += len(lengths)
        self.tokens += sum(lengths)
        self.positions += positions
        self.seconds += seconds
        self.flop += self.cost.flop(lengths, positions)

    def snapshot(self) -> dict[str, float]:
        return {key: value for key, value in vars(self).items() if key != "cost"}

    def since(self, before: dict[str, float]) -> dict[str, Any]:
        """Return figures of all passes after `before = snapshot()`."""
        spent = {key: value - before[key] for key, value in self.snapshot().items()}
        seconds = spent["seconds"]
        figures: dict[str, Any] = {
            "forward_passes": int(spent["passes"]),
            "forward_sequences": int(spent["sequences"]),
            "forward_tokens": int(spent["tokens"]),
            "scored_positions": int(spent["positions"]),
            "padded_share": 0.0,  # packs have no padding
            "scoring_seconds": round(seconds, 3),
        }
        if seconds > 0:
            figures["tokens_per_second"] = round(spent["tokens"] / seconds, 1)
            figures["tflop_per_second"] = round(spent["flop"] / seconds / 1e12, 4)
        return figures


@lru_cache(maxsize=8)
def matmul_peak(device: str, dtype: str, side: int = 8192, repeats: int = 10) -> float:
    """Measure the TFLOP/s of a product of two square random matrices on a CUDA device."""
    import torch

    kind = getattr(torch, dtype)
    a = torch.randn(side, side, device=device, dtype=kind)
    b = torch.randn(side, side, device=device, dtype=kind)
    for _ in range(3):
        a @ b
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        a @ b
    end.record()
    torch.cuda.synchronize(device)
    return 2 * side**3 * repeats / (start.elapsed_time(end) / 1e3) / 1e12
