"""An open generation: columns, encoders, indexes and estimators, all read-only and shared by every request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, columns, generation, store
from redshelf.indexing.files import verify
from redshelf.indexing.filters import Filters, row_mask
from redshelf.indexing.generation import Generation, PublishedEncoder, PublishedEstimators
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.errors import BadInput, Conflict, NotFound, nearest
from redshelf.service import fits

if TYPE_CHECKING:
    from redshelf.models.encoder import StoredEncoder
    from redshelf.models.redshift import RedshiftModel


BEGINNINGS = 12  # sources that the first page begins with
BACKGROUND = 1000  # sources, from which a classifier tells examples apart
KEPT_FILTERS = 16  # whose rows an open shelf remembers: some megabytes each for a million sources


@dataclass(frozen=True)
class OpenEncoder:
    """One embedding space: the published facts, its index, and its weights once somebody uploads a cutout."""

    published: PublishedEncoder
    index: ann.Index
    folder: Path
    _lock: Lock = field(default_factory=Lock, repr=False)

    @property
    def name(self) -> str:
        return self.published.name

    @cached_property
    def _weights(self) -> StoredEncoder:
        from redshelf.models import checkpoint

        return checkpoint.load(self.folder)

    @cached_property
    def takes_texts(self) -> bool:
        """Whether texts have vectors in its space."""
        from redshelf.models import checkpoint
        from redshelf.models.encoder import takes_texts

        return takes_texts(checkpoint.read_config(self.folder))

    @cached_property
    def background(self) -> npt.NDArray[np.float32]:
        """Vectors of some sources at random, (n, dim), the same each time: what most of them look like."""
        index, rng = self.index, np.random.default_rng(0)
        some = np.unique(rng.integers(0, len(index.known), 4 * BACKGROUND))
        some = some[index.known[some]]
        if len(some) < min(BACKGROUND, index.findable):  # few have a vector
            some = np.flatnonzero(index.known)
        return self.vectors(np.sort(rng.permutation(some)[:BACKGROUND]))

    def model(self) -> StoredEncoder:
        """The encoder itself; torch is imported at the first call."""
        with self._lock:
            return self._weights

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Stored vectors of `rows`, (n, dim)."""
        return self.index.take(rows).astype(np.float32)


