"""Tables of scores by bin: of z_phot (what a user can cut on), z_spec (diagnosis), magnitude, flag or cluster.

A mean bias near zero hides large ones of opposite sign, so no mean is quoted without such a table. Of a posterior mean
the bias vanishes in bins of z_phot and regresses to the mean in bins of z_spec: that is no fault (see `slopes`).
Rows with fewer than 100 objects hold no score. Errors are bootstrap errors over objects, or over sky tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from redshelf.models.bootstrap import Resampling, Scorer, errors
from redshelf.models.density_scores import DensityScores, density_scorer, pit_scorer
from redshelf.models.errors import BadInput
from redshelf.models.metrics import delta_z, effective_sample_size, point_scorer
from redshelf.models.slopes import slope_scorer
from redshelf.models.weighted import Ints, checked_weights, finite, rising

Row = dict[str, float | str | None]
MAGNITUDE_EDGES = (17.0, 22.5, 24.0, 25.0, 26.0)
REDSHIFT_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Bins:
    """Which row of a table each of N objects belongs to, `codes` (N,), -1 for none, and what each row is called."""

    codes: Ints
    names: tuple[Mapping[str, float | str], ...]


def edged(values: npt.ArrayLike, edges: npt.ArrayLike, *, name: str = "values") -> Bins:
    """Bins of `values` (N,) between `edges` (B+1,), lower edge in, the last upper edge too; rows `low` and `high`."""
    at, v = rising("edges", edges), finite(name, values)
    codes = np.searchsorted(at, v, side="right") - 1
    codes[v == at[-1]] = len(at) - 2
    codes[codes == len(at) - 1] = -1
    names = tuple({"low": low, "high": high} for low, high in pairwise(at.tolist()))
    return Bins(codes.astype(np.int64), names)


def grouped(labels: npt.ArrayLike) -> Bins:
    """One row, `group`, for each different label (N,): a support flag, a field, a cluster of the embedding."""
    values = np.asarray(labels)
    if values.ndim != 1:
        raise BadInput(f"labels of shape {values.shape}: expected (N,)")
    if values.dtype.kind == "f":
        finite("labels", values)
    found, codes = np.unique(values, return_inverse=True)
    return Bins(codes.astype(np.int64), tuple({"group": str(label)} for label in found))


def table(
    scorer: Callable[[Ints], Scorer],
    bins: Bins,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """One row a bin: its name, n and ess of the objects with weight, every score, and with `bootstrap` its `_error`.

    `scorer` turns the rows (n,) of a bin's objects into a function of their weights. Bins with fewer than `minimum`
    objects keep n and ess, and None for every score of the other rows.
    """
    w = checked_weights(weights, len(bins.codes))
    resampling = Resampling.of(len(w), draws=bootstrap, seed=seed, tiles=tiles) if bootstrap else None
    held = np.flatnonzero((w > 0) & (bins.codes >= 0))
    held = held[np.argsort(bins.codes[held], kind="stable")]
    members = np.split(held, np.searchsorted(bins.codes[held], np.arange(1, len(bins.names))))
    full = [i for i, rows in enumerate(members) if len(rows) >= max(minimum, 1)]
    parts = [(members[i], scorer(members[i])) for i in full]
    scores: dict[int, Row] = {}
    for i, (rows, score) in zip(full, parts, strict=True):
        scores[i] = {name: value if np.isfinite(value) else None for name, value in score(w[rows]).items()}
    if resampling is not None:
        for i, found in zip(full, errors(parts, w, resampling), strict=True):
            scores[i] |= {f"{name}_error": found.get(name) for name in tuple(scores[i])}
    if not scores:  # the names of the columns, from any objects there are
        few = next((rows for rows in members if len(rows)), held)
        scores = {-1: dict(scorer(few)(w[few])) if len(few) else {}}
    blank: Row = dict.fromkeys(next(iter(scores.values())))
    out = []
    for i, (name, rows) in enumerate(zip(bins.names, members, strict=True)):
        row: Row = {**name, "n": float(len(rows)), "ess": effective_sample_size(w[rows])}
        out.append(row | scores.get(i, blank))
    return out


def point_table(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    bins: Bins,
    weights: npt.ArrayLike | None = None,
    *,
    slopes: bool = False,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """`table` of all scores of `metrics.point_scorer`, with `slopes` also those of `slopes.slope_scorer`."""
    dz = delta_z(z_phot, z_spec)
    _same_length(len(dz), bins)
    phot, spec = np.asarray(z_phot, dtype=np.float64), np.asarray(z_spec, dtype=np.float64)

    def scorer(rows: Ints) -> Scorer:
        points = point_scorer(dz[rows])
        lines = slope_scorer(phot[rows], spec[rows])
        return (lambda w: {**points(w), **lines(w)}) if slopes else points

    return table(scorer, bins, weights, minimum=minimum, bootstrap=bootstrap, seed=seed, tiles=tiles)


def density_table(
    scores: DensityScores,
    bins: Bins,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """`table` of all scores of `density_scores.density_scorer`: the local PIT, coverage, CRPS, ... of each bin."""
    _same_length(len(scores), bins)
    return table(
        lambda rows: density_scorer(scores.take(rows)),
        bins,
        weights,
        minimum=minimum,
        bootstrap=bootstrap,
        seed=seed,
        tiles=tiles,
    )


def pit_table(
    pit: npt.ArrayLike,
    bins: Bins,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """`table` of all scores of `density_scores.pit_scorer`, where only the PITs (N,) are at hand."""
    u = finite("pit", pit)
    _same_length(len(u), bins)
    return table(
        lambda rows: pit_scorer(u[rows]), bins, weights, minimum=minimum, bootstrap=bootstrap, seed=seed, tiles=tiles
    )


def point_tables(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    magnitude: npt.ArrayLike | None = None,
    weights: npt.ArrayLike | None = None,
    *,
    redshift_edges: Sequence[float] = REDSHIFT_EDGES,
    magnitude_edges: Sequence[float] = MAGNITUDE_EDGES,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> dict[str, list[Row]]:
    """Point tables by z_spec, z_phot and magnitude (N,), unweighted, and with weights also as `NAME_weighted`."""
    bins = {
        "z_spec": edged(z_spec, redshift_edges, name="z_spec"),
        "z_phot": edged(z_phot, redshift_edges, name="z_phot"),
    }
    if magnitude is not None:
        bins["magnitude"] = edged(magnitude, magnitude_edges, name="magnitude")
    kinds = {"": None} if weights is None else {"": None, "_weighted": weights}
    return {
        name + kind: point_table(z_phot, z_spec, of, w, minimum=minimum, bootstrap=bootstrap, seed=seed, tiles=tiles)
        for name, of in bins.items()
        for kind, w in kinds.items()
    }


def _same_length(n: int, bins: Bins) -> None:
    if len(bins.codes) != n:
        raise BadInput(f"bins of {len(bins.codes)} objects: expected {n}, as many as are scored")
