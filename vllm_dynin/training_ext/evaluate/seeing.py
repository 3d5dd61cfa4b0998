"""Judges of pictures: support vector machines on real handwritten digits.

They see what the codec leaves of a digit and nothing of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import SVC

CELLS = 8
"""Cells along each side of what the judge sees: the size of scikit-learn's digits."""


def cells(image: Image.Image, side: int = CELLS) -> NDArray[np.float32]:
    """Mean brightness of side × side cells: float32 [side²] in [0, 1].

    Args:
        image: of any size that is a multiple of `side`, or larger than it.
        side: cells along each side.
    """
    small = image.convert("L").resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, np.float32).ravel() / np.float32(255)


class Judge:
    """Tells classes of pictures, or of short rows of pictures, apart.

    Args:
        pictures: what it learns from; each a row of one or more images, all rows of one length.
        labels: class of each.
    """

    def __init__(self, pictures: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> None:
        self._machine = SVC(C=5.0, gamma="scale")
        self._machine.fit(_features(pictures), list(labels))

    def judge(self, pictures: Sequence[Sequence[Image.Image]]) -> list[str]:
        """The class of each."""
        return [str(label) for label in self._machine.predict(_features(pictures))]

    def accuracy(self, pictures: Sequence[Sequence[Image.Image]], labels: Sequence[str]) -> float:
        """Share of pictures in which it sees what the label says."""
        return share(a == b for a, b in zip(self.judge(pictures), labels, strict=True))


def share(is_right: Iterable[bool]) -> float:
    """Share of True.

    Raises:
        ValueError: there is nothing to count.
    """
    counted = list(is_right)
    if not counted:
        raise ValueError("a share of nothing; ask at least one question")
    return sum(counted) / len(counted)


def share_of_unique(answers: Sequence[tuple[int, ...]]) -> float:
    """Different answers over answers: 1 where no two are equal."""
    return len(set(answers)) / len(answers)


def _features(pictures: Sequence[Sequence[Image.Image]]) -> NDArray[np.float32]:
    return np.stack([np.concatenate([cells(image) for image in row]) for row in pictures])
