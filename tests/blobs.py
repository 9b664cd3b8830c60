"""Gaussian blobs with colours, sizes and shapes that are known: the smallest thing an image encoder can learn from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from redshelf.models.bands import Band, ab_to_flux
from redshelf.models.encoder import Batch

BANDS = tuple(
    Band(name, wavelength, depth_ab=26.5, psf_fwhm_arcsec=0.7)
    for name, wavelength in zip("griz", (475.0, 622.0, 770.0, 890.0), strict=True)
)
CUTOUT_PX = 32
NOISE_UJY = float(ab_to_flux(26.5)) / 3 / 7  # a 3-sigma source in an aperture of 49 pixels


@dataclass(frozen=True)
class Blobs:
    """N sources: `magnitude` (N, 4) AB, and everything an encoder is given about them."""

    magnitude: npt.NDArray[np.float64]
    batch: Batch

    def fetch(self, indices: npt.NDArray[np.int64]) -> Batch:
        """The batch of some of them."""
        chosen, b = torch.from_numpy(indices), self.batch
        assert b.pixels is not None and b.pixel_mask is not None
        assert b.flux_ujy is not None and b.flux_error_ujy is not None
        return Batch(
            b.state[chosen],
            pixels=b.pixels[chosen],
            pixel_mask=b.pixel_mask[chosen],
            flux_ujy=b.flux_ujy[chosen],
            flux_error_ujy=b.flux_error_ujy[chosen],
            depth_ab=torch.full((4,), 26.5),
        )


def make(n: int, *, seed: int = 0) -> Blobs:
    """`n` blobs between i of 19 and 23, their spectra a random slope and curvature; noise of 1 in the pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:CUTOUT_PX, :CUTOUT_PX] - (CUTOUT_PX - 1) / 2
    slope = np.log([b.wavelength_nm / 770 for b in BANDS])
    colour = rng.normal(size=(n, 2))
    magnitude = rng.uniform(19, 23, n)[:, None] - (1 + 1.2 * colour[:, :1]) * slope - 1.5 * colour[:, 1:] * slope**2
    width = rng.uniform(1.5, 3, n)[:, None, None]
    profile = np.exp(-0.5 * (x**2 + y**2) / width**2)
    profile /= profile.sum(axis=(1, 2), keepdims=True)
    truth = ab_to_flux(magnitude)
    pixels = truth[:, :, None, None] * profile[:, None] / NOISE_UJY + rng.normal(size=(n, 4, CUTOUT_PX, CUTOUT_PX))
    error = np.full(truth.shape, 7 * NOISE_UJY)
    batch = Batch(
        torch.full((n, 4), 2, dtype=torch.int8),
        pixels=torch.from_numpy(pixels.astype(np.float32)),
        pixel_mask=torch.zeros(pixels.shape, dtype=torch.bool),
        flux_ujy=torch.from_numpy(truth + error * rng.normal(size=truth.shape)),
        flux_error_ujy=torch.from_numpy(error),
        depth_ab=torch.full((4,), 26.5),
    )
    return Blobs(magnitude, batch)
