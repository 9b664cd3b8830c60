"""Published image encoders on a survey's bands: DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023), DINOv3 (Simeoni
et al. 2025) and CLIP (Radford et al. 2021), as they are or to be fine-tuned.

Each overlapping triplet of bands is an image; the CLS token and the mean of the patch tokens of all triplets stand side
by side, since a mean over triplets would forget which band is which. These networks were trained to be blind to
colour and brightness: put photometry beside (`fitted`). A triplet without a band gives zeros, under PCA the mean.

    encoder = load_pretrained(Path("facebook/dinov2-base"), bands=bands, cutout_px=64, name="dinov2")
    encoder = encoder.fitted(batches, pca_dim=128, photometry=scaling)
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from redshelf.models import checkpoint as stored
from redshelf.models.architecture import architecture_of, patch_of
from redshelf.models.backbone import Backbone, Pixels, good_pixels
from redshelf.models.bands import Band, named
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, nearest
from redshelf.models.photometry import Scaling, Subset, batch_features, columns
from redshelf.models.pretrained import check_sha256, locate, read_tensors
from redshelf.models.towers import ClipProjected, Space, Tower, build
from redshelf.models.triplets import Stretch, images, input_size, triplets

CHUNK_TOKENS = 1 << 16  # at once through the network: bounds the memory of large batches
SUBSET: Subset = "colours+magnitude"
SPACES = ("trunk", "projected")


@dataclass(frozen=True)
class Pca:
    """A rotation fitted on a sample. `mean` (D,), `components` (dim, D) orthonormal, `explained` (dim,) of variance."""

    mean: Tensor
    components: Tensor
    explained: Tensor


def rotated(features: Tensor, known: Tensor, *, mean: Tensor, components: Tensor) -> Tensor:
    """(N, D) -> (N, dim) float32 by a `Pca`; where `known` (N, D) is false the sample's mean stands in."""
    with torch.autocast(features.device.type, enabled=False):
        return torch.where(known, features.float() - mean, 0.0) @ components.T


def fit_pca(features: Tensor, *, dim: int, blocks: int = 1) -> Pca:
    """The `dim` directions of largest variance of `features` (N, D), signs fixed by the largest entry.

    D is `blocks` equal blocks; a row's block that is all zero is unknown, and stands at the mean.
    """
    n, width = features.shape
    if not 1 <= dim <= min(n - 1, width):
        raise BadInput(f"PCA of {n} sources in {width} dimensions to {dim}: expected 1 to {max(0, min(n - 1, width))}")
    values = features.double()
    known = known_blocks(values, blocks)
    mean = (values * known).sum(dim=0) / known.sum(dim=0).clamp(min=1)
    centred = torch.where(known, values - mean, 0.0)
    few = n <= width  # then the products between sources are the smaller matrix
    variance, axes = torch.linalg.eigh((centred @ centred.T if few else centred.T @ centred) / (n - 1))
    components = axes.flip(1)[:, :dim].T  # (dim, D), or (dim, N)
    if few:
        components = F.normalize(components @ centred, dim=1)
    largest = components.gather(1, components.abs().argmax(dim=1, keepdim=True))
    explained = variance.flip(0)[:dim] / variance.sum().clamp(min=1e-300)
    return Pca(mean.float(), (components * largest.sign()).float().contiguous(), explained.float())


