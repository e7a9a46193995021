"""Nearest vectors of a growing file: exactly while they are few, by a graph (faiss HNSW) when they are many."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from mmsr1.tools.index.growing import array

FILE = "vectors.f32"
EXACT = 50_000  # vectors; exact search of these takes some 5 ms on one core
_NEIGHBOURS, _EF_BUILD, _EF_SEARCH = 32, 100, 256
_TRAINING = 50_000  # vectors from which the range of each number is learned
_CHUNK = 10_000


def graph_parts(directory: Path, count: int, dimensions: int) -> dict[str, str]:
    """Build the graph where there are enough vectors; what a manifest says of it.

    It is built anew by one thread from the vectors in their order, so equal content has an equal graph. Takes half
    a minute for 100,000 vectors of 360 numbers.
    """
    if count <= EXACT:
        return {}
    faiss.omp_set_num_threads(1)
    rows = array(directory / FILE, (count, dimensions), "float32")
    # The stubs of faiss know another constructor only.
    graph: Any = faiss.IndexHNSWSQ(dimensions, faiss.ScalarQuantizer.QT_8bit, _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)  # type: ignore[arg-type]
    graph.hnsw.efConstruction = _EF_BUILD
    graph.train(np.ascontiguousarray(rows[:: max(1, count // _TRAINING)]))
    for start in range(0, count, _CHUNK):
        graph.add(np.ascontiguousarray(rows[start : start + _CHUNK]))
    name = f"graph-{count}.faiss"
    faiss.write_index(graph, str(directory / name))
    return {"graph": name}


class Nearest:
    """The vectors of an index. `search` may be called from any thread."""

    def __init__(self, directory: Path, parts: Mapping[str, str], count: int, dimensions: int) -> None:
        self.rows = array(directory / FILE, (count, dimensions), "float32")
        if "graph" in parts:
            self._index: Any = faiss.read_index(str(directory / parts["graph"]))
            self._index.hnsw.efSearch = _EF_SEARCH
        else:
            self._index = faiss.IndexFlatIP(dimensions)
            self._index.add(np.ascontiguousarray(self.rows))
        if self._index.ntotal != count:
            raise ValueError(f"{count} entries announced, {self._index.ntotal} vectors found")

    def search(self, vector: np.ndarray, limit: int) -> list[tuple[float, int]]:
        """(score, row) of the `limit` nearest, best first."""
        return nearest(self._index, vector, limit)


def nearest(index: Any, vector: np.ndarray, limit: int) -> list[tuple[float, int]]:
    # OpenMP keeps this number per thread, so it is set in the worker thread; torch's threads are left alone.
    faiss.omp_set_num_threads(1)
    scores, places = index.search(vector[None], min(limit, index.ntotal))
    return [(float(score), int(row)) for score, row in zip(scores[0], places[0], strict=True) if row >= 0]
