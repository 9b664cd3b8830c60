"""Pictures of a source: colour PNG by the asinh stretch of Lupton et al. (2004), and FITS with a WCS.

Colours are those of f_nu: a source of constant f_nu is grey. The stretch is the same for every source of a survey, so
that two thumbnails side by side can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from math import isfinite

import numpy as np
import numpy.typing as npt

from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import Band, State
from redshelf.models.errors import BadInput, nearest
from redshelf.service.shelf import OpenShelf
from redshelf.service.stages import timed

RGB_NM = (770.0, 625.0, 480.0)  # i, r, g: what people know as the colours of galaxies
WHITE = 60.0  # in units of the stretch: where a picture ends at full light
Floats = npt.NDArray[np.float32]


def default_bands(bands: tuple[Band, ...]) -> tuple[str, ...]:
    """Red, green and blue of a survey: its bands nearest to i, r, g; else its reddest, middle and bluest; else one."""
    if len(bands) < 2:
        return (bands[0].name,)
    nearby = [min(bands, key=lambda band, nm=nm: abs(band.wavelength_nm - nm)).name for nm in RGB_NM]  # type: ignore[misc]
    if len(set(nearby)) == 3:
        return tuple(nearby)
    ordered = sorted(bands, key=lambda band: -band.wavelength_nm)
    return ordered[0].name, ordered[len(ordered) // 2].name, ordered[-1].name


def asinh_rgb(planes: Floats, *, stretch: float) -> npt.NDArray[np.uint8]:
    """Red, green and blue (3, H, W), in units of the noise, as an 8-bit picture (H, W, 3).

    The mean of the three is stretched by asinh and the colour kept (Lupton et al. 2004, PASP 116, 133, eq. 2); where
    one of them passes full light, all three are scaled down, so that bright cores keep their colour.
    """
    mean = np.clip(planes.mean(axis=0), 1e-6, None)
    light = np.arcsinh(mean / stretch) / np.arcsinh(WHITE)
    picture = np.clip(planes * (light / mean), 0, None)
    picture /= np.maximum(picture.max(axis=0), 1)
    return np.asarray(np.round(np.moveaxis(picture, 0, -1) * 255), dtype=np.uint8)  # (H, W, 3)


def _chosen(info: ShelfInfo, names: tuple[str, ...]) -> list[int]:
    known = info.band_names
    for name in names:
        if name not in known:
            raise BadInput(f"band {name!r} is not in survey {info.survey}; {nearest(name, known)}")
    return [known.index(name) for name in names]


def check_bands(info: ShelfInfo, names: tuple[str, ...]) -> list[int]:
    """Which of the survey's bands a picture of `names` takes; `BadInput` unless they are one or three of them."""
    if len(names) not in (1, 3):
        raise BadInput(f"bands={','.join(names)}: expected one band, or three as red, green, blue")
    return _chosen(info, names)


@timed("render")
def colour(
    info: ShelfInfo,
    pixels: Floats,
    mask: npt.NDArray[np.bool_],
    state: npt.NDArray[np.int8],
    *,
    bands: tuple[str, ...] | None = None,
    stretch: float = 3.0,
) -> bytes:
    """A cutout on the survey's bands as PNG: three of them as red, green, blue, or one in grey.

    `pixels` (B, H, W) in noise units, `mask` (B, H, W) True = bad, `state` (B,); `stretch`: see `asinh_rgb`. A band
    that was not observed takes the mean of the others. Raises `BadInput` on other numbers of bands and on unknown ones.
    """
    from PIL import Image

    names = bands or default_bands(info.bands)
    chosen = check_bands(info, names)
    noise = np.array([info.bands[i].noise_ujy for i in chosen], dtype=np.float32)
    scale = np.where(np.isfinite(noise), noise, np.nanmean(noise) if np.isfinite(noise).any() else 1)
    planes = np.where(mask[chosen], 0, pixels[chosen]) * (scale / scale.mean())[:, None, None]
    seen = state[chosen] != State.NOT_OBSERVED
    if seen.any():
        planes[~seen] = planes[seen].mean(axis=0)
    picture = asinh_rgb(np.broadcast_to(planes, (3, *planes.shape[1:])), stretch=stretch)
    stream = BytesIO()
    Image.fromarray(picture[::-1]).save(stream, format="PNG")  # FITS counts rows from the bottom
    return stream.getvalue()


