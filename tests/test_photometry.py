"""models/photometry.py against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from redshelf.models import checkpoint
from redshelf.models.bands import Band, State, ab_to_flux
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.photometry import (
    MASK_DISTANCE,
    Photometry,
    Scaling,
    colour_usable,
    columns,
    features,
    fit_scaling,
)

BANDS = [Band(n, w, depth_ab=30.0) for n, w in zip("gri", (475.0, 622.0, 770.0), strict=True)]


def survey(n: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Magnitudes, fluxes and states of `n` sources with a median spectrum of g-r = 1.0 and r-i = 0.5."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=(n, 3)) * 0.3
    shift -= np.median(shift, axis=0)
    magnitude = 22 + np.array([1.5, 0.5, 0.0]) + shift
    return magnitude, np.asarray(ab_to_flux(magnitude)), np.full((n, 3), State.MEASURED, np.int8)


def fitted() -> Scaling:
    _, flux, state = survey()
    return fit_scaling(flux, 0.02 * flux, state, bands=BANDS)


def one(magnitude: list[float], state: list[int]) -> np.ndarray:
    return features(ab_to_flux([magnitude]), np.array([state], np.int8), fitted())[0]


def test_features_of_a_bright_source_are_its_ab_colours_and_magnitude() -> None:
    assert fitted().names == ("g-r", "r-i", "i", "observed_g", "observed_r", "observed_i")
    np.testing.assert_allclose(one([22.0, 21.0, 20.5], [2, 2, 2]), [1.0, 0.5, 20.5, 1, 1, 1], atol=1e-6)


def test_bands_in_any_order_give_colours_by_wavelength() -> None:
    magnitude, flux, state = survey()
    scaling = fit_scaling(flux[:, ::-1], flux[:, ::-1] * 0.02, state, bands=BANDS[::-1])
    assert scaling.names[:3] == ("g-r", "r-i", "i")
    values = features(flux[:, ::-1], state, scaling)
    np.testing.assert_allclose(values[:, 0], magnitude[:, 0] - magnitude[:, 1], atol=1e-4)


def test_a_missing_band_in_the_middle_keeps_the_colour_across_it() -> None:
    values = one([23.0, np.nan, 20.5], [2, 0, 2])
    assert values[:2].sum() == pytest.approx(2.5, abs=1e-6)
    np.testing.assert_array_equal(values[3:], [1, 0, 1])


def test_a_missing_band_at_the_end_takes_the_median_colour() -> None:
    scaling = fitted()
    assert one([np.nan, 21.0, 20.7], [0, 2, 2])[0] == pytest.approx(scaling.sed_mag[0] - scaling.sed_mag[1])


def test_a_saturated_flux_is_not_believed_and_is_told_apart_from_an_absent_one() -> None:
    saturated, absent = one([23.0, 15.0, 20.5], [2, 3, 2]), one([23.0, np.nan, 20.5], [2, 0, 2])
    np.testing.assert_allclose(saturated[:3], absent[:3])
    assert (saturated[4], absent[4]) == (-1, 0)


def test_negative_fluxes_stay_finite_and_ordered() -> None:
    flux = np.array([[1.0, 1.0, -0.1], [1.0, 1.0, -0.01], [1.0, 1.0, 0.01]])
    values = features(flux, np.ones((3, 3), np.int8), fitted())
    assert np.isfinite(values).all()
    assert (np.diff(values[:, 2]) < 0).all()


def test_a_source_without_any_band_is_finite_and_central() -> None:
    values = one([np.nan, np.nan, np.nan], [0, 0, 0])
    assert np.isfinite(values).all()
    assert values[2] == pytest.approx(fitted().centre[2])


def test_a_band_without_any_source_is_constant() -> None:
    _, flux, state = survey()
    flux[:, 1], state[:, 1] = np.nan, State.NOT_OBSERVED
    photometry = Photometry.fit(flux, 0.02 * flux, state, bands=BANDS)
    vectors = photometry.embed(Batch(torch.from_numpy(state), flux_ujy=torch.from_numpy(flux)))
    assert torch.isfinite(vectors).all()


def test_depth_unknown_takes_the_median_error_as_softening() -> None:
    _, flux, state = survey()
    bands = [Band(b.name, b.wavelength_nm) for b in BANDS]
    assert fit_scaling(flux, np.full(flux.shape, 0.25), state, bands=bands).softening_ujy == (0.25, 0.25, 0.25)


def test_sources_with_other_band_sets_stay_apart() -> None:
    _, flux, state = survey()
    photometry = Photometry.fit(flux, 0.02 * flux, state, bands=BANDS)
    flux, state = np.repeat(flux[:1], 2, axis=0), np.repeat(state[:1], 2, axis=0)
    state[1, 0] = State.NOT_OBSERVED
    vectors = photometry.embed(Batch(torch.from_numpy(state), flux_ujy=torch.from_numpy(flux)))
    assert float((vectors[0] - vectors[1]).norm()) >= MASK_DISTANCE


def test_colour_usable_says_which_features_were_measured() -> None:
    usable = colour_usable(np.array([[2, 1, 0], [3, 2, 2]], np.int8), fitted())
    np.testing.assert_array_equal(usable, [[True, False, False], [False, True, True]])


def test_columns_pick_colours_with_or_without_the_magnitude() -> None:
    names = fitted().names
    assert [names[i] for i in columns(names, "colours")] == ["g-r", "r-i"]
    assert [names[i] for i in columns(names, "colours+magnitude")] == ["g-r", "r-i", "i"]


def test_an_observed_flux_that_is_nan_is_refused() -> None:
    with pytest.raises(BadInput, match="source 0 in band 1 is nan"):
        features(np.array([[1.0, np.nan, 1.0]]), np.full((1, 3), 2, np.int8), fitted())


def test_no_fluxes_is_an_error_naming_the_need() -> None:
    with pytest.raises(BadInput, match="'photometry' needs fluxes"):
        Photometry(fitted()).embed(Batch(torch.ones((1, 3), dtype=torch.int8)))


def test_photometry_comes_back_from_disk_with_the_same_revision_and_vectors(tmp_path: Path) -> None:
    _, flux, state = survey()
    made = Photometry.fit(flux, 0.02 * flux, state, bands=BANDS)
    folder = checkpoint.save(made, tmp_path, provenance={})
    back = checkpoint.load(folder)
    assert folder.name == f"photometry.{made.revision}" and back.revision == made.revision
    batch = Batch(torch.from_numpy(state), flux_ujy=torch.from_numpy(flux))
    assert torch.equal(back.embed(batch), made.embed(batch))


def test_of_two_processes_that_save_the_same_encoder_both_find_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, usual = Photometry(fitted()), checkpoint.tempfile.mkdtemp

    def meanwhile(**how: Any) -> str:
        monkeypatch.undo()
        checkpoint.save(encoder, tmp_path, provenance={"by": "the other"})
        return usual(**how)

    monkeypatch.setattr(checkpoint.tempfile, "mkdtemp", meanwhile)
    folder = checkpoint.save(encoder, tmp_path, provenance={"by": "this one"})
    assert checkpoint.provenance(folder)["by"] == "the other" and list(tmp_path.iterdir()) == [folder]
