"""Self-supervised and supervised training on a shelf's own sources; the result is a named encoder under models/.

A killed or interrupted run, asked for again in the same words, goes on from its checkpoint. Under torchrun or srun all
processes run the same command and share each step.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import store
from redshelf.indexing.batches import Reader, in_memory
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models import checkpoint
from redshelf.models.bands import flux_to_ab, reference_band
from redshelf.models.encoder import StoredEncoder
from redshelf.models.errors import BadInput, nearest
from redshelf.service.fit import GalaxyLabels, read_labels
from redshelf.service.plots import training_plot

if TYPE_CHECKING:
    from redshelf.models.backbone import Backbone
    from redshelf.models.photometry import Scaling
    from redshelf.models.training import Report

SMALLEST = 64  # sources to pretrain on
MODELS = ("network", "vit", "cnn", "multimodal-cnn")
PIXELS, FLUXES = frozenset({"pixels"}), frozenset({"fluxes"})


@dataclass(frozen=True)
class Run:
    """How long and on what a training runs; None takes the method's own choice."""

    steps: int | None = None
    max_seconds: float | None = None
    batch_size: int | None = None
    seed: int = 0
    micro_batches: int = 1
    precision: str | None = None
    compile: bool = False
    tensorboard: Path | None = None
    checkpoint_seconds: float = 30.0
    device: str | None = None
    progress: bool = False

    def options(self) -> dict[str, Any]:
        """The arguments of `models.training.train` that were chosen."""
        import torch

        given = {
            "steps": self.steps,
            "max_seconds": self.max_seconds,
            "batch_size": self.batch_size,
            "precision": self.precision,
        }
        return {name: value for name, value in given.items() if value is not None} | {
            "seed": self.seed,
            "micro_batches": self.micro_batches,
            "compile": self.compile,
            "tensorboard": self.tensorboard,
            "checkpoint_seconds": self.checkpoint_seconds,
            "device": self.device or ("cuda" if torch.cuda.is_available() else "cpu"),
            "progress": self.progress,
        }


def reference_magnitude(layout: Layout, info: ShelfInfo) -> npt.NDArray[np.float64]:
    """AB magnitude of every source in the reference band, (N,); NaN where there is none."""
    band = info.band_names[reference_band([b.wavelength_nm for b in info.bands])]
    table = store.open_table(layout.sources).to_table(columns=[f"flux_{band}"])
    return np.asarray(flux_to_ab(table.column(0).to_numpy()))


def pretrain(
    root: Path,
    *,
    name: str,
    objective: str = "masked",
    size: str = "tiny",
    patch_px: int | None = None,
    with_redshifts: bool = False,
    run: Run = Run(),
) -> tuple[Path, Report]:
    """Pretrain the multi-band transformer on every cutout of the shelf, sampled flat in magnitude.

    Where the shelf has labels, the log says how well kNN redshifts do; `with_redshifts` trains on them too. Returns the
    folder of the encoder and what happened.
    """
    from redshelf.models.pretraining import FEWEST
    from redshelf.models.pretraining import pretrain as train
    from redshelf.models.training import flat_weights

    layout, info = _shelf(root, name)
    reader = Reader(layout, info, bands=info.band_names, needs=PIXELS)
    if reader.rows < SMALLEST:
        raise BadInput(f"{root} has {reader.rows} sources: pretraining needs at least {SMALLEST}")
    redshift = None
    if with_redshifts or store.count_rows(layout.labels):
        labels = read_labels(layout)
        redshift = np.full(reader.rows, np.nan)
        redshift[labels.rows] = labels.z
        redshift = redshift if with_redshifts or len(labels.rows) >= FEWEST else None
    encoder, report = train(
        in_memory(reader),
        reader.rows,
        objective=objective,
        bands=info.bands,
        cutout_px=info.cutout_px,
        name=name,
        size=size,
        patch_px=patch_px,
        weights=flat_weights(reference_magnitude(layout, info)),
        redshift=redshift,
        redshift_loss=with_redshifts,
        pixel_scale_arcsec=info.pixel_scale_arcsec,
        checkpoint=_checkpoint(layout, name),
        **run.options(),
    )
    told = {"objective": objective, "with_redshifts": with_redshifts, "sources": reader.rows}
    return _keep(layout, encoder, report, told | {"seed": run.seed}), report


