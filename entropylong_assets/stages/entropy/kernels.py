"""Entropy and surprisal from hidden states and the LM head, in float32.

Legend: N positions, n positions of one chunk, V vocabulary, D hidden size, z logits.

With m = max z, s = Σ exp(z - m) and u = Σ exp(z - m)·(z - m):
    H = ln s - u / s              both terms are ≥ 0, so nothing cancels when H is small
    I = ln s + m - z_target
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

CHUNK_LOGITS = 1 << 24
"""Maximum number of float32 logits in memory (64 MiB), for any length and vocabulary."""


class HeadError(ValueError):
    """The logits of the model are not a plain linear map of its hidden states."""


@dataclass(frozen=True, eq=False)
class Head:
    """The LM head of a model: logits = softcap(hidden @ weight.T + bias)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None
    """c in z -> c·tanh(z / c) (Gemma 2 and others), or None."""


def head_of(hf_model: PreTrainedModel) -> Head:
    """Return the head of a causal language model. Raises HeadError if it is not a Linear."""
    import torch

    head = hf_model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise HeadError(f"{type(hf_model).__name__}: its LM head is not a linear layer")
    softcap = getattr(hf_model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(head.weight, head.bias, softcap)


def entropy_and_surprisal(
    hidden_ND: Tensor, targets_N: Tensor, head: Head, *, chunk_logits: int = CHUNK_LOGITS
) -> tuple[Tensor, Tensor]:
    """Return H and -ln p(target) of each position; both float32 [N], nats.

    hidden_ND: output of the last norm, in the model's dtype. targets_N: int64 [N]. No tensor of
    N·V elements is made. On Hopper GPUs and later, bfloat16 is computed by a kernel that keeps
    logits in registers.
    """
    import torch

    entropy_N = torch.empty(len(hidden_ND), device=hidden_ND.device, dtype=torch.float32)
    surprisal_N = torch.empty_like(entropy_N)
    if not len(hidden_ND):
        return entropy_N, surprisal_N
    if _fused_kernel_fits(hidden_ND, head):
        from entropylong_assets.stages.entropy import kernels_cuda

        return kernels_cuda.entropy_and_surprisal(hidden_ND, targets_N, head)
    step = max(1, chunk_logits // len(head.weight_VD))
    for start in range(0, len(hidden_ND), step):
        part = slice(start, start + step)
        z_nV = _logits(hidden_ND[part], head)
        entropy_N[part], surprisal_N[part] = reduce_logits_(z_nV, targets_N[part])
    return entropy_N, surprisal_N


def reduce_logits_(z_nV: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Return H and -ln p(target) from float32 logits, which are overwritten."""
    z_nV -= z_nV.amax(-1, keepdim=True)
    target_n = z_nV.gather(1, targets_n[:, None])[:, 0]
    p_nV = z_nV.exp()
    s_n = p_nV.sum(-1)
    log_s_n = s_n.log()
    # A model may set logits to -inf: the term 0·(-inf) counts as 0.
    u_n = p_nV.mul_(z_nV.clamp_(min=-1e30)).sum(-1)
    return log_s_n - u_n / s_n, log_s_n - target_n


def _logits(hidden_nD: Tensor, head: Head) -> Tensor:
    """Return float32 logits; products of 16-bit values are accumulated in float32."""
    import torch

    weight_DV = head.weight_VD.T
    if hidden_nD.dtype == torch.float32:
        z_nV = hidden_nD @ weight_DV
    elif hidden_nD.is_cuda:
        z_nV = torch.mm(hidden_nD, weight_DV, out_dtype=torch.float32)
    else:
        z_nV = hidden_nD.float() @ weight_DV.float()
    if head.bias_V is not None:
        z_nV += head.bias_V
    if head.softcap is not None:
        z_nV.div_(head.softcap).tanh_().mul_(head.softcap)
    return z_nV


def _fused_kernel_fits(hidden_ND: Tensor, head: Head) -> bool:
    """Return whether Triton is installed and the kernel supports these shapes on this GPU."""
    if not hidden_ND.is_cuda:
        return False
    try:
        from entropylong_assets.stages.entropy import kernels_cuda
    except ImportError:
        return False
    return kernels_cuda.fits(hidden_ND, head)
