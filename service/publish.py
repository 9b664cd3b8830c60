"""Freeze a generation: choose revisions and defaults, give every source a photo-z, hash every file, write it last.

Serving takes up the newest generation; an older one stays readable, since its Lance versions are tagged.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, columns, deletions, generation, parts, store
from redshelf.indexing.batches import photometry, photometry_columns
from redshelf.indexing.columns import Columns
from redshelf.indexing.files import alone, manifest
from redshelf.indexing.generation import FileFacts, Generation, PublishedEncoder, PublishedEstimators, TableVersion
from redshelf.indexing.layout import Layout
from redshelf.models import checkpoint
from redshelf.models.bands import State, flux_to_ab
from redshelf.models.errors import BadInput, Conflict, NotFound, nearest
from redshelf.service import fits, selfquery
from redshelf.service.fit import NOT_GALAXIES, read_labels
from redshelf.service.fits import StoredFit
from redshelf.service.redshift import estimate, points
from redshelf.service.shelf import OpenEncoder, OpenRedshift, open_encoder, open_redshift

ASKED = 16  # labels of a fit, and as many other sources, of every estimator before it is published


def _published_encoders(layout: Layout) -> list[PublishedEncoder]:
    """The newest indexed revision of each encoder on the shelf."""
    found, rows = [], store.count_rows(layout.sources)
    for name, revisions in layout.encoders().items():
        indexed = [r for r in revisions if (layout.index(name, r, rows) / ann.MANIFEST).is_file()]
        if not indexed:
            if any(layout.index(name, r, rows).parent.is_dir() for r in revisions):
                raise Conflict(f"no index of {name} has {rows} rows, as many as the shelf: embed and index again")
            continue
        config = checkpoint.read_config(layout.model(name, indexed[-1]))
        facts = ann.read_manifest(layout.index(name, indexed[-1], rows))
        told = {"kind": config["kind"], "needs": config["needs"], "dim": facts["dim"]}
        told["weights"] = weights_of(checkpoint.provenance(layout.model(name, indexed[-1])))
        found.append(PublishedEncoder(name=name, revision=indexed[-1], **told))
    return found


def weights_of(provenance: dict[str, Any]) -> str:
    """In words, where an encoder's weights come from, out of what was stored beside them."""
    published = provenance.get("weights")
    if isinstance(published, str):  # said by whoever made the encoder
        return published
    if published and "sha256" in published:
        return f"{published['family']} {published['name']}, sha256 {published['sha256']}"
    if published:
        return f"{published['family']} with random weights, seed {published['seed']}"
    if "provenance" in provenance:  # an encoder brought from elsewhere
        return weights_of(provenance["provenance"])
    if provenance.get("from"):
        return f"{provenance['mode']} on {provenance['labels']} labels of {provenance['survey']}, from " + weights_of(
            provenance["from_provenance"]
        )
    if provenance.get("model"):
        return f"{provenance['model']} trained on {provenance['labels']} labels of {provenance['survey']}"
    if "objective" in provenance:
        labels = f" and {n} redshifts" if (n := provenance.get("with_redshifts")) else ""
        what = f"{provenance['objective']} pretraining on {provenance['sources']} sources{labels}"
        return f"{what} of {provenance['survey']}"
    return f"fitted on {provenance['fitted_on']}" if "fitted_on" in provenance else "unknown"


def _published_redshifts(layout: Layout, encoders: Iterable[PublishedEncoder]) -> list[StoredFit]:
    """The newest fit of each encoder, on the published revisions and the labels as they are.

    `Conflict` where there are fits, and every one was made with other labels; and for one that is damaged or that this
    redshelf cannot read: it is asked for, and would answer nothing.
    """
    revisions = {e.name: e.revision for e in encoders}
    labels = read_labels(layout).digest if store.count_rows(layout.labels) else None
    newest: dict[str, StoredFit] = {}
    stale = set()
    for found in fits.stored(layout):
        if any(revisions.get(name) != revision for name, revision in found.revisions.items()):
            continue
        if found.made_with(labels):
            newest[found.encoder] = found
        else:
            stale.add(found.encoder)
    if stale and not newest:
        raise Conflict(f"the labels have changed since the redshifts were fitted: {fits.again(*stale)}")
    damaged = {name: damage for name in sorted(newest) if (damage := newest[name].damage)}
    if damaged:
        raise Conflict(f"{'; '.join(damaged.values())}: {fits.again(*damaged)}")
    return [newest[name] for name in sorted(newest)]


