"""Which simulated sources get a spectroscopic redshift: scenarios of label selection.

`s0`: every source alike. `s1`: by the probability of a spectrum given observed i and g-z in the HSC survey, shipped in
pz-rail-base: a pure covariate shift, since the draw sees nothing but observed magnitudes. `s2`: by three surveys whose
success depends on the redshift as well (success.py), so that no weight on observables can undo the selection. A small
survey gets more visits, up to 20% labelled. Stars get no redshift.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import success
from redshelf.indexing.sed import Z_MAX, rail_data
from redshelf.models.bands import flux_to_ab
from redshelf.models.errors import BadInput

Floats = npt.NDArray[np.float64]

SCENARIOS = ("s0", "s1", "s2")
NEEDED: dict[str, tuple[str, ...]] = {"s0": (), "s1": ("g", "i", "z"), "s2": success.NEEDED}
SELECTS_ON = {"s1": "i and g-z", "s2": "i, r and the redshift"}
LABELLED_FRACTION = 0.2  # of s0, and the most that s1 and s2 are scaled up to
ENOUGH_LABELS = 4000  # beyond this many labels they are no longer scaled up
I_LIMITS, G_Z_LIMITS = (13.0, 26.0), (-2.0, 6.0)
SMOOTHING_CELLS, SMOOTHING_REACH = 2.0, 2.0  # 0.13 magnitudes in i, 0.08 in g-z; nothing beyond twice that
LOWEST_RATE = 0.0015  # smaller rates are 0: smoothing fills the table's empty cells with traces that nobody observes
Z_ERROR = 3e-4  # of a spectroscopic redshift, over 1 + z
WRONG_FRACTION = 0.01  # of the labels
LINES_ANGSTROM = np.array([1216.0, 3727.0, 5007.0, 6563.0])  # Lya, [OII], [OIII], Ha: one is taken for another
WINDOW_ANGSTROM = (3800.0, 9500.0)
LEAST_CONFUSION = 0.02  # of ln(1 + z)


@dataclass(frozen=True)
class Labels:
    """(N,) whether a spectrum was taken, redshift (NaN without) and its quality (4 or 3; 0 without)."""

    taken: npt.NDArray[np.bool_]
    z_spec: Floats
    quality: npt.NDArray[np.int16]


def check(scenario: str, bands: tuple[str, ...]) -> None:
    """`BadInput` for an unknown scenario, or one that needs bands that are not simulated."""
    if scenario not in SCENARIOS:
        raise BadInput(f"scenario {scenario!r} does not exist; there are: {', '.join(SCENARIOS)}")
    missing = [name for name in NEEDED[scenario] if name not in bands]
    if missing:
        raise BadInput(
            f"scenario {scenario} selects on {SELECTS_ON[scenario]}: add the bands {', '.join(missing)} to {bands}"
        )


def success_rates() -> Floats:
    """(200, 200) P(spectrum | i, g-z) of HSC, smoothed: axis 0 is g-z from -2 to 6, axis 1 is i from 13 to 26."""
    from scipy.ndimage import gaussian_filter

    rates = np.loadtxt(rail_data("creation") / "success_rate_data" / "hsc_success.txt")
    smooth = gaussian_filter(rates, SMOOTHING_CELLS, truncate=SMOOTHING_REACH, mode="constant")
    return np.where(smooth < LOWEST_RATE, 0.0, smooth)


def look_up(rates: Floats, i_ab: Floats, g_minus_z: Floats) -> Floats:
    """The rate of the cell that each source falls in; 0 outside the table and where a magnitude is missing."""
    out = np.zeros(len(i_ab))
    row = (g_minus_z - G_Z_LIMITS[0]) / (G_Z_LIMITS[1] - G_Z_LIMITS[0]) * rates.shape[0]
    column = (i_ab - I_LIMITS[0]) / (I_LIMITS[1] - I_LIMITS[0]) * rates.shape[1]
    inside = (row >= 0) & (row < rates.shape[0]) & (column >= 0) & (column < rates.shape[1])  # False for NaN
    out[inside] = rates[row[inside].astype(np.int64), column[inside].astype(np.int64)]
    return out


def scaled(rates: Floats, fraction: float) -> Floats:
    """1 - (1 - rate)^n with the n (visits of the spectrograph) that makes the mean `fraction`: zeros stay zero, and the
    order of sources is kept. `BadInput` when too few rates are positive."""
    from scipy.optimize import brentq

    if (rates > 0).mean() <= fraction:
        raise BadInput(f"only {(rates > 0).mean():.0%} of the sources can get a spectrum, fewer than {fraction:.0%}")
    log_missed = np.log1p(-np.minimum(rates, 0.999))

    def excess(log_visits: float) -> float:
        return float(-np.expm1(np.exp(log_visits) * log_missed).mean()) - fraction

    return np.asarray(-np.expm1(np.exp(brentq(excess, -20.0, 20.0, xtol=1e-9)) * log_missed))


def probability(scenario: str, flux_ujy: dict[str, Floats], target: npt.NDArray[np.bool_], z_true: Floats) -> Floats:
    """(N,) chance of a spectrum that gives a redshift: 0 where not `target`. `flux_ujy`: the catalogue's; `z_true` is
    looked at by s2 alone."""
    if scenario == "s0":
        return np.where(target, LABELLED_FRACTION, 0.0)
    if scenario == "s2":
        rates = 1 - np.prod(1 - by_survey(flux_ujy, z_true)[target], axis=1)
    else:
        magnitude = {name: flux_to_ab(flux_ujy[name][target]) for name in NEEDED[scenario]}
        rates = look_up(success_rates(), magnitude["i"], magnitude["g"] - magnitude["z"])
    fraction = max(float(rates.mean()), min(LABELLED_FRACTION, ENOUGH_LABELS / len(rates)))
    out = np.zeros(len(target))
    out[target] = scaled(rates, fraction)
    return out


def by_survey(flux_ujy: dict[str, Floats], z_true: Floats) -> Floats:
    """(N, 3) rates of the surveys of s2, before any scaling, at the catalogue's fluxes."""
    i, r = flux_to_ab(flux_ujy["i"]), flux_to_ab(flux_ujy["r"])
    return success.survey_rates(i, r, z_true)


