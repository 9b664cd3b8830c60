"""Forced, PSF-matched aperture photometry on mosaics: how the simulated catalogue is measured from its own pixels.

A flux is a weighted sum of pixels. The weight of each band is a Gaussian divided by the band's PSF in Fourier space,
so that every band sees the same Gaussian aperture on the unblurred sky (the idea of GAaP, Kuijken 2008) and colours do
not depend on seeing. Two widths in a detection band give the source's size, and from it one aperture-to-total factor
for all bands, as aperture catalogues do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from redshelf.indexing.telescope import BANDS, PIXEL_ARCSEC, SimulatedBand, psf

Floats = npt.NDArray[np.float64]

APERTURE_FWHM_ARCSEC, WIDE_FWHM_ARCSEC = 1.5, 2.2
RADIUS_PX = 22  # weights are below 1e-3 of their peak outside
MAX_LOST = 0.1  # a source that loses more of its light to bad pixels has no flux
SATURATED_RADIUS_PX = 6
DETECTION_ORDER = ("i", "r", "z", "g", "y", "Y", "J", "H", "Ks", "u", "ustar")


def detection_band(names: tuple[str, ...]) -> str:
    """The band whose image gives the sizes."""
    return min(names, key=DETECTION_ORDER.index)


@dataclass(frozen=True)
class Aperture:
    """Pixel weight and, of a point source, the light it collects, as functions of the radius in pixels."""

    radius_px: Floats
    weight: Floats
    light: Floats

    @property
    def noise_factor(self) -> float:
        """Error of a flux over the rms of a pixel, for white noise."""
        y, x = np.mgrid[-RADIUS_PX : RADIUS_PX + 1, -RADIUS_PX : RADIUS_PX + 1]
        return float(np.sqrt(np.sum(np.interp(np.hypot(x, y), self.radius_px, self.weight) ** 2)))


@cache
def aperture(band_name: str, fwhm_arcsec: float) -> Aperture:
    """The weight that measures a band through a Gaussian of `fwhm_arcsec`; a point source gets its total flux.

    Inverse Hankel transform of Gaussian / (PSF x pixel), the pixel by its Gaussian of the same variance.
    """
    from scipy.special import j0

    band: SimulatedBand = BANDS[band_name]
    sigma = fwhm_arcsec / 2.3548200450309493
    k = np.linspace(0.0, 8.0 / sigma, 1500)  # per arcsec; the Gaussian is exp(-32) at the end
    blur = np.array([psf(band).kValue(value, 0.0).real for value in k]) * np.exp(-((k * PIXEL_ARCSEC) ** 2) / 24)
    gauss = 2 * np.pi * sigma**2 * np.exp(-((k * sigma) ** 2) / 2)
    radius_px = np.arange(0.0, (RADIUS_PX + 1) * np.sqrt(2) + 1, 0.1)
    waves = j0(k[None, :] * radius_px[:, None] * PIXEL_ARCSEC) * k * (k[1] - k[0]) / (2 * np.pi)
    weight, point = waves @ (gauss / np.maximum(blur, 1e-12)), waves @ blur
    return Aperture(radius_px, weight, weight * point * PIXEL_ARCSEC**2)


def measure(
    image: npt.NDArray[np.float32], variance: npt.NDArray[np.float32], x_px: Floats, y_px: Floats, window: Aperture
) -> tuple[Floats, Floats]:
    """Fluxes and errors (N,) at 0-based pixel positions, in the unit of the image.

    variance: of each pixel, 0 or infinite where it is bad; pixels beyond the image are bad. The light lost to bad
    pixels is made up for as for a point source; above MAX_LOST of it flux and error are NaN. Linear in the image.
    """
    flux, error = np.full(len(x_px), np.nan), np.full(len(x_px), np.nan)
    height, width = image.shape
    offsets = np.arange(-RADIUS_PX, RADIUS_PX + 1)
    for n, (x, y) in enumerate(zip(x_px, y_px, strict=True)):
        columns, rows = round(x) + offsets, round(y) + offsets
        columns, rows = columns[(columns >= 0) & (columns < width)], rows[(rows >= 0) & (rows < height)]
        if not (len(columns) and len(rows)):
            continue
        cut = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        radius = np.hypot(columns[None, :] - x, rows[:, None] - y)
        weight = np.interp(radius, window.radius_px, window.weight)
        noise = variance[cut]
        good = (noise > 0) & np.isfinite(noise)
        light = np.interp(radius, window.radius_px, window.light)
        kept = float(light[good].sum())  # 1 where nothing is lost
        if kept < 1 - MAX_LOST:
            continue
        weight = weight[good] / min(kept, 1.0)
        flux[n] = weight @ image[cut][good].astype(np.float64)
        error[n] = np.sqrt(weight**2 @ noise[good].astype(np.float64))
    return flux, error


def saturated(image: npt.NDArray[np.float32], x_px: Floats, y_px: Floats, level: float) -> npt.NDArray[np.bool_]:
    """Whether a pixel within about 1 arcsec of each position reaches the saturation level."""
    out = np.zeros(len(x_px), dtype=bool)
    for n, (x, y) in enumerate(zip(np.rint(x_px).astype(int), np.rint(y_px).astype(int), strict=True)):
        reach = SATURATED_RADIUS_PX
        box = image[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        out[n] = bool(np.any(box >= level))
    return out


def collected(r50_arcsec: Floats, fwhm_arcsec: float) -> Floats:
    """Fraction of a round exponential disk's light inside the Gaussian aperture, by quadrature."""
    scale = np.maximum(np.asarray(r50_arcsec), 1e-3)[:, None] / 1.67835
    t = np.linspace(0.0, 20.0, 2001)[None, :]  # radius in scale lengths
    sigma = fwhm_arcsec / 2.3548200450309493
    return np.asarray(np.trapezoid(t * np.exp(-t - (t * scale) ** 2 / (2 * sigma**2)), t, axis=1))


def to_total(narrow: Floats, wide: Floats) -> Floats:
    """Factor from aperture to total flux, from the fluxes through both apertures: that of the exponential disk (up to
    1.5 arcsec of half-light radius) with the same ratio; 1 where either is missing or not positive."""
    r50 = np.linspace(0.0, 1.5, 151)
    through = collected(r50, APERTURE_FWHM_ARCSEC)
    ratio = collected(r50, WIDE_FWHM_ARCSEC) / through
    valid = (narrow > 0) & (wide > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = np.where(valid, wide / narrow, 1.0)
    return np.where(valid, np.interp(seen, ratio, 1.0 / through), 1.0)
