"""Every kind of encoder with random weights, how each is trained, and shelves of any length to run them on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from redshelf.indexing import store
from redshelf.indexing.batches import Reader
from redshelf.indexing.layout import Layout
from redshelf.models.backbone import Backbone
from redshelf.models.bins import Target, prior_of
from redshelf.models.encoder import Encoder
from redshelf.models.foundation import load_pretrained
from redshelf.models.fresh import fresh
from redshelf.models.imbalance import criterion_for
from redshelf.models.labelled import Labels, OnImages, OnInputs
from redshelf.models.photometry import Photometry, Scaling, fit_scaling
from redshelf.models.pretraining import objective_for
from redshelf.models.redshift_network import RedshiftNetwork
from redshelf.models.training import Objective
from redshelf.models.vit import SIZES

COPY_ROWS = 1024
SMALL: dict[str, Any] = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
PUBLISHED: dict[str, dict[str, Any]] = {
    "dino": {"model_type": "vit", **SMALL, "intermediate_size": 1536, "image_size": 224, "patch_size": 16},
    "dinov2": {"model_type": "dinov2", **SMALL, "mlp_ratio": 4, "image_size": 518, "patch_size": 14},
    "clip": {
        "model_cfg": {
            "embed_dim": 384,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 384, "head_width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 256, "heads": 4, "layers": 4},
        }
    },
}  # ViT-S/16, ViT-S/14, ViT-S/16


@dataclass(frozen=True)
class Kind:
    """One line of the table. `make(reader, folder)` gives the encoder, `folder` is for files it is read from."""

    name: str
    make: Callable[[Reader, Path], Any]
    training: Literal["masked", "images", "inputs"] | None
    images: bool = True
    gpu_only: bool = False


def _scaling(reader: Reader) -> Scaling:
    measured = reader.photometry(np.arange(min(reader.rows, 4000)))
    return fit_scaling(measured.flux_ujy, measured.flux_error_ujy, measured.state, bands=reader.info.bands)


def _redshifts(n: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(0).gamma(3, 0.25, n)


def _network(backbone: Backbone | None, photometry: Scaling | None) -> RedshiftNetwork:
    target = Target.for_labels(_redshifts(4000))
    return RedshiftNetwork(backbone=backbone, photometry=photometry, target=target, name="network")


def _fresh(model: str, **options: Any) -> Callable[[Reader, Path], Any]:
    return lambda reader, folder: fresh(model, reader.info.bands, cutout_px=reader.info.cutout_px, **options)


def _published(family: str) -> Callable[[Reader, Path], Any]:
    def make(reader: Reader, folder: Path) -> Any:
        at = folder / family
        at.mkdir(parents=True, exist_ok=True)
        name = "open_clip_config.json" if family == "clip" else "config.json"
        (at / name).write_text(json.dumps(PUBLISHED[family]))
        info = reader.info
        return load_pretrained(at, bands=info.bands, cutout_px=info.cutout_px, name=family, random_seed=0)

    return make


KINDS = {
    kind.name: kind
    for kind in (
        Kind("photometry", lambda reader, folder: Photometry(_scaling(reader)), None, images=False),
        Kind("network", lambda reader, folder: _network(None, _scaling(reader)), "inputs", images=False),
        Kind("vit-tiny", _fresh("vit", size=SIZES["tiny"]), "masked"),
        Kind("vit-small", _fresh("vit", size=SIZES["small"]), "masked"),
        Kind("vit-base", _fresh("vit", size=SIZES["base"]), "masked", gpu_only=True),
        Kind("cnn-0.25", _fresh("cnn", width=0.25), "images"),
        Kind("cnn", _fresh("cnn"), "images"),
        Kind("multimodal-cnn", _fresh("multimodal-cnn"), "images"),
        Kind("dino-s16", _published("dino"), "images"),
        Kind("dinov2-s14", _published("dinov2"), "images"),
        Kind("clip-s16", _published("clip"), "images"),
    )
}


def objective_of(kind: Kind, encoder: Any, reader: Reader, *, device: str) -> Objective:
    """What `encoder` is trained with: a transformer by masking, other image encoders on redshifts from end to end, the
    network on photometry that is known. The redshifts are drawn at random."""
    if kind.training == "masked":
        size = kind.name.removeprefix("vit-")
        sample = reader.read(np.arange(min(reader.rows, 512)))
        px = reader.info.cutout_px
        return objective_for("masked", sample, reader.info.bands, cutout_px=px, name="vit", size=size, seed=0)
    labels = Labels.checked(_redshifts(reader.rows), None)
    if kind.training == "inputs":
        trunk = encoder.to(device)
        inputs = trunk.frozen_inputs(reader.read(np.arange(reader.rows)).to(device))
    else:
        trunk = _network(encoder, None).to(device)
    target = trunk.target
    prior = prior_of(labels.z, target.n_bins, width=target.width)
    criterion = criterion_for(target, prior, loss="bins", imbalance="none")
    if kind.training == "inputs":
        return OnInputs(torch.nn.Sequential(trunk.body, trunk.head), inputs, labels, criterion, {})
    return OnImages(trunk, labels, criterion, {}, rates=[])


def resized(shelf: Layout, target: Layout, rows: int, *, images: bool) -> Layout:
    """A shelf of the first `rows` sources of `shelf`, repeated where it has fewer; one that is there is kept."""
    import lance

    if target.info_file.is_file():
        return target
    target.root.mkdir(parents=True, exist_ok=True)
    for name in ("sources", "cutouts") if images else ("sources",):
        table = store.open_table(shelf.table(name))
        have = table.count_rows()

        def pieces(table: Any = table, have: int = have) -> Iterator[pa.RecordBatch]:
            at = 0
            while at < rows:
                take = min(COPY_ROWS if images else 65_536, rows - at, have - at % have)
                piece = table.scanner(offset=at % have, limit=take, batch_size=take).to_table()
                piece = piece.set_column(0, "row", pa.array(np.arange(at, at + take)))
                yield from piece.combine_chunks().to_batches()
                at += take

        lance.write_dataset(pieces(), str(target.table(name)), schema=table.schema)
    info = shelf.read_info()
    target.write_info(info if images else replace(info, cutout_px=0, pixel_scale_arcsec=float("nan")))
    return target


def reader_of(layout: Layout, encoder: Encoder) -> Reader:
    return Reader(layout, layout.read_info(), bands=encoder.bands, needs=encoder.needs)
