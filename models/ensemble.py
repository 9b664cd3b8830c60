"""Several realisations of a density as one: the harmonic mean of CLAP (Lin et al. 2024, A&A 691, A331).

Each density is smoothed by a fraction of its own width, then averaged harmonically, p = n / sum(1 / p_j): what one
realisation excludes, all exclude. On bootstraps of labels it was narrower than their arithmetic mean, and less well
calibrated (benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.knn import log_step
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SMOOTHING = 0.05  # of the standard deviation of each density
LEAST_WIDTH = 0.1  # of a bin: a narrower kernel changes nothing


def deviation(pdf: Pdf) -> Floats:
    """Standard deviation of ln(1+z) of each density, (N,), bins taken at their centres."""
    mass = pdf.density * pdf.widths
    centre = 0.5 * (np.log1p(pdf.edges[1:]) + np.log1p(pdf.edges[:-1]))
    mean = mass @ centre
    return np.asarray(np.sqrt(np.maximum(mass @ centre**2 - mean**2, 0)))


def smoothed(pdf: Pdf, *, fraction: float = SMOOTHING) -> Pdf:
    """Each density convolved with a Gaussian of `fraction` of its standard deviation in ln(1+z).

    Widths are rounded to classes 15% apart; mass reflects at both ends. Needs edges uniform in ln(1+z).
    """
    from scipy.ndimage import gaussian_filter1d

    if not 0 <= fraction <= 10:
        raise BadInput(f"fraction={fraction}: expected 0 to 10 standard deviations")
    width = fraction * deviation(pdf) / log_step(pdf.edges)
    mass = pdf.density * pdf.widths
    wide = width > LEAST_WIDTH
    classes = np.round(np.log(np.where(wide, width, 1.0)) / np.log(1.15)).astype(np.int64)
    for value in np.unique(classes[wide]):
        rows = wide & (classes == value)
        mass[rows] = gaussian_filter1d(mass[rows], 1.15**value, axis=1, mode="reflect")
    return Pdf.from_mass(pdf.edges, mass)


def harmonic_mean(realisations: Iterable[Pdf], *, fraction: float = SMOOTHING) -> Pdf:
    """The harmonic mean of realisations of the same N densities on one grid, normalised; one is held at a time.

    Where realisations exclude one another everywhere, the row is their arithmetic mean. `BadInput` for no realisation,
    or another grid or N than the first one's.
    """
    first: Pdf | None = None
    inverse = total = np.zeros((0, 0))
    for one in realisations:
        if first is None:
            first = one
            inverse, total = np.zeros(one.density.shape), np.zeros(one.density.shape)
        if one.density.shape != first.density.shape or not np.array_equal(one.edges, first.edges):
            raise BadInput(
                f"a realisation of shape {one.density.shape}: expected {first.density.shape} on the same edges"
            )
        density = smoothed(one, fraction=fraction).density
        total += density
        with np.errstate(divide="ignore", over="ignore"):
            inverse += 1 / density
    if first is None:
        raise BadInput("no realisation was given: expected at least one density a source")
    mass = first.widths / inverse  # 1 / infinity: 0
    empty = mass.sum(axis=1) <= 0
    mass[empty] = (total * first.widths)[empty]
    return Pdf.from_mass(first.edges, mass)


def bootstraps(exclude: Ints, *, n: int = 10, seed: int = 0) -> Iterator[tuple[Ints, Ints]]:
    """`n` realisations of L labels: the rows of each, ascending, and `exclude` (L, m) in its own numbering.

    The distinct rows of a draw with replacement, about 63% of L: a label that came twice would be its own companion.
    """
    rng = np.random.default_rng(seed)
    for _ in range(n):
        rows = np.unique(rng.integers(0, len(exclude), len(exclude)))
        place = np.full(len(exclude) + 1, -1, dtype=np.int64)  # the last place stands for -1
        place[rows] = np.arange(len(rows))
        yield rows, place[exclude[rows]]
