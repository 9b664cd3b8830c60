"""The jobs of `approaches.py`: pretraining without labels, and trials of one encoder with one draw of labels.

Each is run once; its result stays beside the sky under the name of the job, with the sha256 of the code it depends on.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sky import Floats, Ints, Sky, open_sky

SCENARIOS = ("s0", "s1")
MAGNITUDES = (17.0, 22.5, 24.0, 25.0)
REDSHIFTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
PATCH_PX = 8
PIXEL_ARCSEC = 0.168


@dataclass(frozen=True)
class Budget:
    """Sizes of one run. `curve`: numbers of unlabelled images; the largest is also what `pretrained` encoders see."""

    sources: int
    curve: tuple[int, ...]
    pretrain_steps: int
    label_steps: int
    cnn_steps: int
    cnn_width: float
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclass(frozen=True)
class Pretraining:
    """A transformer trained without labels (`semi`: with the redshifts of the scenario's labels in its batches)."""

    objective: str
    images: int
    seed: int
    semi: str = ""

    @property
    def name(self) -> str:
        return f"{self.objective}{'-' + self.semi if self.semi else ''}-{self.images}-{self.seed}"


@dataclass(frozen=True)
class Trial:
    """One encoder scored: where it starts (`start`, a pretraining's name, a model, or nothing for photometry alone),
    what labels do to it (`mode`: frozen, or a mode of `specialise`), and with which labels."""

    approach: str
    start: str
    mode: str
    scenario: str
    seed: int
    photometry: bool = False
    fraction: float = 1.0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        extra = "+p" if self.photometry else ""
        options = "".join(f"-{value}" for _, value in self.options)
        return f"{self.start or 'photometry'}.{self.mode}{extra}{options}.{self.scenario}.{self.fraction:g}.{self.seed}"


def scores(z_phot: Floats, z_true: Floats, i_ab: Floats) -> dict[str, Any]:
    """bias, sigma_MAD, outliers of all, by magnitude and by true redshift; nothing for under 100 sources."""
    from redshelf.models.metrics import summary

    def binned(value: Floats, edges: Sequence[float]) -> dict[str, Any]:
        pairs = itertools.pairwise(edges)
        return {
            f"{a:g}-{b:g}": summary(z_phot[m], z_true[m]) for a, b in pairs if (m := (value >= a) & (value < b)).any()
        }

    return {
        "all": summary(z_phot, z_true),
        "magnitude": binned(i_ab, MAGNITUDES),
        "redshift": binned(z_true, REDSHIFTS),
    }


def by_knn(labels: Floats, z: Floats, targets: Floats, names: tuple[str, ...], seed: int) -> Floats:
    """kNN redshift (k and local slope by leave-one-out, no shift weights) in the space that redshelf would use."""
    from redshelf.models.frame import fit_frame
    from redshelf.models.knn import fit_knn
    from redshelf.models.pdf import default_edges

    frame = fit_frame(labels, targets, names)
    own = np.arange(len(z), dtype=np.int64)[:, None]
    model, _ = fit_knn(
        frame.transform(labels),
        z,
        edges=default_edges(float(z.max())),
        importance=np.ones(len(z)),
        exclude=own,
        seed=seed,
    )
    return np.asarray(model.predict(frame.transform(targets)).pdf.median())


def embed(encoder: Any, sky: Sky, rows: Ints) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Vectors of `rows` as the store would keep them (float16), and which have one."""
    import torch

    from redshelf.models.backbone import visible

    vectors, known = np.zeros((len(rows), encoder.dim)), np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), 256):
        batch = sky.fetch(rows[start : start + 256])
        seen = visible(batch)
        known[start : start + 256] = seen.numpy()
        found = encoder.embed(batch.select(seen)).to(torch.float16).double().numpy()
        vectors[start : start + 256][seen.numpy()] = found
    return vectors, known


def start_of(name: str, sky: Sky, out: Path, seed: int, budget: Budget) -> Any:
    """The backbone that a trial starts from: a pretraining's, or one with random weights."""
    from redshelf.models import checkpoint
    from redshelf.models.fresh import MODELS, fresh
    from redshelf.models.training import seeded
    from redshelf.models.vit import sized

    if not name:
        return None
    if name not in MODELS:
        return checkpoint.load(next((out / "models").glob(f"{name}.*")))
    shape = sized("tiny", patch_px=PATCH_PX)
    with seeded(seed):
        return fresh(name, sky.bands, cutout_px=sky.cutout_px, size=shape, width=budget.cnn_width)


def do_pretraining(job: Pretraining, out: Path, budget: Budget) -> dict[str, Any]:
    from redshelf.models import checkpoint
    from redshelf.models.pretraining import pretrain
    from redshelf.models.training import flat_weights

    sky = open_sky(out)
    rows = np.sort(np.random.default_rng((job.seed, 3)).choice(len(sky), job.images, replace=False))
    redshift = None
    if job.semi:
        redshift = np.full(len(sky), np.nan)
        labelled, z = sky.labels(job.semi, job.seed)
        redshift[labelled] = z
        redshift = redshift[rows]
    encoder, report = pretrain(
        lambda positions: sky.fetch(rows[positions]),
        len(rows),
        objective=job.objective,
        bands=sky.bands,
        cutout_px=sky.cutout_px,
        name=job.name,
        size="tiny",
        patch_px=PATCH_PX,
        steps=budget.pretrain_steps,
        batch_size=budget.batch,
        weights=flat_weights(sky.i_ab[rows]),
        redshift=redshift,
        redshift_loss=bool(job.semi),
        pixel_scale_arcsec=PIXEL_ARCSEC,
        seed=job.seed,
        checkpoint=out / "work" / f"{job.name}.safetensors",
    )
    checkpoint.save(encoder, out / "models", provenance={"benchmark": "approaches", **asdict(job)})
    return {"steps": report.steps, "seconds": report.seconds, "rows": report.rows[-1:]}


def do_trial(job: Trial, out: Path, budget: Budget) -> dict[str, Any]:
    from redshelf.models.metrics import summary
    from redshelf.models.pdf import Pdf
    from redshelf.models.photometry import Photometry, fit_scaling
    from redshelf.models.specialise import specialise

    sky = open_sky(out)
    rows, z = sky.labels(job.scenario, job.seed, job.fraction)
    scaling = fit_scaling(sky.flux[rows], sky.error[rows], sky.state[rows], bands=sky.bands)
    colours = Photometry(scaling)
    began, result = time.monotonic(), dict[str, Any]()
    encoder = start_of(job.start, sky, out, job.seed, budget)
    if job.mode == "frozen":
        encoder = encoder or colours
    else:
        images = bool(job.start)
        model_steps = budget.cnn_steps if "cnn" in job.start else budget.label_steps
        encoder, report = specialise(
            lambda positions: sky.fetch(rows[positions]),
            z,
            backbone=encoder,
            photometry=scaling if job.photometry or not images else None,
            mode=job.mode,
            name="trial",
            steps=model_steps if images and job.mode != "probe" else None,
            seed=job.seed,
            **dict(job.options),
        )
        result |= {"steps": report.steps, "train_seconds": report.seconds}
    held = sky.held(job.scenario, job.seed)
    every = np.concatenate([rows, held, sky.targets])
    part = np.repeat([0, 1, 2], [len(rows), len(held), len(sky.targets)])
    vectors, known = embed(encoder, sky, every)
    asked = known & (part > 0)
    is_target = part[asked] == 2
    z, true, i_ab = z[known[: len(rows)]], sky.z_true[every[asked]], sky.i_ab[every[asked]]

    def scored(z_phot: Floats) -> dict[str, Any]:
        chosen_by = summary(z_phot[~is_target], true[~is_target])
        return {**scores(z_phot[is_target], true[is_target], i_ab[is_target]), "held": chosen_by}

    def knn(space: Floats, names: tuple[str, ...]) -> dict[str, Any]:
        return scored(by_knn(space[known & (part == 0)], z, space[asked], names, job.seed))

    names = scaling.names if encoder is colours else tuple(f"e{i}" for i in range(vectors.shape[1]))
    result["knn"] = knn(vectors, names)
    if encoder is not colours:
        beside, _ = embed(colours, sky, every)
        result["knn+photometry"] = knn(np.concatenate([vectors, beside], axis=1), (*names, *scaling.names))
    if job.mode != "frozen":
        medians, wanted = [], every[asked]
        for start in range(0, len(wanted), 256):
            batch = sky.fetch(wanted[start : start + 256])
            medians.append(Pdf.from_mass(*encoder.predict(batch)).median())
        result["head"] = scored(np.concatenate(medians))
    return {**result, "labels": len(rows), "targets": int(is_target.sum()), "seconds": time.monotonic() - began}


def _code() -> str:
    """sha256 of the sources that results depend on; which jobs there are is none of them."""
    from redshelf.models import encoder

    ours = [Path(__file__), Path(__file__).with_name("sky.py")]
    parts = [*sorted(Path(encoder.__file__).resolve().parent.glob("*.py")), *ours]
    return hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()[:12]


def run(job: Pretraining | Trial, out: Path, budget: Budget) -> None:
    """One job in a worker, its result written whole; done ones are left alone."""
    from redshelf.indexing.files import write_json

    path = out / "results" / f"{job.name}.json"
    made = {"budget": json.loads(json.dumps(asdict(budget))), "models_sha256": _code()}
    if path.exists():
        if json.loads(path.read_text())["made"] != made:
            raise SystemExit(f"{path} was made by other code or with another budget: remove --out to start anew")
        return
    act: Callable[..., dict[str, Any]] = do_pretraining if isinstance(job, Pretraining) else do_trial  # type: ignore[assignment]
    result = act(job, out, budget)
    write_json(path, {"job": asdict(job), "made": made, **result})
    print(f"{time.strftime('%H:%M:%S')} {job.name}: {result.get('steps', '')} {_brief(result)}", flush=True)


def _brief(result: dict[str, Any]) -> str:
    found = (result.get("head") or result.get("knn") or {}).get("all")
    return "" if found is None else f"sigma {found['sigma_mad']:.4f} outliers {found['outliers']:.4f}"


def one_thread(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
