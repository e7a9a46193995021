"""What several seeds of one configuration say about it: training itself varies, and far more than questions do."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mmsr1.evaluation.statistics import mean_interval


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Of the mean over seeds, one value each, by Student's t with one degree of freedom less than there are seeds.
    NaN for fewer than two.

    `mean_interval` has the quantile but for one and two degrees, by its series, too small; here those are exact.

    >>> low, high = seed_interval([0.0, 1.0, 2.0])  # 1 -+ 4.3027 / sqrt(3)
    >>> round(low, 3), round(high, 3)
    (-1.484, 3.484)
    """
    found = np.array(values, dtype=np.float64)
    if len(found) < 2 or np.isnan(found).any():
        return math.nan, math.nan
    exact = {2: math.tan(math.pi * level / 2), 3: level * math.sqrt(2 / (1 - level**2))}
    if len(found) not in exact:
        return mean_interval(found, range(len(found)), level)
    half = exact[len(found)] * float(found.std(ddof=1)) / math.sqrt(len(found))
    return float(found.mean()) - half, float(found.mean()) + half
