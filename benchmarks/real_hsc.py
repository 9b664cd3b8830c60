"""147 real HSC COSMOS scenes: written as FITS tiles, ingested, pretrained on, embedded, served, photographed.

    python benchmarks/real_hsc.py [--quick] [--check] [--out bench-out/hsc]

Needs $REDSHELF_DATA (hsc_cosmos_blends_packed.npz) and says so when it is absent. The scenes carry no sky position:
each is given one on a grid near the COSMOS field, so that the WCS is real and the coordinates mean nothing. They have
no redshifts either: what is judged is likeness, by eye (a page for five sources) and by numbers: are neighbours closer
in colour and in shape than random pairs?
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from common import Server, data_folder, screenshot
from scipy.ndimage import gaussian_filter

from redshelf.models.bands import asinh_magnitude
from redshelf.service.embedding import embed
from redshelf.service.index import build_index
from redshelf.service.ingest import ingest
from redshelf.service.publish import publish
from redshelf.service.search import neighbours
from redshelf.service.shelf import OpenShelf, open_shelf
from redshelf.service.training import Run, pretrain

SCALE_ARCSEC, ZERO_POINT, CUTOUT_PX, EDGE_PX = 0.168, 27.0, 40, 10
WAVELENGTHS = {"g": 481.0, "r": 622.0, "i": 770.0, "z": 890.0, "y": 1000.0}
APERTURE_ARCSEC = 1.0  # radius, on images brought to the worst seeing
UJY = 10 ** (-0.4 * (ZERO_POINT - 23.9))


def fwhm_px(psf: npt.NDArray[np.float32]) -> float:
    """FWHM in pixels of the Gaussian with the PSF's central curvature, from its flux within half its maximum."""
    return float(2 * np.sqrt((psf > psf.max() / 2).sum() / np.pi))


def windows(fwhm: list[float]) -> list[npt.NDArray[np.float64]]:
    """Per band the pixel weights of one aperture seen through the worst band's seeing: (41, 41) each."""
    y, x = np.mgrid[-20:21, -20:21]
    disk = (np.hypot(x, y) <= APERTURE_ARCSEC / SCALE_ARCSEC).astype(float)
    extra = [np.sqrt(max(0.0, max(fwhm) ** 2 - f**2)) / 2.355 for f in fwhm]
    return [gaussian_filter(disk, e) if e > 0 else disk for e in extra]


def measure(image, weight, peak, window) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """Flux and error of one band at a 0-based (x, y) peak; NaN where a tenth of the aperture is bad (bright cores)."""
    x, y = round(float(peak[0])), round(float(peak[1]))
    height, width = image.shape
    rows, columns = np.arange(max(0, y - 20), min(height, y + 21)), np.arange(max(0, x - 20), min(width, x + 21))
    box, at = np.ix_(rows, columns), np.ix_(rows - y + 20, columns - x + 20)
    good = weight[box] > 0
    w = np.where(good, window[at], 0)
    if w.sum() < 0.9 * window.sum():
        return float("nan"), float("nan")
    return float((w * image[box]).sum()), float(np.sqrt((w[good] ** 2 / weight[box][good]).sum()))


