"""AION-1 (Parker et al. 2025) as an encoder: HSC g r i z y or Legacy Survey g r i z, no others, by its own package.

The package `polymathic-aion` (MIT) is optional: pip install 'redshelf[aion]'. Its image codec turns 96 x 96 pixels into
576 tokens and the transformer reads them; the vector is the mean of what it makes of them. Smaller cutouts are padded
with zeros to 96 pixels, larger ones cropped by the codec. No gradient reaches the codec.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models import checkpoint as stored
from redshelf.models.backbone import Backbone, good_pixels, load_weights
from redshelf.models.bands import AB_ZERO_POINT_UJY, Band
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, nearest
from redshelf.models.pretrained import check_sha256, read_json, read_tensors

SIDE_PX, TOKENS = 96, 576
# survey -> name of its image tokens, class of its images, prefix and letters of its bands, zero point of its fluxes
SURVEYS = {
    "hsc": ("tok_image_hsc", "HSCImage", "HSC", "grizy", 27.0),
    "legacy": ("tok_image", "LegacySurveyImage", "DES", "griz", 22.5),
}
CHUNK = 256  # sources at once through the codec: bounds the memory of large batches


class AionEncoder(Backbone):
    """Mean of the encoded image tokens, (N, dim) float32. Made by `load_aion`."""

    kind = "aion"

    def __init__(
        self, config: dict[str, Any], model: nn.Module, codec: nn.Module, *, name: str, revision: str | None = None
    ) -> None:
        super().__init__()
        self._config = copy.deepcopy(config)
        self.model, self.codec, self.name = model, codec, name
        self.bands, self.cutout_px, self.dim = tuple(config["bands"]), config["cutout_px"], config["model"]["dim"]
        self.token_key, self.image_class, prefix, _, zero_point = SURVEYS[config["survey"]]
        self.channels = [f"{prefix}-{_letter(band).upper()}" for band in self.bands]
        unit = 10 ** (0.4 * (zero_point - AB_ZERO_POINT_UJY))  # of a microjansky
        self.scale: Tensor
        self.register_buffer("scale", torch.tensor(config["noise_ujy"])[:, None, None] * unit, persistent=False)
        self.eval()
        self.revision = revision or stored.revision(self)

    @property
    def config(self) -> dict[str, Any]:
        return copy.deepcopy(self._config)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from: family, published name, sha256 of the transformer and of the codec."""
        return {"family": "aion", **self._config["origin"]}

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        made = cls(config, *_build(config, f"encoder {name!r}"), name=name, revision=revision)
        load_weights(made, weights, name)
        return made

    def features(self, batch: Batch) -> Tensor:
        """(N, dim) float32; sources are tokenised together with those that have the same bands."""
        pixels = good_pixels(batch, self)
        lack = max(0, SIDE_PX - self.cutout_px)
        flux = F.pad(pixels.values * self.scale, (lack // 2, lack - lack // 2) * 2)
        patterns, which = torch.unique(pixels.present, dim=0, return_inverse=True)
        tokens = torch.empty(len(batch), TOKENS, dtype=torch.long, device=flux.device)
        for number, pattern in enumerate(patterns):
            for rows in (which == number).nonzero().flatten().split(CHUNK):
                tokens[rows] = self._tokenised(flux[rows][:, pattern], pattern)
        return torch.cat([self._encoded(tokens[start : start + CHUNK]) for start in range(0, len(batch), CHUNK)])

    @torch.no_grad()
    def _tokenised(self, flux: Tensor, pattern: Tensor) -> Tensor:
        channels = [channel for channel, there in zip(self.channels, pattern.tolist(), strict=True) if there]
        image = getattr(import_module("aion.modalities"), self.image_class)(flux=flux, bands=channels)
        with torch.autocast(flux.device.type, enabled=False):  # a rounded pixel would be another token
            return cast(Tensor, cast(Any, self.codec).encode(image).flatten(1).long())

    def _encoded(self, tokens: Tensor) -> Tensor:
        encoded = cast(Any, self.model).encode({self.token_key: tokens}, num_encoder_tokens=TOKENS)  # (n, T, dim)
        return cast(Tensor, encoded.float().mean(dim=1))


def _letter(band: str) -> str:
    return band.rpartition("_")[2].lower()  # "g", "G", "hsc_g"


def _build(config: dict[str, Any], source: str) -> tuple[nn.Module, nn.Module]:
    """Transformer (its encoder only) and codec, with random weights."""
    try:
        aion, codecs = import_module("aion"), import_module("aion.codecs")
    except ImportError as error:
        raise BadInput(f"{source} needs the package polymathic-aion: pip install 'redshelf[aion]'") from error
    try:
        return aion.AION(copy.deepcopy(config["model"])), codecs.ImageCodec(**config["codec"])
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, AssertionError) as error:
        raise BadInput(f"{source}: no AION-1 can be made of this config: {error!r}") from error


def load_aion(
    folder: Path,
    *,
    survey: str,
    bands: Sequence[Band],
    cutout_px: int,
    name: str,
    expected_sha256: str | None = None,
) -> AionEncoder:
    """AION-1 from a local copy of its repository (polymathic-ai/aion-base and the like), for bands of `survey`.

    Reads `config.json`, `model.safetensors` and the two files of that name under `codecs/image`. Bands are called by
    their letter, alone or after an underscore, and need the noise that their pixels are in units of; pixels are taken
    to be about as large as those of the survey (0.168 arcsec HSC, 0.262 Legacy). Raises `BadInput` for another survey
    or band, a missing package, folder, file or noise, a pickle, damaged weights, or another sha256 of the transformer.
    """
    if survey not in SURVEYS:
        raise BadInput(f"survey {survey!r} of AION-1; {nearest(survey, SURVEYS)}")
    token_key, _, _, letters, _ = SURVEYS[survey]
    for band in bands:
        if _letter(band.name) not in letters:
            raise BadInput(f"band {band.name!r}: AION-1 was trained on {survey} {' '.join(letters)}: leave it out")
        if not 0 < band.noise_ujy < math.inf:
            raise BadInput(f"band {band.name!r}: noise_ujy={band.noise_ujy}: expected that of the images")
    if not bands or len({_letter(band.name) for band in bands}) < len(bands):
        raise BadInput(f"bands {[band.name for band in bands]} of AION-1: expected one or more, each once")
    if not folder.is_dir():
        raise BadInput(f"{folder}: no such folder; expected a copy of AION-1's repository")
    files = [folder / "model.safetensors", folder / "codecs" / "image" / "model.safetensors"]
    model, codec = (read_json(file.parent / "config.json") for file in files)
    for file in files:
        if not file.is_file():
            raise BadInput(f"{file}: no such file; expected weights as safetensors, a pickle will not do")
    config = {
        "bands": [band.name for band in bands],
        "survey": survey,
        "noise_ujy": [float(band.noise_ujy) for band in bands],
        "cutout_px": cutout_px,
        # the decoder and the embeddings of other data are left out
        "model": {**model, "domains_in": [token_key], "domains_out": [], "decoder_depth": 0},
        "codec": codec,
    }
    network, image_codec = _build(config, str(folder))
    digests = [check_sha256((files[0],), expected_sha256), check_sha256((files[1],), None)]
    tensors = read_tensors((files[0],))
    own, twin = (f"{side}_embeddings.{token_key}.mod_emb" for side in ("encoder", "decoder"))
    if own not in tensors and twin in tensors:  # one parameter under two names: safetensors keeps one of them
        tensors[own] = tensors[twin]
    wanted = network.state_dict().keys()
    load_weights(network, {key: value for key, value in tensors.items() if key in wanted}, str(folder))
    load_weights(image_codec, read_tensors((files[1],)), f"{folder}/codecs/image")
    config["origin"] = {"name": folder.resolve().name, "sha256": digests[0], "codec_sha256": digests[1]}
    return AionEncoder(json.loads(json.dumps(config)), network, image_codec, name=name)
