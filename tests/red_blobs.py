"""Blobs whose redshift is known from what they look like, and the smallest transformer that can see it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import blobs
import numpy as np
import numpy.typing as npt
import torch

from redshelf.models.encoder import Batch
from redshelf.models.photometry import Scaling, fit_scaling
from redshelf.models.training import seeded
from redshelf.models.vit import MultiBandViT, Size

NAMES = [band.name for band in blobs.BANDS]
GROUPS = [["g", "r"], ["i", "z"]]


@cache
def survey(n: int = 500, seed: int = 0) -> tuple[blobs.Blobs, npt.NDArray[np.float64]]:
    """`n` blobs and their redshifts, from 0.25 to 0.95: a smooth step in g-i."""
    made = blobs.make(n, seed=seed)
    return made, 0.6 + 0.35 * np.tanh(made.magnitude[:, 0] - made.magnitude[:, 2] - 1)


def tiny_vit(seed: int = 0) -> MultiBandViT:
    """A transformer with random weights."""
    with seeded(seed):
        return MultiBandViT(NAMES, groups=GROUPS, cutout_px=blobs.CUTOUT_PX, size=Size(24, 1, 2, 16), name="tiny")


def scaling(made: blobs.Blobs) -> Scaling:
    """Constants of the blobs' photometry."""
    flux, error = made.batch.flux_ujy, made.batch.flux_error_ujy
    assert flux is not None and error is not None
    return fit_scaling(flux.numpy(), error.numpy(), made.batch.state.numpy(), bands=blobs.BANDS)


def spoilt(batch: Batch) -> Batch:
    """The batch with a bad corner, and a band missing in every third source: nothing of an encoder is idle then."""
    assert batch.pixel_mask is not None
    mask, state = batch.pixel_mask.clone(), batch.state.clone()
    mask[:, :, :3, :3] = True
    state[::3, 1] = 0
    n, bands = state.shape
    return replace(
        batch, pixel_mask=mask, state=state, psf_fwhm_arcsec=torch.full((bands,), 0.7), ebv=torch.full((n,), 0.02)
    )


def knn_error(latent: torch.Tensor, z: npt.NDArray[np.float64], n_train: int) -> float:
    """Median |z - mean of the 5 nearest of the first `n_train`| of the others."""
    nearest = torch.cdist(latent[n_train:], latent[:n_train]).topk(5, largest=False).indices.numpy()
    return float(np.median(np.abs(z[:n_train][nearest].mean(axis=1) - z[n_train:])))
