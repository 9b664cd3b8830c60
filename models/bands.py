"""Facts about a photometric band, and the one place where fluxes become magnitudes.

Fluxes are in microjansky everywhere (AB zero point 23.9); survey files may use other units, converted on ingest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

AB_ZERO_POINT_UJY = 23.9
DETECTION_SNR = 3.0
REFERENCE_NM = 770.0  # the i band
Floats = npt.NDArray[np.floating]


class State(IntEnum):
    """What is known of one source in one band; a word beside the flux, never instead of it."""

    NOT_OBSERVED = 0
    NOT_DETECTED = 1
    MEASURED = 2
    SATURATED = 3


@dataclass(frozen=True)
class Band:
    """One band of a survey, with the constants that encoders and photometry need.

    `depth_ab`: median 3-sigma limiting AB magnitude; `noise_ujy`: the survey's median pixel rms (one constant a band:
    a local one would destroy flux), NaN without images; `extinction`: A_band / E(B-V).
    """

    name: str
    wavelength_nm: float
    depth_ab: float = float("nan")
    psf_fwhm_arcsec: float = float("nan")
    noise_ujy: float = float("nan")
    extinction: float = 0.0

    def __post_init__(self) -> None:
        if not self.name.replace("_", "").isalnum():
            raise BadInput(f"band name {self.name!r}: expected letters, digits and _ only")
        if not 10 < self.wavelength_nm < 1e6:
            raise BadInput(f"band {self.name}: wavelength_nm={self.wavelength_nm}: expected 10 to 1e6 nanometres")


def named(bands: Sequence[Band], columns: Sequence[Sequence[int]]) -> list[list[str]]:
    """The names of the bands in each group of `columns`."""
    return [[bands[column].name for column in group] for group in columns]


def reference_band(wavelength_nm: Sequence[float]) -> int:
    """Position of the band whose magnitude stands for brightness: the one nearest to the i band."""
    return int(np.argmin(np.abs(np.asarray(wavelength_nm, dtype=np.float64) - REFERENCE_NM)))


def flux_to_ab(flux_ujy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """AB magnitude of a flux in microjansky; NaN where the flux is not positive."""
    flux = np.asarray(flux_ujy, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(flux > 0, AB_ZERO_POINT_UJY - 2.5 * np.log10(flux), np.nan)


def ab_to_flux(magnitude_ab: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Flux in microjansky of an AB magnitude."""
    return np.asarray(10.0 ** (-0.4 * (np.asarray(magnitude_ab, dtype=np.float64) - AB_ZERO_POINT_UJY)))


def asinh_magnitude(flux_ujy: npt.ArrayLike, softening_ujy: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Asinh magnitude (Lupton, Gunn & Szalay 1999): finite for zero and negative flux, AB for bright sources.

    `softening_ujy`: the flux at which it leaves the logarithm, usually the 1-sigma limit; broadcasts with the flux.
    """
    flux, soft = np.asarray(flux_ujy, dtype=np.float64), np.asarray(softening_ujy, dtype=np.float64)
    return np.asarray(AB_ZERO_POINT_UJY - 2.5 / np.log(10) * (np.arcsinh(flux / (2 * soft)) + np.log(soft)))


def states(
    flux_ujy: Floats, error_ujy: Floats, *, saturated: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int8]:
    """`State` of each value: not observed where flux or error is not finite or the error not positive,
    not detected under 3 sigma, else measured; `saturated` wins over the last two. Same shape as the input."""
    observed = np.isfinite(flux_ujy) & np.isfinite(error_ujy) & (error_ujy > 0)
    detected = observed & (np.nan_to_num(flux_ujy) >= DETECTION_SNR * np.nan_to_num(error_ujy))
    out = np.where(detected, State.MEASURED, np.where(observed, State.NOT_DETECTED, State.NOT_OBSERVED))
    if saturated is not None:
        out = np.where(saturated & observed, State.SATURATED, out)
    return out.astype(np.int8)
