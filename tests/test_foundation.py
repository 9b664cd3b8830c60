"""models/foundation.py and what it stands on, against the published classes called directly on the same images."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import blobs
import numpy as np
import pytest
import tiny_foundation as tiny
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models import checkpoint, foundation
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.foundation import FoundationEncoder, Pca, fit_pca, load_pretrained, rotated
from redshelf.models.photometry import batch_features, fit_scaling
from redshelf.models.triplets import Stretch, input_size, triplets

MAKERS: dict[str, Callable[[Path], nn.Module]] = {
    "dino": tiny.dino,
    "dinov2": tiny.dinov2,
    "dinov2_registers": tiny.dinov2_registers,
    "dinov3": tiny.dinov3,
    "clip": tiny.clip,
    "clip_of_transformers": tiny.clip_of_transformers,
}
NAMES = [band.name for band in blobs.BANDS]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Path, nn.Module]]]:
    """Folder and published model of each family."""
    root = tmp_path_factory.mktemp("hub")
    with torch.random.fork_rng([]):
        yield {name: (root / name, make(root / name)) for name, make in MAKERS.items()}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return blobs.make(5).batch


def load(folder: Path, **options: Any) -> FoundationEncoder:
    return load_pretrained(folder, bands=blobs.BANDS, cutout_px=blobs.CUTOUT_PX, **{"name": "tiny", **options})


def copied(hub: dict[str, tuple[Path, nn.Module]], name: str, to: Path) -> Path:
    return Path(shutil.copytree(hub[name][0], to / name))


def without(batch: Batch, *bands: int) -> Batch:
    state = batch.state.clone()
    state[:, list(bands)] = 0
    return replace(batch, state=state)


def pictures(batch: Batch, names: list[str], input_px: int) -> Tensor:
    """One triplet's images, (N, 3, input_px, input_px), band by band with the formula of the docstring."""
    assert batch.pixels is not None
    channels = []
    for band in names:
        flux = batch.pixels[:, NAMES.index(band)].double()
        curve = 0.15 + 0.85 * torch.asinh(flux / 3) / np.arcsinh(1000 / 3)
        channels.append(F.interpolate(curve[:, None], (input_px, input_px), mode="bicubic", align_corners=False)[:, 0])
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny.MEAN, tiny.STD))
    return ((torch.stack(channels, dim=1) - mean) / std).float()


@torch.no_grad()
def direct(name: str, model: Any, images: Tensor) -> Tensor:
    """CLS and mean of patches as the published class itself gives them."""
    if name == "clip":
        embedded = model.visual.ln_post(model.visual.transformer(model.visual._embeds(images)))
    elif name == "clip_of_transformers":
        embedded = model.vision_model.post_layernorm(model.vision_model(images).last_hidden_state)
    else:
        embedded = model(images, **({"interpolate_pos_encoding": True} if name == "dino" else {})).last_hidden_state
    before = 1 + (4 if name in ("dinov2_registers", "dinov3") else 0)
    return torch.cat([embedded[:, 0], embedded[:, before:].mean(dim=1)], dim=1)


def test_triplets_are_overlapping_neighbours_from_red_to_blue() -> None:
    u, g, r, i, z, y = range(6)
    assert triplets([355, 480, 622, 770, 890, 975]) == [(y, z, i), (i, r, g), (r, g, u)]
    assert triplets([622, 355]) == [(0, 0, 1)] and triplets([500]) == [(0, 0, 0)]
    with pytest.raises(BadInput, match="at least one band"):
        triplets([])


