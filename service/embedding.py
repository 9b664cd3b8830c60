"""From an encoder's name to a searchable embedding: make its weights where they need no training, embed, index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from redshelf.indexing import ann, store
from redshelf.indexing.batches import photometry, photometry_columns
from redshelf.indexing.embed import embed_all
from redshelf.indexing.layout import Layout
from redshelf.models import checkpoint
from redshelf.models.errors import BadInput, Conflict

if TYPE_CHECKING:
    from redshelf.models.encoder import StoredEncoder

FIT_ROWS = 200_000  # the standardising constants of photometry come from at most this many sources


def fit_photometry(layout: Layout) -> Path:
    """Fit the `photometry` encoder's constants on the shelf's sources and store it; returns its folder."""
    from redshelf.models.photometry import Photometry

    info = layout.read_info()
    sources = store.open_table(layout.sources)
    rows = np.arange(sources.count_rows())
    if len(rows) > FIT_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(len(rows), FIT_ROWS, replace=False))
    measured = photometry(sources.take(rows, columns=photometry_columns(info.band_names)), info.band_names)
    encoder = Photometry.fit(measured.flux_ujy, measured.flux_error_ujy, measured.state, bands=info.bands)
    return checkpoint.save(encoder, layout.models, provenance={"fitted_on": info.survey, "sources": len(rows)})


def find_encoder(layout: Layout, name: str, *, weights: Path | None = None) -> StoredEncoder:
    """The encoder called `name`: from the folder `weights`, else the newest of that name on the shelf.

    `photometry` needs no training and is made here when the shelf has none.
    """
    if weights is not None:
        encoder = checkpoint.load(weights)
        if encoder.name != name:
            raise BadInput(f"{weights} holds encoder {encoder.name!r}, not {name!r}")
        checkpoint.save(encoder, layout.models, provenance={"copied_from": str(weights)})
        if layout.newest(name) != encoder.revision:
            raise Conflict(f"{name}.{encoder.revision} is on this shelf already, and {layout.newest(name)} is newer")
        return encoder
    if name == "photometry" and name not in layout.encoders():
        return checkpoint.load(fit_photometry(layout))
    return checkpoint.load(layout.model(name, layout.newest(name)))


def embed(
    root: Path, *, encoder: str, weights: Path | None = None, batch_size: int = 256, progress: bool = False
) -> tuple[str, int]:
    """Embed every source of the shelf; returns the revision and the rows of the embedding."""
    layout = Layout(root)
    layout.read_info()
    found = find_encoder(layout, encoder, weights=weights)
    return found.revision, embed_all(layout, found, batch_size=batch_size, progress=progress)


def build_index(root: Path, *, encoder: str) -> tuple[str, float]:
    """Build and measure the index of the newest embedding of `encoder`; returns its revision and recall@10."""
    layout = Layout(root)
    revision = layout.newest(encoder)
    table = store.open_table(layout.embeddings(encoder, revision))
    rows, expected = table.count_rows(), store.count_rows(layout.sources)
    if rows != expected:
        raise Conflict(
            f"embedding {encoder}.{revision} has {rows} rows, the shelf {expected}: run `redshelf embed` again"
        )
    dim = table.schema.field("vector").type.list_size
    batches = (store.list_values(batch.column("vector")) for batch in table.to_batches(columns=["vector"]))
    provenance = {"encoder": encoder, "revision": revision, "embedding_version": table.version}
    folder = layout.index(encoder, revision)
    ann.build(folder, batches, rows=rows, dim=dim, provenance=provenance)
    return revision, float(ann.read_manifest(folder)["recall"]["value"])
