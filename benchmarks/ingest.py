"""How fast `redshelf ingest` cuts and stores: 64 x 64 pixels in 5 bands from FITS tiles of 4096 pixels, on 2 cores.

    python benchmarks/ingest.py [--quick] [--check] [--sources 20000] [--out bench-out/ingest]

*cut*: one band of one tile, from the open file to pixels in units of noise, masks and states, against a loop over
`astropy.nddata.Cutout2D(data, SkyCoord, wcs=...)` on the same pixels in memory. *ingest*: `service.ingest.ingest`,
catalogue to finished shelf, against writing the same cutouts from memory with one `lance.write_dataset`. The two of a
pair take turns for a few rounds; a ratio is the median of the rounds' ratios. Kinds of tile: plain; with a weight map
beside each image; fpacked (RICE). Files are in the page cache, and writes end there. *peak MB*: the largest memory of a
process that does nothing but ingest, for a quarter of the sources and for all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from common import in_turn, peak_mb

from redshelf.indexing import cutouts, mosaic, store
from redshelf.indexing import survey as surveys
from redshelf.indexing.layout import Layout
from redshelf.service.ingest import ingest

BANDS, CUTOUT_PX, SCALE_ARCSEC, NOISE_UJY = "grizy", 64, 0.2, 0.02
KINDS = ("plain", "weights", "fpack")
CUT_WANTED, RATE_WANTED = 10.0, 3000.0
CORES = 2


def tile_wcs(number: int, side: int) -> Any:
    """Tiles lie side by side in RA and share as many pixels as a cutout has."""
    from astropy.wcs import WCS

    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150 + number * (side - CUTOUT_PX) * SCALE_ARCSEC / 3600, 2.0]
    wcs.wcs.crpix = [(side + 1) / 2, (side + 1) / 2]
    wcs.wcs.cd = np.diag([-SCALE_ARCSEC, SCALE_ARCSEC]) / 3600
    return wcs


def write_catalogue(path: Path, sources: int, tiles: int, side: int) -> None:
    """Sources evenly over the tiles; what they look like does not matter here."""
    from astropy.table import Table

    rng = np.random.default_rng(1)
    places = rng.uniform(0, side - 1, (tiles, sources // tiles, 2))
    sky = np.concatenate([tile_wcs(t, side).all_pix2world(places[t], 0) for t in range(tiles)])
    table = Table({"id": np.arange(len(sky)), "ra": sky[:, 0], "dec": sky[:, 1]})
    for band in BANDS:
        table[f"f_{band}"], table[f"e_{band}"] = rng.normal(1, 0.5, len(sky)), np.full(len(sky), 0.1)
    table.write(path)


def write_survey(folder: Path, kind: str, *, sources: int, tiles: int, side: int) -> Path:
    """Tiles of noise with some pixels without a value, a catalogue of `sources` and one of a quarter of them."""
    from astropy.io import fits

    rng = np.random.default_rng(0)
    for number in range(tiles):
        header = tile_wcs(number, side).to_header()
        for band in BANDS:
            image = rng.standard_normal((side, side), dtype=np.float32) * np.float32(NOISE_UJY)
            image[tuple(rng.integers(0, side, (2, side)))] = np.nan
            path = folder / "mosaics" / band / f"t{number}.fits"
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "fpack":
                packed = fits.CompImageHDU(image, header, compression_type="RICE_1", quantize_level=16)
                fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path.with_suffix(".fits.fz"))
                continue
            fits.PrimaryHDU(image, header).writeto(path)
            if kind == "weights":
                path = folder / "weights" / band / path.name
                path.parent.mkdir(parents=True, exist_ok=True)
                fits.PrimaryHDU(np.full_like(image, NOISE_UJY**-2)).writeto(path)
    ending = "fits.fz" if kind == "fpack" else "fits"
    images = {"image": "mosaics/{band}/{tile}." + ending}
    images |= {"weight": "weights/{band}/{tile}.fits"} if kind == "weights" else {}
    for name, count in (("survey", sources), ("quarter", sources // 4)):
        write_catalogue(folder / f"{name}.fits", count, tiles, side)
        bands = [
            {"name": b, "wavelength_nm": 500, "flux": f"f_{b}", "flux_error": f"e_{b}", "unit": "uJy", **images}
            for b in BANDS
        ]
        document = {
            "survey": {"name": kind, "pixel_scale_arcsec": SCALE_ARCSEC, "cutout_px": CUTOUT_PX},
            "catalogue": {"path": f"{name}.fits", "id": "id", "ra": "ra", "dec": "dec"},
            "bands": bands,
        }
        (folder / f"{name}.toml").write_text(tomli_w.dumps(document))
    return folder / "survey.toml"


def measure_cut(file: Path, *, rounds: int, loop: int) -> tuple[float, float, float]:
    """Cutouts a second of one band of one tile: astropy's loop over `loop` sources, ours over all, and the ratio."""
    from astropy import units as u
    from astropy.coordinates import SkyCoord
    from astropy.io import fits
    from astropy.nddata import Cutout2D
    from astropy.table import Table

    survey = surveys.load(file)
    name, paths = next(iter(mosaic.find_tiles(survey).items()))
    tile = mosaic.open_tile(survey, name, paths).mosaics[0]
    assert tile is not None
    table = Table.read(file.with_suffix(".fits"))
    x, y = mosaic.pixel_positions(tile, np.asarray(table["ra"]), np.asarray(table["dec"]))
    inside = (x > 0) & (x < tile.shape[1] - 1) & (y > 0) & (y < tile.shape[0] - 1)
    ra, dec = np.asarray(table["ra"])[inside], np.asarray(table["dec"])[inside]
    data = fits.getdata(tile.path).astype(np.float32)
    positions = SkyCoord(ra[:loop] * u.deg, dec[:loop] * u.deg)

    def astropys() -> float:
        began = time.perf_counter()
        for position in positions:
            Cutout2D(data, position, CUTOUT_PX, wcs=tile.wcs, mode="partial", fill_value=np.nan)
        return len(positions) / (time.perf_counter() - began)

    def ours() -> float:
        began = time.perf_counter()
        at = mosaic.pixel_positions(tile, ra, dec)
        image = cutouts.band_image(tile, *at, cutout_px=CUTOUT_PX, pixel_scale_arcsec=SCALE_ARCSEC, noise_ujy=NOISE_UJY)
        assert image is not None
        for start in range(0, len(ra), cutouts.ROWS_PER_BATCH):
            image.cut(slice(start, start + cutouts.ROWS_PER_BATCH), CUTOUT_PX)
        return len(ra) / (time.perf_counter() - began)

    return in_turn(astropys, ours, rounds)


