"""From an encoder's name to a searchable embedding: make its weights where they need no training, embed, index."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from redshelf.indexing import ann, deletions, generation, isolation, partition, store
from redshelf.indexing.batches import Reader, photometry, photometry_columns
from redshelf.indexing.embed import embed_all, end_committed, worker
from redshelf.indexing.files import alone, verify
from redshelf.indexing.layout import Layout
from redshelf.indexing.runners import on_processes, on_ray
from redshelf.models import checkpoint
from redshelf.models.errors import BadInput, Conflict
from redshelf.models.parallel import usable_device

if TYPE_CHECKING:
    from redshelf.models.backbone import Backbone
    from redshelf.models.encoder import Batch, StoredEncoder
    from redshelf.models.photometry import Photometry

PCA_ROWS = 4096  # sources that a PCA is fitted on
TAKE_ROWS = 4096  # at once: one `take` of all of them holds 130 MB more, and is no faster
FIT_ROWS = 50_000  # the standardising constants of photometry come from at most this many sources


def fit_photometry(layout: Layout) -> Photometry:
    """The `photometry` encoder, its constants fitted on the shelf's sources."""
    from redshelf.models.photometry import Photometry

    info = layout.read_info()
    sources = store.open_table(layout.sources)
    rows = np.flatnonzero(deletions.live(layout))
    if len(rows) > FIT_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, FIT_ROWS, replace=False))
    columns = photometry_columns(info.band_names)
    some = (rows[start : start + TAKE_ROWS] for start in range(0, len(rows), TAKE_ROWS))
    found = [photometry(sources.take(few, columns=columns), info.band_names) for few in some]
    flux, error, state = (
        np.concatenate([getattr(f, n) for f in found]) for n in ("flux_ujy", "flux_error_ujy", "state")
    )
    return Photometry.fit(flux, error, state, bands=info.bands)


def _photometry_folder(layout: Layout) -> Path:
    told = {"fitted_on": layout.read_info().survey, "at_most_sources": FIT_ROWS}
    return checkpoint.save(fit_photometry(layout), layout.models, provenance=told)


@dataclass(frozen=True)
class Pretrained:
    """How to make an encoder of published weights: the side in pixels that cutouts are resampled to, a PCA to so many
    dimensions and photometry beside (both fitted on the shelf), the space of a CLIP, the sha256 that the file must
    have, and a seed instead of the weights for a control; None takes the encoder's own choice."""

    input_px: int | None = None
    pca: int | None = None
    photometry: bool = False
    space: str = "trunk"
    sha256: str | None = None
    random_seed: int | None = None

    def __post_init__(self) -> None:
        for option, least in (("input_px", 1), ("pca", 1), ("random_seed", 0)):
            value = getattr(self, option)
            if value is not None and not least <= value < 2**63:
                raise BadInput(f"{option}={value}: expected {least} or more")
        if self.space == "projected" and (self.pca is not None or self.photometry):
            raise BadInput(
                "space 'projected' is where a CLIP's texts are: neither --pca nor --with-photometry goes with it"
            )


AS_THEY_ARE = Pretrained()


def published_encoder(layout: Layout, name: str, folder: Path, options: Pretrained, *, device: str = "cpu") -> Path:
    """Make the encoder `name` of the network published in `folder` and store it on the shelf; returns its folder."""
    from redshelf.models.foundation import FoundationEncoder, load_pretrained

    checkpoint.check_new_name(name)
    info = layout.read_info()
    if not info.has_images:
        raise BadInput(f"survey {info.survey} has no images: the encoder of {folder} cannot embed it")
    _refuse_other_kind(layout, name, FoundationEncoder.kind)
    encoder = load_pretrained(
        folder,
        bands=info.bands,
        cutout_px=info.cutout_px,
        name=name,
        space=options.space,  # type: ignore[arg-type]
        input_px=options.input_px,
        expected_sha256=options.sha256,
        random_seed=options.random_seed,
    )
    if options.pca is not None or options.photometry:
        encoder = encoder.to(device)
        scaling = fit_photometry(layout).scaling if options.photometry else None
        encoder = encoder.fitted(_sample(layout, encoder, device), pca_dim=options.pca, photometry=scaling).cpu()
    return checkpoint.save(encoder, layout.models, provenance={"weights": encoder.provenance, "folder": str(folder)})


def _sample(layout: Layout, encoder: Backbone, device: str) -> Iterator[Batch]:
    """A random sample of the sources that the encoder can see, in batches on `device`."""
    from redshelf.models.backbone import visible

    reader = Reader(layout, layout.read_info(), bands=encoder.bands, needs=encoder.needs | {"fluxes"})
    rows = np.sort(np.random.default_rng(0).permutation(np.flatnonzero(deletions.live(layout)))[:PCA_ROWS])
    for start in range(0, len(rows), 256):
        batch = reader.read(rows[start : start + 256])
        yield batch.select(visible(batch)).to(device)