def write_survey(packed: Path, folder: Path) -> Path:
    """The scenes as a survey: mosaics, weights, a catalogue of the peaks, survey.toml. Returns the survey file."""
    with np.load(packed) as data:
        bands = [str(b) for b in data["bands"]]
        fwhm = [fwhm_px(p) for p in data["psf"]]
        apertures, rows = windows(fwhm), []
        for number, scene in enumerate(data["ids"]):
            image, weight, peaks = (data[f"{kind}_{scene}"] for kind in ("im", "wt", "pk"))
            wcs = WCS(naxis=2)
            wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
            wcs.wcs.crval = [149.5 + 0.03 * (number % 13), 2.0 + 0.03 * (number // 13)]
            wcs.wcs.crpix = [image.shape[2] / 2, image.shape[1] / 2]
            wcs.wcs.cdelt = [-SCALE_ARCSEC / 3600, SCALE_ARCSEC / 3600]
            for b, band in enumerate(bands):
                for kind, pixels in (("mosaics", image[b]), ("weights", weight[b])):
                    path = folder / kind / band / f"{scene}.fits"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    fits.writeto(path, pixels.astype(np.float32), wcs.to_header())
            height, width = image.shape[1:]
            for n, (x, y) in enumerate(peaks):
                inside = EDGE_PX <= x < width - EDGE_PX and EDGE_PX <= y < height - EDGE_PX
                if not inside:
                    continue
                ra, dec = wcs.all_pix2world(float(x), float(y), 0)
                row = {"ID": f"{scene}-{n}", "RA": float(ra), "DEC": float(dec)}
                for b, band in enumerate(bands):
                    flux, error = measure(image[b], weight[b], (x, y), apertures[b])
                    row |= {f"FLUX_{band}": flux, f"FLUXERR_{band}": error}
                rows.append(row)
    Table(rows).write(folder / "catalogue.fits")
    lines = [
        "[survey]",
        'name = "hsc-cosmos-scenes"',
        f"pixel_scale_arcsec = {SCALE_ARCSEC}",
        f"cutout_px = {CUTOUT_PX}",
        "[catalogue]",
        'path = "catalogue.fits"',
        'id = "ID"\nra = "RA"\ndec = "DEC"',
    ]
    for band, width in zip(bands, fwhm, strict=True):
        lines += [
            "[[bands]]",
            f'name = "{band}"\nwavelength_nm = {WAVELENGTHS[band]}',
            f'flux = "FLUX_{band}"\nflux_error = "FLUXERR_{band}"\nzero_point = {ZERO_POINT}',
            f"psf_fwhm_arcsec = {width * SCALE_ARCSEC:.3f}",
            'image = "mosaics/{band}/{tile}.fits"\nweight = "weights/{band}/{tile}.fits"',
        ]
    (folder / "survey.toml").write_text("\n".join(lines) + "\n")
    return folder / "survey.toml"


def moments(shelf: OpenShelf, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Size in arcsec and the two ellipticity components of each source from the i-band cutout's central 5 arcsec."""
    band = shelf.info.band_names.index("i")
    half, out = 15, []
    for row in rows:
        pixels, mask, _ = shelf.cutout(int(row))
        centre = pixels.shape[1] // 2
        cut = np.s_[centre - half : centre + half + 1, centre - half : centre + half + 1]
        light = np.where(mask[band][cut], 0, np.clip(pixels[band][cut], 0, None))
        y, x = np.mgrid[-half : half + 1, -half : half + 1]
        light = light * np.exp(-(x**2 + y**2) / (2 * 6.0**2))
        total = max(light.sum(), 1e-9)
        xx, yy, xy = (light * x * x).sum() / total, (light * y * y).sum() / total, (light * x * y).sum() / total
        size = np.sqrt(max(xx + yy, 1e-9))
        out.append([size * SCALE_ARCSEC, (xx - yy) / (xx + yy + 1e-9), 2 * xy / (xx + yy + 1e-9)])
    return np.array(out)


def likeness(shelf: OpenShelf, encoder: str) -> dict[str, float]:
    """Median difference from the nearest 5 neighbours over that of random pairs, i < 24: below 1 is alike."""
    bright = np.flatnonzero(shelf.columns["magnitudes"][:, shelf.info.band_names.index("i")] < 24)
    index = shelf.encoder(encoder).index
    mask = np.zeros(len(shelf), bool)
    mask[bright] = True
    _, found = index.search(index.take(bright).astype(np.float32), 6, among=index.select(mask))
    pairs = np.array([(a, b) for a, near in zip(bright, found, strict=True) for b in near[near != a][:5]])
    rng = np.random.default_rng(0)
    random_pairs = np.stack([rng.choice(bright, len(pairs)), rng.choice(bright, len(pairs))], axis=1)
    soft = [10 ** (-0.4 * (b.depth_ab - 23.9)) / 3 for b in shelf.info.bands]
    magnitude = asinh_magnitude(shelf.columns["flux"], np.array(soft))
    shape = np.full((len(shelf), 3), np.nan)
    shape[bright] = moments(shelf, bright)
    properties = {
        "g-r": magnitude[:, 0] - magnitude[:, 1],
        "r-i": magnitude[:, 1] - magnitude[:, 2],
        "i": magnitude[:, 2],
        "size": shape[:, 0],
        "ellipticity": np.hypot(shape[:, 1], shape[:, 2]),
    }
    ratios = {"sources": float(len(bright))}
    for name, values in properties.items():
        near, far = (np.nanmedian(np.abs(values[p[:, 0]] - values[p[:, 1]])) for p in (pairs, random_pairs))
        ratios[name] = float(near / far)
    return ratios


def examples(shelf: OpenShelf) -> dict[str, str]:
    """Five sources to look at, chosen by colour, size and elongation among those with i < 22.5."""
    i = shelf.columns["magnitudes"][:, shelf.info.band_names.index("i")]
    rows = np.flatnonzero((i < 22.5) & np.isfinite(shelf.columns["magnitudes"]).all(axis=1))
    m = shelf.columns["magnitudes"][rows]
    colour, shape = m[:, 0] - m[:, 2], moments(shelf, rows)
    elongation = np.hypot(shape[:, 1], shape[:, 2])
    rank = lambda v: np.argsort(np.argsort(np.nan_to_num(v))) / len(v)  # noqa: E731
    picks = {
        "red-round": rank(colour) - rank(elongation),
        "edge-on": rank(elongation) + 0.3 * rank(shape[:, 0]),
        "blue": rank(-colour) - 0.3 * rank(-shape[:, 0]),
        "compact": rank(-shape[:, 0]) + rank(-i[rows]),
        "extended": rank(shape[:, 0]) + 0.5 * rank(-i[rows]),
    }
    chosen: dict[str, str] = {}
    for name, value in picks.items():
        order = [r for r in np.argsort(-value) if shelf.source_id(int(rows[r])) not in chosen.values()]
        chosen[name] = shelf.source_id(int(rows[order[0]]))
    return chosen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="pretrain for 30 s with one seed; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 unless neighbours are closer than random pairs")
    parser.add_argument("--out", type=Path, default=Path("bench-out/hsc"))
    arguments = parser.parse_args()
    folder = data_folder()
    if folder is None:
        return 0
    shutil.rmtree(arguments.out, ignore_errors=True)
    arguments.out.mkdir(parents=True)
    root, started = arguments.out / "shelf", time.perf_counter()
    survey = write_survey(folder / "hsc_cosmos_blends_packed.npz", arguments.out / "survey")
    print(ingest(survey, root))
    names = ["vit"] if arguments.quick else ["vit", "vit-1", "vit-2"]  # one a seed
    for seed, name in enumerate(names):
        run = Run(max_seconds=30 if arguments.quick else 120, seed=seed, progress=sys.stderr.isatty())
        pretrain(root, name=name, run=run)
    for encoder in ("photometry", *names):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
    publish(root, default_encoder="vit")
    shelf = open_shelf(root)
    print(f"{len(shelf)} peaks embedded after {time.perf_counter() - started:.0f} s")
    print("median difference from 5 nearest neighbours / from random sources (i < 24), below 1 is alike:")
    faults = []
    for title, encoders in (("photometry", ["photometry"]), (f"vit, {len(names)} seeds", names)):
        found = [likeness(shelf, encoder) for encoder in encoders]
        print(f"  {title:14s} n={found[0].pop('sources'):.0f}", end="")
        for key in found[0]:
            values = [ratios[key] for ratios in found]
            print(
                f"  {key} {np.mean(values):.2f}" + (f" +- {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""),
                end="",
            )
            if key in ("g-r", "r-i", "i") and np.mean(values) >= 1:
                faults.append(f"{title}: {key} {np.mean(values):.2f} is not below 1")
        print()
    with Server(root) as server:
        for name, source_id in examples(shelf).items():
            near = neighbours(shelf, source_id, k=5).neighbours
            print(f"  {name:10s} {source_id} -> {', '.join(n.source_id for n in near)}")
            picture = arguments.out / f"{name}.png"
            taken = screenshot(f"{server.url}/source/{source_id}?k=12", picture)
            print(f"             {picture if taken else 'no chromium: no screenshot'}")
    for line in faults:
        print(f"SHORT {line}")
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
