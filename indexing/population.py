"""The true sky of the simulated survey: galaxies and stars with redshifts, luminosities, types, sizes and fluxes.

Redshift and luminosity follow Schechter functions of a red and a blue population in a Planck18 universe; every galaxy
is a red bulge and a bluer disk. The scatter that spectra have beyond the templates (5% a band, line strengths) is
drawn here, once an object, before anything is rendered. Galaxies are not clustered.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from redshelf.indexing import sed
from redshelf.indexing.telescope import BANDS
from redshelf.models.bands import AB_ZERO_POINT_UJY, ab_to_flux

Floats = npt.NDArray[np.float64]

LIMIT_I = 25.0  # of the catalogue
FAINT_LIMIT_I = 26.5  # of what is rendered
BRIGHT_I_STAR = 15.5
CHUNK = 400_000  # galaxies drawn at a time
STARS_PER_ARCMIN2 = 4.0  # down to LIMIT_I, at a COSMOS-like galactic latitude
STAR_SLOPE = 0.12  # of log10 counts per magnitude
SED_SCATTER = 0.05
LINE_SCATTER_DEX = 0.2  # shared by all lines of a galaxy, and again for each line
I_BAND = list(BANDS).index("i")
# ustar sees nearly what u sees, so it shares the scatter of u
SCATTERED = [name for name in BANDS if name != "ustar"]
SCATTER_OF = [SCATTERED.index("u" if name == "ustar" else name) for name in BANDS]
ARCMIN2_PER_SKY = 4 * np.pi * (180 / np.pi * 60) ** 2
# Blue galaxies are drawn on the scale El 0, Sbc 1, Scd 2, Im 3, starburst 4; the place of each in the template list.
TYPE_SCALE, TYPE_PLACE = (0.0, 1.0, 2.0, 3.0, 4.0, 5.5), (7.0, 15.0, 19.0, 23.0, 25.5, 30.0)


@dataclass(frozen=True)
class Sources:
    """N true sources. Fluxes (N, bands) in microjansky above the Galaxy's dust, bands in the order of `BANDS`.

    kind: place of the disk's spectrum in the template list (NaN for stars); angle_deg: of the major axis, from x to y.
    """

    star: npt.NDArray[np.bool_]
    z: Floats
    magnitude_b: Floats  # absolute, rest frame, after internal dust; NaN for stars
    kind: Floats
    dust_ebv: Floats
    r50_arcsec: Floats
    bulge_fraction: Floats  # in the rest-frame B band
    bulge_size: Floats  # half-light radius of the bulge over that of the galaxy
    axis_ratio: Floats
    angle_deg: Floats
    disk_ujy: Floats
    bulge_ujy: Floats

    def __len__(self) -> int:
        return len(self.z)

    @property
    def total_ujy(self) -> Floats:
        return self.disk_ujy + self.bulge_ujy

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Sources:
        """These rows only, in this order."""
        return Sources(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


def concatenate(parts: list[Sources]) -> Sources:
    return Sources(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sources)})


@dataclass(frozen=True)
class _Cells:
    """Where galaxies that could reach the limit are: cells of redshift, magnitude and population (0 red, 1 blue)."""

    z: Floats
    magnitude_b: Floats
    population: npt.NDArray[np.int64]
    cumulative: Floats  # of the number in each cell, ending at 1
    per_arcmin2: float


Z_STEP, MAGNITUDE_STEP = 0.02, 0.1


def schechter(magnitude: Floats, m_star: Floats, phi_star: Floats, alpha: float) -> Floats:
    """Galaxies per Mpc3 and magnitude."""
    x = 10.0 ** (0.4 * (m_star - magnitude))
    return np.asarray(0.4 * np.log(10) * phi_star * x ** (alpha + 1) * np.exp(-x))


def luminosity_function(z: Floats, magnitude_b: Floats) -> Floats:
    """(2, ...) galaxies per comoving Mpc3 and magnitude of the red and the blue population."""
    red = schechter(
        magnitude_b, -20.1 - 1.2 * np.minimum(z, 1.5) - 0.2 * np.maximum(z - 1.5, 0), 2e-3 * 10 ** (-0.44 * z), -0.5
    )
    blue = schechter(
        magnitude_b,
        -20.0 - 1.2 * np.minimum(z, 1.3) - 0.25 * np.maximum(z - 1.3, 0),
        3.2e-3 * 10 ** (-0.22 * np.maximum(z - 1.5, 0)),
        -1.3,
    )
    return np.stack([red, blue])


def _cells(table: sed.ColourTable, limit_i: float) -> _Cells:
    from astropy.cosmology import Planck18

    z = np.arange(0.03, sed.Z_MAX - Z_STEP, Z_STEP)
    magnitude = np.arange(-26.0, -11.0, MAGNITUDE_STEP)
    volume = Planck18.differential_comoving_volume(z).value * 4 * np.pi / ARCMIN2_PER_SKY * Z_STEP  # Mpc3 / arcmin2
    number = luminosity_function(z[:, None], magnitude[None, :]) * volume[:, None] * MAGNITUDE_STEP
    # The brightest that any spectrum makes the i band, with a margin for lines and scatter: fainter cells hold nothing.
    node = np.rint(np.log1p(z) / (sed.STEP * sed.SHIFT)).astype(int)
    best = table.continuum[:, 0, node, I_BAND].max(axis=0) * (1 + z) * 1.5
    reach = limit_i - Planck18.distmod(z).value + 2.5 * np.log10(best)
    number *= magnitude[None, :] - MAGNITUDE_STEP < reach[:, None]
    population, i_z, i_m = np.nonzero(number)
    counts = number[population, i_z, i_m]
    total = float(counts.sum())
    return _Cells(z[i_z], magnitude[i_m], population, np.cumsum(counts) / total, total)


def galaxies(count: int, *, seed: int) -> tuple[Sources, float]:
    """`count` galaxies brighter than LIMIT_I in i, in no order, and how many there are per square arcminute."""
    table = sed.table()
    cells = _cells(table, LIMIT_I)
    size = int(np.clip(2 * count, 5_000, CHUNK))
    kept: list[Sources] = []
    while sum(map(len, kept)) < count:
        kept.append(_draw(cells, table, size, (-np.inf, LIMIT_I), np.random.default_rng([seed, 1, len(kept)])))
    density = cells.per_arcmin2 * sum(map(len, kept)) / (size * len(kept))
    return concatenate(kept).take(np.arange(count)), density


def background(area_arcmin2: float, *, seed: int) -> Sources:
    """The galaxies with LIMIT_I < i < FAINT_LIMIT_I on an area of sky: not in the catalogue, but in its pixels."""
    table = sed.table()
    cells = _cells(table, FAINT_LIMIT_I)
    count = int(np.random.default_rng([seed, 6]).poisson(cells.per_arcmin2 * area_arcmin2))
    sizes = [min(CHUNK, count - first) for first in range(0, count, CHUNK)]
    limits = (LIMIT_I, FAINT_LIMIT_I)
    return concatenate(
        [_draw(cells, table, size, limits, np.random.default_rng([seed, 7, n])) for n, size in enumerate(sizes)]
    )


def _draw(
    cells: _Cells, table: sed.ColourTable, size: int, limits_i: tuple[float, float], rng: np.random.Generator
) -> Sources:
    """Those of `size` random galaxies whose total i magnitude is between the limits."""
    from astropy.cosmology import Planck18

    cell = np.searchsorted(cells.cumulative, rng.random(size))
    z = cells.z[cell] + Z_STEP * (rng.random(size) - 0.5)
    magnitude = cells.magnitude_b[cell] + MAGNITUDE_STEP * (rng.random(size) - 0.5)
    blue = cells.population[cell] == 1
    scale = np.clip(2.5 + 0.35 * z + 0.18 * (magnitude + 20.5) + rng.normal(0, 0.65, size), 0.3, 5.5)
    old = np.clip(rng.normal(5.0, 2.5, size), 0, 10)  # ellipticals to Sa: bulges, and red galaxies
    kind = np.where(blue, np.interp(scale, TYPE_SCALE, TYPE_PLACE), np.maximum(old, 5.0) + 4.0)
    dust_mean = np.where(blue, np.clip(0.13 - 0.02 * (magnitude + 20.5), 0.02, 0.25), 0.02)
    dust = np.minimum(rng.exponential(dust_mean), sed.DUST_EBV[-1])
    fraction = np.where(blue, rng.beta(1.2, 5, size), rng.beta(5, 2, size))
    strength = np.where(blue, np.clip((scale - 1) / 3, 0, 1.5), 0.0)
    spread = rng.normal(0, LINE_SCATTER_DEX, (size, 1)) + rng.normal(0, LINE_SCATTER_DEX, (size, len(sed.LINES_WIDTH)))
    widths = strength[:, None] * sed.LINES_WIDTH * 10**spread
    scatter = np.exp(rng.normal(0, SED_SCATTER, (size, len(SCATTERED))))[:, SCATTER_OF]
    nodes = np.linspace(0.01, sed.Z_MAX, 600)
    modulus = np.interp(z, nodes, Planck18.distmod(nodes).value)
    kpc_per_arcsec = np.interp(z, nodes, Planck18.kpc_proper_per_arcmin(nodes).value / 60)
    brightness = 10 ** (-0.4 * (magnitude + modulus - AB_ZERO_POINT_UJY)) * (1 + z)
    r50_kpc = np.where(blue, 4.5 * 10 ** (-0.08 * (magnitude + 20.5)), 3.0 * 10 ** (-0.13 * (magnitude + 20.5)))
    r50_kpc *= (1 + z) ** -0.8 * 10 ** rng.normal(0, 0.17, size)
    axis_ratio, angle = rng.uniform(0.15, 1.0, size), rng.uniform(0, 180, size)

    def components(rows: npt.NDArray[np.integer], band: int | None) -> tuple[Floats, Floats]:
        pick = slice(None) if band is None else slice(band, band + 1)
        shared = brightness[rows, None] * scatter[rows, pick]
        disk = table.fluxes(kind[rows], dust[rows], z[rows], widths[rows], band=band)
        bulge = table.fluxes(old[rows], dust[rows] * 0.5, z[rows], band=band)
        part = fraction[rows, None]
        return shared * disk * (1 - part), shared * bulge * part

    disk_i, bulge_i = components(np.arange(size), I_BAND)
    total_i = (disk_i + bulge_i)[:, 0]
    rows = np.nonzero((total_i > ab_to_flux(limits_i[1])) & (total_i <= ab_to_flux(limits_i[0])))[0]
    disk, bulge = components(rows, None)
    return Sources(
        star=np.zeros(len(rows), dtype=bool),
        z=z[rows],
        magnitude_b=magnitude[rows],
        kind=kind[rows],
        dust_ebv=dust[rows],
        r50_arcsec=(r50_kpc / kpc_per_arcsec)[rows],
        bulge_fraction=fraction[rows],
        bulge_size=np.where(blue, 0.5, 1.0)[rows],
        axis_ratio=axis_ratio[rows],
        angle_deg=angle[rows],
        disk_ujy=disk,
        bulge_ujy=bulge,
    )


def stars(count: int, *, seed: int) -> Sources:
    """`count` stars with BRIGHT_I_STAR < i < LIMIT_I: black bodies, dimmed in u as metals do, cool dwarfs if faint."""
    rng = np.random.default_rng([seed, 2])
    low, high = 10 ** (STAR_SLOPE * BRIGHT_I_STAR), 10 ** (STAR_SLOPE * LIMIT_I)
    magnitude = np.log10(rng.uniform(low, high, count)) / STAR_SLOPE
    dwarf = rng.random(count) < np.interp(magnitude, (16, 24), (0.3, 0.8))
    temperature = np.where(dwarf, rng.normal(3400, 250, count), rng.normal(5500, 600, count))
    flux = ab_to_flux(magnitude)[:, None] * sed.blackbody(np.clip(temperature, 2600, 9000))
    flux[:, [list(BANDS).index(name) for name in ("u", "ustar")]] *= 0.6
    flux *= np.exp(rng.normal(0, SED_SCATTER, (count, len(SCATTERED))))[:, SCATTER_OF]
    flux *= (ab_to_flux(magnitude) / flux[:, I_BAND])[:, None]
    nothing, missing = np.zeros(count), np.full(count, np.nan)
    return Sources(
        star=np.ones(count, dtype=bool),
        z=nothing,
        magnitude_b=missing,
        kind=missing,
        dust_ebv=nothing,
        r50_arcsec=nothing,
        bulge_fraction=nothing,
        bulge_size=nothing,
        axis_ratio=np.ones(count),
        angle_deg=nothing,
        disk_ujy=flux,
        bulge_ujy=np.zeros_like(flux),
    )


def draw(count: int, *, seed: int) -> tuple[Sources, float]:
    """`count` sources, stars among them at their share of the sky, shuffled; and sources per square arcminute."""
    found, density = galaxies(count, seed=seed)
    share = STARS_PER_ARCMIN2 / (density + STARS_PER_ARCMIN2)
    n_star = round(count * share)
    both = concatenate([found.take(np.arange(count - n_star)), stars(n_star, seed=seed)])
    return both.take(np.random.default_rng([seed, 3]).permutation(count)), density + STARS_PER_ARCMIN2