@dataclass(frozen=True)
class OpenRedshift:
    """One fit: the encoders whose vectors, side by side, are its features, and the fitted model."""

    published: PublishedEstimators
    parts: tuple[OpenEncoder, ...]
    model: RedshiftModel
    label_rows: npt.NDArray[np.int64]  # (n_labelled,) row of each label that the model was fitted on, ascending

    @property
    def revision(self) -> str:
        return "+".join(part.published.revision for part in self.parts)

    def known(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of `rows` have a vector by every encoder of the fit, (n,)."""
        return np.asarray(np.logical_and.reduce([part.index.known[rows] for part in self.parts]))

    def features(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Features of `rows`, (n, D)."""
        return np.concatenate([part.vectors(rows) for part in self.parts], axis=1)


@dataclass(frozen=True)
class OpenShelf:
    """Everything a request reads. Opened once; a newer generation is another `OpenShelf`."""

    layout: Layout
    info: ShelfInfo
    generation: Generation
    columns: columns.Columns
    encoders: dict[str, OpenEncoder]
    redshifts: dict[str, OpenRedshift]
    unreadable: dict[str, str] = field(default_factory=dict)  # {encoder: why its published fit is not open}

    def __len__(self) -> int:
        """Rows, deleted ones counted."""
        return len(self.columns["ids"])

    @property
    def n_sources(self) -> int:
        """Sources that are not deleted."""
        return len(self.columns["ids_sorted"])

    def encoder(self, name: str | None = None) -> OpenEncoder:
        """A published encoder, the default one by default; `NotFound` naming those there are."""
        wanted = name or self.generation.default_encoder
        if wanted not in self.encoders:
            fit = (
                " (that is a redshift fit, not a space to search in)"
                if wanted in {**self.redshifts, **self.unreadable}
                else ""
            )
            raise NotFound(f"no encoder {wanted!r} is published here{fit}; {nearest(wanted, self.encoders)}")
        return self.encoders[wanted]

    def default_first(self, names: Iterable[str]) -> list[str]:
        """Names of encoders in their order, but for the default one, which comes first where it is among them."""
        return sorted(names, key=lambda name: (name != self.generation.default_encoder, name))

    def redshift(self, name: str | None = None) -> OpenRedshift:
        """A published fit by the name of its encoder (`vit`, `vit+photometry`), the default one by default.

        `NotFound` naming those there are, `Conflict` for one that this redshelf cannot read.
        """
        # an unescaped + of a URL arrives as a space, which no name holds
        wanted = name.replace(" ", "+") if name else self.generation.default_redshift
        if wanted is None:
            raise NotFound("no redshift estimator is published here; run `redshelf fit` and `redshelf publish`")
        if wanted in self.unreadable:
            raise Conflict(self.unreadable[wanted])
        if wanted not in self.redshifts:
            fit = (
                f"run `redshelf fit --encoder {wanted}` and publish, or take another: "
                if wanted in self.encoders
                else ""
            )
            known = nearest(wanted, {**self.redshifts, **self.unreadable})
            raise NotFound(f"no redshift estimator on encoder {wanted!r} is published here; {fit}{known}")
        return self.redshifts[wanted]

    def row(self, source_id: str) -> int:
        """The row of a source; `NotFound` with ids that sort near it."""
        row = columns.row_of(self.columns, source_id)
        if row is None:
            at = int(np.searchsorted(self.columns["ids_sorted"], np.bytes_(source_id.encode("ascii", "replace"))))
            near = [i.decode() for i in self.columns["ids_sorted"][max(0, at - 1) : at + 2]]
            raise NotFound(f"no source {source_id!r} in {self.info.survey}; ids that sort near it: {', '.join(near)}")
        return row

    def source_id(self, row: int) -> str:
        return bytes(self.columns["ids"][row]).decode()

    @cached_property
    def _selections(self) -> Callable[[str, Filters], ann.Selection | None]:
        # of its parts: a function that held the shelf, held by it, would keep it open after its last request
        known, bands, encoders = self.columns, self.info.band_names, self.encoders

        def select(encoder: str, filters: Filters) -> ann.Selection | None:
            mask = row_mask(known, filters, bands=bands)
            return None if mask is None else encoders[encoder].index.select(mask)

        return lru_cache(maxsize=KEPT_FILTERS)(select)

    def selection(self, encoder: OpenEncoder, filters: Filters) -> ann.Selection | None:
        """The rows that pass `filters`, but for `exclude_radius_arcsec`, for searches with `encoder`; None for all."""
        if filters.exclude_radius_arcsec is not None:
            filters = replace(filters, exclude_radius_arcsec=None)
        return self._selections(encoder.name, filters)

    @cached_property
    def open_maps(self) -> dict[str, Any]:
        """The maps of this generation that `maps.find` has opened, by the names of their folders."""
        return {}

    @cached_property
    def identity(self) -> str:
        """A hash of all that was published: two generations that answer alike have the same one, no others."""
        return hashlib.sha256(self.generation.model_dump_json().encode()).hexdigest()

    @cached_property
    def usual_ebv(self) -> float:
        """The median E(B-V) of the sources, NaN where none is known."""
        known = self.columns["ebv"][np.isfinite(self.columns["ebv"]) & ~self.columns["deleted"]]
        return float(np.median(known)) if len(known) else float("nan")

    @cached_property
    def beginnings(self) -> tuple[str, ...]:
        """A few sources to begin with: galaxies with a label, spread over redshift; else any, spread over the shelf."""
        z, kinds = self.columns["z_spec"], [columns.CLASSES.index(name) for name in ("galaxy", "unknown")]
        rows = np.flatnonzero(np.isfinite(z) & (z > 0) & np.isin(self.columns["object_class"], kinds))
        if len(rows) >= BEGINNINGS:
            rows = rows[np.argsort(z[rows], kind="stable")]
        else:
            rows = np.flatnonzero(~self.columns["deleted"])
        spread = np.unique(np.linspace(0, max(len(rows) - 1, 0), BEGINNINGS).astype(int))
        return tuple(self.source_id(row) for row in rows[spread[: len(rows)]])

    @cached_property
    def _cutouts(self) -> Any:
        return store.open_table(self.layout.cutouts, version=self.generation.tables["cutouts"].version)

    def cutout(self, row: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
        """Pixels (B, H, W) in noise units, mask (B, H, W) with True = bad, state (B,)."""
        if not self.info.has_images:
            raise NotFound(f"survey {self.info.survey} has no images")
        piece = self._cutouts.take([row], columns=["pixels", "mask", "state"])
        pixels, mask, state = store.unpack_cutouts(piece, len(self.info.bands), self.info.cutout_px)
        return pixels[0].astype(np.float32), mask[0], state[0]


def open_encoder(layout: Layout, facts: PublishedEncoder, *, rows: int, deleted: npt.NDArray[np.bool_]) -> OpenEncoder:
    """One encoder with its index of `rows` vectors, which never finds a row that is `deleted` (N,).

    `BadInput` where their dimensions differ.
    """
    index = ann.open_index(layout.index(facts.name, facts.revision, rows)).without(deleted)
    if index.dim != facts.dim:
        raise BadInput(f"index of {facts.name} has dimension {index.dim}, its encoder {facts.dim}")
    return OpenEncoder(facts, index, layout.model(facts.name, facts.revision))


def open_redshift(layout: Layout, fit: PublishedEstimators, encoders: Mapping[str, OpenEncoder]) -> OpenRedshift:
    """One fit on encoders that are open, of which it takes those it names.

    `Conflict` naming the fit and the commands that mend it, where another version of redshelf has made it.
    """
    from redshelf.models.redshift import RedshiftModel

    folder = layout.redshift / fit.folder
    found = fits.read(folder)
    if found.fault:
        raise Conflict(f"{found.fault}: {fits.again(fit.encoder)} and `redshelf publish`")
    with np.load(folder / fits.MODEL, allow_pickle=False) as stored:
        arrays = dict(stored)
    label_rows = arrays.pop(fits.LABEL_ROWS)
    model = RedshiftModel.from_arrays(arrays, found.config["model"])
    return OpenRedshift(fit, tuple(encoders[name] for name in fit.encoder.split("+")), model, label_rows)


def _needed(published: Generation, encoders: Collection[str]) -> Generation:
    """The generation as if it had but these encoders, and the fits that need no other."""
    kept = [facts for facts in published.encoders if facts.name in encoders]
    fits = [fit for fit in published.redshifts if set(fit.encoder.split("+")) <= set(encoders)]
    left_out = [
        *(
            f"{kind}/{e.name}.{e.revision}/"
            for e in published.encoders
            if e not in kept
            for kind in ("index", "models")
        ),
        *(f"redshift/{fit.folder}/" for fit in published.redshifts if fit not in fits),
    ]
    files = {name: facts for name, facts in published.files.items() if not name.startswith(tuple(left_out))}
    return published.model_copy(update={"encoders": kept, "redshifts": fits, "files": files})


def open_shelf(
    root: Path, number: int | None = None, *, encoders: Collection[str] | None = None, hashes: bool = True
) -> OpenShelf:
    """Open a generation, the newest by default; with `encoders` these alone, and the fits on them.

    Models, indexes and columns are compared with the generation by sha256, Lance files by size; any difference is
    `Conflict`, and nothing is served from it. Without `hashes` only sizes are compared. A fit that another version of
    redshelf has made does not keep the rest from opening: it is `unreadable`.
    """
    layout = Layout(root)
    info = layout.read_info()
    published = generation.read(layout, number)
    if encoders is not None:
        published = _needed(published, encoders)
    lance = {name: facts.model_dump() for name, facts in published.files.items() if ".lance/" in name}
    hashed = {name: facts.model_dump() for name, facts in published.files.items() if ".lance/" not in name}
    faults = verify(root, lance, hashes=False) + verify(root, hashed, hashes=hashes)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise Conflict(f"generation {published.number} of {root} is damaged: {faults[0]}{more}")
    opened = columns.open_columns(layout.columns(published.number))
    told: dict[str, Any] = {"rows": published.tables["sources"].rows, "deleted": opened["deleted"]}
    open_encoders = {facts.name: open_encoder(layout, facts, **told) for facts in published.encoders}
    redshifts, unreadable = {}, {}
    for fit in published.redshifts:
        try:
            redshifts[fit.encoder] = open_redshift(layout, fit, open_encoders)
        except Conflict as error:  # the generation is whole, and all else of it is served
            unreadable[fit.encoder] = str(error)
    return OpenShelf(layout, info, published, opened, open_encoders, redshifts, unreadable)