def train(
    root: Path,
    *,
    name: str,
    model: str | None = None,
    start: str | None = None,
    mode: str | None = None,
    photometry: bool = False,
    loss: str = "bins",
    imbalance: str = "none",
    size: str = "tiny",
    patch_px: int | None = None,
    width: float = 1.0,
    run: Run = Run(),
) -> tuple[Path, Report]:
    """Train a redshift network on the labelled galaxies; its latent becomes the encoder `name`.

    `model`: a network from random weights, "network" on photometry alone. `start`: an encoder of the shelf, specialised
    by `mode` ("finetune" by default). `photometry` puts catalogue photometry beside the images. `size` and `patch_px`
    are of a vit, `width` of a CNN. Returns the folder of the encoder and what happened.
    """
    from redshelf.models.specialise import check_combination, specialise

    if (model is None) == (start is None):
        raise BadInput(f"model={model}, start={start}: expected one of the two")
    if model is not None and mode is not None:
        raise BadInput(f"mode {mode!r} is for an encoder to start from, not for a new {model}")
    layout, info = _shelf(root, name)
    backbone = _started(layout, start) if start else _fresh(model or "", info, size, patch_px, width, run.seed)
    chosen: Any = "direct" if start is None else mode or "finetune"
    labels = read_labels(layout)
    bands = info.band_names if backbone is None else backbone.bands
    needs = (PIXELS if backbone is not None else frozenset()) | (
        FLUXES if photometry or backbone is None else frozenset()
    )
    reader = Reader(layout, info, bands=bands, needs=needs)
    scaling = _scaling(reader, info, labels) if "fluxes" in needs else None
    check_combination(backbone, scaling, mode=chosen, loss=loss, imbalance=imbalance)
    encoder, report = specialise(
        in_memory(reader, rows=labels.rows),
        labels.z,
        backbone=backbone,
        photometry=scaling,
        mode=chosen,
        loss=loss,  # type: ignore[arg-type]
        imbalance=imbalance,  # type: ignore[arg-type]
        magnitude=reference_magnitude(layout, info)[labels.rows],
        name=name,
        checkpoint=_checkpoint(layout, name),
        **run.options(),
    )
    origin = checkpoint.provenance(layout.model(start, layout.newest(start))) if start else None
    told = {"objective": "redshift", "from": start, "from_provenance": origin, "mode": chosen, "imbalance": imbalance}
    return _keep(layout, encoder, report, told | {"labels": len(labels.z), "seed": run.seed}), report


def _shelf(root: Path, name: str) -> tuple[Layout, ShelfInfo]:
    checkpoint.check_name(name)
    layout = Layout(root)
    return layout, layout.read_info()


def _fresh(model: str, info: ShelfInfo, size: str, patch_px: int | None, width: float, seed: int) -> Backbone | None:
    """An image encoder with random weights; None for the network, which has none."""
    from redshelf.models.cnn import InceptionCNN, MultimodalCNN, default_streams
    from redshelf.models.training import seeded
    from redshelf.models.vit import MultiBandViT, default_groups, sized

    names, wavelengths = info.band_names, [band.wavelength_nm for band in info.bands]

    def named(parts: list[list[int]]) -> list[list[str]]:
        return [[names[column] for column in part] for part in parts]

    if model not in MODELS:
        raise BadInput(f"model {model!r} cannot be trained; {nearest(model, MODELS)}")
    with seeded(seed):
        if model == "vit":
            shape = sized(size, patch_px=patch_px)
            return MultiBandViT(names, groups=named(default_groups(wavelengths)), cutout_px=info.cutout_px, size=shape)
        if model == "cnn":
            return InceptionCNN(names, cutout_px=info.cutout_px, width=width)
        if model == "multimodal-cnn":
            streams = named(default_streams(wavelengths))
            return MultimodalCNN(names, streams=streams, cutout_px=info.cutout_px, width=width)
    return None


def _started(layout: Layout, start: str) -> Backbone:
    """The image encoder `start` of the shelf; of a redshift network, the image encoder inside it."""
    from redshelf.models.redshift_network import RedshiftNetwork, as_backbone

    found = checkpoint.load(layout.model(start, layout.newest(start)))
    return as_backbone((found.backbone or found) if isinstance(found, RedshiftNetwork) else found)


def _scaling(reader: Reader, info: ShelfInfo, labels: GalaxyLabels) -> Scaling:
    from redshelf.models.photometry import fit_scaling

    measured = reader.photometry(labels.rows)
    bands = [info.bands[info.band_names.index(band)] for band in reader.bands]
    return fit_scaling(measured.flux_ujy, measured.flux_error_ujy, measured.state, bands=bands)


def _checkpoint(layout: Layout, name: str) -> Path:
    folder = layout.work(f"train.{name}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "checkpoint.safetensors"


def _keep(layout: Layout, encoder: StoredEncoder, report: Report, provenance: dict[str, Any]) -> Path:
    """Store the encoder with its log and its curves, then drop the checkpoint: from now on it would only resume a
    finished run. Of several processes only the first one writes."""
    from redshelf.models import parallel

    told = {"steps": report.steps, "seconds": round(report.seconds, 1), "survey": layout.read_info().survey}
    kept = layout.models / f"{encoder.name}.{encoder.revision}"
    processes = parallel.start("cpu")
    if processes.is_first:
        log = "".join(json.dumps(row) + "\n" for row in report.rows).encode()
        beside = {"training.jsonl": log, "training.png": training_plot(report.rows)}
        kept = checkpoint.save(encoder, layout.models, provenance={**provenance, **told}, beside=beside)
        shutil.rmtree(layout.work(f"train.{encoder.name}"))
    processes.wait()
    return kept
