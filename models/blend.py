"""Mixture of redshift estimators with the least weighted CDE loss (Izbicki, Lee & Freeman 2017), found exactly.

The loss of sum a_i p_i is quadratic in the shares, a' G a - 2 b' a, with G_ij the weighted mean of the integral of
p_i p_j and b_i the weighted mean of p_i(z_spec): a minimum over the simplex of a few estimators is one of its faces'.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
LEAST_SHARE = 0.1  # an estimator of less is not worth its time


def mixture(pdfs: Sequence[Pdf], shares: npt.ArrayLike) -> Pdf:
    """sum a_i p_i of densities on one grid; `shares` (E,) sum to 1."""
    return Pdf(pdfs[0].edges, np.einsum("e,eng->ng", np.asarray(shares), np.stack([pdf.density for pdf in pdfs])))


def blend_shares(pdfs: Sequence[Pdf], z: npt.ArrayLike, weights: npt.ArrayLike) -> Floats:
    """Shares (E,), at least 0 and summing to 1, of E estimators' densities of N unseen labels of `weights` (N,)."""
    w = np.asarray(weights, dtype=np.float64)
    if not len(pdfs) or w.shape != (len(pdfs[0]),) or not w.any():
        raise BadInput(f"{len(pdfs)} densities, weights of shape {w.shape}: expected one or more, and a weight a label")
    w, truth = w / w.sum(), np.asarray(z, dtype=np.float64)
    widths = pdfs[0].widths
    gram = np.array([[float(w @ ((p.density * q.density) @ widths)) for q in pdfs] for p in pdfs])
    hit = np.array([float(w @ pdf.at(truth)) for pdf in pdfs])
    best = _least(gram, hit)
    kept = np.flatnonzero(best >= LEAST_SHARE)
    out = np.zeros(len(pdfs))
    out[kept] = _least(gram[np.ix_(kept, kept)], hit[kept])
    return out


def _least(gram: Floats, hit: Floats) -> Floats:
    """The a of the simplex with the least a' G a - 2 b' a: the best of the faces' own minima that lie inside them."""
    n, best, lowest = len(hit), np.zeros(len(hit)), float("inf")
    for size in range(1, n + 1):
        for face in combinations(range(n), size):
            on = np.array(face)
            system = np.block([[gram[np.ix_(on, on)], np.ones((size, 1))], [np.ones((1, size)), np.zeros((1, 1))]])
            found = np.linalg.lstsq(system, np.append(hit[on], 1.0), rcond=None)[0][:size]
            share = np.zeros(n)
            share[on] = found
            loss = float(share @ gram @ share - 2 * hit @ share)
            if (found >= -1e-12).all() and abs(found.sum() - 1) < 1e-9 and loss < lowest - 1e-15:
                best, lowest = np.maximum(share, 0), loss
    return np.asarray(best / best.sum())
