"""Pretraining of the multi-band transformer: one call for every self-supervised objective, scored by kNN redshifts.

`pretrain` builds the encoder, the auxiliary heads and the objective, and hands them to `models/training.py`. Where
redshifts are known, sources that no loss saw the redshift of are embedded now and then, and each is looked up among the
others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from redshelf.models import checkpoint as stored
from redshelf.models.auxiliary import Auxiliary, Labels, Pretext, labels_for
from redshelf.models.backbone import Backbone, visible
from redshelf.models.bands import Band, State, named
from redshelf.models.bank import exact_neighbours
from redshelf.models.bins import WIDEST, bins_for
from redshelf.models.contrastive import Contrastive
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, nearest
from redshelf.models.masked import MaskedAutoencoder
from redshelf.models.metrics import bias, delta_z, outlier_fraction, sigma_mad
from redshelf.models.photometry import Scaling, fit_scaling
from redshelf.models.training import Fetch, Report, Sampler, seeded, train
from redshelf.models.views import Instrument
from redshelf.models.vit import MultiBandViT, default_groups, sized

OBJECTIVES: dict[str, type[MaskedAutoencoder] | type[Contrastive]] = {
    "masked": MaskedAutoencoder,
    "contrastive": Contrastive,
}

SCALING_SAMPLE = 512
MONITORED, NEIGHBOURS, READ = 2000, 10, 256
FEWEST = 50  # labelled sources for a score
HELD = 0.2  # of the labelled sources, where the others' redshifts are trained on


def pretrain(
    fetch: Fetch,
    n_sources: int,
    *,
    objective: str = "masked",
    bands: Sequence[Band],
    cutout_px: int,
    name: str,
    size: str = "tiny",
    patch_px: int | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
    batch_size: int = 128,
    weights: npt.NDArray[np.float64] | None = None,
    redshift: npt.ArrayLike | None = None,
    redshift_loss: bool = False,
    pixel_scale_arcsec: float = math.nan,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
    **loop: Any,
) -> tuple[MultiBandViT, Report]:
    """Pretrain a `MultiBandViT` on `n_sources` cutouts, which `fetch(indices)` reads; it comes back on the CPU.

    `weights`: (n_sources,) sampling weights, such as `training.flat_weights` of a magnitude. Fluxes in the batches
    switch the head for colours and magnitude on. `redshift`: (n_sources,), NaN where unlabelled, scores the encoder as
    it grows (`knn_sigma_mad`, `knn_bias`, `knn_outliers` in the log); `redshift_loss` trains on it as well, and then
    scores on a fifth that is held out. `patch_px` replaces the patch of the size, `pixel_scale_arcsec` lets views
    change the seeing. Other options are `training.train`'s.

    Raises `BadInput` for an unknown objective or size, redshifts that are impossible or fewer than the bins to train
    on, and as `training.train` and `MultiBandViT.prepare`.
    """
    trained_on, scored = _split(redshift, n_sources, redshift_loss, seed)
    chosen = np.random.default_rng((seed, n_sources)).permutation(n_sources)[:SCALING_SAMPLE]
    pretext = objective_for(
        objective,
        fetch(chosen),
        bands,
        cutout_px=cutout_px,
        name=name,
        size=size,
        patch_px=patch_px,
        labels=None if trained_on is None else labels_for(trained_on),
        pixel_scale_arcsec=pixel_scale_arcsec,
        seed=seed,
    )
    if redshift is not None and len(scored) >= FEWEST:
        loop = {"monitor": knn_monitor(pretext.trained(), fetch, scored, np.asarray(redshift)[scored]), **loop}
    report = train(
        pretext,
        fetch,
        Sampler(n_sources, batch_size, seed, weights),
        steps=steps,
        max_seconds=max_seconds,
        lr=pretext.learning_rate,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
        **loop,
    )
    encoder = pretext.trained().requires_grad_(True).cpu()
    encoder.revision = stored.revision(encoder)
    return encoder, report


def objective_for(
    kind: str,
    sample: Batch,
    bands: Sequence[Band],
    *,
    cutout_px: int,
    name: str,
    size: str,
    patch_px: int | None = None,
    labels: Labels | None = None,
    pixel_scale_arcsec: float = math.nan,
    seed: int,
) -> Pretext:
    """An encoder with random weights in the objective `kind`; the constants of the colours come from `sample`."""
    if kind not in OBJECTIVES:
        raise BadInput(f"objective {kind!r} of a pretraining; {nearest(kind, OBJECTIVES)}")
    shape = sized(size, patch_px=patch_px)
    if patch_px is not None and patch_px > cutout_px:
        raise BadInput(f"patch_px={patch_px}: expected at most {cutout_px}, the width of a cutout")
    groups = named(bands, default_groups([band.wavelength_nm for band in bands]))
    instrument = Instrument(tuple(band.extinction for band in bands), pixel_scale_arcsec)
    with seeded(seed):
        encoder = MultiBandViT([band.name for band in bands], groups=groups, cutout_px=cutout_px, size=shape, name=name)
        return OBJECTIVES[kind](encoder, Auxiliary(encoder.dim, _scaling(sample, bands), labels), instrument)


def _scaling(sample: Batch, bands: Sequence[Band]) -> Scaling | None:
    if sample.flux_ujy is None or sample.flux_error_ujy is None:
        return None
    flux, error = sample.flux_ujy.cpu().numpy(), sample.flux_error_ujy.cpu().numpy()
    # a band may have pixels where the catalogue has no flux
    state = np.where(np.isfinite(flux), sample.state.cpu().numpy(), State.NOT_OBSERVED).astype(np.int8)
    return fit_scaling(flux, error, state, bands=bands)


def _split(
    redshift: npt.ArrayLike | None, n_sources: int, trains: bool, seed: int
) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.int64]]:
    """Redshifts to train on (n_sources,), NaN where not, or None for none at all, and the rows to score on."""
    if redshift is None:
        if trains:
            raise BadInput("redshift_loss=True needs the redshifts of the labelled sources")
        return None, np.zeros(0, dtype=np.int64)
    z = np.asarray(redshift, dtype=np.float64)
    if z.shape != (n_sources,):
        raise BadInput(f"redshifts of shape {z.shape}: expected ({n_sources},), NaN where unlabelled")
    rows = np.random.default_rng((seed, n_sources, 1)).permutation(np.flatnonzero(~np.isnan(z)))
    if not trains:
        return None, np.sort(rows[:MONITORED])
    held = np.sort(rows[: min(MONITORED, round(HELD * len(rows)))])
    known = z[rows]
    fewest = bins_for(known, width=WIDEST) if len(rows) and (known >= 0).all() else 0
    if len(rows) - len(held) < fewest:
        raise BadInput(
            f"{len(rows)} labels up to z={known.max():.2f}, {len(held)} of them kept apart to score on, are fewer than "
            f"the {fewest} bins of {WIDEST} in ln(1+z) that it takes: give {math.ceil(fewest / (1 - HELD))} or more"
        )
    trained_on = z.copy()
    trained_on[held] = np.nan
    return trained_on, held


def knn_monitor(
    encoder: Backbone, fetch: Fetch, rows: npt.NDArray[np.int64], z: npt.NDArray[np.float64]
) -> Callable[[], dict[str, float]]:
    """A score of `encoder` as it is when called: each of `rows` (n,) takes the median redshift of its `NEIGHBOURS`
    nearest among the others, by distance in the standardised embedding. Sources without any band are left out."""

    def monitor() -> dict[str, float]:
        device, was_training = next(encoder.parameters()).device, encoder.training
        encoder.eval()
        pieces, seen = [], []
        for start in range(0, len(rows), READ):
            batch = fetch(rows[start : start + READ])
            usable = visible(batch)
            seen.append(usable.cpu().numpy())
            if usable.any():
                pieces.append(encoder.embed(batch.select(usable).to(str(device))).cpu())
        encoder.train(was_training)
        truth = z[np.concatenate(seen)]
        if len(truth) <= NEIGHBOURS:
            return {}
        vectors = torch.cat(pieces).double().numpy()
        vectors = (vectors - vectors.mean(axis=0)) / np.maximum(vectors.std(axis=0), 1e-6)
        _, found = exact_neighbours(vectors, vectors, NEIGHBOURS, exclude=np.arange(len(vectors)))
        dz = delta_z(np.median(truth[found], axis=1), truth)
        return {"knn_sigma_mad": sigma_mad(dz), "knn_bias": bias(dz), "knn_outliers": outlier_fraction(dz)}

    return monitor
