"""models/cnn.py and models/inception.py on blobs and on noise; the published network's numbers counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import blobs
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redshelf.models import checkpoint
from redshelf.models.cnn import InceptionCNN, MultimodalCNN, conditions, default_streams
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.inception import Channels, Inception, size_of

NAMES = [band.name for band in blobs.BANDS]
TWO = [["g", "r"], ["i", "z"]]
CNN = InceptionCNN | MultimodalCNN


def plain(bands: list[str] = NAMES, *, cutout_px: int = 32, width: float = 0.15) -> InceptionCNN:
    torch.manual_seed(0)
    return InceptionCNN(bands, cutout_px=cutout_px, width=width, revision="unsaved")


def streamed(
    bands: list[str] = NAMES, *, streams: list[list[str]] | None = None, cutout_px: int = 32, width: float = 0.15
) -> MultimodalCNN:
    torch.manual_seed(0)
    named = streams or [[bands[k] for k in columns] for columns in default_streams(list(range(len(bands))))]
    return MultimodalCNN(bands, streams=named, cutout_px=cutout_px, width=width, revision="unsaved")


both = pytest.mark.parametrize("make", [plain, streamed])


@pytest.fixture(scope="module")
def few() -> Batch:
    return replace(blobs.make(6).batch, ebv=torch.full((6,), 0.02))


def letters(n: int) -> list[str]:
    return list("abcdefghijk"[:n])


def noise(n: int, bands: int, side: int) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(1).normal(0, 3, (n, bands, side, side)).astype(np.float32))
    state = torch.full((n, bands), 2, dtype=torch.int8)
    return Batch(state, pixels=pixels, pixel_mask=torch.zeros(pixels.shape, dtype=torch.bool))


def without(batch: Batch, *bands: int) -> Batch:
    state = batch.state.clone()
    state[:, list(bands)] = 0
    return replace(batch, state=state)


def pixels_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Copies of the pixels and their mask."""
    assert batch.pixels is not None and batch.pixel_mask is not None
    return batch.pixels.clone(), batch.pixel_mask.clone()


def outputs(encoder: CNN, batch: Batch, *modules: type[nn.Module]) -> list[tuple[int, int]]:
    """(channels, side) after each module of these types, in the order of a forward pass."""
    seen: list[tuple[int, int]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output.shape[1], output.shape[-1]))

    for module in encoder.modules():
        if isinstance(module, modules):
            module.register_forward_hook(note)
    encoder.embed(batch)
    return seen


def test_the_layers_at_width_1_are_those_of_the_published_network() -> None:
    encoder = plain(letters(5), cutout_px=64, width=1)
    assert encoder.channels == Channels(stem=96, kernels=156)
    assert encoder.channels.branches == [101, 101, 101, 109] and encoder.channels.block == 522
    seen = outputs(encoder, noise(1, 5, 64), Inception)
    assert seen == [(522, 32)] * 3 + [(522, 16)] * 2 + [(522, 8)]
    assert encoder.dim == 1024 and encoder.embed(noise(1, 5, 64)).shape == (1, 1024)


def test_the_parameters_at_width_1_are_those_counted_by_hand() -> None:
    stem = (6 * 25 + 1) * 96 + (27 + 1) * 96 + (96 * 9 + 1) * 96  # 5 bands and bad pixels; 5 * 5 + 2 scalars
    wide = (101 * 25 + 1) * 156 + (101 * 9 + 1) * 156
    blocks = (96 + 1) * 412 + 5 * (522 + 1) * 412 + 6 * wide  # 412 = 3 * 101 + 109
    valid = (522 * 9 + 1) * 96 + 2 * (96 * 9 + 1) * 96
    assert stem + blocks + valid + (96 + 1) * 1024 == 5_150_176
    assert size_of(plain(letters(5), cutout_px=64, width=1)) == 5_150_176


def test_the_mean_of_a_block_is_over_each_pixel_and_its_next_neighbours_inside_the_map() -> None:
    block = Inception(1, Channels(stem=1, kernels=2))  # four branches of one channel
    nn.init.ones_(block.reduce.weight)
    mean = block(torch.arange(9.0).view(1, 1, 3, 3))[0, 4]
    torch.testing.assert_close(mean, torch.tensor([[2, 3, 3.5], [5, 6, 6.5], [6.5, 7.5, 8]]))


def test_pixels_become_signed_logarithms() -> None:
    batch = noise(1, 4, 32)
    assert batch.pixels is not None
    batch.pixels[0, 0, 0, :3] = torch.tensor([0.0, np.e - 1, 1 - np.e**7])
    torch.testing.assert_close(plain().prepare(batch).values[0, 0, 0, :3], torch.tensor([0.0, 1.0, -7.0]))


def test_what_is_unknown_of_a_band_or_a_source_is_zero_and_flagged() -> None:
    batch = replace(
        noise(2, 2, 32), depth_ab=torch.tensor([28.0, float("nan")]), ebv=torch.tensor([0.05, float("nan")])
    )
    per_band, per_source = conditions(batch, torch.tensor([[True, True], [False, True]]))
    # present, depth, seeing, depth known, seeing known
    assert per_band.tolist() == [[[1, 1, 0, 1, 0], [1, 0, 0, 0, 0]], [[0, 0, 0, 0, 0], [1, 0, 0, 0, 0]]]
    assert per_source.tolist() == [[0.5, 1], [0, 0]]


