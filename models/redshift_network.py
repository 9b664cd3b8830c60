"""A trunk, a 16-dimensional latent and a redshift head: every encoder that was trained on labelled redshifts.

The trunk is an image encoder (`Backbone`), photometry (standardised colours and magnitude), or both side by side. The
latent is the embedding that kNN lives on; `predict` gives p(z) from the head, under any prior. Without an image encoder
it is the small network on photometry that image encoders must beat. `models/specialise.py` trains it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from redshelf.models import checkpoint as stored
from redshelf.models.backbone import Backbone
from redshelf.models.bins import Floats, Loss, Target, edges_of, gaussian_mass
from redshelf.models.encoder import Batch, encoder_class
from redshelf.models.errors import BadInput
from redshelf.models.photometry import Photometry, Scaling, batch_features

Body = Literal["mlp", "linear"]

LATENT = 16
WIDTH = 256
DROPOUT = 0.1
CLIP_SIGMA = 8.0  # photometric features beyond are no better known than this


class RedshiftNetwork(nn.Module):
    """An encoder of the latent, (N, 16) float32, and an estimator of redshift PDFs."""

    kind = "network"
    dim = LATENT
    needs: frozenset[str]
    centre: Tensor  # (backbone.dim,) of the image features
    scale: Tensor  # (backbone.dim,)
    prior: Tensor  # (bins,) that the head's answers imply
    scatter: Tensor  # () of a regression's answers around the truth, in ln(1+z)

    def __init__(
        self,
        *,
        backbone: Backbone | None,
        photometry: Scaling | None,
        target: Target,
        body: Body = "mlp",
        loss: Loss = "bins",
        name: str,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        check_trunk(backbone, photometry)
        self.photometry, self.target, self.body_kind, self.loss, self.name = photometry, target, body, loss, name
        self.backbone: Backbone | None = backbone
        self.bands: tuple[str, ...] = backbone.bands if backbone is not None else photometry.bands  # type: ignore[union-attr]
        self.needs = frozenset[str]() if backbone is None else backbone.needs
        if photometry is not None:
            self.needs |= Photometry.needs
        n_image = 0 if backbone is None else backbone.dim
        n_inputs = self.n_inputs = n_image + (0 if photometry is None else 2 * len(photometry.bands))
        n_out = target.n_bins if loss == "bins" else 1
        if body == "linear":
            self.body: nn.Module = nn.Linear(n_inputs, LATENT)
            self.head: nn.Module = nn.Linear(LATENT, n_out)
        else:
            self.body = nn.Sequential(
                nn.Linear(n_inputs, WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
                nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
                nn.Linear(WIDTH, LATENT),
            )  # fmt: skip
            self.head = nn.Sequential(nn.Linear(LATENT, WIDTH), nn.GELU(), nn.Linear(WIDTH, n_out))
        self.register_buffer("centre", torch.zeros(n_image))
        self.register_buffer("scale", torch.ones(n_image))
        self.register_buffer("prior", torch.full((target.n_bins,), 1 / target.n_bins))
        self.register_buffer("scatter", torch.tensor(target.scale))
        self.eval()
        self.revision = revision or stored.revision(self)

    @property
    def config(self) -> dict[str, Any]:
        image = None if self.backbone is None else {"kind": self.backbone.kind, "config": self.backbone.config}
        return {
            "bands": list(self.bands),
            "backbone": image,
            "photometry": None if self.photometry is None else asdict(self.photometry),
            "target": asdict(self.target),
            "body": self.body_kind,
            "loss": self.loss,
            "sizes": {"width": WIDTH, "latent": LATENT, "clip_sigma": CLIP_SIGMA},
        }

    def weights(self) -> dict[str, Tensor]:
        own = {key: value for key, value in self.state_dict().items() if not key.startswith("backbone.")}
        image = {} if self.backbone is None else self.backbone.weights()
        return own | {f"backbone.{key}": value for key, value in image.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        if "target" not in config:
            raise BadInput(f"encoder {name!r}: made by another version of redshelf, whose network differs: train again")
        backbone, image = None, config["backbone"]
        if image is not None:
            part = {k.removeprefix("backbone."): v for k, v in weights.items() if k.startswith("backbone.")}
            built = encoder_class(image["kind"]).from_config(image["config"], part, name=name, revision=revision)
            backbone = as_backbone(built)
        made = cls(
            backbone=backbone,
            photometry=None if config["photometry"] is None else Scaling.from_config(config["photometry"]),
            target=Target(**config["target"]),
            body=config["body"],
            loss=config["loss"],
            name=name,
            revision=revision,
        )
        own = {key: value for key, value in weights.items() if not key.startswith("backbone.")}
        try:
            missing, unknown = made.load_state_dict(own, strict=False)
        except RuntimeError as error:
            raise BadInput(f"encoder {name!r}: the weights do not fit its config: {error}") from error
        wrong = [key for key in missing if not key.startswith("backbone.")] + unknown
        if wrong:
            raise BadInput(f"encoder {name!r}: the weights do not fit its config: missing or unknown {wrong[0]}")
        return made

    @property
    def edges(self) -> Floats:
        """Edges in z of the bins of `predict`, (bins + 1,)."""
        return edges_of(self.target.n_bins, width=self.target.width)

    def inputs(self, batch: Batch) -> Tensor:
        """What the body sees, (N, F) float32, with a gradient; every source must be `visible` to an image encoder."""
        return self._joined(None if self.backbone is None else self.backbone.features(batch).float(), batch)

    @torch.inference_mode()
    def frozen_inputs(self, batch: Batch) -> Tensor:
        """`inputs` without a gradient, bfloat16 inside the image encoder. `BadInput` as in `Backbone.embed`."""
        return self._joined(None if self.backbone is None else self.backbone.embed(batch), batch)

    def _joined(self, image: Tensor | None, batch: Batch) -> Tensor:
        parts = [] if image is None else [(image - self.centre) / self.scale]
        if self.photometry is not None:
            known = batch_features(batch, self.photometry, self.name)
            parts.append(known.clamp(-CLIP_SIGMA, CLIP_SIGMA))
        return torch.cat(parts, dim=1)

    def latent(self, inputs: Tensor) -> Tensor:
        """(N, F) -> (N, 16), in float32 whatever surrounds it."""
        with torch.autocast(inputs.device.type, enabled=False):
            out: Tensor = self.body(inputs.float())
        return out

    def answers(self, latent: Tensor) -> Tensor:
        """(N, 16) -> logits (N, bins), or standardised ln(1+z) (N, 1); in float32."""
        with torch.autocast(latent.device.type, enabled=False):
            out: Tensor = self.head(latent.float())
        return out

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """The latent, (N, 16) float32. `BadInput` for what the batch lacks."""
        batch.require(self.needs, self.name)
        return self.latent(self.frozen_inputs(batch))

    @torch.inference_mode()
    def predict(self, batch: Batch, prior: npt.ArrayLike | None = None) -> tuple[Floats, Floats]:
        """Edges in z (bins + 1,) and mass a bin (N, bins), rows summing to 1: the arguments of `Pdf.from_mass`.

        `prior` (bins,): the target's n(z) as the share of each bin (`bins.prior_of`); p(z|x) is then that of training
        times prior / training's prior. None leaves the answers under the prior they were trained to imply. Raises
        `BadInput` for a prior that is none, and as `embed`.
        """
        out = self.answers(self.embed(batch))
        if self.loss == "bins":
            log_mass = out.double().log_softmax(dim=1)
        else:
            centre = self.target.centre + self.target.scale * out[:, 0].double()
            mass = gaussian_mass(centre, float(self.scatter), self.target.n_bins, width=self.target.width)
            log_mass = mass.clamp(min=1e-12).log()
        if prior is not None:
            log_mass = log_mass + self._checked(prior).to(log_mass.device).log() - self.prior.double().log()
        return self.edges, log_mass.softmax(dim=1).cpu().numpy()

    def _checked(self, prior: npt.ArrayLike) -> Tensor:
        value = np.asarray(prior, dtype=np.float64)
        if value.shape != (self.target.n_bins,):
            raise BadInput(f"prior of shape {value.shape}: expected ({self.target.n_bins},), a share for each bin")
        if not (np.isfinite(value) & (value >= 0)).all() or value.sum() <= 0:
            raise BadInput("prior: expected finite shares of 0 or more, not all 0")
        return torch.from_numpy(value / value.sum())


def as_backbone(encoder: object) -> Backbone:
    """`encoder` as a trunk; `BadInput` naming one that has no image features to train on."""
    if not isinstance(encoder, Backbone):
        name, kind = getattr(encoder, "name", "?"), getattr(encoder, "kind", type(encoder).__name__)
        raise BadInput(
            f"encoder {name!r} of kind {kind!r} cannot be specialised: expected an image encoder, such as vit"
        )
    return encoder


def check_trunk(backbone: Backbone | None, photometry: Scaling | None) -> None:
    """`BadInput` for a trunk of nothing, or of an image encoder and photometry in other bands."""
    if backbone is None:
        if photometry is None:
            raise BadInput("a redshift network needs a trunk: an image encoder, photometry, or both")
        return
    as_backbone(backbone)
    if photometry is not None and tuple(photometry.bands) != tuple(backbone.bands):
        raise BadInput(
            f"encoder {backbone.name!r} has the bands {', '.join(backbone.bands)}, the photometry "
            f"{', '.join(photometry.bands)}: expected the same in the same order"
        )
