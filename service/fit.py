"""`redshelf fit`: estimators, shift weights, support and their validation, on one embedding or several together.

Features are the stored vectors of the encoders named (`vit`, `vit+photometry`); labels are galaxies with a
spectroscopic or grism redshift; the target is every other source that may be given one.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, deletions, store
from redshelf.indexing.batches import Reader
from redshelf.indexing.files import read_json, sha256, write_bytes, write_json
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.errors import BadInput, NotFound
from redshelf.service import fits

LABEL_KINDS = ("spec", "grism")
NOT_GALAXIES = ("star", "agn")  # neither labels of galaxies nor given a photo-z
Pair = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # of labels and of targets
TARGET_ROWS = 50_000  # the shift weights see at most this many targets, drawn at random


@dataclass(frozen=True)
class GalaxyLabels:
    """Labelled galaxies: `rows` (L,) ascending, `z` (L,)."""

    rows: npt.NDArray[np.int64]
    z: npt.NDArray[np.float64]

    @property
    def digest(self) -> str:
        """sha256 of rows and redshifts: a fit is stale when the labels' digest is another one."""
        return hashlib.sha256(self.rows.tobytes() + self.z.tobytes()).hexdigest()


@dataclass(frozen=True)
class FitReport:
    """What `fit` did: the folder, labels and targets seen, and the model's own report."""

    encoder: str
    folder: Path
    labels: int
    targets: int
    details: dict[str, Any]


def read_labels(layout: Layout) -> GalaxyLabels:
    """Labels fit to train on: spectroscopic or grism, of sources that are neither stars, AGN nor masked."""
    if not store.count_rows(layout.labels):
        raise NotFound(f"{layout.root} has no labels: add a [[labels]] section to the survey file and ingest again")
    labels = store.open_table(layout.labels).to_table(columns=["row", "z_spec", "z_kind", "object_class"])
    labels = deletions.keep(labels, deletions.live(layout))
    rows, z = labels["row"].to_numpy(), labels["z_spec"].to_numpy().astype(np.float64)
    kind = np.array(labels["z_kind"].to_pylist())
    spectral = np.array(labels["object_class"].to_pylist())
    table = store.open_table(layout.sources).take(rows, columns=["object_class", "flags"])
    catalogued = np.array(table["object_class"].to_pylist())
    # a spectrum overrules the catalogue's class
    known = np.where(spectral != "unknown", spectral, catalogued)
    good = np.isin(kind, LABEL_KINDS) & ~np.isin(known, NOT_GALAXIES) & np.isfinite(z) & (z > 0)
    good &= (table["flags"].to_numpy() & store.FLAG_MASKED) == 0
    order = np.argsort(rows[good], kind="stable")
    return GalaxyLabels(rows[good][order].astype(np.int64), z[good][order])


def target_rows(layout: Layout, labelled: npt.NDArray[np.int64], *, seed: int = 0) -> npt.NDArray[np.int64]:
    """Rows to be given a redshift: neither labelled, stars, AGN, masked nor deleted; a random sample of at most 50,000.

    Where every source is labelled, the labelled ones are the target.
    """
    table = store.open_table(layout.sources).to_table(columns=["object_class", "flags"])
    wanted = ~np.isin(np.array(table["object_class"].to_pylist()), NOT_GALAXIES)
    wanted &= ((table["flags"].to_numpy() & store.FLAG_MASKED) == 0) & deletions.live(layout)
    if store.count_rows(layout.labels):
        wanted[store.open_table(layout.labels).to_table(columns=["row"])["row"].to_numpy()] = False
    rows = np.flatnonzero(wanted).astype(np.int64)
    if not len(rows):
        return labelled
    if len(rows) > TARGET_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, TARGET_ROWS, replace=False))
    return rows


@dataclass(frozen=True)
class _Space:
    """One indexed embedding; `columns` names its numbers where they mean something (photometry)."""

    revision: str
    index: ann.Index
    columns: list[str] | None


def _space(layout: Layout, encoder: str) -> _Space:
    revision, rows = layout.newest(encoder), store.count_rows(layout.sources)
    config = read_json(layout.model(encoder, revision) / "config.json")
    return _Space(revision, ann.open_index(layout.index(encoder, revision, rows)), config["config"].get("features"))


