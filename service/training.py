"""Self-supervised and supervised training on a shelf's own sources; the result is a named encoder under models/.

A killed or interrupted run, asked for again in the same words, goes on from its checkpoint. Under torchrun or srun all
processes run the same command and share each step.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import deletions, store
from redshelf.indexing.batches import Reader, in_memory
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.memory import keep_freed_memory
from redshelf.models import checkpoint, parallel
from redshelf.models.bands import State, flux_to_ab
from redshelf.models.encoder import StoredEncoder
from redshelf.models.errors import BadInput, Conflict, nearest
from redshelf.service.fit import GalaxyLabels, read_labels
from redshelf.service.plots import training_plot

if TYPE_CHECKING:
    from redshelf.models.backbone import Backbone
    from redshelf.models.photometry import Scaling
    from redshelf.models.training import Report
    from redshelf.models.vit import Size

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

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch_size": 1, "micro_batches": 1, "seed": 0}
        for name, smallest in least.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < 2**63:
                raise BadInput(f"{name}={value}: expected {smallest} or more")
        for name in ("max_seconds", "checkpoint_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise BadInput(f"{name}={value}: expected more than 0")
        if self.batch_size is not None and self.batch_size % self.micro_batches:
            raise BadInput(f"micro_batches={self.micro_batches}: expected a divisor of batch_size={self.batch_size}")

    def options(self) -> dict[str, Any]:
        """The arguments of `models.training.train` that were chosen. `BadInput` for a device that is not here."""
        import torch

        from redshelf.models.backbone import half_type

        device = parallel.usable_device(self.device)
        half = {torch.float16: "float16"}.get(half_type(torch.device(device)))
        given = {
            "steps": self.steps,
            "max_seconds": self.max_seconds,
            "batch_size": self.batch_size,
            "precision": self.precision or half,
        }
        return {name: value for name, value in given.items() if value is not None} | {
            "seed": self.seed,
            "micro_batches": self.micro_batches,
            "compile": self.compile,
            "tensorboard": self.tensorboard,
            "checkpoint_seconds": self.checkpoint_seconds,
            "device": device,
            "progress": self.progress,
        }


def reference_magnitude(layout: Layout, info: ShelfInfo) -> npt.NDArray[np.float64]:
    """AB magnitude of every source in the reference band, (N,); NaN where there is none."""
    table = store.open_table(layout.sources).to_table(columns=[f"flux_{info.reference_band}"])
    return np.asarray(flux_to_ab(table.column(0).to_numpy()))


def pretrain(
    root: Path,
    *,
    name: str,
    objective: str = "masked",
    size: str | None = None,
    patch_px: int | None = None,
    with_redshifts: bool = False,
    run: Run = Run(),
) -> tuple[Path, Report]:
    """Pretrain the multi-band transformer on every cutout of the shelf, sampled flat in magnitude.

    Where the shelf has labels, the log says how well kNN redshifts do; `with_redshifts` trains on them too. Returns the
    folder of the encoder and what happened.
    """
    from redshelf.models.pretraining import pretrain as train
    from redshelf.models.training import flat_weights

    layout, info = _shelf(root, name)
    keep_freed_memory()
    options = run.options()
    reader = Reader(layout, info, bands=info.band_names, needs=PIXELS)
    if reader.rows < SMALLEST:
        raise BadInput(f"{root} has {reader.rows} sources: pretraining needs at least {SMALLEST}")
    redshift = None
    if with_redshifts or store.count_rows(layout.labels):
        labels = read_labels(layout)
        redshift = np.full(reader.rows, np.nan)
        redshift[labels.rows] = labels.z
    weights = flat_weights(reference_magnitude(layout, info)) * _seen(layout)
    with _folder(layout, name) as checkpoint_path:
        encoder, report = train(
            in_memory(reader),
            reader.rows,
            objective=objective,
            bands=info.bands,
            cutout_px=info.cutout_px,
            name=name,
            size=size or "tiny",
            patch_px=patch_px,
            weights=weights,
            redshift=redshift,
            redshift_loss=with_redshifts,
            pixel_scale_arcsec=info.pixel_scale_arcsec,
            checkpoint=checkpoint_path,
            **options,
        )
        told = {"objective": objective, "sources": reader.rows}
        told["with_redshifts"] = int(np.isfinite(redshift).sum()) if with_redshifts and redshift is not None else 0
        return _keep(layout, encoder, report, told, run), report


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
    size: str | None = None,
    patch_px: int | None = None,
    width: float | None = None,
    run: Run = Run(),
) -> tuple[Path, Report]:
    """Train a redshift network on the labelled galaxies; its latent becomes the encoder `name`.

    `model`: a network from random weights, "network" on photometry alone. `start`: an encoder of the shelf, specialised
    by `mode` ("finetune" by default). `photometry` puts catalogue photometry beside the images. `size` and `patch_px`
    are of a vit, `width` of a CNN. Returns the folder of the encoder and what happened.
    """
    from redshelf.models.specialise import check_combination, specialise
    from redshelf.models.vit import sized

    if (model is None) == (start is None):
        raise BadInput(f"model={model}, start={start}: expected one of the two")
    if model is not None and mode is not None:
        raise BadInput(f"mode {mode!r} is for an encoder to start from, not for a new {model}")
    given = {"size": size, "patch_px": patch_px, "width": width, "photometry": photometry or None}
    meant = {"vit": ("size", "patch_px", "photometry"), "network": (), None: ("photometry",)}
    for option, value in given.items():
        if value is not None and option not in meant.get(model, ("width", "photometry")):
            raise BadInput(
                f"{option}={value} means nothing for {f'model {model!r}' if model else f'a start from {start!r}'}"
            )
    layout, info = _shelf(root, name)
    keep_freed_memory()
    options = run.options()
    shape = sized(size or "tiny", patch_px=patch_px)
    backbone = _started(layout, start) if start else _fresh(model or "", info, shape, width or 1.0, run.seed)
    chosen: Any = "direct" if start is None else mode or "finetune"
    labels = read_labels(layout)
    needs = frozenset[str]() if backbone is None else backbone.needs
    needs |= FLUXES if photometry or backbone is None else frozenset()
    if "pixels" in needs:  # a label without any band has nothing to be learnt from
        seen = _seen(layout)[labels.rows]
        labels = GalaxyLabels(labels.rows[seen], labels.z[seen])
    reader = Reader(layout, info, bands=info.band_names if backbone is None else backbone.bands, needs=needs)
    scaling = _scaling(reader, info, labels) if photometry or backbone is None else None
    check_combination(backbone, scaling, mode=chosen, loss=loss, imbalance=imbalance)
    origin = checkpoint.provenance(layout.model(start, layout.newest(start))) if start else None
    with _folder(layout, name) as checkpoint_path:
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
            checkpoint=checkpoint_path,
            **options,
        )
        told = {"objective": "redshift", "model": model, "from": start, "from_provenance": origin, "mode": chosen}
        told |= {"photometry": scaling is not None, "loss": loss, "imbalance": imbalance, "labels": len(labels.z)}
        return _keep(layout, encoder, report, told, run), report


def _shelf(root: Path, name: str) -> tuple[Layout, ShelfInfo]:
    checkpoint.check_new_name(name)
    layout = Layout(root)
    info = layout.read_info()
    layout.refuse_open_update()
    return layout, info


def _seen(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which sources have a cutout in any band, (N,), and are not deleted: the others teach nothing."""
    states = store.open_table(layout.cutouts).to_table(columns=["state"])["state"]
    return np.asarray((store.list_values(states) != State.NOT_OBSERVED).any(axis=1)) & deletions.live(layout)