def test_streams_are_three_neighbours_in_wavelength() -> None:
    assert default_streams([770, 355, 622, 475, 975, 890]) == [[1, 3, 2], [3, 2, 0], [2, 0, 5], [0, 5, 4]]
    assert default_streams(np.arange(11.0).tolist()) == [[k, k + 1, k + 2] for k in range(9)]
    assert default_streams([770, 355, 622]) == [[1, 2, 0]] and default_streams([500.0]) == [[0]]


@pytest.mark.parametrize("width", [0.25, 1.0])
@pytest.mark.parametrize("bands", [3, 5, 6, 11])
def test_both_networks_have_as_many_parameters(bands: int, width: float) -> None:
    one, many = (make(letters(bands), width=width) for make in (plain, streamed))
    assert size_of(many) == pytest.approx(size_of(one), rel=0.01)


@both
@pytest.mark.parametrize("bands", [5, 8, 11])
def test_five_to_eleven_bands_are_embedded(make: Callable[..., CNN], bands: int) -> None:
    vectors = make(letters(bands)).embed(noise(2, bands, 32))
    assert vectors.shape == (2, 154) and vectors.dtype == torch.float32 and torch.isfinite(vectors).all()
    assert not torch.equal(vectors[0], vectors[1])


@pytest.mark.parametrize(
    ("cutout_px", "sides"),
    [(32, [32, 16, 8]), (33, [33, 16, 8]), (48, [48, 24, 12]), (64, [32, 16, 8]), (100, [50, 25, 12])],
)
def test_the_first_pooling_is_left_out_for_small_cutouts(cutout_px: int, sides: list[int]) -> None:
    encoder = plain(["g"], cutout_px=cutout_px, width=0.1)
    seen = outputs(encoder, noise(1, 1, cutout_px), Inception)
    assert [side for _, side in seen] == [sides[0]] * 3 + [sides[1]] * 2 + [sides[2]]


@both
def test_cutouts_of_128_pixels_are_embedded(make: Callable[..., CNN]) -> None:
    assert torch.isfinite(make(cutout_px=128, width=0.1).embed(noise(1, 4, 128))).all()


def test_streams_join_at_16_pixels_of_a_cutout_of_64() -> None:
    encoder = streamed(streams=TWO, cutout_px=64)
    joined: list[torch.Size] = []
    encoder.trunk.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0].shape))
    encoder.embed(noise(1, 4, 64))
    assert joined == [(1, 2 * encoder.stream_channels.block, 16, 16)]


@both
def test_the_gradient_reaches_every_parameter_in_bfloat16(make: Callable[..., CNN], few: Batch) -> None:
    encoder = make().train()
    _, mask = pixels_of(few)
    mask[:, :, 3, 3] = True
    batch = replace(few, pixel_mask=mask, psf_fwhm_arcsec=torch.full((4,), 0.8))
    with torch.autocast("cpu", torch.bfloat16):
        features = encoder.features(batch)
    assert features.dtype == torch.float32 and features.requires_grad
    features.square().sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert bool((parameter.grad != 0).any()), name


@both
def test_what_lies_under_a_mask_or_in_an_absent_band_does_not_matter(make: Callable[..., CNN], few: Batch) -> None:
    encoder, (pixels, mask) = make(), pixels_of(few)
    mask[:, 1, :5] = True
    expected = encoder.embed(replace(without(few, 2), pixel_mask=mask))
    pixels[:, 1, :5], pixels[:, 2] = float("nan"), float("inf")
    assert torch.equal(encoder.embed(replace(without(few, 2), pixels=pixels, pixel_mask=mask)), expected)


@both
def test_a_wholly_masked_band_is_a_missing_band(make: Callable[..., CNN], few: Batch) -> None:
    encoder, (_, mask) = make(), pixels_of(few)
    mask[:, 0] = True
    assert torch.equal(encoder.embed(replace(few, pixel_mask=mask)), encoder.embed(without(few, 0)))


@both
def test_a_missing_band_is_neither_a_dark_nor_a_shuffled_one(make: Callable[..., CNN], few: Batch) -> None:
    few = replace(few, depth_ab=None)  # a depth would give the missing band away
    encoder, (dark, _), (shuffled, _) = make(), pixels_of(few), pixels_of(few)
    dark[:, 1] = 0
    shuffled[:, 1] = shuffled[:, 1].roll(1, dims=0)
    missing = encoder.embed(without(few, 1))
    for other in (dark, shuffled):
        assert float((encoder.embed(replace(few, pixels=other)) - missing).norm(dim=1).min()) > 1e-3