def find_encoder(
    layout: Layout,
    name: str,
    *,
    weights: Path | None = None,
    options: Pretrained = AS_THEY_ARE,
    device: str = "cpu",
) -> StoredEncoder:
    """The encoder called `name`: from the folder `weights`, else the one that a plan is open for, else the newest of
    that name on the shelf.

    The folder holds an encoder that redshelf wrote, or a network as a model hub lays it out. `photometry` needs no
    training and is made here when the shelf has none.
    """
    if weights is None:
        if options != AS_THEY_ARE:
            raise BadInput("options of a published network go with the folder of its weights: name it")
        if name == "photometry" and name not in layout.encoders():
            return checkpoint.load(_photometry_folder(layout))
        planned = [plan.revision for plan in partition.open_plans(layout, name).values()]
        found = checkpoint.load(layout.model(name, planned[0] if planned else layout.newest(name)))
        if found.name != name:
            raise BadInput(f"{layout.model(name, found.revision)} holds encoder {found.name!r}: its folder was renamed")
        return found
    if not weights.is_dir():
        what = "is a file, and expected is the folder that it lies in" if weights.exists() else "no such folder"
        raise BadInput(f"weights {weights}: {what}")
    if not (weights / "provenance.json").is_file():
        folder = published_encoder(layout, name, weights, options, device=device)
        encoder = checkpoint.load(folder)
    else:
        if options != AS_THEY_ARE:
            raise BadInput(f"{weights} holds an encoder of redshelf: options of a published network do not apply")
        encoder = checkpoint.load(weights)
        if encoder.name != name:
            raise BadInput(f"{weights} holds encoder {encoder.name!r}, not {name!r}")
        Reader(layout, layout.read_info(), bands=encoder.bands, needs=encoder.needs)  # refuses bands that are not here
        _refuse_other_kind(layout, name, encoder.kind)
        origin = {"copied_from": str(weights), "provenance": checkpoint.provenance(weights)}
        checkpoint.save(encoder, layout.models, provenance=origin)
    if layout.newest(name) != encoder.revision:
        raise Conflict(
            f"{name}.{encoder.revision} is on this shelf already, and {layout.newest(name)} is newer: give it another "
            f"name, or remove what is newer ({layout.model(name, layout.newest(name))})"
        )
    return encoder


def _refuse_other_kind(layout: Layout, name: str, kind: str) -> None:
    """`Conflict` where the shelf has something else under this name: what was fitted on it would silently change."""
    if name in layout.encoders():
        there = checkpoint.read_config(layout.model(name, layout.newest(name)))["kind"]
        if there != kind:
            raise Conflict(
                f"the shelf has an encoder {name!r} of kind {there}, and this one is {kind}: take another name"
            )


def embed(
    root: Path,
    *,
    encoder: str,
    weights: Path | None = None,
    options: Pretrained = AS_THEY_ARE,
    batch_size: int | None = None,
    device: str | None = None,
    part_rows: int | None = None,
    runner: Literal["local", "ray"] = "local",
    progress: bool = False,
) -> tuple[str, int]:
    """Embed every source of the shelf; returns the revision and the rows of the embedding.

    Locally a machine of several GPUs uses them all, unless `device` names what to use: one, or several with commas.
    """
    layout = Layout(root)
    layout.read_info()
    end_committed(layout, encoder)
    for name, size in (("batch_size", batch_size), ("part_rows", part_rows)):
        if size is not None and size < 1:
            raise BadInput(f"{name}={size}: expected 1 or more")
    devices = _devices(device)
    begin = partial(worker, layout.root.resolve(), encoder, batch_size)
    run = on_ray(begin) if runner == "ray" else None
    found = find_encoder(layout, encoder, weights=weights, options=options, device=devices[0])
    if run is None and len(devices) > 1:
        run = on_processes(begin, devices)
    sizes = {"batch_size": batch_size, "part_rows": part_rows}
    rows = embed_all(layout, found, **sizes, device=devices[0], run=run, progress=progress)
    return found.revision, rows


def _devices(device: str | None) -> list[str]:
    import torch

    if device is None and torch.cuda.device_count() > 1:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [usable_device(one) for one in (device or "").split(",")] if device else [usable_device(None)]


def build_index(
    root: Path, *, encoder: str, memory: int = ann.MEMORY, recall: float = ann.RECALL
) -> tuple[str, dict[str, Any]]:
    """Build and measure the index of the newest embedding of `encoder`; returns its revision and its manifest.

    `memory` [bytes] and `recall` as in `ann.build`. `Conflict` where another process builds it.
    """
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
    folder = layout.index(encoder, revision, rows)
    busy = f"another process builds the index of {encoder} on {root}: wait until it has ended"
    with alone(layout.work(f"index.{encoder}.{revision}.lock"), busy):
        asked: dict[str, Any] = {"memory": memory, "recall": recall}
        if not _is_built(layout, folder, {**provenance, "asked": asked}):
            ann.build(folder, batches, provenance=provenance, rows=rows, dim=dim, **asked)
        elif not (folder / isolation.ISOLATED).is_file():  # built before there was one: the manifest may be published
            isolation.write(folder / isolation.ISOLATED, ann.open_index(folder))
    return revision, ann.read_manifest(folder)


def _is_built(layout: Layout, folder: Path, asked: dict[str, Any]) -> bool:
    """Whether this very index is there and whole; `Conflict` where a generation serves another one in its place."""
    if not (folder / ann.MANIFEST).is_file():
        return False
    told = ann.read_manifest(folder)
    if verify(folder, told["files"], hashes=True):
        return False
    if all(told.get(key) == value for key, value in asked.items()):
        return True
    name = f"{folder.relative_to(layout.root)}/{ann.MANIFEST}"
    for number in generation.numbers(layout):
        if name in generation.read(layout, number).files:
            raise Conflict(
                f"generation {number} serves the index in {folder} as it is, built with {told.get('asked')}: remove "
                f"{generation.path_of(layout, number)} first"
            )
    return False


UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int:
    """Bytes of a size like 8GiB, 500 MB or 1000; `BadInput` for anything else."""
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?\s*", text)
    if not found or not float(found[1]):
        raise BadInput(f"size {text!r}: expected a number of bytes, or one with a unit, as in 8GiB or 500MB")
    return int(float(found[1]) * UNITS.get(found[2] or "", 1))
