"""The bottleneck of transport, W_inf: the smallest distance that nobody has to exceed."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching, maximum_flow

__all__ = ["bottleneck"]


def bottleneck(distances: np.ndarray) -> float:
    """W_inf between n and m samples of equal weights, exactly, by their distances ``(n, m)``.

    The answer is one of the distances, and whether a plan can do with those up to t is a matching (n = m), or a flow of
    m units from each sample to n for each: a bisection over the sorted distances.
    """
    # Each sample has to go somewhere: the answer is no smaller than the way to the neighbour that is farthest.
    least = max(distances.min(axis=1).max(), distances.min(axis=0).max())
    candidates = np.unique(distances[distances >= least])
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if _feasible(distances <= candidates[middle]):
            high = middle
        else:
            low = middle + 1
    return float(candidates[low])


def _feasible(allowed: np.ndarray) -> bool:
    """Whether all of the weight can move along the allowed pairs."""
    n, m = allowed.shape
    if n == m:
        return bool((maximum_bipartite_matching(csr_array(allowed)) >= 0).all())
    shared = math.gcd(n, m)
    supply, demand = m // shared, n // shared
    rows, columns = np.nonzero(allowed)
    source, sink = n + m, n + m + 1
    tails = np.r_[np.full(n, source), rows, n + np.arange(m)]
    heads = np.r_[np.arange(n), n + columns, np.full(m, sink)]
    capacities = np.r_[np.full(n, supply), np.full(len(rows), supply), np.full(m, demand)].astype(np.int32)
    network = csr_array((capacities, (tails, heads)), shape=(n + m + 2, n + m + 2))
    return maximum_flow(network, source, sink).flow_value == n * supply
