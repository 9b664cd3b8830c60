"""Self-supervised and supervised training on a shelf's own sources; the result is a named encoder under models/."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import store
from redshelf.indexing.batches import Reader, photometry, photometry_columns
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models import checkpoint
from redshelf.models.bands import flux_to_ab, reference_band
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from redshelf.models.encoder import Batch
    from redshelf.models.training import Report

CACHE_BYTES = 3 << 30  # smaller shelves are read once and kept in memory during training
SMALLEST = 64  # sources to pretrain on


def _fetch(reader: Reader, info: ShelfInfo) -> Callable[[npt.NDArray[np.int64]], Batch]:
    """Rows to batches: from memory where the cutouts fit, else from Lance at each step."""
    import torch

    from redshelf.models.encoder import Batch

    size = reader.rows * len(info.bands) * info.cutout_px**2 * 3  # float16 and a mask byte
    if size > CACHE_BYTES:
        return reader.read
    pieces = []
    for start in range(0, reader.rows, 1024):
        piece = reader.read(np.arange(start, min(start + 1024, reader.rows), dtype=np.int64))
        pieces.append(piece if piece.pixels is None else replace(piece, pixels=piece.pixels.half()))
    constant = {"depth_ab", "psf_fwhm_arcsec"}  # (bands,): of the survey, not of a source
    held: dict[str, Any] = {}
    for name in (f.name for f in fields(Batch)):
        values = [getattr(piece, name) for piece in pieces]
        held[name] = values[0] if name in constant or values[0] is None else torch.cat(values)

    def fetch(rows: npt.NDArray[np.int64]) -> Batch:
        chosen = torch.from_numpy(np.asarray(rows, dtype=np.int64))
        taken = {k: v if k in constant or v is None else v[chosen] for k, v in held.items()}
        if taken["pixels"] is not None:
            taken["pixels"] = taken["pixels"].float()
        return Batch(**taken)

    return fetch


def reference_magnitude(layout: Layout, info: ShelfInfo) -> npt.NDArray[np.float64]:
    """AB magnitude of every source in the reference band, (N,); NaN where there is none."""
    band = info.band_names[reference_band([b.wavelength_nm for b in info.bands])]
    table = store.open_table(layout.sources).to_table(columns=[f"flux_{band}"])
    return np.asarray(flux_to_ab(table.column(0).to_numpy()))


def pretrain(
    root: Path,
    *,
    name: str,
    size: str = "tiny",
    steps: int | None = None,
    max_seconds: float | None = None,
    batch_size: int = 128,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Path, Report]:
    """Pretrain the multi-band transformer by masking on every cutout of the shelf, sampled flat in magnitude.

    Returns the folder of the encoder and what happened. A killed run, asked for again in the same words, goes on from
    its checkpoint.
    """
    from redshelf.models.masked import pretrain_masked
    from redshelf.models.training import flat_weights

    layout = Layout(root)
    info = layout.read_info()
    reader = Reader(layout, info, bands=info.band_names, needs=frozenset({"pixels"}))
    if reader.rows < SMALLEST:
        raise BadInput(f"{root} has {reader.rows} sources: pretraining needs at least {SMALLEST}")
    folder = layout.work(f"pretrain.{name}")
    folder.mkdir(parents=True, exist_ok=True)
    encoder, report = pretrain_masked(
        _fetch(reader, info),
        reader.rows,
        bands=info.bands,
        cutout_px=info.cutout_px,
        name=name,
        size=size,
        steps=steps,
        max_seconds=max_seconds,
        batch_size=batch_size,
        weights=flat_weights(reference_magnitude(layout, info)),
        seed=seed,
        checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
    )
    return _keep(layout, encoder, report, folder, {"objective": "masked", "sources": reader.rows, "seed": seed}), report


def train_network(
    root: Path, *, name: str = "network", max_seconds: float | None = None, seed: int = 0, progress: bool = False
) -> tuple[Path, Report]:
    """Train the small network on the photometry of labelled galaxies; its latent becomes the encoder `name`."""
    from redshelf.models.network import train_network as train
    from redshelf.service.fit import read_labels

    layout = Layout(root)
    info = layout.read_info()
    labels = read_labels(layout)
    table = store.open_table(layout.sources).take(labels.rows, columns=photometry_columns(info.band_names))
    measured = photometry(table, info.band_names)
    folder = layout.work(f"train.{name}")
    folder.mkdir(parents=True, exist_ok=True)
    encoder, report = train(
        measured.flux_ujy,
        measured.flux_error_ujy,
        measured.state,
        labels.z,
        bands=info.bands,
        name=name,
        max_seconds=max_seconds,
        seed=seed,
        checkpoint=folder / "checkpoint.safetensors",
        progress=progress,
    )
    return _keep(
        layout, encoder, report, folder, {"objective": "redshift", "labels": len(labels.z), "seed": seed}
    ), report


def _keep(layout: Layout, encoder: Any, report: Report, folder: Path, provenance: dict[str, Any]) -> Path:
    """Store the trained encoder, then drop the checkpoint: from now on it would only resume a finished run."""
    told = {"steps": report.steps, "seconds": round(report.seconds, 1), "survey": layout.read_info().survey}
    kept = checkpoint.save(encoder, layout.models, provenance={**provenance, **told})
    shutil.rmtree(folder)
    return kept
