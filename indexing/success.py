"""How often three kinds of redshift survey succeed, by observed magnitude and by the redshift itself.

zCOSMOS-bright (Lilly et al. 2009), VVDS and DEEP2 (Le Fevre et al. 2005, 2013; Newman et al. 2013) from the tables that
pz-rail-base ships, and a survey of z > 2 like VUDS. A spectrograph sees the lines that its window holds, so success
depends on redshift at the same magnitudes and colours: covariate shift does not hold of labels taken so.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.indexing.sed import rail_data

Floats = npt.NDArray[np.float64]

SURVEYS = ("zcosmos-like", "vvds-deep2-like", "vuds-like")
NEEDED = ("r", "i")
TARGETED = (0.6, 0.1, 0.03)  # share of the sources within its limits that each survey puts a slit on
# zCOSMOS: rows of I from 18 to 22.4, columns of z from 0 to 1.4; its [OII] is at the end of the window at z = 1.2.
ZCOSMOS_I, ZCOSMOS_Z = (18.0, 0.01464226), (0.0, 0.00587002)  # start and step
ZCOSMOS_LIMIT, ZCOSMOS_ENDS = 22.5, (1.1, 1.2)
VVDS_I = (17.0, 0.5)  # start and width of the bins
VVDS_BRIGHT, DEEP_LIMIT = 22.5, 24.0
DEEP2_R = (18.9, 0.2)
DESERT_Z, DESERT_SUCCESS = (1.4, 1.5, 2.5, 2.6), 0.1  # from [OII] leaving the window to the lines below 2000 Angstrom
VUDS_Z, VUDS_LIMIT, VUDS_SUCCESS = 2.0, 25.0, 0.7


def _table(name: str) -> Floats:
    return np.loadtxt(rail_data("creation") / "success_rate_data" / name)


def _cell(value: Floats, grid: tuple[float, float], count: int) -> npt.NDArray[np.int64]:
    """The bin that each value falls in, the first or last for values beyond; 0 for NaN."""
    return np.clip(np.nan_to_num((value - grid[0]) / grid[1]), 0, count - 1).astype(np.int64)


def zcosmos(i_ab: Floats, z: Floats) -> Floats:
    """(N,) success of zCOSMOS-bright: by I and z, 0 beyond I = 22.5, falling to 0 between z of 1.1 and 1.2."""
    rates = _table("zCOSMOS_success.txt")  # (I, z)
    rate = rates[_cell(i_ab, ZCOSMOS_I, rates.shape[0]), _cell(z, ZCOSMOS_Z, rates.shape[1])]
    return np.where(i_ab < ZCOSMOS_LIMIT, rate * np.interp(z, ZCOSMOS_ENDS, (1.0, 0.0)), 0.0)


def vvds_redshift(i_ab: Floats, z: Floats) -> Floats:
    """(N,) the part of VVDS's success that depends on redshift, from one table for I < 22.5 and one for fainter."""
    # The last row of the bright one, 1 at z = 1.74, comes from next to no galaxies.
    bright, deep = _table("VVDSf02_z_bright_success.txt")[:-1], _table("VVDSf02_z_deep_success.txt")
    return np.where(i_ab <= VVDS_BRIGHT, np.interp(z, *bright.T), np.interp(z, *deep.T))


def vvds_deep2(i_ab: Floats, r_ab: Floats, z: Floats) -> Floats:
    """(N,) success of a VVDS and DEEP2-like survey: by I, r and z, 0 beyond I = 24, a tenth in the redshift desert."""
    by_i, by_r = _table("VVDSf02_I_success.txt"), _table("DEEP2_success.txt")
    rate = by_i[_cell(i_ab, VVDS_I, len(by_i))] * by_r[_cell(r_ab, DEEP2_R, len(by_r))] * vvds_redshift(i_ab, z)
    desert = np.interp(z, DESERT_Z, (1.0, DESERT_SUCCESS, DESERT_SUCCESS, 1.0))
    return np.where((i_ab < DEEP_LIMIT) & np.isfinite(r_ab), rate * desert, 0.0)


def vuds(i_ab: Floats, z: Floats) -> Floats:
    """(N,) success of a VUDS-like survey, which looks for z > 2 down to I = 25."""
    return np.where((i_ab < VUDS_LIMIT) & (z > VUDS_Z), VUDS_SUCCESS, 0.0)


def survey_rates(i_ab: Floats, r_ab: Floats, z: Floats) -> Floats:
    """(N, 3) chance that each of `SURVEYS` gets a source's redshift, slit and success together."""
    success = (zcosmos(i_ab, z), vvds_deep2(i_ab, r_ab, z), vuds(i_ab, z))
    return np.asarray(np.stack(success, axis=1) * np.array(TARGETED))