def measure_ingest(file: Path, shelf: Path, *, rounds: int) -> tuple[float, float, float]:
    """Sources a second: the bare write of their cutouts, the whole ingest, and the ratio."""
    import lance

    shutil.rmtree(shelf, ignore_errors=True)
    ingest(file, shelf)  # imports, and the page cache
    table = store.open_table(Layout(shelf).cutouts).to_table()

    def bare() -> float:
        copy = shelf.with_name("bare.lance")
        shutil.rmtree(copy, ignore_errors=True)
        began = time.perf_counter()
        lance.write_dataset(table, str(copy))
        rate = len(table) / (time.perf_counter() - began)
        shutil.rmtree(copy)
        return rate

    def whole() -> float:
        shutil.rmtree(shelf, ignore_errors=True)
        began = time.perf_counter()
        return ingest(file, shelf).sources / (time.perf_counter() - began)

    return in_turn(bare, whole, rounds)


def peak_of(file: Path, shelf: Path) -> float:
    """Of a process of its own that ingests."""
    shutil.rmtree(shelf, ignore_errors=True)
    command = [sys.executable, __file__, "--peak", str(file), "--out", str(shelf)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small tile, one kind; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 if a figure falls short")
    parser.add_argument("--sources", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench-out/ingest"))
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    if arguments.peak:
        ingest(arguments.peak, arguments.out)
        print(peak_mb())
        return 0
    tiles, side, loop = (1, 2048, 200) if arguments.quick else (2, 4096, 1000)
    sources = min(arguments.sources, 3000) if arguments.quick else arguments.sources
    faults = []
    shutil.rmtree(arguments.out, ignore_errors=True)
    print(f"{tiles} tiles of {side} px, {len(BANDS)} bands, {sources} sources at {CUTOUT_PX} px, {CORES} cores\n")
    print("| tiles | Cutout2D /s | cut /s | ratio | bare write /s | ingest /s | ratio | peak MB, a quarter / all |")
    print("|---" * 8 + "|", flush=True)
    for kind in KINDS[:1] if arguments.quick else KINDS:
        folder = arguments.out / kind
        file = write_survey(folder, kind, sources=sources, tiles=tiles, side=side)
        loop_rate, cut_rate, cut_ratio = measure_cut(file, rounds=arguments.rounds, loop=loop)
        bare, whole, ratio = measure_ingest(file, folder / "shelf", rounds=arguments.rounds)
        quarter, every = (peak_of(folder / f"{name}.toml", folder / "shelf") for name in ("quarter", "survey"))
        print(
            f"| {kind} | {loop_rate:,.0f} | {cut_rate:,.0f} | {cut_ratio:.0f} | {bare:,.0f} | {whole:,.0f} "
            f"| {ratio:.2f} | {quarter:,.0f} / {every:,.0f} |",
            flush=True,
        )
        if cut_ratio < CUT_WANTED:
            faults.append(f"{kind}: cutting at {cut_ratio:.1f} times Cutout2D, wanted {CUT_WANTED:g}")
        if kind == "plain" and not arguments.quick and whole < RATE_WANTED:
            faults.append(f"{kind}: ingest at {whole:,.0f} sources/s, wanted {RATE_WANTED:,.0f}")
        shutil.rmtree(folder)
    for fault in faults:
        print(f"SHORT {fault}")
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())
