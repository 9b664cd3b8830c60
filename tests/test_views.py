"""models/views.py against what each effect does to flux, noise and conditions by its own formula."""

from __future__ import annotations

import math
from dataclasses import replace

import blobs
import numpy as np
import pytest
import torch
from torch import Tensor

from redshelf.models import views
from redshelf.models.backbone import observed
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.views import FWHM_SIGMA, Instrument

EXTINCTION = torch.tensor([3.2, 2.3, 1.7, 1.3])
SCALE = 0.168


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def sky(n: int = 48) -> Batch:
    """Blobs with all conditions known, no bad pixel."""
    return replace(blobs.make(n).batch, psf_fwhm_arcsec=torch.full((4,), 0.7), ebv=torch.full((n,), 0.02))


def smooth(n: int = 3, px: int = 33) -> Batch:
    """A Gaussian of sigma 2 and flux 1 in the middle of every band, without noise."""
    place = torch.arange(px) - (px - 1) / 2
    profile = torch.exp(-(place[:, None] ** 2 + place**2) / 8)
    pixels = (profile / profile.sum()).expand(n, 4, px, px).clone()
    state = torch.full((n, 4), 2, dtype=torch.int8)
    return Batch(state, pixels, torch.zeros(pixels.shape, dtype=torch.bool), psf_fwhm_arcsec=torch.full((4,), 0.7))


def images(batch: Batch) -> Tensor:
    assert batch.pixels is not None
    return batch.pixels


def flux(batch: Batch) -> Tensor:
    """Sum over the good pixels, (N, bands)."""
    assert batch.pixel_mask is not None
    return torch.where(batch.pixel_mask, 0.0, images(batch)).sum(dim=(2, 3))


def colours(batch: Batch) -> Tensor:
    values = flux(batch)
    return values[:, :-1] / values[:, 1:]


def test_the_eighths_of_a_batch_keep_every_flux() -> None:
    batch = sky(16)
    view = views.turned(batch)
    torch.testing.assert_close(flux(view), flux(batch), rtol=1e-4, atol=1e-2)
    assert torch.equal(images(view)[:2], images(batch)[:2]) and not torch.equal(images(view)[2:], images(batch)[2:])


def test_the_eight_orientations_are_those_of_numpy_and_turn_the_mask_along() -> None:
    batch = sky(8)
    assert batch.pixel_mask is not None
    mask = batch.pixel_mask.clone()
    mask[:, :, 3, 9] = True
    view = views.oriented(replace(batch, pixel_mask=mask), torch.arange(8))
    found = {
        next(
            (turns, flips)
            for turns in range(4)
            for flips in range(2)
            if np.array_equal(np.rot90(np.flip(image, -1) if flips else image, turns, (-2, -1)), turned)
        )
        for image, turned in zip(images(batch).numpy(), images(view).numpy(), strict=True)
    }
    assert len(found) == 8
    torch.testing.assert_close(flux(view), flux(replace(batch, pixel_mask=mask)), rtol=1e-4, atol=1e-2)


def test_a_shift_moves_whole_pixels_and_marks_what_comes_in_as_bad() -> None:
    batch = smooth(2)
    view = views.shifted(batch, torch.tensor([[3, -2], [0, 4]]))
    assert view.pixel_mask is not None
    assert torch.equal(images(view)[0, :, 3:, :-2], images(batch)[0, :, :-3, 2:])
    assert torch.equal(images(view)[1, :, :, 4:], images(batch)[1, :, :, :-4])
    assert view.pixel_mask[0, :, :3].all() and view.pixel_mask[0, :, :, -2:].all()
    assert not view.pixel_mask[0, :, 3:, :-2].any() and not view.pixel_mask[1, :, :, 4:].any()
    torch.testing.assert_close(flux(view), flux(batch), rtol=1e-5, atol=0)


def test_a_shift_takes_the_mask_along() -> None:
    batch = sky(1)
    assert batch.pixel_mask is not None
    mask = batch.pixel_mask.clone()
    mask[0, 1, 10, 12] = True
    view = views.shifted(replace(batch, pixel_mask=mask), torch.tensor([[2, 1]]))
    assert view.pixel_mask is not None
    assert view.pixel_mask[0, 1, 12, 13] and view.pixel_mask[0].sum() == 4 * (2 * 32 + 30) + 1


