"""Points calibrated by photometric redshift and magnitude (Lin et al. 2022)."""

import numpy as np
import pytest

from redshelf.models.errors import BadInput
from redshelf.models.zphot_calibration import calibrated_points


def test_an_offset_that_every_label_shows_is_taken_off() -> None:
    rng = np.random.default_rng(0)
    z, magnitude = rng.uniform(0.3, 1.5, 4000), rng.uniform(20, 24, 4000)
    moved = calibrated_points(z + 0.05, z, magnitude, z[:500] + 0.05, magnitude[:500], z_bins=8, magnitude_width=1.0)
    np.testing.assert_allclose(moved, z[:500], atol=1e-9)


def test_the_offset_is_that_of_labels_weighted_to_the_targets() -> None:
    """Half of the labels in one cell of z_phot come from z 0.5, half from 1; the targets' z_phot are mostly as those of
    z 1, so that these weigh more: the plain mean offset would be half of the way."""
    z_spec = np.repeat([0.5, 1.0], 200)
    z_phot = np.full(400, 1.0)
    magnitude = np.full(400, 22.0)
    target = np.concatenate([np.full(300, 1.0), np.full(100, 0.5)])
    moved = calibrated_points(z_phot, z_spec, magnitude, target, np.full(400, 22.0))
    # weights of the labels: 100 / 200 at 0.5, 300 / 200 at 1; the mean offset is 0.5 * 0.25
    np.testing.assert_allclose(moved[:300], 1.0 - 0.125, atol=1e-12)


def test_a_cell_of_few_labels_moves_nothing() -> None:
    z = np.full(9, 0.5)
    magnitude = np.full(9, 22.0)
    assert calibrated_points(z + 0.1, z, magnitude, [0.6], [22.0]).tolist() == [0.6]


def test_a_target_far_from_every_label_stays_where_it_is() -> None:
    z = np.full(100, 0.5)
    magnitude = np.full(100, 22.0)
    assert calibrated_points(z + 0.1, z, magnitude, [3.0, 0.6], [22.0, 25.0]).tolist() == [3.0, 0.6]


def test_no_redshift_becomes_negative() -> None:
    z = np.zeros(100)
    magnitude = np.full(100, 22.0)
    assert calibrated_points(z + 0.02, z, magnitude, [0.01], [22.0], z_bins=1).tolist() == [0.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"z_phot": [0.5]}, "1 z_phot, 2 z_spec"),
        ({"z_spec": [np.nan, 1.0]}, "z_spec"),
        ({"magnitude": [1.0]}, "1 magnitudes"),
    ],
)
def test_bad_input_is_named(change: dict[str, list[float]], said: str) -> None:
    given = {"z_phot": [0.5, 0.6], "z_spec": [0.5, 0.6], "magnitude": [22.0, 22.0], **change}
    with pytest.raises(BadInput, match=said):
        calibrated_points(**given, target_z_phot=[0.5], target_magnitude=[22.0])
