"""models/aion.py against the package's own classes with small random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import blobs
import pytest
import torch
from torch.nn import functional as F

from redshelf.models import checkpoint
from redshelf.models.aion import load_aion
from redshelf.models.bands import Band
from redshelf.models.errors import BadInput

BANDS = tuple(replace(band, noise_ujy=0.002 * (1 + n)) for n, band in enumerate(blobs.BANDS))
SMALL = {
    "domains_in": ["tok_image", "tok_image_hsc", "tok_z"],
    "domains_out": ["tok_image", "tok_image_hsc"],
    "dim": 32,
    "encoder_depth": 2,
    "decoder_depth": 1,
    "num_heads": 2,
    "mlp_ratio": 2.0,
    "qkv_bias": False,
    "proj_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "act_layer": "SiLU",
    "gated_mlp": True,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """Folder, transformer and codec, saved by the package itself."""
    aion = pytest.importorskip("aion", reason="polymathic-aion is not installed")
    from aion.codecs import ImageCodec  # type: ignore[import-not-found]
    from aion.modalities import HSCImage  # type: ignore[import-not-found]

    folder = tmp_path_factory.mktemp("hub") / "aion-tiny"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = aion.AION(dict(SMALL)).eval()
        codec = ImageCodec([7, 5, 5, 5, 5], hidden_dims=16, num_consecutive=1).eval()
        for value in [*model.parameters(), *codec.parameters()]:
            value.data += 0.1 * torch.randn_like(value)
    model.save_pretrained(folder)
    codec.save_pretrained(folder, modality=HSCImage)
    return folder, model, codec


@pytest.mark.parametrize(("survey", "prefix", "zero_point"), [("hsc", "HSC", 27.0), ("legacy", "DES", 22.5)])
def test_vectors_are_those_of_the_package_on_the_same_fluxes(
    survey: str, prefix: str, zero_point: float, published: tuple[Path, Any, Any], tmp_path: Path
) -> None:
    from aion import modalities

    folder, model, codec = published
    batch = blobs.make(3).batch
    assert batch.pixels is not None
    encoder = load_aion(folder, survey=survey, bands=BANDS, cutout_px=32, name="aion")
    noise = torch.tensor([band.noise_ujy for band in BANDS])[:, None, None]
    native = F.pad(batch.pixels * noise * 10 ** (0.4 * (zero_point - 23.9)), (32, 32, 32, 32))
    kind, key = {
        "hsc": (modalities.HSCImage, "tok_image_hsc"),
        "legacy": (modalities.LegacySurveyImage, "tok_image"),
    }[survey]

    def direct(letters: str, rows: slice) -> torch.Tensor:
        chosen = ["griz".index(letter) for letter in letters]
        image = kind(flux=native[rows][:, chosen].clone(), bands=[f"{prefix}-{letter.upper()}" for letter in letters])
        with torch.no_grad():
            tokens = codec.encode(image)
            assert tokens.unique().numel() > 20
            return torch.as_tensor(model.encode({key: tokens}, num_encoder_tokens=576).mean(dim=1))

    state = batch.state.clone()
    state[1, 2] = 0  # i
    mixed = replace(batch, state=state)
    with torch.no_grad():
        found = encoder.features(mixed)
    torch.testing.assert_close(found[[0, 2]], direct("griz", slice(0, 3, 2)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1:2], direct("grz", slice(1, 2)), atol=1e-5, rtol=1e-4)
    back = checkpoint.load(checkpoint.save(encoder, tmp_path, provenance=encoder.provenance))
    assert torch.equal(back.embed(mixed), encoder.embed(mixed))
    assert encoder.provenance["name"] == "aion-tiny" and encoder.provenance.keys() >= {"sha256", "codec_sha256"}


def test_a_gradient_reaches_the_transformer(published: tuple[Path, Any, Any]) -> None:
    encoder = load_aion(published[0], survey="hsc", bands=BANDS, cutout_px=32, name="aion").train()
    encoder.features(blobs.make(2).batch).square().sum().backward()  # type: ignore[no-untyped-call]
    lost = {key for key, p in encoder.model.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}
    assert all(key in ("mask_token", "decoder_norm.weight") for key in lost)


def test_damaged_or_other_weights_are_refused(published: tuple[Path, Any, Any], tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(published[0], tmp_path / "aion"))
    options: dict[str, Any] = {"survey": "hsc", "bands": BANDS, "cutout_px": 32, "name": "aion"}
    with pytest.raises(BadInput, match="expected 00"):
        load_aion(folder, expected_sha256="00", **options)
    file = folder / "codecs" / "image" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])
    with pytest.raises(BadInput, match="no whole safetensors file"):
        load_aion(folder, **options)
    shutil.copy(folder / "model.safetensors", file)
    with pytest.raises(BadInput, match="do not fit its config"):
        load_aion(folder, **options)
    file.unlink()
    with pytest.raises(BadInput, match=r"codecs/image/model\.safetensors: no such file"):
        load_aion(folder, **options)


def test_what_aion_does_not_know_is_refused_without_the_package(tmp_path: Path) -> None:
    options: dict[str, Any] = {"cutout_px": 32, "name": "aion"}
    with pytest.raises(BadInput, match="survey 'sdss' of AION-1"):
        load_aion(tmp_path, survey="sdss", bands=BANDS, **options)
    with pytest.raises(BadInput, match="band 'u': AION-1 was trained on hsc g r i z y"):
        load_aion(tmp_path, survey="hsc", bands=[Band("u", 355.0, noise_ujy=1)], **options)
    with pytest.raises(BadInput, match="noise_ujy=nan"):
        load_aion(tmp_path, survey="hsc", bands=blobs.BANDS, **options)
    with pytest.raises(BadInput, match="nowhere: no such folder"):
        load_aion(tmp_path / "nowhere", survey="hsc", bands=BANDS, **options)
    with pytest.raises(BadInput, match=r"no config\.json"):
        load_aion(tmp_path, survey="hsc", bands=BANDS, **options)
