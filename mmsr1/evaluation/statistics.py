"""Intervals for means of clustered observations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray


def clustered_interval(
    values: NDArray[np.float64], clusters: Sequence[Hashable], seed: int, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap of the mean, resampling whole clusters (Cameron, Gelbach & Miller 2008, section 3.1).

    NaN values do not count. With no value at all both ends are NaN.
    """
    kept = ~np.isnan(values)
    codes = {cluster: i for i, cluster in enumerate(dict.fromkeys(c for c, k in zip(clusters, kept, strict=True) if k))}
    if not codes:
        return float("nan"), float("nan")
    index = np.array([codes[c] for c, k in zip(clusters, kept, strict=True) if k])
    sums = np.bincount(index, weights=values[kept])
    counts = np.bincount(index).astype(np.float64)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
