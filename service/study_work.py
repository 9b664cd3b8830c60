"""Pretraining and spaces, the trainings of a study: each leaves a JSON document, weights or vectors beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.files import write_with
from redshelf.models.errors import BadInput
from redshelf.service.study_plan import Budget, Pretraining, Space
from redshelf.service.study_sky import Ints, Sky, open_sky

if TYPE_CHECKING:
    from redshelf.models.encoder import Batch

Floats = npt.NDArray[np.float64]
PATCH_PX = 8
PIXEL_ARCSEC = 0.168
BATCH = 256
MOST_DIMMED_MAG = 2.0
MOST_STARS = 1000
GROUPS = ("labelled", "dimmed", "photoz", "asked", "stars")


@dataclass(frozen=True)
class Published:
    """Where the published weights of one encoder lie, and the sha256 that was asked for, if one was."""

    folder: Path
    sha256: str | None


@dataclass(frozen=True)
class Bench:
    """Where a job works: the study's folder, its budget, the published weights given, the device."""

    folder: Path
    budget: Budget
    published: Mapping[str, Published]
    device: str = "cpu"

    def sky(self, name: str) -> Sky:
        return open_sky(self.folder / "skies" / name)

    def vectors(self, space: Space) -> Path:
        return self.folder / "spaces" / f"{space.name}.npz"


def pretrain(job: Pretraining, bench: Bench) -> dict[str, Any]:
    """Train without labels; the weights lie under models/."""
    from redshelf.models import checkpoint
    from redshelf.models.pretraining import pretrain
    from redshelf.models.training import flat_weights

    budget, sky = bench.budget, bench.sky("images")
    rows = np.sort(np.random.default_rng((job.seed, 3)).choice(len(sky), min(job.images, len(sky)), replace=False))
    redshift = None
    if job.semi:
        every = np.full(len(sky), np.nan)
        labelled, z = sky.labels(job.semi, job.seed, most=budget.labels)
        every[labelled] = z
        redshift = every[rows]
    (bench.folder / "work").mkdir(exist_ok=True)
    encoder, report = pretrain(
        lambda positions: sky.fetch(rows[positions]),
        len(rows),
        objective=job.objective,
        bands=sky.bands,
        cutout_px=sky.cutout_px,
        name=job.name,
        size=budget.size,
        patch_px=PATCH_PX,
        steps=budget.pretrain_steps,
        weights=flat_weights(sky.magnitude[rows]),
        redshift=redshift,
        redshift_loss=bool(job.semi),
        pixel_scale_arcsec=PIXEL_ARCSEC,
        seed=job.seed,
        checkpoint=bench.folder / "work" / f"{job.name}.safetensors",
        device=bench.device,
    )
    folder = checkpoint.save(encoder, bench.folder / "models", provenance={"study": str(sky.digest), **asdict(job)})
    return {"steps": report.steps, "weights": folder.name}


def space(job: Space, bench: Bench) -> dict[str, Any]:
    """Bring the approach to its labels, and leave the vectors of labelled and asked sources."""
    sky, budget = bench.sky(job.sky), bench.budget
    labelled, z = sky.labels(job.scenario, job.seed, most=budget.labels, fraction=job.fraction)
    extra, z_extra = sky.many_band(labelled, job.seed, most=len(labelled))
    stars = sky.hidden_stars[:MOST_STARS] if not job.start else np.zeros(0, np.int64)
    encoder, said = _brought(job, bench, sky, labelled, z)
    fainter = _Dimmed(sky, labelled, job.seed)
    arrays: dict[str, npt.NDArray[Any]] = {"z_labelled": z, "z_photoz": z_extra}
    rows = {"labelled": labelled, "dimmed": labelled, "photoz": extra, "asked": sky.asked, "stars": stars}
    for group in GROUPS:
        fetch = fainter if group == "dimmed" else sky.fetch
        vectors, known = _embedded(encoder, fetch, rows[group], bench.device)
        arrays |= {f"{group}": vectors, f"{group}_known": known, f"{group}_rows": rows[group]}
    if job.has_head:
        density = [encoder.predict(batch) for _, batch in _batches(sky.fetch, sky.asked)]
        arrays["head"] = np.concatenate([mass for _, mass in density]).astype(np.float32)
        arrays["head_edges"] = density[0][0]
    path = bench.vectors(job)
    path.parent.mkdir(exist_ok=True)
    write_with(path, lambda file: np.savez(file, names=np.array(_names(encoder)), **arrays))  # type: ignore[arg-type]
    return {**said, "labels": len(labelled), "dim": encoder.dim, "revision": encoder.revision}


