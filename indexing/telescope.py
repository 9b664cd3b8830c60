"""The telescope of the simulated survey: bands, depths, seeing, saturation, and the sky plane that its tiles cut up.

Depths (3 sigma, 2 arcsec aperture) and seeing are those of a COSMOS-like field; near-infrared bands are stand-ins on
the 2MASS and Euclid filter curves. Halves of the field may be shallower or lack bands. Pixels are in microjansky. Every
tile is a window on one common tangent plane, so a pixel that lies in two overlapping tiles is the same pixel in both,
noise included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.bands import ab_to_flux
from redshelf.models.errors import BadInput, nearest

PIXEL_ARCSEC = 0.168
MOFFAT_BETA = 3.5
RA0_DEG, DEC0_DEG = 150.1, 2.2
EDGE_PX = 4  # weightless rim of the whole field
MARGIN_PX = 16  # no source is placed closer to the rim of the field than this
TILE_PX = 800  # tiles advance by at most this much
NOT_OBSERVED_FRACTION = 0.04  # western strip of the field that the first band of a survey does not cover
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SimulatedBand:
    """`depth_ab`: 3-sigma limit in a 2 arcsec aperture; `saturation_ab`: a point source this bright just saturates;
    `extinction`: A_band / E(B-V), by which the simulation reddens, so it is exact for its catalogues."""

    name: str
    filter: str  # speclite's name
    wavelength_nm: float
    depth_ab: float
    psf_fwhm_arcsec: float
    extinction: float
    saturation_ab: float

    @property
    def noise_ujy(self) -> float:
        """Pixel rms that gives the depth: white noise in a circle of 1 arcsec radius."""
        pixels = np.pi / PIXEL_ARCSEC**2
        return float(ab_to_flux(self.depth_ab)) / 3.0 / float(np.sqrt(pixels))


BANDS = {
    band.name: band
    for band in (
        SimulatedBand("u", "cfht_megacam-u", 369.0, 27.8, 0.87, 4.15, 17.5),
        SimulatedBand("g", "hsc2017-g", 484.0, 28.1, 0.77, 3.24, 18.0),
        SimulatedBand("r", "hsc2017-r2", 626.0, 27.8, 0.70, 2.27, 18.0),
        SimulatedBand("i", "hsc2017-i2", 777.0, 27.6, 0.60, 1.68, 18.2),
        SimulatedBand("z", "hsc2017-z", 891.0, 27.2, 0.66, 1.32, 17.5),
        SimulatedBand("y", "hsc2017-y", 979.0, 26.5, 0.70, 1.09, 17.0),
        SimulatedBand("Y", "Euclid-Y", 1089.0, 25.3, 0.80, 0.97, 15.5),
        SimulatedBand("J", "twomass-J", 1241.0, 25.2, 0.78, 0.71, 15.5),
        SimulatedBand("H", "twomass-H", 1651.0, 24.9, 0.76, 0.45, 15.5),
        SimulatedBand("Ks", "twomass-Ks", 2166.0, 25.3, 0.75, 0.30, 15.5),
        SimulatedBand(
            "ustar", "cfht_megacam-ustar", 382.0, 27.7, 0.87, 4.05, 17.5
        ),  # last, as a band's place here seeds its noise
    )
}
NEAR_INFRARED = ("Y", "J", "H", "Ks")
SHALLOW_NOISE = float(10**0.4)  # times the noise of the deep half: a magnitude less deep


def bands_named(names: tuple[str, ...]) -> tuple[SimulatedBand, ...]:
    """The bands of these names, in order; `BadInput` for none, an unknown one or one given twice."""
    if not names:
        raise BadInput(f"bands: none given; known: {', '.join(BANDS)}")
    for name in names:
        if name not in BANDS:
            raise BadInput(f"band {name!r} is not simulated; {nearest(name, BANDS)}; known: {', '.join(BANDS)}")
        if names.count(name) > 1:
            raise BadInput(f"band {name!r} stands twice in {', '.join(names)}")
    return tuple(BANDS[name] for name in names)


@dataclass(frozen=True)
class Tile:
    """A window on the field: pixels x0 <= x < x1, y0 <= y < y1 of the common plane."""

    name: str
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class Field:
    """The square sky plane of a survey, `side_px` pixels wide; x grows to the west as right ascension falls.

    What halves of it lack, each cut so that every combination covers the same area: `two_depths`, the upper half is
    shallower by a magnitude in all bands; `u_star`, the eastern half has u and the western ustar; `missing_nir`, no
    near-infrared in the middle half of its height.
    """

    side_px: int
    overlap_px: int
    two_depths: bool = False
    u_star: bool = False
    missing_nir: bool = False

    @property
    def step_px(self) -> int:
        """Distance between tiles; the source at (x, y) belongs to the tile (x // step, y // step)."""
        return -(-self.side_px // -(-self.side_px // TILE_PX))

    def tiles(self) -> list[Tile]:
        """Tiles that cover the field; neighbours share `overlap_px` pixels, so that cutouts at a seam are whole."""
        step, half, side = self.step_px, self.overlap_px // 2, self.side_px
        starts = range(0, side, step)
        return [
            Tile(
                f"t{row:02d}{column:02d}",
                max(0, x - half),
                max(0, y - half),
                min(side, x + step + half),
                min(side, y + step + half),
            )
            for row, y in enumerate(starts)
            for column, x in enumerate(starts)
        ]

    def owner(self, x_px: Floats, y_px: Floats) -> npt.NDArray[np.int64]:
        """Index in `tiles()` of the one tile that measures a source."""
        count = len(range(0, self.side_px, self.step_px))
        column, row = (np.clip(np.floor((v + 0.5) / self.step_px), 0, count - 1).astype(int) for v in (x_px, y_px))
        return np.asarray(row * count + column, dtype=np.int64)

    def wcs(self, x0: int = 0, y0: int = 0) -> Any:
        """astropy WCS of a window that starts at pixel (x0, y0)."""
        from astropy.wcs import WCS

        wcs = WCS(naxis=2)
        wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
        wcs.wcs.cunit = ["deg", "deg"]
        wcs.wcs.crval = [RA0_DEG, DEC0_DEG]
        wcs.wcs.cdelt = [-PIXEL_ARCSEC / 3600, PIXEL_ARCSEC / 3600]
        wcs.wcs.crpix = [(self.side_px + 1) / 2 - x0, (self.side_px + 1) / 2 - y0]  # FITS counts from 1
        return wcs

    def observed(self, x_px: Floats, y_px: Floats, bands: tuple[str, ...], band_index: int) -> npt.NDArray[np.bool_]:
        """Whether band number `band_index` of a survey covers a place: the first band misses the last strip in x, and
        halves of the field may lack a band. x_px and y_px broadcast."""
        x, y = np.broadcast_arrays(x_px, y_px)
        name, west = bands[band_index], x >= self.side_px / 2
        seen = (x < self.side_px * (1 - NOT_OBSERVED_FRACTION)) | (band_index > 0)
        if self.u_star and name in ("u", "ustar"):
            seen &= west if name == "ustar" else ~west
        if self.missing_nir and name in NEAR_INFRARED:
            seen &= np.abs(y - self.side_px / 2) >= self.side_px / 4
        return np.asarray(seen)

    def noise_factor(self, y_px: Floats) -> Floats:
        """The noise at y over that of the bands' depths."""
        return np.where(self.two_depths & (y_px >= self.side_px / 2), SHALLOW_NOISE, 1.0)

    def ebv(self, x_px: Floats, y_px: Floats) -> Floats:
        """Galactic E(B-V): 0.012 to 0.028 magnitudes, smooth over the field."""
        u, v = x_px / self.side_px, y_px / self.side_px
        return 0.02 + 0.005 * np.sin(5.1 * u + 2.3 * v) + 0.003 * np.cos(9.7 * v - 3.9 * u)


def psf(band: SimulatedBand) -> Any:
    """The band's point-spread function, a GalSim Moffat profile of unit flux."""
    import galsim

    return galsim.Moffat(beta=MOFFAT_BETA, fwhm=band.psf_fwhm_arcsec)


def saturation_ujy(band: SimulatedBand) -> float:
    """The pixel value at which the band saturates: the central pixel of a point source of `saturation_ab`."""
    peak = psf(band).drawImage(nx=15, ny=15, scale=PIXEL_ARCSEC).array.max()
    return float(peak) * float(ab_to_flux(band.saturation_ab))