def test_added_noise_has_the_variance_asked_for_and_the_depth_follows() -> None:
    batch = replace(sky(), pixels=torch.zeros(48, 4, 32, 32))
    wanted = torch.tensor([1.0, 1.2, 1.6, 2.0]).expand(48, 4)
    view = views.noisier(batch, torch.ones_like(wanted), wanted)
    variance = images(view).var(dim=(0, 2, 3))
    assert variance[0] == 0
    torch.testing.assert_close(variance[1:], wanted[0, 1:].square() - 1, rtol=0.02, atol=0)
    assert view.depth_ab is not None
    torch.testing.assert_close(view.depth_ab, 26.5 - 2.5 * wanted.log10())


def test_noise_is_never_taken_away() -> None:
    batch = sky()
    had = torch.full((48, 4), 1.5)
    view = views.noisier(batch, had, torch.ones_like(had))
    assert torch.equal(images(view), images(batch)) and view.depth_ab is not None
    torch.testing.assert_close(view.depth_ab, torch.full((48, 4), 26.5 - 2.5 * math.log10(1.5)))


def test_dimming_scales_the_flux_in_all_bands_keeps_the_noise_at_one_and_the_colours() -> None:
    batch, loss = sky(400), torch.full((400,), 1.0)
    view = views.dimmed(batch, loss)
    factor = 10**-0.4
    noise = math.sqrt(1 - factor**2) * 32  # of the sum over the cutout
    residual = flux(view) - factor * flux(batch)
    assert float(residual.std()) == pytest.approx(noise, rel=0.05)
    assert float(residual.mean()) == pytest.approx(0, abs=4 * noise / 40)
    assert float(images(view)[:, :, :4, :4].var()) == pytest.approx(1, rel=0.03)
    assert view.flux_ujy is not None and batch.flux_ujy is not None and view.depth_ab is not None
    torch.testing.assert_close(view.flux_ujy, batch.flux_ujy * factor)
    assert torch.equal(view.depth_ab, torch.full((400, 4), 26.5))
    bright = flux(view).min(dim=1).values > 100 * noise
    assert bright.sum() > 30
    torch.testing.assert_close(colours(view)[bright], colours(batch)[bright], rtol=5 * math.sqrt(2) / 100, atol=0)


def test_reddening_takes_ten_to_minus_0_4_a_band() -> None:
    batch = smooth()
    delta = torch.tensor([0.0, 0.03, 0.1])
    ratio = flux(views.scaled(batch, views.reddening(delta, EXTINCTION))) / flux(batch)
    torch.testing.assert_close(ratio, 10 ** (-0.4 * delta[:, None] * EXTINCTION))


