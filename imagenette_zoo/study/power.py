"""What a study can find, before it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .statistics import LEVEL, Numbers, half_width

__all__ = ['TOP1_IMAGES', 'power', 'top1_spreads']

STUDIES = 20_000  # that are simulated
# Of top-1 in points, as docs/results/claims-cpu has it: the variance between the seeds of a run is a scaled inverse χ²;
# that of a difference between images.
TOP1_DEVIATION, TOP1_FREEDOM, TOP1_IMAGES = 0.75, 2.91, 0.297**2


def top1_spreads(number: int = 1000) -> np.ndarray:
    """Standard deviations of the difference of two runs' top-1 between blocks, in points, equally likely ones.

    As docs/results/claims-cpu has them: 13 runs of small networks on Imagenette with four seeds each.
    """
    chi2 = np.random.default_rng(0).chisquare(TOP1_FREEDOM, (number, 2))
    return TOP1_DEVIATION * np.sqrt((TOP1_FREEDOM / chi2).sum(1))


def power(
    difference: float,
    spread: Numbers,
    blocks: int,
    claims: int = 1,
    *,
    images: float = 0.0,
    stages: Sequence[tuple[int, float]] = (),
    two_sided: bool = True,
) -> float:
    """The chance that the first of some claims is rightly decided, simulated with the same numbers each time.

    Args:
        difference: The true one of two runs, less the claim's bound.
        spread: The standard deviation of the difference between blocks; several are equally likely.
        blocks: How many there are.
        claims: How many are tested together.
        images: The variance of the mean difference between images.
        stages: Looks and their shares of the level; one look at all blocks if not given.
        two_sided: The claim only asks which run is larger.
    """
    random = np.random.default_rng(0)
    spreads = random.choice(np.ravel(spread), (STUDIES, 1))
    found = abs(difference) + math.sqrt(images) * random.standard_normal((STUDIES, 1))
    differences = found + spreads * random.standard_normal((STUDIES, blocks))
    decided = np.zeros(STUDIES, bool)
    for count, share in stages or ((blocks, 1.0),):
        if count <= blocks:
            first = differences[:, :count]
            level = LEVEL * share / claims / (2 if two_sided else 1)
            decided |= first.mean(1) > half_width(level, first.var(1, ddof=1), count, images)
    return float(decided.mean())