@pytest.mark.parametrize("n_bands", range(1, 13))
def test_every_band_and_every_pair_of_neighbours_is_in_a_triplet(n_bands: int) -> None:
    wavelength = np.random.default_rng(n_bands).permutation(np.linspace(350, 2200, n_bands))
    found = triplets(wavelength.tolist())
    assert {column for triplet in found for column in triplet} == set(range(n_bands))
    for pair in pairwise(np.argsort(wavelength).tolist()):
        assert any(set(pair) <= set(triplet) for triplet in found)
    for triplet in found:
        assert (np.diff(wavelength[list(triplet)]) <= 0).all()
    assert len(found) == max(1, n_bands // 2)


def test_the_stretch_keeps_zero_white_order_and_negative_pixels() -> None:
    stretch = Stretch((3.0, 1.0), (1000.0, 50.0), sky=0.2)
    flux = torch.tensor([-4.0, 0.0, 1.0, 50.0, 1000.0, 9000.0])[None, None, None].expand(1, 2, 1, 6)
    found = stretch(flux)[0, :, 0]
    assert found[:, 1].tolist() == pytest.approx([0.2, 0.2])
    assert [float(found[0, 4]), float(found[1, 3])] == pytest.approx([1, 1])
    assert (found.diff(dim=1) > 0).all() and (found[:, 0] < 0.2).all()
    assert float(stretch(-flux)[0, 0, 0, 3]) == pytest.approx(2 * 0.2 - float(found[0, 3]))
    with pytest.raises(BadInput, match="0 < softening < white"):
        Stretch((3.0,), (2.0,))


def test_the_input_is_the_multiple_of_the_patch_nearest_to_a_quarter_of_the_training_size() -> None:
    assert [input_size(64, patch) for patch in (8, 14, 16, 32)] == [112, 112, 112, 128]
    assert [input_size(32, 14), input_size(96, 16), input_size(4, 16)] == [56, 176, 16]


@pytest.mark.parametrize("name", MAKERS)
def test_vectors_are_those_of_the_published_class_on_the_same_images(
    name: str, hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    folder, model = hub[name]
    encoder = load(folder)
    expected = [direct(name, model, pictures(batch, t, encoder.input_px)) for t in (["z", "i", "r"], ["i", "r", "g"])]
    with torch.no_grad():
        found = encoder.features(batch)
    assert encoder.dim == found.shape[1] == 4 * tiny.HIDDEN
    torch.testing.assert_close(found, torch.cat(expected, dim=1), atol=2e-5, rtol=2e-5)
    embedded = encoder.embed(batch)
    assert embedded.dtype == torch.float32 and torch.isfinite(embedded).all()
    torch.testing.assert_close(embedded, found, atol=0.1, rtol=0.1)  # bfloat16


@pytest.mark.parametrize("input_px", [32, 96])
def test_a_clip_of_another_size_has_its_positions_interpolated_as_open_clip_does(
    input_px: int, hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    import open_clip  # type: ignore[import-untyped]

    folder = hub["clip"][0]
    model = open_clip.create_model(f"local-dir:{folder}", force_image_size=input_px).eval()
    encoder = load(folder, input_px=input_px)
    with torch.no_grad():
        found = encoder.features(batch)[:, : 2 * tiny.HIDDEN]
    expected = direct("clip", model, pictures(batch, ["z", "i", "r"], input_px))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["clip", "clip_of_transformers"])
def test_texts_and_images_of_a_projected_clip_are_in_the_published_space(
    name: str, hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    from open_clip.tokenizer import tokenize  # type: ignore[import-untyped]

    folder, model = hub[name]
    encoder = load(folder, space="projected")
    words = ["a red elliptical galaxy", "a blue spiral", "noise"]
    published: Any = model
    views = [pictures(batch, t, encoder.input_px) for t in (["z", "i", "r"], ["i", "r", "g"])]
    with torch.no_grad():
        if name == "clip":
            texts, vectors = published.encode_text(tokenize(words)), [published.encode_image(v) for v in views]
        else:
            outputs = [published.get_text_features(tokenize(words)), *map(published.get_image_features, views)]
            texts, *vectors = (getattr(out, "pooler_output", out) for out in outputs)  # transformers 5 wraps them
        found = encoder.features(batch)
    torch.testing.assert_close(encoder.embed_text(words), F.normalize(texts, dim=1), atol=1e-5, rtol=1e-5)
    mean = F.normalize(sum(F.normalize(v, dim=1) for v in vectors), dim=1)
    torch.testing.assert_close(found, mean, atol=1e-5, rtol=1e-5)
    assert encoder.dim == encoder.embed_text(["x"]).shape[1] == 24


def test_texts_are_refused_where_there_is_no_space_for_them(hub: dict[str, tuple[Path, nn.Module]]) -> None:
    with pytest.raises(BadInput, match="space='projected'"):
        load(hub["clip"][0]).embed_text(["galaxy"])
    with pytest.raises(BadInput, match="only a CLIP has a space"):
        load(hub["dino"][0], space="projected")
    for texts in ([], [""], "galaxy"):
        with pytest.raises(BadInput, match="expected a list"):
            load(hub["clip"][0], space="projected").embed_text(texts)


@pytest.mark.parametrize("name", MAKERS)
def test_an_encoder_comes_back_from_disk_without_the_published_folder(
    name: str, hub: dict[str, tuple[Path, nn.Module]], batch: Batch, tmp_path: Path
) -> None:
    encoder = load(hub[name][0])
    back = checkpoint.load(checkpoint.save(encoder, tmp_path, provenance=encoder.provenance))
    assert back.revision == encoder.revision == checkpoint.revision(back)
    assert torch.equal(back.embed(batch), encoder.embed(batch))


def test_a_projected_clip_comes_back_with_its_texts(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch, tmp_path: Path
) -> None:
    encoder = load(hub["clip"][0], space="projected", input_px=96)
    back = checkpoint.load(checkpoint.save(encoder, tmp_path, provenance={}))
    assert isinstance(back, FoundationEncoder)
    assert torch.equal(back.embed(batch), encoder.embed(batch))
    assert torch.equal(back.embed_text(["galaxy"]), encoder.embed_text(["galaxy"]))


def test_stored_weights_of_another_config_are_refused(hub: dict[str, tuple[Path, nn.Module]]) -> None:
    encoder = load(hub["dinov2"][0])
    short = {key: value for key, value in encoder.weights().items() if "layer.1.norm1" not in key}
    with pytest.raises(BadInput, match=r"encoder 'other'.*do not fit the config: they lack 2 tensors"):
        FoundationEncoder.from_config(encoder.config, short, name="other", revision="0")
    with pytest.raises(BadInput, match="also hold 1 tensors, the first strange"):
        more = encoder.weights() | {"tower.model.strange": torch.zeros(1)}
        FoundationEncoder.from_config(encoder.config, more, name="other", revision="0")
    with pytest.raises(BadInput, match="pca_mean of shape"):
        config = encoder.config | {"pca": {"dim": 3, "explained": [], "sources": 9}}
        FoundationEncoder.from_config(config, encoder.weights(), name="other", revision="0")


def test_a_missing_band_takes_the_mean_of_the_others_of_its_triplet(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    folder, model = hub["dinov2"]
    encoder = load(folder)
    with torch.no_grad():
        found = encoder.features(without(batch, NAMES.index("r")))[:, : 2 * tiny.HIDDEN]
    shown = pictures(batch, ["z", "i", "r"], encoder.input_px)
    mean, std = (torch.tensor(values)[:, None, None] for values in (tiny.MEAN, tiny.STD))
    plain = shown * std + mean
    plain[:, 2] = plain[:, :2].mean(dim=1)
    expected = direct("dinov2", model, (plain - mean) / std)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_a_triplet_without_bands_is_zero_and_the_others_stay(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    encoder = load(hub["dinov2"][0])
    gone = without(batch, *(NAMES.index(band) for band in "gri"))
    mixed = replace(batch, state=torch.cat([gone.state[:2], batch.state[2:]]))
    with torch.no_grad():
        whole, found = encoder.features(batch), encoder.features(mixed)
    half = encoder.dim // 2
    assert (found[:2, half:] == 0).all() and (found[:2, :half] != 0).any()
    torch.testing.assert_close(found[2:], whole[2:], atol=1e-5, rtol=1e-5)
    with pytest.raises(BadInput, match="5 sources have no band"):
        encoder.embed(without(batch, 0, 1, 2, 3))


def test_what_lies_under_a_mask_or_in_an_absent_band_does_not_matter(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    encoder = load(hub["dino"][0])
    assert batch.pixels is not None and batch.pixel_mask is not None
    mask, pixels = batch.pixel_mask.clone(), batch.pixels.clone()
    mask[:, 1, :5] = True
    expected = encoder.embed(replace(without(batch, 2), pixel_mask=mask))
    pixels[:, 1, :5], pixels[:, 2] = float("nan"), float("inf")
    assert torch.equal(encoder.embed(replace(without(batch, 2), pixels=pixels, pixel_mask=mask)), expected)
    with pytest.raises(BadInput, match="not finite and not masked"):
        encoder.embed(replace(batch, pixels=pixels))
    with pytest.raises(BadInput, match=r"got \(4, 30, 30\)"):
        encoder.embed(replace(batch, pixels=pixels[..., :30, :30], pixel_mask=mask[..., :30, :30]))


def test_vectors_do_not_depend_on_the_company_or_on_how_a_batch_is_cut(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(hub["dinov3"][0])
    with torch.no_grad():
        together = encoder.features(batch)
        alone = encoder.features(batch.select(torch.tensor([False, False, True, False, False])))
        monkeypatch.setattr(foundation, "CHUNK_TOKENS", 2 * encoder.tokens * len(encoder.channels))
        cut = encoder.features(batch)
    torch.testing.assert_close(alone[0], together[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cut, together, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_reaches_every_weight_after_an_embedding(
    name: str, hub: dict[str, tuple[Path, nn.Module]], batch: Batch
) -> None:
    encoder = load(hub[name][0])
    encoder.embed(batch)
    encoder.train()
    out = encoder.features(batch)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()  # type: ignore[no-untyped-call]
    lost = {key for key, p in encoder.named_parameters() if p.grad is None or not bool((p.grad != 0).any())}
    # softmax does not feel a constant added to all keys; nothing is masked
    assert {key for key in lost if "mask_token" not in key and "k_proj.bias" not in key} == set()


def test_weights_name_where_they_come_from(hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    import hashlib

    folder = copied(hub, "dinov2", tmp_path)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    encoder = load(folder, expected_sha256=digest)
    assert encoder.provenance == {"family": "dinov2", "name": "dinov2", "sha256": digest}
    assert encoder.config["origin"] == {"name": "dinov2", "sha256": digest}
    with pytest.raises(BadInput, match=f"sha256 is {digest}, expected 00"):
        load(folder, expected_sha256="00")
    cache = tmp_path / "models--facebook--dinov2-small" / "snapshots" / "ed25f3a3"
    shutil.copytree(folder, cache)
    assert load(cache).provenance["name"] == "facebook/dinov2-small"


def test_random_weights_are_a_control_of_their_seed(hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    folder = copied(hub, "dinov2", tmp_path)
    (folder / "model.safetensors").unlink()
    state = torch.get_rng_state()
    one, same, other = (load(folder, random_seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.revision == same.revision != other.revision
    assert one.provenance == {"family": "dinov2", "name": "random", "seed": 1, "architecture_of": "dinov2"}


def test_sharded_weights_are_read_whole(hub: dict[str, tuple[Path, nn.Module]], batch: Batch, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(hub, "dino", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {key: f"model-0000{1 + (key in names[20:])}-of-00002.safetensors" for key in names}
    for file in set(index.values()):
        save_file({key: tensors[key] for key in names if index[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert torch.equal(load(folder).embed(batch), load(hub["dino"][0]).embed(batch))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../x.safetensors"}}))
    with pytest.raises(BadInput, match=r"x\.safetensors', which is no file of"):
        load(folder)


@pytest.mark.parametrize("name", MAKERS)
def test_an_encoder_shares_no_memory_with_its_file_or_with_another(
    name: str, hub: dict[str, tuple[Path, nn.Module]], batch: Batch, tmp_path: Path
) -> None:
    folder = copied(hub, name, tmp_path)
    encoder = load(folder)
    expected = encoder.embed(batch)
    twin = FoundationEncoder.from_config(encoder.config, encoder.weights(), name="twin", revision="0")
    for value in twin.parameters():
        value.data.fill_(0.1)
    file = next(folder.glob("*.safetensors"))
    with file.open("r+b") as handle:
        handle.write(bytes(file.stat().st_size))
    assert torch.equal(encoder.embed(batch), expected)


def test_what_is_not_there_is_named(hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nowhere: no such folder"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"empty: no config\.json"):
        load(tmp_path / "empty")
    folder = copied(hub, "clip", tmp_path)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"clip: no open_clip_model\.safetensors or"):
        load(folder)
    with pytest.raises(BadInput, match=r"other\.safetensors: no such file"):
        load(folder, weights=tmp_path / "other.safetensors")


def test_a_network_of_another_family_is_refused(hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds a dinov2 network, of family 'dinov2': expected 'dino'"):
        load(hub["dinov2"][0], family="dino")
    with pytest.raises(BadInput, match=r"family 'dinov4'.*nearest: dinov3"):
        load(hub["dinov2"][0], family="dinov4")
    folder = copied(hub, "dino", tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(BadInput, match="model_type 'bert' is no image encoder"):
        load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(BadInput, match=r"config\.json is no JSON"):
        load(folder)


def test_a_pickle_is_refused_wherever_it_stands_and_the_message_converts_it(
    hub: dict[str, tuple[Path, nn.Module]], batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    folder = copied(hub, "dino", tmp_path)
    pickle = folder / "pytorch_model.bin"
    torch.save(load_file(folder / "model.safetensors"), pickle)
    (folder / "model.safetensors").unlink()
    for options in ({"folder": folder}, {"folder": pickle}, {"folder": hub["dino"][0], "weights": pickle}):
        with pytest.raises(BadInput, match=r"pytorch_model\.bin is a pickle, which can run code") as caught:
            load(**options)  # type: ignore[arg-type]
    command = str(caught.value).partition('python -c "')[2].rstrip('"')
    monkeypatch.chdir(folder)
    exec(command, {})
    assert torch.equal(load(folder).embed(batch), load(hub["dino"][0]).embed(batch))
    shutil.copy(pickle, folder / "model.safetensors")
    with pytest.raises(BadInput, match=r"model\.safetensors is a pickle"):
        load(folder)


def test_damaged_weights_are_refused(hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(hub, "dinov2", tmp_path)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for size in (0, 5, 300, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(BadInput, match=r"model\.safetensors is no whole safetensors file"):
            load(folder)
    file.write_bytes(whole)
    tensors = load_file(file)
    tensors["layernorm.bias"] = tensors["layernorm.bias"].fill_(float("nan"))
    save_file(tensors, file)
    with pytest.raises(BadInput, match=r"layernorm\.bias holds values that are not finite"):
        load(folder)


@pytest.mark.parametrize("name", ["dino", "dinov3", "clip", "clip_of_transformers"])
def test_a_config_that_does_not_fit_the_weights_is_refused(
    name: str, hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    folder = copied(hub, name, tmp_path)
    path = folder / ("open_clip_config.json" if name == "clip" else "config.json")
    raw = json.loads(path.read_text())
    tower = {"clip": lambda: raw["model_cfg"]["vision_cfg"], "clip_of_transformers": lambda: raw["vision_config"]}
    part, key = tower.get(name, lambda: raw)(), "layers" if name == "clip" else "num_hidden_layers"
    for layers, message in ((3, "they lack"), (1, "they also hold")):
        path.write_text(json.dumps(raw, default=part.update({key: layers})))  # type: ignore[func-returns-value]
        with pytest.raises(BadInput, match=f"{name}.*the weights do not fit the config: {message}"):
            load(folder)
    width = "width" if name == "clip" else "hidden_size"
    part |= {key: 2, width: 64}
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match="have another shape in"):
        load(folder)
    part[width] = "wide"
    path.write_text(json.dumps(raw))
    with pytest.raises(BadInput, match="no network can be made of this"):
        load(folder)


def test_settings_that_make_no_sense_are_refused(hub: dict[str, tuple[Path, nn.Module]]) -> None:
    folder = hub["dinov2"][0]
    with pytest.raises(BadInput, match="input_px=100: expected a multiple of the patch"):
        load(folder, input_px=100)
    with pytest.raises(BadInput, match="stretch of 2 bands for an encoder of 4"):
        load(folder, stretch=Stretch.default(2))
    with pytest.raises(BadInput, match="space 'tunk' of a foundation encoder; nearest: trunk"):
        load(folder, space="tunk")
    with pytest.raises(BadInput, match="not both"):
        load(folder, random_seed=1, expected_sha256="0")


def turned(pca: Pca, features: Tensor, known: Tensor) -> Tensor:
    return rotated(features, known, mean=pca.mean, components=pca.components)


def test_a_pca_of_full_rank_reconstructs_and_a_short_one_decorrelates() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3
    known = torch.ones_like(features, dtype=torch.bool)
    whole, short = fit_pca(features, dim=6), fit_pca(features, dim=3)
    back = turned(whole, features, known) @ whole.components + whole.mean
    torch.testing.assert_close(back, features, atol=1e-4, rtol=1e-4)
    covariance = torch.cov(turned(short, features, known).T)
    assert float((covariance - covariance.diag().diag()).abs().max()) < 1e-4 * float(covariance.max())
    assert (covariance.diag().diff() < 0).all()
    expected = torch.linalg.eigvalsh(torch.cov(features.T)).flip(0)
    torch.testing.assert_close(covariance.diag(), expected[:3], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(short.explained, expected[:3] / expected.sum(), atol=1e-4, rtol=1e-4)
    with pytest.raises(BadInput, match="expected 1 to 6"):
        fit_pca(features, dim=7)


def test_a_pca_of_fewer_sources_than_dimensions_holds_each_of_them() -> None:
    features = torch.randn(5, 9, generator=torch.Generator().manual_seed(0)) + 2
    pca = fit_pca(features, dim=4)
    back = turned(pca, features, torch.ones_like(features, dtype=torch.bool)) @ pca.components + pca.mean
    torch.testing.assert_close(back, features, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(4), atol=1e-5, rtol=1e-5)
    assert float(pca.explained.sum()) == pytest.approx(1)


def test_blocks_that_are_unknown_do_not_move_the_pca() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(500, 8, generator=generator) + 5
    features[:250, 4:] = 0
    pca = fit_pca(features, dim=8, blocks=2)
    torch.testing.assert_close(pca.mean[4:], features[250:, 4:].mean(dim=0))
    half = torch.ones(500, 8, dtype=torch.bool)
    half[:250, 4:] = False
    inside = turned(pca, features, half) @ pca.components
    assert float(inside[:250, 4:].abs().max()) < 1e-4


def test_a_fitted_encoder_has_few_dimensions_and_photometry_of_equal_variance(
    hub: dict[str, tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    sky = blobs.make(120).batch
    assert sky.flux_ujy is not None and sky.flux_error_ujy is not None
    scaling = fit_scaling(sky.flux_ujy, sky.flux_error_ujy, sky.state.numpy(), bands=blobs.BANDS)
    plain = load(hub["dinov2"][0])
    halves = [sky.select(torch.arange(120) % 2 == part) for part in (0, 1)]
    encoder = plain.fitted(halves, pca_dim=8, photometry=scaling)
    assert (plain.dim, encoder.dim) == (128, 8 + 4) and encoder.revision != plain.revision
    assert encoder.needs == {"pixels", "fluxes"} and plain.needs == {"pixels"}
    vectors = encoder.embed(sky)
    weight = encoder.config["photometry"]["weight"]
    torch.testing.assert_close(vectors[:, 8:], batch_features(sky, scaling, "")[:, :4] * weight)
    assert float(vectors[:, :8].var(dim=0).sum()) == pytest.approx(4 * weight**2, rel=0.02)
    assert float(torch.corrcoef(vectors[:, :8].T).fill_diagonal_(0).abs().max()) < 0.05
    assert 0 < sum(encoder.config["pca"]["explained"]) <= 1
    back = checkpoint.load(checkpoint.save(encoder, tmp_path, provenance={}))
    assert back.revision == encoder.revision and torch.equal(back.embed(sky), vectors)
    with pytest.raises(BadInput, match="needs fluxes"):
        encoder.embed(replace(sky, flux_ujy=None))
    with pytest.raises(BadInput, match="fitted on 0 sources"):
        plain.fitted([], pca_dim=4)
    with pytest.raises(BadInput, match="fitted already"):
        encoder.fitted(halves, pca_dim=4)


def test_photometry_can_stand_beside_the_whole_vectors(hub: dict[str, tuple[Path, nn.Module]]) -> None:
    sky = blobs.make(60).batch
    assert sky.flux_ujy is not None and sky.flux_error_ujy is not None
    scaling = fit_scaling(sky.flux_ujy, sky.flux_error_ujy, sky.state.numpy(), bands=blobs.BANDS)
    plain = load(hub["clip"][0])
    encoder = plain.fitted([sky], photometry=scaling)
    assert encoder.dim == plain.dim + 4
    assert torch.equal(encoder.embed(sky)[:, : plain.dim], plain.embed(sky))
    with pytest.raises(BadInput, match="expected the same"):
        plain.fitted([sky], photometry=replace(scaling, bands=("a", "b", "c", "d")))
