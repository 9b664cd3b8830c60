"""A small survey of three tiles and three bands, for what depends on tiles: overlaps, a band without images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tomli_w
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

SCALE, SHAPE, CUTOUT = 0.2, (160, 220), 16
BANDS = ("g", "r", "z")


def tile_wcs(number: int) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0 + number * (SHAPE[1] - 40) * SCALE / 3600, 2.0]
    wcs.wcs.crpix = [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    wcs.wcs.cd = np.array([[-SCALE, 0], [0, SCALE]]) / 3600
    return wcs


def write_survey(folder: Path, *, sources: int = 60, labels: bool = True) -> Path:
    """Tiles t0 and t1 in g and r, t0 alone in z (all NaN), t2 without sources; three sources lie on no tile."""
    rng = np.random.default_rng(4)
    for band in BANDS:
        for tile in range(3):
            if band == "z" and tile > 0:
                continue
            image = rng.normal(0, 0.1, SHAPE).astype(np.float32)
            if band == "z":
                image[:] = np.nan
            path = folder / "mosaics" / band / f"t{tile}.fits"
            path.parent.mkdir(parents=True, exist_ok=True)
            fits.PrimaryHDU(image, tile_wcs(10 if tile == 2 else tile).to_header()).writeto(path)
    inside = [
        tile_wcs(n % 2).all_pix2world([rng.uniform(5, [SHAPE[1] - 5, SHAPE[0] - 5])], 0)[0] for n in range(sources - 3)
    ]
    sky = np.array([*inside, [150.0, 3.0], [10.0, -40.0], [151.0, 2.0]])
    table = Table({"id": [f"s{n}" for n in range(sources)], "ra": sky[:, 0], "dec": sky[:, 1]})
    for band in BANDS:
        table[f"f_{band}"], table[f"e_{band}"] = rng.normal(2, 1, sources), np.full(sources, 0.1)
    table["f_r"][::2] = np.nan  # absent for half of the sources
    table["z"] = np.where(np.arange(sources) % 3 == 0, rng.uniform(0.1, 1, sources), -99)
    table.write(folder / "catalogue.fits")
    document = {
        "survey": {"name": "toy", "pixel_scale_arcsec": SCALE, "cutout_px": CUTOUT},
        "catalogue": {"path": "catalogue.fits", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [
            {
                "name": b, "wavelength_nm": 500, "flux": f"f_{b}", "flux_error": f"e_{b}", "unit": "uJy",
                "image": "mosaics/{band}/{tile}.fits", "psf_fwhm_arcsec": 0.7,
            }
            for b in BANDS
        ],
    }  # fmt: skip
    if labels:
        document["labels"] = [{"survey": "own", "z": "z"}]  # type: ignore[list-item]
    (folder / "survey.toml").write_text(tomli_w.dumps(document))
    return folder / "survey.toml"