def _best(found: list[StoredFit], estimator: str | None) -> tuple[StoredFit, str] | None:
    """The fit and estimator to answer by default: of each fit its own choice (or `estimator`), the best score of those.

    Scores compare where they are of one kind. A rehearsed fit was scored on the faint half of its labels, any other one
    on all of them, weighted to the target: an easier task, which says nothing of sources that are fainter than the
    labels. Where one was rehearsed the target is such, and the rehearsed ones alone are compared.
    """
    rehearsed = [fit for fit in found if fit.config["model"]["report"]["rehearsal"]]
    choices = [(fit, estimator or fit.config["model"]["default_estimator"]) for fit in rehearsed or found]
    known = [(fit, name) for fit, name in choices if name in fit.config["scores"]]
    return min(known, key=lambda choice: choice[0].config["scores"][choice[1]]) if known else None


def _string_column(values: Any, width: int) -> npt.NDArray[np.bytes_]:
    return np.array([v.encode() if v else b"" for v in values], dtype=f"S{width}")


def _columns(bands: tuple[str, ...], sources: Any, labels: Any | None, deleted: npt.NDArray[np.bool_]) -> Columns:
    """Everything but z_phot, from the datasets of sources and labels and the mask of deleted rows, in row order."""
    names = [
        "source_id",
        "ra_deg",
        "dec_deg",
        "tile",
        "object_class",
        "flags",
        "z_reference",
        *photometry_columns(bands),
    ]
    table = sources.to_table(columns=names)
    measured = photometry(table, bands)
    ids = _string_column(table["source_id"].to_pylist(), 64)
    magnitudes = np.where(measured.state != State.NOT_OBSERVED, flux_to_ab(measured.flux_ujy), np.nan)
    tiles = _string_column(table["tile"].to_pylist(), 64)
    object_class = np.array([columns.CLASSES.index(c) for c in table["object_class"].to_pylist()], dtype=np.int8)
    n = len(ids)
    z_spec, z_kind = np.full(n, np.nan, dtype=np.float32), np.zeros(n, dtype=np.int8)
    z_error, z_quality, z_survey = z_spec.copy(), z_spec.copy(), np.zeros(n, dtype="S64")
    if labels is not None:
        known = deletions.keep(labels.to_table(), ~deleted)  # a delete that was killed leaves some
        rows = known["row"].to_numpy()
        z_spec[rows] = known["z_spec"].to_numpy()
        z_error[rows], z_quality[rows] = known["z_error"].to_numpy(), known["z_quality"].to_numpy()
        z_kind[rows] = [columns.KINDS.index(kind) for kind in known["z_kind"].to_pylist()]
        z_survey[rows] = _string_column(known["z_survey"].to_pylist(), 64)
        # a spectrum knows better than the catalogue what the source is
        spectral = np.array([columns.CLASSES.index(c) for c in known["object_class"].to_pylist()], dtype=np.int8)
        object_class[rows] = np.where(spectral > 0, spectral, object_class[rows])
    return {
        **columns.id_columns(ids, deleted),
        **columns.dec_columns(table["dec_deg"].to_numpy(), deleted),
        "ra": table["ra_deg"].to_numpy(),
        "dec": table["dec_deg"].to_numpy(),
        "tile": tiles,
        "flux": measured.flux_ujy,
        "flux_error": measured.flux_error_ujy,
        "states": measured.state,
        "magnitudes": magnitudes.astype(np.float32),
        "ebv": measured.ebv,
        "flags": table["flags"].to_numpy(),
        "object_class": object_class,
        "z_spec": z_spec,
        "z_error": z_error,
        "z_kind": z_kind,
        "z_quality": z_quality,
        "z_survey": z_survey,
        "z_reference": table["z_reference"].to_numpy(),
    }


def _z_phot(opened: OpenRedshift, estimator: str, known: Columns) -> npt.NDArray[np.float32]:
    """Median redshift of every source, labelled ones leave-one-out; NaN for stars, AGN, masked, deleted ones. (N,)"""
    z = np.full(len(known["ids"]), np.nan, dtype=np.float32)
    refused = np.isin(known["object_class"], [columns.CLASSES.index(name) for name in NOT_GALAXIES]) | (
        (known["flags"] & store.FLAG_MASKED) != 0
    )
    given = np.flatnonzero(~refused)
    given = given[opened.known(given)]
    z[given] = points(opened, given, estimator=estimator)
    return z


def _ask_indexes(opened: Iterable[OpenEncoder], tables: dict[str, Any]) -> None:
    """`Conflict` where vectors of an embedding do not find themselves by its index."""
    for e in opened:

        def stored(rows: npt.NDArray[np.int64], table: Any = tables[f"embeddings.{e.name}"]) -> Any:
            return store.list_values(table.take(rows, columns=["vector"])["vector"])

        selfquery.require(e.name, e.published.revision, e.index, stored=stored)


