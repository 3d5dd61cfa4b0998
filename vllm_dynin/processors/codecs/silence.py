"""Whether there is anything to be heard in a recording.

A speech model hears words in hiss, and a level of zero is rare outside of tests: converters,
codecs and dither leave a floor of noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SILENCE_DBFS = -60.0
"""Root mean square below which nothing is heard, in dB under full scale: speech that was recorded
badly is above −50, the noise of 11 bits below."""
WINDOW_SECONDS = 0.1
"""Length of the stretches whose level is taken: a word in a minute of silence is heard."""


def is_silence(samples: NDArray[np.float32], rate: int) -> bool:
    """Whether no stretch of a recording is as loud as `SILENCE_DBFS`; a constant is no sound.

    Args:
        samples: float32 [N], mono.
        rate: in Hz.
    """
    window = max(1, round(WINDOW_SECONDS * rate))
    whole = len(samples) // window * window
    stretches = samples[:whole].reshape(-1, window) if whole else samples.reshape(1, -1)
    if not stretches.size:
        return True
    loudest = float(np.std(stretches, axis=1, dtype=np.float64).max())
    if whole and whole < len(samples):  # the end, with what stands before it
        loudest = max(loudest, float(np.std(samples[-window:], dtype=np.float64)))
    return bool(loudest < 10 ** (SILENCE_DBFS / 20))