def _brought(job: Space, bench: Bench, sky: Sky, rows: Ints, z: Floats) -> tuple[Any, dict[str, Any]]:
    """The encoder of an approach, and where its weights come from."""
    from redshelf.models import checkpoint
    from redshelf.models.fresh import MODELS, fresh
    from redshelf.models.photometry import Photometry, fit_scaling
    from redshelf.models.specialise import specialise
    from redshelf.models.training import seeded
    from redshelf.models.vit import sized

    budget = bench.budget
    scaling = fit_scaling(sky.flux[rows], sky.error[rows], sky.state[rows], bands=sky.bands)
    begun: Any = None
    weights = "none: computed from fluxes"
    if job.start in MODELS:
        with seeded(job.seed):
            shape = sized(budget.size, patch_px=PATCH_PX)
            begun = fresh(job.start, sky.bands, cutout_px=sky.cutout_px, size=shape, width=budget.cnn_width)
        weights = f"random, seed {job.seed}"
    elif job.start in bench.published:
        begun, weights = _published(job.start, bench, sky)
    elif job.start:
        found = sorted((bench.folder / "models").glob(f"{job.start}.*"))
        if not found:
            raise BadInput(f"the weights {job.start!r} are not in {bench.folder / 'models'}: do that job first")
        begun = checkpoint.load(found[0])
        weights = f"pretrained here: {found[0].name}"
    if job.mode == "frozen":
        return begun if job.start else Photometry(scaling), {"weights": weights}
    steps = budget.cnn_steps if "cnn" in job.start else budget.label_steps
    encoder, report = specialise(
        lambda positions: sky.fetch(rows[positions]),
        z,
        backbone=begun,
        photometry=scaling if job.photometry or not job.start else None,
        mode=job.mode,  # type: ignore[arg-type]
        imbalance="logit" if job.balance else "none",
        name="study",
        steps=steps if job.start else budget.network_steps,
        seed=job.seed,
        device=bench.device,
    )
    trained = f"trained on {len(rows)} labels, seed {job.seed}"
    return encoder, {"weights": f"{weights}; {trained}" if job.start else trained, "steps": report.steps}


def _published(name: str, bench: Bench, sky: Sky) -> tuple[Any, str]:
    from redshelf.models.foundation import load_pretrained

    given = bench.published[name]
    encoder = load_pretrained(
        given.folder, bands=sky.bands, cutout_px=sky.cutout_px, name=name, family=name, expected_sha256=given.sha256
    ).to(bench.device)
    origin = encoder.config["origin"]
    sample = np.sort(np.random.default_rng(0).permutation(len(sky))[:4000]).astype(np.int64)
    dim = min(128, encoder.dim, len(sample) - 1)
    fitted = encoder.fitted((b.to(bench.device) for _, b in _batches(sky.fetch, sample)), pca_dim=dim)
    verified = "verified" if given.sha256 else "not verified"
    return fitted, f"{origin['name']}, sha256 {origin['sha256']}, {verified}"


@dataclass(frozen=True)
class _Dimmed:
    """Fetches labelled sources as they would look fainter: the same for every approach of one draw."""

    sky: Sky
    labelled: Ints
    seed: int

    def __call__(self, rows: Ints) -> Batch:
        import torch

        from redshelf.models.bands import State, states
        from redshelf.models.training import seeded
        from redshelf.models.views import dimmed

        batch = self.sky.fetch(rows)
        assert batch.flux_ujy is not None and batch.flux_error_ujy is not None
        rng = np.random.default_rng((self.seed, 9, int(rows[0])))
        loss = torch.from_numpy(rng.uniform(0, MOST_DIMMED_MAG, len(rows)).astype(np.float32))
        factor = 10 ** (-0.4 * loss[:, None])
        noise = torch.from_numpy(rng.standard_normal(batch.flux_ujy.shape).astype(np.float32))
        flux = batch.flux_ujy * factor + batch.flux_error_ujy * (1 - factor**2).sqrt() * noise
        had = batch.state.numpy()
        state = states(flux.numpy(), batch.flux_error_ujy.numpy(), saturated=had == State.SATURATED)
        state = np.where(had == State.NOT_OBSERVED, had, state)
        if batch.pixels is not None:
            with seeded(self.seed):
                batch = dimmed(batch, loss)
        return replace(batch, flux_ujy=flux, state=torch.from_numpy(state))


def _batches(fetch: Any, rows: Ints) -> Any:
    for start in range(0, len(rows), BATCH):
        yield slice(start, start + BATCH), fetch(rows[start : start + BATCH])


def _embedded(
    encoder: Any, fetch: Any, rows: Ints, device: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Vectors of `rows` as the store would keep them (through float16), and which have one."""
    import torch

    from redshelf.models.backbone import visible

    vectors, known = np.zeros((len(rows), encoder.dim), np.float32), np.zeros(len(rows), dtype=bool)
    module = encoder if isinstance(encoder, torch.nn.Module) else None
    if module is not None:
        module.to(device)
    for place, batch in _batches(fetch, rows):
        seen = visible(batch) if "pixels" in encoder.needs else (batch.state > 0).any(dim=1)
        known[place] = seen.numpy()
        if seen.any():
            found = encoder.embed(batch.select(seen).to(device)).to(torch.float16).float().cpu().numpy()
            vectors[place][seen.numpy()] = found
    if module is not None:
        module.cpu()
    return vectors, known


def _names(encoder: Any) -> tuple[str, ...]:
    if encoder.kind == "photometry":
        return tuple(encoder.scaling.names)
    return tuple(f"e{n}" for n in range(encoder.dim))