@pytest.mark.parametrize("sigma", [0.2, 1.0, 1.7])
def test_a_blur_keeps_the_flux_and_adds_its_variance_to_the_profile(sigma: float) -> None:
    batch = smooth()
    widths = torch.tensor([0.0, sigma, sigma, 0.5]).expand(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        view = views.blurred(batch, widths, SCALE)
    torch.testing.assert_close(flux(view), flux(batch), rtol=1e-3, atol=0)
    place = torch.arange(33.0) - 16
    variance = (images(view).sum(dim=3) * place.square()).sum(dim=2) / flux(view)
    torch.testing.assert_close(variance, 4 + widths.square(), rtol=4e-3, atol=0)
    assert view.psf_fwhm_arcsec is not None
    expected = torch.sqrt(0.7**2 + (FWHM_SIGMA * SCALE * widths).square())
    torch.testing.assert_close(view.psf_fwhm_arcsec, expected)


def test_a_blur_does_not_spread_bad_pixels() -> None:
    batch = replace(smooth(), pixels=torch.full((3, 4, 33, 33), 2.0))
    pixels, mask = images(batch).clone(), torch.zeros(3, 4, 33, 33, dtype=torch.bool)
    pixels[:, :, 5, 5], mask[:, :, 5, 5] = float("nan"), True
    view = views.blurred(replace(batch, pixels=pixels, pixel_mask=mask), torch.full((3, 4), 1.5), SCALE)
    torch.testing.assert_close(images(view)[~mask], torch.full_like(images(view)[~mask], 2.0))
    assert view.pixel_mask is mask


def test_a_hidden_band_is_as_if_it_had_not_been_observed_and_one_always_stays() -> None:
    present = torch.rand(500, 4) < 0.7
    drawn = views.some_bands(present, most=1.0)
    assert not (drawn & ~present).any() and drawn.any()
    assert (present & ~drawn).any(dim=1)[present.any(dim=1)].all()
    view = views.hidden(sky(), drawn[:48])
    assert torch.equal(view.state == 0, drawn[:48]) and torch.equal(view.state[~drawn[:48]], sky().state[~drawn[:48]])


def test_holes_spare_the_core_and_are_no_wider_than_a_quarter() -> None:
    view = views.holed(sky(), rate=1.0)
    mask = view.pixel_mask
    assert mask is not None and mask.flatten(2).any(dim=2).float().mean() > 0.9
    place = torch.arange(32) - 15.5
    core = place[:, None] ** 2 + place**2 <= (views.CORE_FRACTION * 32) ** 2
    assert core.sum() > 60 and not mask[:, :, core].any()
    assert mask.any(dim=3).sum(dim=2).max() <= 9 and mask.any(dim=2).sum(dim=2).max() <= 9
    assert not views.holed(sky(), rate=0.0).pixel_mask.any()  # type: ignore[union-attr]


def test_a_view_is_finite_repeats_with_its_seed_and_leaves_its_source_alone() -> None:
    batch, instrument = sky(), Instrument(tuple(EXTINCTION.tolist()), SCALE)
    before = images(batch).clone()
    made = []
    for start in (3, 3, 4):
        torch.manual_seed(start)
        made.append(views.view(batch, instrument))
    assert torch.equal(images(made[0]), images(made[1])) and not torch.equal(images(made[0]), images(made[2]))
    assert all(torch.isfinite(images(view)).all() and observed(view).any(dim=1).all() for view in made)
    assert torch.equal(images(batch), before)
    assert torch.equal(made[0].flux_ujy, batch.flux_ujy)  # type: ignore[arg-type]


def test_without_dust_views_change_colours_by_no_more_than_the_zero_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "holed", lambda batch: batch)  # a hole takes flux from a sum, not from a source
    batch, instrument = smooth(300), Instrument((0.0,) * 4, SCALE)
    batch = replace(batch, pixels=1e5 * images(batch), ebv=torch.full((300,), 0.02))
    made = views.view(batch, instrument)
    seen = (made.state > 0)[:, :-1] & (made.state > 0)[:, 1:]
    change = 2.5 * torch.log10(colours(made) / colours(batch)).abs()
    assert 0.03 < float(change[seen].max()) < 2 * views.ZERO_POINT_MAG + 0.01


def test_without_a_pixel_scale_the_seeing_stays_and_without_conditions_none_is_made_up() -> None:
    instrument = Instrument(tuple(EXTINCTION.tolist()))
    bare = replace(sky(), depth_ab=None, psf_fwhm_arcsec=None, ebv=None)
    made = views.view(bare, instrument)
    assert made.depth_ab is None and made.psf_fwhm_arcsec is None and made.ebv is None
    kept = views.view(sky(), instrument).psf_fwhm_arcsec
    assert kept is None or torch.equal(kept, torch.full((4,), 0.7))


def test_half_of_the_sources_are_dimmed_by_up_to_a_magnitude() -> None:
    drawn = views.drawn_dimming(4000, torch.device("cpu"))
    assert float((drawn == 0).float().mean()) == pytest.approx(0.5, abs=0.03)
    assert 0.95 * views.DIMMING_MAG < float(drawn.max()) <= views.DIMMING_MAG


def test_a_view_needs_pixels() -> None:
    with pytest.raises(BadInput, match="a view needs pixels"):
        views.shifted(replace(sky(), pixels=None, pixel_mask=None), torch.zeros(48, 2, dtype=torch.int64))
