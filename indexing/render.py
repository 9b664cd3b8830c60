"""One tile of the simulated survey: GalSim draws its sources, noise and defects are added, fluxes are measured.

Each galaxy of the catalogue is a de Vaucouleurs bulge and an exponential disk behind the band's Moffat PSF; the many
fainter ones that crowd a deep image are Gaussians. Noise is drawn in cells of the common sky plane, so a tile's pixels
do not depend on which process draws it, nor on how tiles overlap.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import forced
from redshelf.indexing.population import Sources
from redshelf.indexing.telescope import (
    BANDS,
    EDGE_PX,
    MOFFAT_BETA,
    PIXEL_ARCSEC,
    Field,
    SimulatedBand,
    Tile,
    bands_named,
    psf,
    saturation_ujy,
)

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.float32]

CELL_PX = 256
FAINTEST = 0.3  # stamps end where the profile falls below this many times the pixel noise
STAMP_PX = (24, 1000)
FAINT_STAMP_PX = 16  # half the width of the stamp of a galaxy fainter than the catalogue
BAD_COLUMN_PX = 300  # a bad column is this long; there is one for every BAD_COLUMN_AREA pixels of sky
BAD_COLUMN_AREA = 400_000


@dataclass(frozen=True)
class Scene:
    """Everything that rendering needs, of the whole field or of the neighbourhood of a tile.

    x_px, y_px: (N,) on the field's plane; ebv: Galactic; row: in the catalogue, -1 for a source too faint for it.
    """

    field: Field
    bands: tuple[str, ...]
    sources: Sources
    x_px: Floats
    y_px: Floats
    ebv: Floats
    row: npt.NDArray[np.int64]
    seed: int

    def near(self, tile: Tile) -> Scene:
        """The scene of those sources whose light may reach into a tile."""
        reach = STAMP_PX[1] // 2 + 2
        inside = (self.x_px > tile.x0 - reach) & (self.x_px < tile.x1 + reach)
        inside &= (self.y_px > tile.y0 - reach) & (self.y_px < tile.y1 + reach)
        return replace(
            self,
            sources=self.sources.take(inside),
            **{name: getattr(self, name)[inside] for name in ("x_px", "y_px", "ebv", "row")},
        )


@dataclass(frozen=True)
class Measured:
    """Of the sources that a tile owns: rows in the catalogue, and (n, bands) fluxes [uJy], errors and saturation."""

    row: npt.NDArray[np.int64]
    flux_ujy: Floats
    error_ujy: Floats
    saturated: npt.NDArray[np.bool_]


def reddening(ebv: Floats, bands: tuple[SimulatedBand, ...]) -> Floats:
    """(N, bands): the share of the light that Galactic dust lets through."""
    return np.asarray(10 ** (-0.4 * ebv[:, None] * np.array([band.extinction for band in bands])))


def stamp_px(sources: Sources, flux_ratio: Floats) -> npt.NDArray[np.int64]:
    """Even width of each source's stamp: to where bulge, disk and PSF wings fall under FAINTEST.

    flux_ratio: (N, 2) disk and bulge flux over pixel noise, the largest of any band.
    """
    r50_px = np.maximum(sources.r50_arcsec, 0.02) / PIXEL_ARCSEC
    disk, bulge = flux_ratio.T
    h = r50_px / 1.67835
    exponential = h * np.log(np.maximum(disk / (2 * np.pi * h**2 * sources.axis_ratio) / FAINTEST, 1.0))
    r_bulge = np.maximum(r50_px * sources.bulge_size, 0.1)
    at_r50 = np.maximum(bulge, 1e-9) / (22.67 * r_bulge**2) / FAINTEST  # a total of 22.67 I(r50) r50^2
    vaucouleurs = r_bulge * np.maximum(1 + np.log(np.maximum(at_r50, 1e-9)) / 7.669, 0.0) ** 4
    alpha = max(b.psf_fwhm_arcsec for b in BANDS.values()) / PIXEL_ARCSEC / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    peak = (disk + bulge) * (MOFFAT_BETA - 1) / (np.pi * alpha**2) / FAINTEST
    wings = alpha * np.sqrt(np.maximum(peak, 1.0) ** (1 / MOFFAT_BETA) - 1)
    # radii are those along the geometric mean of the axes, and the bulge is rounder than the disk
    along = np.maximum(exponential / sources.axis_ratio**0.5, vaucouleurs / sources.axis_ratio**0.25)
    radius = np.maximum(along + 4.0, wings)
    return np.asarray(2 * np.ceil(np.clip(radius, STAMP_PX[0] / 2, STAMP_PX[1] / 2)), dtype=np.int64)


def models(scene: Scene, tile: Tile) -> Image:
    """(bands, height, width) noiseless sky of one tile in microjansky a pixel, all sources that reach into it."""
    import galsim

    bands = bands_named(scene.bands)
    index = [list(BANDS).index(name) for name in scene.bands]
    through = reddening(scene.ebv, bands)
    disk, bulge = scene.sources.disk_ujy[:, index] * through, scene.sources.bulge_ujy[:, index] * through
    noise = np.array([band.noise_ujy for band in bands])
    size = stamp_px(scene.sources, np.stack([(disk / noise).max(axis=1), (bulge / noise).max(axis=1)], axis=1))
    left, low = np.floor(scene.x_px).astype(int) - size // 2, np.floor(scene.y_px).astype(int) - size // 2
    touches = (left < tile.x1) & (left + size > tile.x0) & (low < tile.y1) & (low + size > tile.y0)
    fast = galsim.GSParams(folding_threshold=1e-2, maxk_threshold=3e-3)  # within 1e-5 of the peak of the default
    blurs = [psf(band) for band in bands]
    out = np.zeros((len(bands), tile.y1 - tile.y0, tile.x1 - tile.x0), dtype=np.float32)
    for n in np.nonzero(touches & (scene.row >= 0))[0]:
        width, x0, y0 = int(size[n]), int(left[n]), int(low[n])
        offset = (scene.x_px[n] - x0 - (width - 1) / 2, scene.y_px[n] - y0 - (width - 1) / 2)
        shapes = None if scene.sources.star[n] else _shapes(scene.sources, int(n))
        for b, blur in enumerate(blurs):
            if shapes is None:
                profile = blur * disk[n, b]
            else:
                profile = galsim.Convolve(shapes[0] * disk[n, b] + shapes[1] * bulge[n, b], blur, gsparams=fast)
            stamp = profile.drawImage(nx=width, ny=width, scale=PIXEL_ARCSEC, offset=offset, dtype=np.float32)
            _add(out[b], stamp.array, x0 - tile.x0, y0 - tile.y0)
    faint = np.nonzero(scene.row < 0)[0]
    for b, band in enumerate(bands):
        _add_gaussians(
            out[b],
            scene.sources.take(faint),
            scene.x_px[faint] - tile.x0,
            scene.y_px[faint] - tile.y0,
            (disk + bulge)[faint, b],
            band,
        )
    return out


def _add_gaussians(
    sky: Image, sources: Sources, x_px: Floats, y_px: Floats, flux_ujy: Floats, band: SimulatedBand
) -> None:
    """Add elliptical Gaussians with the sources' half-light radii, blurred by a Gaussian of the PSF's width."""
    angle = np.deg2rad(sources.angle_deg)
    major, minor = (
        (sources.r50_arcsec * np.sqrt(q) / 1.1774 / PIXEL_ARCSEC) ** 2
        for q in (1 / sources.axis_ratio, sources.axis_ratio)
    )
    blur = (band.psf_fwhm_arcsec / 2.3548 / PIXEL_ARCSEC) ** 2 + 1 / 12  # and by a pixel
    xx = major * np.cos(angle) ** 2 + minor * np.sin(angle) ** 2 + blur
    yy = major * np.sin(angle) ** 2 + minor * np.cos(angle) ** 2 + blur
    xy = (major - minor) * np.sin(angle) * np.cos(angle)
    area = xx * yy - xy**2
    steps = np.arange(-FAINT_STAMP_PX, FAINT_STAMP_PX + 1)
    column, line = np.rint(x_px).astype(int), np.rint(y_px).astype(int)
    for first in range(0, len(flux_ujy), 1000):
        n = np.s_[first : first + 1000]
        dx = (column - x_px)[n, None, None] + steps[None, None, :]
        dy = (line - y_px)[n, None, None] + steps[None, :, None]
        power = yy[n, None, None] * dx**2 + xx[n, None, None] * dy**2 - 2 * xy[n, None, None] * dx * dy
        stamps = np.exp(-power / (2 * area[n, None, None])) * (flux_ujy / (2 * np.pi * np.sqrt(area)))[n, None, None]
        for stamp, x0, y0 in zip(stamps, column[n] - FAINT_STAMP_PX, line[n] - FAINT_STAMP_PX, strict=True):
            _add(sky, stamp, int(x0), int(y0))


def _add(sky: Image, stamp: npt.NDArray[np.floating], x0: int, y0: int) -> None:
    """Add to the sky the part of a stamp that lies on it; its corner is at (x0, y0)."""
    height, width = stamp.shape
    part = stamp[max(0, -y0) : max(0, sky.shape[0] - y0), max(0, -x0) : max(0, sky.shape[1] - x0)]
    sky[max(0, y0) : max(0, y0 + height), max(0, x0) : max(0, x0 + width)] += part


def _shapes(sources: Sources, n: int) -> tuple[object, object]:
    """Disk and bulge of unit flux; half-light radii are those along the geometric mean of the axes."""
    import galsim

    r50, angle = max(float(sources.r50_arcsec[n]), 0.02), float(sources.angle_deg[n]) * galsim.degrees
    q = float(sources.axis_ratio[n])
    disk = galsim.Exponential(half_light_radius=r50).shear(q=q, beta=angle)
    bulge = galsim.DeVaucouleurs(half_light_radius=max(r50 * float(sources.bulge_size[n]), 0.02))
    return disk, bulge.shear(q=q**0.5, beta=angle)  # bulges are rounder than disks


def noise(scene: Scene, tile: Tile, band: SimulatedBand) -> Image:
    """(height, width) white noise of one tile and band: cells of the sky plane, each seeded by its own place."""
    number = list(BANDS).index(band.name)
    out = np.empty((tile.y1 - tile.y0, tile.x1 - tile.x0), dtype=np.float32)
    for row in range(tile.y0 // CELL_PX, -(-tile.y1 // CELL_PX)):
        for column in range(tile.x0 // CELL_PX, -(-tile.x1 // CELL_PX)):
            rng = np.random.default_rng([scene.seed, 10, number, row, column])
            cell = rng.standard_normal((CELL_PX, CELL_PX), dtype=np.float32)
            y, x = row * CELL_PX, column * CELL_PX
            y0, y1, x0, x1 = max(y, tile.y0), min(y + CELL_PX, tile.y1), max(x, tile.x0), min(x + CELL_PX, tile.x1)
            out[y0 - tile.y0 : y1 - tile.y0, x0 - tile.x0 : x1 - tile.x0] = cell[y0 - y : y1 - y, x0 - x : x1 - x]
    return out * (band.noise_ujy * relative_noise(scene, tile)).astype(np.float32)


def relative_noise(scene: Scene, tile: Tile) -> Floats:
    """(height, 1) noise of a tile's rows over that of the bands' depths."""
    return scene.field.noise_factor(np.arange(tile.y0, tile.y1, dtype=float))[:, None]


def defects(scene: Scene, tile: Tile, band_number: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Masks of one tile and band: pixels that were never observed, and bad ones (bad columns, the field's rim)."""
    field = scene.field
    x, y = np.arange(tile.x0, tile.x1), np.arange(tile.y0, tile.y1)
    missing = ~field.observed(x[None, :].astype(float), y[:, None].astype(float), scene.bands, band_number)
    rim = [(v < EDGE_PX) | (v >= field.side_px - EDGE_PX) for v in (x, y)]
    bad = rim[0][None, :] | rim[1][:, None]
    rng = np.random.default_rng([scene.seed, 11, list(BANDS).index(scene.bands[band_number])])
    count = -(-(field.side_px**2) // BAD_COLUMN_AREA)
    for column, start in rng.integers(0, field.side_px, (count, 2)):
        bad |= (x == column)[None, :] & ((y >= start) & (y < start + BAD_COLUMN_PX))[:, None]
    return missing, bad


def expose(scene: Scene, tile: Tile, sky: Image, band_number: int) -> tuple[Image, Image, Image]:
    """Image, weight and the variance that photometry may use, of one tile and band, from its noiseless sky.

    The image is NaN where never observed, 0 in bad columns and cut at the saturation level. Weight is inverse variance,
    0 where bad, never observed, or in and beside saturated pixels; photometry still uses saturated pixels, flagged.
    """
    from scipy.ndimage import binary_dilation

    band = BANDS[scene.bands[band_number]]
    missing, bad = defects(scene, tile, band_number)
    level = np.float32(saturation_ujy(band))
    image = np.minimum(sky + noise(scene, tile, band), level)
    full = image >= level
    image[bad] = 0.0
    image[missing] = np.nan
    rms = band.noise_ujy * relative_noise(scene, tile)
    variance = np.where(bad | missing, 0.0, rms**2).astype(np.float32)
    masked = bad | missing | binary_dilation(full, np.ones((3, 3), dtype=bool))
    weight = np.where(masked, 0.0, rms**-2.0).astype(np.float32)
    return image, weight, variance


def tile_files(scene: Scene, tile: Tile, folder: Path) -> Measured:
    """Render one tile, write its mosaics and weight maps under `folder`, and measure the sources it owns.

    scene: the tile's neighbourhood, or more.
    """
    sky = models(scene, tile)
    mine = (scene.row >= 0) & (scene.field.owner(scene.x_px, scene.y_px) == scene.field.tiles().index(tile))
    rows, x, y = scene.row[mine], scene.x_px[mine] - tile.x0, scene.y_px[mine] - tile.y0
    shape = (len(rows), len(scene.bands))
    flux, error, full = np.empty(shape), np.empty(shape), np.empty(shape, dtype=bool)
    factor = np.ones(len(rows))
    for b, name in enumerate(scene.bands):
        image, weight, variance = expose(scene, tile, sky[b], b)
        header = scene.field.wcs(tile.x0, tile.y0).to_header()
        header["FILTER"] = name
        _write(folder / "mosaics" / name / f"{tile.name}.fits", image, header, "uJy")
        _write(folder / "weights" / name / f"{tile.name}.fits", weight, header, "uJy-2")
        flux[:, b], error[:, b] = forced.measure(
            image, variance, x, y, forced.aperture(name, forced.APERTURE_FWHM_ARCSEC)
        )
        full[:, b] = forced.saturated(image, x, y, saturation_ujy(BANDS[name]))
        if name == forced.detection_band(scene.bands):
            wide, _ = forced.measure(image, variance, x, y, forced.aperture(name, forced.WIDE_FWHM_ARCSEC))
            factor = forced.to_total(flux[:, b], wide)
    return Measured(rows, flux * factor[:, None], error * factor[:, None], full & np.isfinite(flux))


def _write(path: Path, data: Image, header: Any, unit: str) -> None:
    from astropy.io import fits

    header["BUNIT"] = unit
    fits.PrimaryHDU(data, header).writeto(path)