def which_survey(rates: Floats, seed: int) -> npt.NDArray[np.str_]:
    """(N,) the survey that would get each source's redshift, drawn in proportion to `rates` (N, 3); "" for none."""
    total = np.cumsum(rates, axis=1)
    place = np.random.default_rng([seed, 22]).random(len(rates)) * total[:, -1]
    chosen = np.array(success.SURVEYS)[np.minimum((place[:, None] >= total).sum(axis=1), len(success.SURVEYS) - 1)]
    return np.where(total[:, -1] > 0, chosen, "")


def draw(chance: Floats, *, z_true: Floats, star: npt.NDArray[np.bool_], seed: int) -> Labels:
    """Take spectra of the sources with probability `chance`; those that turn out to be stars get no redshift."""
    count = len(z_true)
    rng = np.random.default_rng([seed, 20])
    taken = rng.random(count) < chance
    z_spec = np.maximum(z_true + Z_ERROR * (1 + z_true) * rng.standard_normal(count), 0.0)
    quality = np.where(rng.random(count) < 0.9, 4, 3)
    has_z = taken & ~star
    return Labels(taken, np.where(has_z, z_spec, np.nan), np.where(has_z, quality, 0).astype(np.int16))


def confuse(labels: Labels, *, z_true: Floats, seed: int) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """Labels of which 1% have a wrong redshift, and (N,) which.

    A line of the galaxy in the spectrograph's window is taken for another line; where no line lies there, the redshift
    is that of another label. The quality stays: nothing in the catalogue tells these labels from the others.
    """
    rows = np.flatnonzero(np.isfinite(labels.z_spec))
    count = min(len(rows), max(1, round(WRONG_FRACTION * len(rows))))
    rng = np.random.default_rng([seed, 21])
    chosen = np.sort(rng.choice(rows, count, replace=False))
    known, z_spec = 1 + labels.z_spec[rows], labels.z_spec.copy()
    wrong = np.zeros(len(z_spec), dtype=bool)
    for row in chosen:
        stretch = 1 + z_true[row]
        at = LINES_ANGSTROM * stretch
        seen = at[(at > WINDOW_ANGSTROM[0]) & (at < WINDOW_ANGSTROM[1])]
        for others in ((seen[:, None] / LINES_ANGSTROM).ravel(), known):  # 1 + z
            possible = others[np.abs(np.log(others / stretch)) > LEAST_CONFUSION]
            possible = possible[(possible > 1) & (possible < 1 + Z_MAX)]
            if len(possible):
                z_spec[row], wrong[row] = rng.choice(possible) - 1, True
                break
    return replace(labels, z_spec=z_spec), wrong


def label_sections(scenario: str) -> list[dict[str, Any]]:
    """One section of the survey file for each survey that took redshifts."""
    good = {"column": "Z_Q", "operator": ">=", "value": 3}
    common = {"kind": "spec", "z": "Z_SPEC", "quality": "Z_Q"}
    if scenario != "s2":
        return [{"survey": f"simulated-{scenario}", **common, "cuts": [good]}]
    return [
        {"survey": name, **common, "cuts": [good, {"column": "Z_SURVEY", "operator": "==", "value": name}]}
        for name in success.SURVEYS
    ]
