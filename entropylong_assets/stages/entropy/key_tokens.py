"""LongPPL's key tokens (Fang et al., arXiv 2410.23771): those that a long context makes likely."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

KEY_GAIN = KEY_LOSS = 2.0
"""Nats; the values of LongPPL's authors."""


def is_key_token(short: NDArray[np.floating], long: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return whether each surprisal falls by more than KEY_GAIN and is then below KEY_LOSS.

    short, long: surprisals given the short and the long context (nats), of one shape.
    """
    return (short - long > KEY_GAIN) & (long < KEY_LOSS)