@both
def test_a_bad_pixel_is_not_a_dark_one(make: Callable[..., CNN], few: Batch) -> None:
    encoder, (dark, mask) = make(), pixels_of(few)
    dark[:, 1, 12:20], mask[:, 1, 12:20] = 0, True
    bad = encoder.embed(replace(few, pixel_mask=mask))
    assert float((encoder.embed(replace(few, pixels=dark)) - bad).norm(dim=1).min()) > 1e-3


@both
def test_unknown_reddening_is_not_zero_reddening(make: Callable[..., CNN], few: Batch) -> None:
    encoder, found = make(), []
    for ebv in (None, torch.full((6,), float("nan")), torch.zeros(6), torch.full((6,), 0.1)):
        found.append(encoder.embed(replace(few, ebv=ebv)))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2]) and not torch.equal(found[2], found[3])


@both
def test_any_one_band_alone_is_embedded_beside_sources_with_all(make: Callable[..., CNN], few: Batch) -> None:
    encoder, state = make(), few.state.clone()
    state[0, :3], state[1, 1:] = 0, 0
    mixed = encoder.embed(replace(few, state=state))
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed[2:], encoder.embed(few)[2:], atol=0.03, rtol=0.03)


def test_a_stream_without_bands_is_zero_and_the_others_make_up_for_it(few: Batch) -> None:
    encoder = streamed(streams=TWO)
    joined: list[Tensor] = []
    encoder.trunk.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    with torch.inference_mode():
        assert torch.isfinite(encoder.features(without(few, 0, 1))).all()
        encoder.features(few)
    half = encoder.stream_channels.block
    assert not joined[0][:, :half].any() and joined[1][:, :half].any()
    torch.testing.assert_close(joined[0][:, half:], 2**0.5 * joined[1][:, half:])


@both
def test_negative_pixels_and_brightness_count(make: Callable[..., CNN], few: Batch) -> None:
    encoder, (pixels, _) = make(), pixels_of(few)
    vectors = encoder.embed(few)
    for other in (pixels.clamp(min=0), 2 * pixels):
        assert float((encoder.embed(replace(few, pixels=other)) - vectors).norm(dim=1).min()) > 1e-2


@both
def test_cutouts_that_cannot_be_embedded_are_refused(make: Callable[..., CNN], few: Batch) -> None:
    encoder = make()
    with pytest.raises(BadInput, match=r"\(4, 32, 32\), bands g, r, i, z: got \(4, 40, 40\)"):
        encoder.embed(noise(1, 4, 40))
    with pytest.raises(BadInput, match=r"got \(5, 32, 32\)"):
        encoder.embed(noise(1, 5, 32))
    with pytest.raises(BadInput, match="6 sources have no band"):
        encoder.embed(without(few, 0, 1, 2, 3))
    with pytest.raises(BadInput, match="cutout_px=31: a CNN takes cutouts of 32"):
        make(cutout_px=31)
    with pytest.raises(BadInput, match=r"width=0\.01"):
        make(width=0.01)
    with pytest.raises(BadInput, match="g, r, g: expected one or more, each once"):
        make(["g", "r", "g"])


def test_streams_that_do_not_fit_the_bands_are_refused() -> None:
    for streams in ([["g", "r", "i"]], [["g", "r"], ["i", "z", "y"]]):
        with pytest.raises(BadInput, match=r"expected each of g, r, i, z in one or more"):
            streamed(streams=streams)
    for streams in ([["g", "r"], ["i", "z"], []], [["g", "r", "r"], ["i", "z"]]):
        with pytest.raises(BadInput, match=r"stream \[.*\]: expected one or more bands, each once"):
            streamed(streams=streams)
    with pytest.raises(BadInput, match="larger width or fewer streams"):
        streamed(letters(11), width=0.1)


@both
def test_the_network_comes_back_from_disk_with_the_same_vectors(
    make: Callable[..., CNN], few: Batch, tmp_path: Path
) -> None:
    encoder = make()
    back = checkpoint.load(checkpoint.save(encoder, tmp_path, provenance={}))
    assert isinstance(back, type(encoder)) and back.config == encoder.config
    assert torch.equal(back.embed(few), encoder.embed(few))


@both
def test_weights_of_another_width_are_refused(make: Callable[..., CNN]) -> None:
    narrow, wide = make(), make(width=0.25)
    with pytest.raises(BadInput, match="do not fit its config"):
        type(wide).from_config(wide.config, narrow.weights(), name="x", revision="y")


@pytest.mark.slow
@both
def test_training_learns_the_magnitudes_of_blobs(make: Callable[..., CNN]) -> None:
    sky, encoder = blobs.make(320), make()
    truth = torch.from_numpy(sky.magnitude).float() - 21
    head = nn.Linear(encoder.dim, 4)
    optimiser = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, total_iters=60)
    for step in range(60):
        chosen = np.random.default_rng(step).integers(0, 256, 32)
        with torch.autocast("cpu", torch.bfloat16):
            loss = (head(encoder.features(sky.fetch(chosen))).float() - truth[chosen]).square().mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    unseen = np.arange(256, 320)
    with torch.inference_mode():
        error = (head(encoder.features(sky.fetch(unseen))) - truth[unseen]).square().mean()
    assert float(error) < 0.3 * float(truth[unseen].var())
