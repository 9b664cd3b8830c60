"""Millions of densities from a small network that learnt a kNN's: the refit of CLAP (Lin et al. 2024, A&A 691, A331).

One hidden layer and a softmax, from the features to p(z), fitted to the kNN densities of sources of the target that lie
in the labels' support: it interpolates between neighbours that were searched once, and is never shown a density that
no label supports. From the paper's description; run on arrays, without torch, once it is fitted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
WIDTH = 1024
BATCH = 128
STEPS = 4000
RATE = 1e-3  # falling to 0 along a cosine, ten times the paper's constant rate for a tenth of its steps
LEAST_SOURCES = 100
HELD_OUT = 0.1
LARGEST_HELD_OUT = 5000
BLOCK = 8192
CLIP = 8.0  # standardised features: beyond, no source was fitted


@dataclass(frozen=True)
class RefitRedshift:
    """The network in arrays: standardised features (D,) -> ReLU (H,) -> softmax over the bins of `edges` (G + 1,)."""

    edges: Floats
    centre: Floats
    scale: Floats
    hidden: Floats32  # (D, H)
    hidden_bias: Floats32
    out: Floats32  # (H, G)
    out_bias: Floats32

    def predict(self, features: npt.ArrayLike) -> Pdf:
        """Densities of `features` (N, D); 18 us a source on one core (16 features, 347 bins). `BadInput` for NaN."""
        parts = list(self.blocks(features))
        if not parts:
            raise BadInput("predict: no sources were given, expected at least one")
        return Pdf(self.edges, np.concatenate([part.density for part in parts]))

    def blocks(self, features: npt.ArrayLike) -> Iterator[Pdf]:
        """`predict` in parts of 8192 sources: memory stays flat over millions."""
        x = np.asarray(features)
        if x.ndim != 2 or x.shape[1] != len(self.centre):
            raise BadInput(f"features of shape {x.shape}: expected (N, {len(self.centre)})")
        for start in range(0, len(x), BLOCK):
            part = _standard(x[start : start + BLOCK], self.centre, self.scale)
            logits = np.maximum(part @ self.hidden + self.hidden_bias, 0) @ self.out + self.out_bias
            logits -= logits.max(axis=1, keepdims=True)
            yield Pdf.from_mass(self.edges, np.exp(logits, out=logits).astype(np.float64))


def _standard(x: npt.NDArray[Any], centre: Floats, scale: Floats) -> Floats32:
    if not np.isfinite(x).all():
        raise BadInput("features hold NaN or infinity: expected finite values")
    return np.clip((x - centre) / scale, -CLIP, CLIP).astype(np.float32)


def fit_refit(
    features: npt.ArrayLike,
    pdf: Pdf,
    *,
    in_support: npt.ArrayLike | None = None,
    width: int = WIDTH,
    steps: int = STEPS,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[RefitRedshift, dict[str, Any]]:
    """Fit to the densities `pdf` of target sources with `features` (N, D), to those `in_support` (N,) alone.

    The loss is the paper's: 100 times the mean of (integral of |F_kNN - F| dz) times the cross-entropy; the report has
    its two factors and their product on a tenth of the sources that is held out. The same `seed` gives the same
    network. `BadInput` for shapes that do not fit, NaN, or under 100 sources in support.
    """
    import torch
    from torch import nn

    x = np.asarray(features, dtype=np.float64)
    kept = np.ones(len(pdf), dtype=bool) if in_support is None else np.asarray(in_support, dtype=bool)
    if x.ndim != 2 or len(x) != len(pdf) or kept.shape != (len(pdf),):
        raise BadInput(f"features {x.shape}, in_support {kept.shape}: expected ({len(pdf)}, D) and ({len(pdf)},)")
    if kept.sum() < LEAST_SOURCES:
        raise BadInput(f"{kept.sum()} sources in support: expected at least {LEAST_SOURCES} to fit their densities")
    if width < 1 or steps < 1:
        raise BadInput(f"width={width}, steps={steps}: expected at least 1 of each")
    x, mass = x[kept], (pdf.density[kept] * pdf.widths).astype(np.float32)
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(centre)), scale, 1.0)
    order = np.random.default_rng(seed).permutation(len(x))
    held = min(int(HELD_OUT * len(x)), LARGEST_HELD_OUT)
    generator = torch.Generator().manual_seed(seed)
    first, last = nn.Linear(x.shape[1], width), nn.Linear(width, mass.shape[1])
    layers = nn.Sequential(first, nn.ReLU(), last)
    with torch.no_grad():
        for layer in (first, last):
            bound = layer.in_features**-0.5
            for tensor in layer.parameters():
                tensor.uniform_(-bound, bound, generator=generator)
    layers.to(device)
    points = torch.from_numpy(_standard(x, centre, scale))
    wanted, widths = torch.from_numpy(mass), torch.from_numpy(pdf.widths.astype(np.float32)).to(device)

    def factors(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        truth = wanted[rows].to(device)
        log_p = layers(points[rows].to(device)).log_softmax(dim=1)
        area = ((truth.cumsum(dim=1) - log_p.exp().cumsum(dim=1)).abs() * widths).sum(dim=1)
        return area, -(truth * log_p).sum(dim=1)

    optimiser = torch.optim.Adam(layers.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    seen, unseen = torch.from_numpy(order[held:]), torch.from_numpy(order[:held])
    for _ in range(steps):
        rows = seen[torch.randint(len(seen), (min(BATCH, len(seen)),), generator=generator)]
        area, entropy = factors(rows)
        optimiser.zero_grad()
        (100 * (area * entropy).mean()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        area, entropy = factors(unseen)
    hidden, hidden_bias, out, out_bias = (value.detach().cpu().numpy() for value in layers.parameters())
    model = RefitRedshift(pdf.edges, centre, scale, hidden.T.copy(), hidden_bias, out.T.copy(), out_bias)
    report = {
        "n_fitted": len(seen),
        "n_left_out": int((~kept).sum()),
        "steps": steps,
        "loss": float(100 * (area * entropy).mean()),
        "cdf_difference": float(area.mean()),
        "cross_entropy": float(entropy.mean()),
    }
    return model, report
