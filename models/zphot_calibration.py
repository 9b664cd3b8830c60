"""Calibration of point redshifts by photometric redshift and magnitude (Lin et al. 2022, A&A 662, A36, last step).

Labels are weighed so that their (magnitude, z_spec) histogram becomes the targets' (magnitude, z_phot) one; what is
then left of z_phot - z_spec in a cell of z_phot and magnitude is taken off the targets there. It mends a residual that
depends on z_phot; of sources whose z_phot is far off it knows nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.weighted import finite

Floats = npt.NDArray[np.float64]
Z_BINS = 40
MAGNITUDE_WIDTH = 0.5
LEAST_LABELS = 10  # of effective size, that a cell needs to move a target


def calibrated_points(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    magnitude: npt.ArrayLike,
    target_z_phot: npt.ArrayLike,
    target_magnitude: npt.ArrayLike,
    *,
    z_bins: int = Z_BINS,
    magnitude_width: float = MAGNITUDE_WIDTH,
) -> Floats:
    """Redshifts (M,) of the targets, from `z_phot` (L,) of labels that were answered without themselves, `z_spec` and
    `magnitude` (L,), and the targets' `target_z_phot` and `target_magnitude` (M,).

    40 cells in ln(1 + z), of 0.5 magnitudes; a cell of fewer than 10 effective labels moves nothing. Never below 0.
    """
    phot, known = finite("z_phot", z_phot), finite("z_spec", z_spec)
    bright, wanted = finite("magnitude", magnitude), finite("target_z_phot", target_z_phot)
    faint = finite("target_magnitude", target_magnitude)
    if not (len(phot) == len(known) == len(bright) and len(wanted) == len(faint)):
        raise BadInput(
            f"{len(phot)} z_phot, {len(known)} z_spec, {len(bright)} magnitudes of labels; {len(wanted)} and "
            f"{len(faint)} of targets: expected equal numbers"
        )
    if len(phot) == 0:
        raise BadInput("no labels to calibrate on: expected at least one")
    top = np.log1p(max(known.max(), phot.max(), wanted.max(initial=0.0))) * (1 + 1e-9) + 1e-9
    first = min(bright.min(), faint.min(initial=np.inf))

    def cells(z: Floats, m: Floats) -> npt.NDArray[np.int64]:
        column = np.floor((m - first) / magnitude_width).astype(np.int64)
        row = np.clip(np.log1p(np.maximum(z, 0)) / top * z_bins, 0, z_bins - 1).astype(np.int64)
        return np.asarray(column * z_bins + row)

    spec_cell, phot_cell, target_cell = cells(known, bright), cells(phot, bright), cells(wanted, faint)
    size = int(max(spec_cell.max(), phot_cell.max(), target_cell.max(initial=0))) + 1
    have, want = (np.bincount(c, minlength=size).astype(np.float64) for c in (spec_cell, target_cell))
    weight = (want / np.maximum(have, 1))[spec_cell]
    total, squares = np.bincount(phot_cell, weight, size), np.bincount(phot_cell, weight**2, size)
    offset = np.bincount(phot_cell, weight * (phot - known), size) / np.where(total > 0, total, 1)
    enough = total**2 >= LEAST_LABELS * np.maximum(squares, 1e-300)
    return np.asarray(np.maximum(wanted - np.where(enough & (total > 0), offset, 0.0)[target_cell], 0.0))
