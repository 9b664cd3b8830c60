"""Colours of galaxies and stars: template spectra through filter curves, as one table over type, dust and redshift.

Templates: the 31 COSMOS spectra shipped in pz-rail-base (Ilbert et al. 2009), interpolated along their list; dust by
Calzetti et al. (2000); emission lines by rest equivalent width; intergalactic absorption by Madau (1995). On a grid of
ln(wavelength) a redshift is a shift, so the table is one matrix product; it is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from redshelf.indexing import files
from redshelf.indexing.telescope import BANDS

Floats = npt.NDArray[np.float64]
Table = npt.NDArray[np.float32]

STEP = 0.002  # of ln(wavelength): 10 Angstrom at 5000
SHIFT = 2  # redshift nodes are this many steps apart
Z_MAX = 6.0
REST_ANGSTROM, OBSERVED_ANGSTROM = (420.0, 24500.0), (2950.0, 24500.0)
DUST_EBV = np.linspace(0.0, 0.6, 9)
NORMALISED_ANGSTROM = 4400.0  # fluxes are relative to the rest-frame B band, so a luminosity M_B scales them
# Rest wavelength in Angstrom and equivalent width of the bluest type: Lya, [OII], Hb, [OIII] twice, Ha, [SII].
LINES_ANGSTROM = np.array([1216.0, 3727.0, 4861.0, 4959.0, 5007.0, 6563.0, 6725.0])
LINES_WIDTH = np.array([30.0, 60.0, 20.0, 25.0, 75.0, 90.0, 15.0])


@dataclass(frozen=True)
class ColourTable:
    """Band-averaged f_nu over rest f_nu at 4400 Angstrom, and what emission lines add for 1 Angstrom of width.

    continuum: (types, dust, redshifts, bands); line_continuum: (types, dust, lines) f_nu at each line;
    line_response: (redshifts, lines, bands). Bands in the order of `telescope.BANDS`.
    """

    continuum: Table
    line_continuum: Table
    line_response: Table

    def fluxes(
        self, kind: Floats, dust: Floats, z: Floats, widths: Floats | None = None, *, band: int | None = None
    ) -> Floats:
        """Relative fluxes (N, bands), or (N, 1) of one `band`, of N galaxies.

        kind: position along the template list, 0 to 30; dust: E(B-V); z: redshift, at most 6;
        widths: (N, lines) rest equivalent widths in Angstrom, None for no lines. Linear in all three coordinates.
        """
        pick = slice(None) if band is None else slice(band, band + 1)
        corners = _corners((kind, dust / DUST_EBV[1], np.log1p(z) / (STEP * SHIFT)), self.continuum.shape[:3])
        continuum = np.ascontiguousarray(self.continuum[..., pick]).reshape(-1, self.continuum[..., pick].shape[-1])
        out = np.zeros((len(kind), continuum.shape[1]))
        for index, weight in corners:
            out += weight[:, None] * continuum[index]
        if widths is None:
            return out
        at_line = np.zeros((len(kind), len(LINES_ANGSTROM)))
        flat = self.line_continuum.reshape(-1, len(LINES_ANGSTROM))
        for index, weight in _corners((kind, dust / DUST_EBV[1]), self.line_continuum.shape[:2]):
            at_line += weight[:, None] * flat[index]
        for index, weight in _corners((np.log1p(z) / (STEP * SHIFT),), self.line_response.shape[:1]):
            out += weight[:, None] * np.einsum("nl,nlb->nb", at_line * widths, self.line_response[index][:, :, pick])
        return out


def _corners(coordinates: tuple[Floats, ...], shape: tuple[int, ...]) -> list[tuple[npt.NDArray[np.int64], Floats]]:
    """Flat indices and weights of the grid corners around each point, for linear interpolation inside the grid."""
    corners: list[tuple[npt.NDArray[np.int64], Floats]] = [
        (np.zeros(len(coordinates[0]), dtype=np.int64), np.ones(len(coordinates[0])))
    ]
    for value, size in zip(coordinates, shape, strict=True):
        inside = np.clip(value, 0.0, size - 1.0)
        low = np.minimum(inside.astype(np.int64), size - 2)
        part = inside - low
        corners = [
            (index * size + low + side, weight * (part if side else 1.0 - part))
            for index, weight in corners
            for side in (0, 1)
        ]
    return corners


def calzetti(wavelength_angstrom: Floats) -> Floats:
    """A(wavelength) / E(B-V) of Calzetti et al. (2000), held constant below 1200 Angstrom and never negative."""
    micron = np.maximum(wavelength_angstrom, 1200.0) / 1e4
    blue = 2.659 * (-2.156 + 1.509 / micron - 0.198 / micron**2 + 0.011 / micron**3) + 4.05
    red = 2.659 * (-1.857 + 1.040 / micron) + 4.05
    return np.maximum(np.where(micron < 0.63, blue, red), 0.0)


def madau(observed_angstrom: Floats, z: float) -> Floats:
    """Mean transmission of the intergalactic medium towards `z` (Madau 1995: Lyman series to delta, and continuum)."""
    emitted = 1.0 + z
    depth = np.zeros_like(observed_angstrom)
    for line, strength in ((1215.67, 0.0036), (1025.72, 0.0017), (972.54, 0.0012), (949.74, 0.00093)):
        depth += np.where(observed_angstrom < line * emitted, strength * (observed_angstrom / line) ** 3.46, 0.0)
    x = np.minimum(observed_angstrom / 911.75, emitted)  # equal to 1 + z where there is no continuum absorption
    continuum = (
        0.25 * x**3 * (emitted**0.46 - x**0.46)
        + 9.4 * x**1.5 * (emitted**0.18 - x**0.18)
        - 0.7 * x**3 * (x**-1.32 - emitted**-1.32)
        - 0.023 * (emitted**1.68 - x**1.68)
    )
    return np.asarray(np.exp(-depth - np.maximum(continuum, 0.0)))


def _grid(limits: tuple[float, float]) -> Floats:
    """Wavelengths between the limits whose logarithm is a multiple of STEP: all grids are cut from one ladder."""
    return np.asarray(np.exp(STEP * np.arange(np.ceil(np.log(limits[0]) / STEP), np.log(limits[1]) / STEP)))


def filter_responses(wavelength_angstrom: Floats) -> Floats:
    """(bands, wavelengths): photon responses on a grid of ln(wavelength), each summing to 1: AB means of f_nu."""
    import speclite.filters

    rows = []
    for band in BANDS.values():
        curve = speclite.filters.load_filter(band.filter)
        row = np.interp(wavelength_angstrom, curve.wavelength, curve.response, left=0.0, right=0.0)
        rows.append(row / row.sum())
    return np.array(rows)


def rail_data(kind: str) -> Path:
    """The folder of RAIL's example data "estimation" or "creation", whichever of its packages is first on the path."""
    import rail

    return next(path for path in map(Path, rail.__path__) if (path / "examples_data").is_dir()) / (
        f"examples_data/{kind}_data/data"
    )


