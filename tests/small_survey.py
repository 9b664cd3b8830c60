"""A small survey for tests, written as a telescope would: FITS catalogue and mosaics with a WCS, and survey.toml.

Gaussian blobs on a jittered grid whose colours and sizes follow their redshift, so that an encoder has something to
find. Numpy only, about a tenth of a second for 300 sources.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

BANDS = {"g": 480.0, "r": 620.0, "i": 770.0}
NOISE_UJY = {"g": 0.02, "r": 0.03, "i": 0.04}  # of one pixel
SCALE_ARCSEC, CUTOUT_PX, STEP_PX = 0.2, 32, 40
CENTRE = (150.1, 2.2)  # RA, Dec in degrees


def _wcs(n_px: int) -> Any:
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = CENTRE
    wcs.wcs.crpix = [n_px / 2 + 0.5, n_px / 2 + 0.5]
    wcs.wcs.cd = np.diag([-SCALE_ARCSEC, SCALE_ARCSEC]) / 3600
    return wcs


def write(folder: Path, *, sources: int = 300, seed: int = 0, images: bool = True, labels: bool = True) -> Path:
    """Write the survey into `folder` and return the path of its survey.toml.

    Every fifth source has no label, every fiftieth is a star; the first one was not observed in g.
    """
    from astropy.io import fits
    from astropy.table import Table

    rng = np.random.default_rng(seed)
    side = int(np.ceil(np.sqrt(sources)))
    n_px = (side + 1) * STEP_PX
    cell = np.arange(sources)
    x = (cell % side + 1) * STEP_PX + rng.uniform(-4, 4, sources)  # 0-based pixels
    y = (cell // side + 1) * STEP_PX + rng.uniform(-4, 4, sources)
    z = rng.uniform(0.05, 1.2, sources)
    star = cell % 50 == 49
    total = 10 ** rng.uniform(0.7, 2.2, sources)  # microjansky in i
    colour = {"g": 10 ** (-0.4 * (0.4 + 1.6 * z)), "r": 10 ** (-0.4 * (0.2 + 0.8 * z)), "i": np.ones(sources)}
    sigma_px = np.where(star, 1.5, 3.2 - 1.2 * z)
    folder.mkdir(parents=True, exist_ok=True)
    wcs = _wcs(n_px)
    ra, dec = wcs.all_pix2world(x, y, 0)
    table = Table({"ID": [f"s{i:04d}" for i in cell], "RA": ra, "DEC": dec})
    yy, xx = np.mgrid[-16:17, -16:17]
    for band, noise in NOISE_UJY.items():
        image = rng.normal(0, noise, (n_px, n_px)).astype(np.float32)
        flux = total * colour[band]
        for i in range(sources):
            column, row = round(x[i]), round(y[i])
            r2 = (xx + column - x[i]) ** 2 + (yy + row - y[i]) ** 2
            blob = np.exp(-0.5 * r2 / sigma_px[i] ** 2) / (2 * np.pi * sigma_px[i] ** 2)
            image[row - 16 : row + 17, column - 16 : column + 17] += flux[i] * blob
        error = noise * np.sqrt(4 * np.pi) * sigma_px  # of a matched filter
        measured = flux + rng.normal(0, error)
        if band == "g":
            measured[0] = error[0] = np.nan
        table[f"F_{band}"], table[f"E_{band}"] = measured, error
        if images:
            path = folder / "mosaics" / band / "t0.fits"
            path.parent.mkdir(parents=True, exist_ok=True)
            fits.PrimaryHDU(image, wcs.to_header()).writeto(path, overwrite=True)
    table["Z"] = np.where(cell % 5 == 4, np.nan, np.where(star, 0, z))
    table["CLASS"] = np.where(star, "star", "galaxy")
    table.write(folder / "catalogue.fits", overwrite=True)
    survey: dict[str, Any] = {
        "survey": {"name": "small"},
        "catalogue": {
            "path": "catalogue.fits",
            "id": "ID",
            "ra": "RA",
            "dec": "DEC",
            "object_class": "CLASS",
            "class_values": {"star": "star", "galaxy": "galaxy"},
        },
        "bands": [
            {"name": b, "wavelength_nm": nm, "flux": f"F_{b}", "flux_error": f"E_{b}", "unit": "uJy"}
            for b, nm in BANDS.items()
        ],
    }
    if labels:
        survey["labels"] = [{"z": "Z", "survey": "blobs", "kind": "spec"}]
    if images:
        survey["survey"] |= {"pixel_scale_arcsec": SCALE_ARCSEC, "cutout_px": CUTOUT_PX}
        for section in survey["bands"]:
            section |= {"image": "mosaics/{band}/{tile}.fits", "image_zero_point": 23.9, "psf_fwhm_arcsec": 0.7}
    path = folder / "survey.toml"
    path.write_text(tomli_w.dumps(survey))
    return path