def _names(spaces: Iterable[_Space]) -> tuple[str, ...]:
    """Column names for `RedshiftModel`: those of the photometry, and "e0", "e1" ... for every other column."""
    unnamed = count()
    return tuple(name for s in spaces for name in s.columns or [f"e{next(unnamed)}" for _ in range(s.index.dim)])


def _selected_on(
    layout: Layout, info: ShelfInfo, labelled: npt.NDArray[np.int64], target: npt.NDArray[np.int64]
) -> tuple[Pair | None, Pair | None]:
    """Colours, magnitude and masks (n, 2B) of labels and targets, and their magnitudes (n,), from the shelf's fluxes.

    Labels were selected on them: weights fitted in an embedding that lost them are wrong. None without any flux.
    """
    from redshelf.models.photometry import features, fit_scaling, standardise, usable

    rows = np.concatenate([labelled, target])
    seen = Reader(layout, info, bands=info.band_names, needs=frozenset({"fluxes"})).photometry(rows)
    if not usable(seen.state).any():
        return None, None
    scaling = fit_scaling(seen.flux_ujy, seen.flux_error_ujy, seen.state, bands=info.bands)
    values = features(seen.flux_ujy, seen.state, scaling)
    magnitude = values[:, scaling.names.index(scaling.bands[scaling.reference])]
    observables = standardise(values, scaling)
    n = len(labelled)
    return (observables[:n], observables[n:]), (magnitude[:n], magnitude[n:])


def fit(root: Path, *, encoder: str, seed: int = 0, threads: int = 2) -> FitReport:
    """Fit the four estimators on `encoder` (`NAME` or `NAME+NAME`) and store them under redshift/.

    Raises `NotFound` for an encoder that is not indexed or a shelf without labels, `BadInput` for too few labels.
    """
    from redshelf.models.fitting import fit_redshift
    from redshelf.models.redshift import ESTIMATORS

    layout = Layout(root)
    info = layout.read_info()
    layout.refuse_open_update()
    parts = encoder.split("+")
    if len(set(parts)) != len(parts):
        raise BadInput(f"encoder {encoder!r} names one encoder twice")
    spaces = {name: _space(layout, name) for name in parts}
    known = np.logical_and.reduce([space.index.known for space in spaces.values()])
    labels = read_labels(layout)
    labels_digest = labels.digest
    labels = GalaxyLabels(labels.rows[known[labels.rows]], labels.z[known[labels.rows]])
    targets = target_rows(layout, labels.rows, seed=seed)
    targets = targets[known[targets]]

    def features(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return np.concatenate([s.index.take(rows).astype(np.float32) for s in spaces.values()], axis=1)

    observables = magnitudes = None
    if not any(space.columns for space in spaces.values()):
        observables, magnitudes = _selected_on(layout, info, labels.rows, targets)
    positions = store.open_table(layout.sources).take(labels.rows, columns=["ra_deg", "dec_deg"])
    model = fit_redshift(
        features(labels.rows),
        labels.z,
        features(targets),
        names=_names(spaces.values()),
        observables=observables,
        magnitudes=magnitudes,
        sky=(positions["ra_deg"].to_numpy(), positions["dec_deg"].to_numpy()),
        seed=seed,
        threads=threads,
    )
    arrays, config = model.to_arrays()
    buffer = io.BytesIO()
    np.savez(buffer, label_rows=labels.rows, **arrays)  # type: ignore[arg-type]
    revisions = {name: space.revision for name, space in spaces.items()}
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    folder = layout.redshift / fits.name_of(encoder, revisions.values(), digest)
    if not (folder / fits.MODEL).exists() or sha256(folder / fits.MODEL) != digest:
        write_bytes(folder / fits.MODEL, buffer.getvalue())
    if fits.read(folder).fault:  # else the same fit again: what may be published stays as it is
        document = {
            "encoder": encoder,
            "revisions": revisions,
            "estimators": list(ESTIMATORS),
            "scores": {name: model.report["validation"][name]["cde_loss_weighted"] for name in ESTIMATORS},
            "created": time.time(),
            "labels": len(labels.rows),
            "labels_sha256": labels_digest,
            "targets": len(targets),
            "seed": seed,
            "model": config,
        }
        write_json(folder / fits.CONFIG, document)
    return FitReport(encoder, folder, len(labels.rows), len(targets), model.report)