def templates(wavelength_angstrom: Floats) -> Floats:
    """(31, wavelengths): f_nu of the COSMOS templates in the order of their list, ellipticals to starbursts."""
    folder = rail_data("estimation") / "SED"
    names = (folder / "COSMOS_seds.list").read_text().split()
    rows = []
    for name in names:
        wavelength, f_lambda = np.loadtxt(folder / name, usecols=(0, 1)).T
        rows.append(np.interp(wavelength_angstrom, wavelength, f_lambda) * wavelength_angstrom**2)
    return np.array(rows)


def build() -> ColourTable:
    """The table from templates and filters: (types x dust, wavelengths) times (wavelengths, redshifts x bands)."""
    rest, observed = _grid(REST_ANGSTROM), _grid(OBSERVED_ANGSTROM)
    spectra = templates(rest)[:, None, :] * 10 ** (-0.4 * DUST_EBV[:, None] * calzetti(rest))  # (types, dust, rest)
    spectra /= spectra[:, :, [int(np.argmin(np.abs(rest - NORMALISED_ANGSTROM)))]]
    responses = filter_responses(observed)
    count = int(np.log1p(Z_MAX) / (STEP * SHIFT)) + 1
    ladder = round(np.log(observed[0] / rest[0]) / STEP)  # observed[k] is rest[k + ladder] at z = 0
    shifted = np.zeros((len(rest), count, len(responses)))
    for node in range(count):
        start = ladder - node * SHIFT
        through = (responses * madau(observed, float(np.exp(node * STEP * SHIFT)) - 1.0)).T
        low, high = max(0, start), min(len(rest), start + len(observed))
        shifted[low:high, node] = through[low - start : high - start]
    flat = shifted.astype(np.float32).reshape(len(rest), -1)
    continuum = spectra.astype(np.float32).reshape(-1, len(rest)) @ flat
    lines = [int(np.argmin(np.abs(rest - line))) for line in LINES_ANGSTROM]
    per_angstrom = 1.0 / (LINES_ANGSTROM * STEP)  # a line of 1 Angstrom fills one bin of the grid to this height
    response = np.stack([shifted[max(0, k - 1) : k + 2].mean(axis=0) for k in lines]) * per_angstrom[:, None, None]
    return ColourTable(
        continuum.reshape(*spectra.shape[:2], count, len(responses)),
        np.ascontiguousarray(spectra[:, :, lines]).astype(np.float32),
        np.ascontiguousarray(response.swapaxes(0, 1)).astype(np.float32),
    )


def cache_file() -> Path:
    """Where the table is kept: its name holds everything that the table depends on."""
    recipe: list[object] = [version("pz-rail-base"), version("speclite"), *(band.filter for band in BANDS.values())]
    recipe += [STEP, SHIFT, Z_MAX, REST_ANGSTROM, OBSERVED_ANGSTROM, DUST_EBV.tolist(), LINES_ANGSTROM.tolist(), 1]
    key = hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "redshelf" / f"colours-{key}.npz"


@cache
def table() -> ColourTable:
    """The colour table, from the cache folder if it is there whole, else built and put there."""
    path = cache_file()
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            return ColourTable(stored["continuum"], stored["line_continuum"], stored["line_response"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        pass  # absent or damaged: it is only a cache
    built = build()
    buffer = io.BytesIO()
    np.savez(buffer, **vars(built))
    try:
        files.write_bytes(path, buffer.getvalue())
    except OSError:
        return built  # a read-only home folder costs the next run a second, nothing else
    return built


def blackbody(temperature_kelvin: Floats) -> Floats:
    """(N, bands): f_nu of black bodies averaged over each band, relative to the i band: the simulated stars."""
    observed = _grid(OBSERVED_ANGSTROM)
    x = 1.43877e8 / (observed * temperature_kelvin[:, None])  # hc / (wavelength k T)
    bands = (observed**-3.0 / np.expm1(x)) @ filter_responses(observed).T
    return np.asarray(bands / bands[:, [list(BANDS).index("i")]])