def known_blocks(features: Tensor, blocks: int) -> Tensor:
    """(N, D) bool: the entries of blocks that are not all zero, as only those of triplets without a band are."""
    n, width = features.shape
    return (features.view(n, blocks, -1) != 0).any(dim=2).repeat_interleave(width // blocks, dim=1)


class FoundationEncoder(Backbone):
    """Published networks on triplets of bands. Made by `load_pretrained`; `config` says everything but the weights."""

    kind = "foundation"

    def __init__(
        self, config: dict[str, Any], tower: Tower, *, pca: Pca | None = None, name: str, revision: str | None = None
    ) -> None:
        super().__init__()
        self._config = copy.deepcopy(config)
        self.tower, self.name = tower, name
        self.bands, self.cutout_px, self.input_px = tuple(config["bands"]), config["cutout_px"], config["input_px"]
        self.space: Space = config["space"]
        self.stretch = Stretch.from_config(config["stretch"])
        self.tokens = (self.input_px // patch_of(config["architecture"])) ** 2 + 1
        self.channels: Tensor
        self.mean: Tensor
        self.std: Tensor
        index = torch.tensor([[self.bands.index(band) for band in triplet] for triplet in config["triplets"]])
        self.register_buffer("channels", index, persistent=False)
        self.register_buffer("mean", torch.tensor(config["mean"]), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]), persistent=False)
        self.dim = tower.dim * (1 if self.space == "projected" else len(index))
        self.pca_mean: Tensor | None
        self.pca_components: Tensor | None
        self.register_buffer("pca_mean", None if pca is None else pca.mean)
        self.register_buffer("pca_components", None if pca is None else pca.components)
        if pca is not None:
            self.dim = len(pca.components)
        self.scaling: Scaling | None = None
        if config["photometry"] is not None:
            self.scaling = Scaling.from_config(config["photometry"]["scaling"])
            self.needs = frozenset({"pixels", "fluxes"})
            self.dim += len(columns(self.scaling.names, SUBSET))
        self.eval()
        self.revision = revision or stored.revision(self)

    @property
    def config(self) -> dict[str, Any]:
        return copy.deepcopy(self._config)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from: family, published name and sha256, or the seed of random ones."""
        return {"family": self._config["family"], **self._config["origin"]}

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        tensors = {key.removeprefix("tower."): v for key, v in weights.items() if not key.startswith("pca_")}
        tower = build(
            config["architecture"],
            tensors,
            input_px=config["input_px"],
            space=config["space"],
            source=f"encoder {name!r}",
        )
        pca = None
        if config["pca"] is not None:
            width = tower.dim * len(config["triplets"])
            for key, expected in {"pca_mean": [width], "pca_components": [config["pca"]["dim"], width]}.items():
                if key not in weights or list(weights[key].shape) != expected:
                    raise BadInput(f"encoder {name!r}: the weights do not fit its config: {key} of shape {expected}")
            explained = torch.tensor(config["pca"]["explained"])
            pca = Pca(weights["pca_mean"], weights["pca_components"], explained)
        return cls(config, tower, pca=pca, name=name, revision=revision)

    def fitted(
        self, batches: Iterable[Batch], *, pca_dim: int | None = None, photometry: Scaling | None = None
    ) -> Self:
        """A new encoder around a copy of the network, with a PCA and photometry fitted on a sample of the shelf.

        `photometry`: the constants of colours and magnitude, which are appended with one fixed weight, so that their
        total variance equals that of the image's part on the sample. Some thousand sources are plenty.
        """
        if self.space != "trunk" or self.pca_mean is not None or self.scaling is not None:
            raise BadInput(f"encoder {self.name!r} is projected or fitted already: expected one as it was loaded")
        if photometry is not None and photometry.bands != self.bands:
            raise BadInput(
                f"photometry of bands {photometry.bands} beside an encoder of {self.bands}: expected the same"
            )
        vectors = [self.embed(batch).cpu() for batch in batches]
        if sum(map(len, vectors)) < 2:
            raise BadInput(f"encoder {self.name!r} fitted on {sum(map(len, vectors))} sources: expected 2 or more")
        sample = torch.cat(vectors)
        config, pca = self.config, None
        if pca_dim is not None:
            pca = fit_pca(sample, dim=pca_dim, blocks=len(self.channels))
            explained = [round(share, 6) for share in pca.explained.tolist()]
            config["pca"] = {"dim": pca_dim, "explained": explained, "sources": len(sample)}
            known = known_blocks(sample, len(self.channels))
            sample = rotated(sample, known, mean=pca.mean, components=pca.components)
        if photometry is not None:
            features = len(columns(photometry.names, SUBSET))  # each of variance one
            weight = float((sample.double().var(dim=0).sum() / features).sqrt())
            config["photometry"] = {"scaling": asdict(photometry), "weight": weight}
        config = json.loads(json.dumps(config))
        made = type(self)(config, copy.deepcopy(self.tower), pca=pca, name=self.name)
        return made.to(self.channels.device)

    def features(self, batch: Batch) -> Tensor:
        """Vectors of the triplets side by side, then PCA, then photometry, (N, dim) float32; in the projected space
        the normalised mean over triplets."""
        beside = self._photometry(batch)  # first: it waits for the device, which has nothing to do yet
        parts = good_pixels(batch, self)
        chunk = max(1, CHUNK_TOKENS // (self.tokens * len(self.channels)))
        vectors = torch.cat(
            [
                self._vectors(Pixels(*(t[start : start + chunk] for t in (parts.values, parts.bad, parts.present))))
                for start in range(0, len(batch), chunk)
            ]
        )  # (N, T, d)
        if self.space == "projected":
            return F.normalize(vectors.sum(dim=1), dim=1)
        flat = vectors.flatten(1)
        if self.pca_mean is not None and self.pca_components is not None:
            known = known_blocks(flat, len(self.channels))
            flat = rotated(flat, known, mean=self.pca_mean, components=self.pca_components)
        return flat if beside is None else torch.cat([flat, beside], dim=1)

    def _vectors(self, pixels: Pixels) -> Tensor:
        """(N, T, d) float32, zero for a triplet without a band."""
        pictures, alive = images(
            pixels, self.channels, self.stretch, input_px=self.input_px, mean=self.mean, std=self.std
        )
        seen: Tensor = self.tower(pictures)
        if len(seen) == alive.numel():
            return seen.view(*alive.shape, -1)
        out = seen.new_zeros(*alive.shape, seen.shape[1])
        out[alive] = seen
        return out

    def _photometry(self, batch: Batch) -> Tensor | None:
        if self.scaling is None:
            return None
        chosen = columns(self.scaling.names, SUBSET)
        return batch_features(batch, self.scaling, self.name)[:, chosen] * float(self._config["photometry"]["weight"])

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Normalised vectors of `texts` in the space of the images, (N, dim) float32 on the encoder's device."""
        if not isinstance(self.tower, ClipProjected):
            raise BadInput(f"encoder {self.name!r} has no space shared with texts: load a CLIP with space='projected'")
        if (
            isinstance(texts, str)
            or len(texts) == 0
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            raise BadInput(f"texts {texts!r}: expected a list of one or more texts that are not empty")
        return self.tower.texts(texts)


def load_pretrained(
    folder: Path,
    *,
    bands: Sequence[Band],
    cutout_px: int,
    name: str,
    family: str | None = None,
    space: Space = "trunk",
    input_px: int | None = None,
    stretch: Stretch | None = None,
    weights: Path | None = None,
    expected_sha256: str | None = None,
    random_seed: int | None = None,
) -> FoundationEncoder:
    """The network published in `folder` as an encoder of `bands`; from that folder only, never from the network.

    `input_px`: side that cutouts are resampled to, by default `triplets.input_size`. `weights`: a safetensors file that
    lies elsewhere. `random_seed`: draw the weights instead of reading them, as a control. `BadInput` as in
    `pretrained.locate`, for a damaged file, another sha256 than expected, or weights that do not fit their config.
    """
    if space not in SPACES:
        raise BadInput(f"space {space!r} of a foundation encoder; {nearest(space, SPACES)}")
    if cutout_px < 1:
        raise BadInput(f"cutout_px={cutout_px}: expected 1 or more")
    if random_seed is not None and expected_sha256 is not None:
        raise BadInput("random weights have no sha256: give random_seed or expected_sha256, not both")
    constants = Stretch.default(len(bands)) if stretch is None else stretch
    if len(constants.white) != len(bands):
        raise BadInput(f"stretch of {len(constants.white)} bands for an encoder of {len(bands)}: expected as many")
    of_bands = named(bands, triplets([band.wavelength_nm for band in bands]))
    published = locate(folder, family=family, weights=weights, wanted=random_seed is None)
    architecture = architecture_of(published)
    size = input_size(cutout_px, patch_of(architecture)) if input_px is None else input_px
    if random_seed is None:
        tensors = None
        origin: dict[str, Any] = {
            "name": published.name,
            "sha256": check_sha256(published.files, expected_sha256),
        }
        tensors = read_tensors(published.files)
        tower = build(architecture, tensors, input_px=size, space=space, source=str(folder))
    else:
        origin = {"name": "random", "seed": random_seed, "architecture_of": published.name}
        with torch.random.fork_rng([]):
            torch.manual_seed(random_seed)
            tower = build(architecture, None, input_px=size, space=space, source=str(folder))
    config = {
        "bands": [band.name for band in bands],
        "triplets": of_bands,
        "cutout_px": cutout_px,
        "input_px": size,
        "resampling": "bicubic",
        "family": published.family,
        "space": space,
        "architecture": architecture,
        "stretch": asdict(constants),
        "mean": list(published.mean),
        "std": list(published.std),
        "origin": origin,
        "pca": None,
        "photometry": None,
    }
    return FoundationEncoder(json.loads(json.dumps(config)), tower, name=name)