def png(shelf: OpenShelf, row: int, *, bands: tuple[str, ...] | None = None, stretch: float = 3.0) -> bytes:
    """The stored cutout of `row` by `colour`; also `NotFound` where the survey has no images."""
    return colour(shelf.info, *shelf.cutout(row), bands=bands, stretch=stretch)


def imaged(shelf: OpenShelf) -> tuple[str, ...]:
    """The bands of the survey that have images."""
    return tuple(band.name for band in shelf.info.bands if isfinite(band.noise_ujy))


@dataclass(frozen=True)
class Circle:
    """A part of the sky, in degrees."""

    ra_deg: float
    dec_deg: float
    radius_deg: float

    def box(self, ra_deg: float, dec_deg: float, *, size_px: int, scale_arcsec: float) -> tuple[slice, slice] | None:
        """Rows and columns of a stamp around a position that the circle touches; None where it misses the stamp."""
        ra, dec, ra0, dec0 = np.radians([self.ra_deg, self.dec_deg, ra_deg, dec_deg])
        along = np.sin(dec0) * np.sin(dec) + np.cos(dec0) * np.cos(dec) * np.cos(ra - ra0)
        if along < 0.5:  # 60 degrees away, where a tangential plane ends to make sense
            return None
        xi = np.cos(dec) * np.sin(ra - ra0) / along
        eta = (np.cos(dec0) * np.sin(dec) - np.sin(dec0) * np.cos(dec) * np.cos(ra - ra0)) / along
        px, radius = np.degrees([-xi, eta]) * 3600 / scale_arcsec + size_px // 2, self.radius_deg * 3600 / scale_arcsec
        low, high = np.floor(px - radius + 0.5), np.floor(px + radius + 0.5) + 1
        x, y = (slice(int(max(0, a)), int(max(0, min(size_px, b)))) for a, b in zip(low, high, strict=True))
        return (y, x) if x.start < x.stop and y.start < y.stop else None


@timed("render")
def fits(
    shelf: OpenShelf, row: int, *, bands: tuple[str, ...] | None = None, box: tuple[slice, slice] | None = None
) -> bytes:
    """The cutout of `row` as FITS: an image HDU a band, in microjansky, bad pixels NaN, with a tangential WCS.

    By default of every band that has images, and all of it; `box`: these rows and columns. The reddening is in the
    first header, since encoders see it too. North up and east left is assumed: a shelf does not keep the rotation of
    its mosaics.
    """
    from astropy.io import fits as astropy_fits

    pixels, mask, state = shelf.cutout(row)
    info, columns = shelf.info, shelf.columns
    primary = astropy_fits.PrimaryHDU()
    primary.header["OBJECT"] = shelf.source_id(row)
    primary.header["SURVEY"] = info.survey
    ebv = float(columns["ebv"][row])
    if isfinite(ebv):
        primary.header["EBV"] = (ebv, "Galactic reddening E(B-V), mag")
    primary.header["COMMENT"] = "Orientation north up, east left assumed; the source is within half a pixel of CRPIX."
    hdus = [primary]
    degrees = info.pixel_scale_arcsec / 3600
    whole = slice(0, info.cutout_px)
    y, x = box or (whole, whole)
    for i in _chosen(info, bands or imaged(shelf)):
        image = np.where(mask[i], np.nan, pixels[i] * info.bands[i].noise_ujy).astype(np.float32)[y, x]
        hdu = astropy_fits.ImageHDU(image, name=info.bands[i].name)
        hdu.header.update(
            {
                "BAND": info.bands[i].name,
                "BUNIT": "uJy",
                "STATE": State(int(state[i])).name.lower(),
                "CTYPE1": "RA---TAN",
                "CTYPE2": "DEC--TAN",
                "CUNIT1": "deg",
                "CUNIT2": "deg",
                "CRVAL1": float(columns["ra"][row]),
                "CRVAL2": float(columns["dec"][row]),
                "CRPIX1": info.cutout_px // 2 + 1.0 - x.start,
                "CRPIX2": info.cutout_px // 2 + 1.0 - y.start,
                "CD1_1": -degrees,
                "CD1_2": 0.0,
                "CD2_1": 0.0,
                "CD2_2": degrees,
                "RADESYS": "ICRS",
            }
        )
        hdus.append(hdu)
    stream = BytesIO()
    astropy_fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()