def _fresh(model: str, info: ShelfInfo, shape: Size, width: float, seed: int) -> Backbone | None:
    """An image encoder with random weights; None for the network, which has none."""
    from redshelf.models.fresh import fresh
    from redshelf.models.training import seeded

    if model not in MODELS:
        raise BadInput(f"model {model!r} cannot be trained; {nearest(model, MODELS)}")
    if model == "network":
        return None
    with seeded(seed):
        return fresh(model, info.bands, cutout_px=info.cutout_px, size=shape, width=width)


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


@contextmanager
def _folder(layout: Layout, name: str) -> Iterator[Path]:
    """The checkpoint of the training called `name`, which nobody else has in hand meanwhile."""
    first = parallel.find_processes().is_first
    lock = alone(layout.work(f"train.{name}.lock"), f"another run is training {name!r} on {layout.root}")
    with lock if first else nullcontext():
        folder = layout.work(f"train.{name}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder / "checkpoint.safetensors"
        except BadInput:
            with suppress(OSError):  # there is a checkpoint of an earlier run
                folder.rmdir()
            raise


def _keep(layout: Layout, encoder: StoredEncoder, report: Report, told: dict[str, Any], run: Run) -> Path:
    """Store the encoder with its log and its curves, then drop the checkpoint: from now on it would only resume a
    finished run. Of several processes only the first one writes. `Conflict` for one that was here before a newer."""
    from redshelf.models.resume import made_by

    kept = layout.models / f"{encoder.name}.{encoder.revision}"
    processes = parallel.start("cpu")
    if processes.is_first:
        log = "".join(json.dumps(row) + "\n" for row in report.rows).encode()
        beside = {"training.jsonl": log, "training.png": training_plot(report.rows)}
        asked = {f.name: getattr(run, f.name) for f in fields(run) if f.name not in ("tensorboard", "progress")}
        provenance = {**told, "seed": run.seed, "run": asked, "made_by": made_by(), "steps": report.steps}
        provenance |= {"seconds": round(report.seconds, 1), "survey": layout.read_info().survey}
        provenance |= {"stages": report.stages, "kept_stage": report.kept} if report.stages else {}
        kept = checkpoint.save(encoder, layout.models, provenance=provenance, beside=beside)
        shutil.rmtree(layout.work(f"train.{encoder.name}"))
        if layout.newest(encoder.name) != encoder.revision:
            raise Conflict(
                f"{encoder.name}.{encoder.revision} was on this shelf already, and {layout.newest(encoder.name)} is "
                "newer: embed takes that one"
            )
    processes.wait()
    return kept
