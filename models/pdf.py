"""Redshift probability densities on a grid of z *edges*, for many sources at once.

Arrays only. Densities are piecewise constant between edges, so every integral here is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

Floats = npt.NDArray[np.float64]


def default_edges(z_max: float, *, step: float = 0.004) -> Floats:
    """Edges from 0 to at least `z_max`, uniform in ln(1+z) with `step`: a bin is about 0.004 (1+z) wide. (G+1,)"""
    if not 0 < z_max <= 20:
        raise BadInput(f"z_max={z_max}: expected 0 < z_max <= 20")
    bins = int(np.ceil(np.log1p(z_max) / step))
    return np.asarray(np.expm1(np.arange(bins + 1) * step), dtype=np.float64)


@dataclass(frozen=True)
class Pdf:
    """p(z) of N sources: `edges` (G+1,) increasing, `density` (N, G) per unit z, each row integrating to 1."""

    edges: Floats
    density: Floats

    def __post_init__(self) -> None:
        if self.edges.ndim != 1 or len(self.edges) < 2 or not (np.diff(self.edges) > 0).all():
            raise BadInput("Pdf.edges: expected at least 2 strictly increasing values")
        if self.density.ndim != 2 or self.density.shape[1] != len(self.edges) - 1:
            raise BadInput(f"Pdf.density has shape {self.density.shape}: expected (N, {len(self.edges) - 1})")

    def __len__(self) -> int:
        return len(self.density)

    @property
    def widths(self) -> Floats:
        """Bin widths, (G,)."""
        return np.diff(self.edges)

    @property
    def centres(self) -> Floats:
        """Bin centres, (G,)."""
        return 0.5 * (self.edges[1:] + self.edges[:-1])

    @classmethod
    def from_mass(cls, edges: Floats, mass: Floats) -> Pdf:
        """Normalise non-negative bin masses (N, G); a row without mass becomes uniform."""
        total, widths = mass.sum(axis=1, keepdims=True), np.diff(edges)
        density = mass / (np.where(total > 0, total, 1) * widths)
        density[total[:, 0] <= 0] = 1 / widths.sum()
        return cls(edges, density)

    def cdf(self) -> Floats:
        """CDF at the edges, (N, G+1), from exactly 0 to exactly 1."""
        out = np.zeros((len(self), len(self.edges)))
        np.cumsum(self.density * self.widths, axis=1, out=out[:, 1:])
        out /= out[:, -1:].copy()
        return out

    def mean(self) -> Floats:
        """Posterior mean, (N,)."""
        return np.asarray(self.density @ (self.widths * self.centres))

    def mode(self) -> Floats:
        """Centre of the densest bin, (N,)."""
        return np.asarray(self.centres[self.density.argmax(axis=1)])

    def quantile(self, q: float | Floats) -> Floats:
        """z with CDF(z) = q, 0 < q < 1, linear inside a bin, (N,); `q` one number or one a source, (N,)."""
        return self.quantiles([q])[0]

    def quantiles(self, levels: Sequence[float | Floats]) -> list[Floats]:
        """`quantile` of several levels, from one CDF."""
        cdf = self.cdf()
        return [self._quantile(cdf, np.broadcast_to(np.asarray(q, dtype=np.float64), (len(self),))) for q in levels]

    def _quantile(self, cdf: Floats, level: Floats) -> Floats:
        if not ((level > 0) & (level < 1)).all():
            raise BadInput(f"quantile q={level[0]}: expected 0 < q < 1")
        bin_ = np.clip((cdf < level[:, None]).sum(axis=1) - 1, 0, len(self.edges) - 2)
        rows = np.arange(len(self))
        low, high = cdf[rows, bin_], cdf[rows, bin_ + 1]
        fraction = np.where(high > low, (level - low) / np.where(high > low, high - low, 1), 0.5)
        return np.asarray(self.edges[bin_] + fraction * self.widths[bin_])

    def bin_of(self, z: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The bin of each z (N,); the first or last one off the grid."""
        return np.clip(np.searchsorted(self.edges, z, side="right") - 1, 0, len(self.edges) - 2).astype(np.int64)

    def at(self, z: npt.ArrayLike) -> Floats:
        """p(z) of each source at its own z, (N,); 0 off the grid."""
        value = np.asarray(z, dtype=np.float64)
        inside = (value >= self.edges[0]) & (value <= self.edges[-1])
        return np.where(inside, self.density[np.arange(len(self)), self.bin_of(value)], 0.0)

    def median(self) -> Floats:
        """z with CDF(z) = 0.5, (N,)."""
        return self.quantile(0.5)

    def pit(self, z: npt.ArrayLike) -> Floats:
        """Probability integral transform CDF(z_true), (N,); uniform on [0, 1] for calibrated densities."""
        z = np.asarray(z, dtype=np.float64)
        if z.shape != (len(self),):
            raise BadInput(f"pit: z has shape {z.shape}: expected ({len(self)},)")
        cdf = self.cdf()
        bin_ = self.bin_of(z)
        rows = np.arange(len(self))
        fraction = np.clip((z - self.edges[bin_]) / self.widths[bin_], 0, 1)
        return np.asarray(cdf[rows, bin_] + fraction * (cdf[rows, bin_ + 1] - cdf[rows, bin_]))


def rebinned(pdf: Pdf, edges: Floats) -> Pdf:
    """The same densities on other `edges` (H+1,); what lies beyond them is left out and the rest normalised."""
    inside = np.clip(edges, pdf.edges[0], pdf.edges[-1])
    bin_ = pdf.bin_of(inside)
    part = (inside - pdf.edges[bin_]) / pdf.widths[bin_]
    cdf = pdf.cdf()
    at_edges = cdf[:, bin_] + part * (cdf[:, bin_ + 1] - cdf[:, bin_])
    return Pdf.from_mass(edges, np.maximum(np.diff(at_edges, axis=1), 0))