def _ask_fit(opened: OpenRedshift) -> None:
    """`Conflict` where an estimator of a fit, the default one or another, does not answer for labels and for others."""
    fit, others = opened.published, opened.known(np.arange(len(opened.parts[0].index.known)))
    others[opened.label_rows] = False
    rows = np.concatenate([opened.label_rows[:ASKED], np.flatnonzero(others)[:ASKED]])
    for estimator in fit.estimators:
        try:
            point = estimate(opened, rows, estimator=estimator).point
            wrong = "" if np.isfinite(point).all() else f"answers {point[~np.isfinite(point)][0]}"
        except Exception as error:  # LightGBM has its own
            wrong = f"does not answer ({error})"
        if wrong:
            raise Conflict(f"redshift/{fit.folder}: its {estimator} {wrong}: {fits.again(fit.encoder)}")


def publish(root: Path, *, default_encoder: str | None = None, default_estimator: str | None = None) -> Generation:
    """Write the next generation of the shelf and return it.

    Raises `NotFound` for a default that is not on the shelf, `Conflict` for another publish at the same time, an index
    that is older than its embedding, or one by which vectors do not find themselves, and a fit that cannot be read
    or of which an estimator does not answer.
    """
    layout = Layout(root)
    layout.read_info()
    busy = f"another process is writing to {root}: wait until it has ended"
    # an ingest would change the labels between what is published of them and what is hashed
    with alone(layout.work("publish.lock"), busy), alone(layout.work("ingest.lock"), busy):
        return _publish(layout, default_encoder, default_estimator)


def _publish(layout: Layout, default_encoder: str | None, default_estimator: str | None) -> Generation:
    layout.refuse_open_update()
    encoders = _published_encoders(layout)
    if not encoders:
        raise NotFound(f"nothing to publish on {layout.root}: no encoder is embedded and indexed")
    names = [e.name for e in encoders]
    fitted = _published_redshifts(layout, encoders)
    redshifts = {
        f.encoder: PublishedEstimators(encoder=f.encoder, folder=f.folder.name, estimators=f.config["estimators"])
        for f in fitted
    }
    if default_encoder is None:
        used = {name for fit in fitted for name in fit.revisions}
        with_pixels = [e.name for e in encoders if e.name in used and "pixels" in e.needs]
        default_encoder = next(iter([*with_pixels, *(n for n in names if n == "photometry"), *names]))
    if default_encoder not in names:
        raise NotFound(f"no indexed encoder {default_encoder!r}; {nearest(default_encoder, names)}")
    best = _best(fitted, default_estimator)
    if default_estimator is not None and best is None:
        raise BadInput(f"no fit on this shelf has an estimator {default_estimator!r}")
    paths = {name: layout.table(name) for name in ("sources", "labels", "deleted", "cutouts")}
    paths |= {f"embeddings.{e.name}": layout.embeddings(e.name, e.revision) for e in encoders}
    tables = {name: store.open_table(path) for name, path in paths.items() if store.count_rows(path)}
    number = max(generation.numbers(layout), default=0) + 1
    known = _columns(layout.read_info().band_names, tables["sources"], tables.get("labels"), ~deletions.live(layout))
    opened = {e.name: open_encoder(layout, e, rows=len(known["ids"]), deleted=known["deleted"]) for e in encoders}
    _ask_indexes(opened.values(), tables)
    z_phot = np.full(len(known["ids"]), np.nan, dtype=np.float32)
    for name, published in redshifts.items():
        answering = open_redshift(layout, published, opened)
        _ask_fit(answering)
        if best is not None and name == best[0].encoder:
            z_phot = _z_phot(answering, best[1], known)
    columns.write(layout.columns(number), {**known, "z_phot": z_phot})
    files = [layout.info_file, layout.columns(number)]
    for name, dataset in tables.items():
        store.tag(dataset, generation.tag_of(number))
        files += generation.files_of(paths[name], dataset, number)
    for e in encoders:
        index = layout.index(e.name, e.revision, len(known["ids"]))
        files += [layout.model(e.name, e.revision), index / ann.MANIFEST]
        files += [index / name for name in ann.read_manifest(index)["files"]]
    files += [fit.folder for fit in fitted]
    written = Generation(
        number=number,
        created=time.time(),
        tables={n: TableVersion(version=d.version, rows=d.count_rows()) for n, d in tables.items()},
        encoders=encoders,
        redshifts=list(redshifts.values()),
        default_encoder=default_encoder,
        default_redshift=best[0].encoder if best else None,
        default_estimator=best[1] if best else None,
        files={name: FileFacts(**facts) for name, facts in manifest(layout.root, files).items()},
    )
    for name in tables:
        for file, facts in parts.recorded(paths[name]).items():
            found = written.files.get(f"{paths[name].name}/{file}")
            if found is not None and found.sha256 != facts["sha256"]:
                raise Conflict(f"{paths[name].name}/{file} has changed since it was written: its sha256 differs")
    generation.write(layout, written)
    return written
