"""The simulated survey: plausible truth, pixels and catalogue that agree, labels as stated, same seed same bytes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

from redshelf.indexing import files, forced, population, render, sed, simulate, spectroscopy, survey, telescope
from redshelf.models.bands import ab_to_flux, flux_to_ab
from redshelf.models.errors import BadInput, Conflict

BANDS = ("u", "g", "i", "z")
SOURCES, SEED = 350, 5


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        sed.table.cache_clear()
        yield
        sed.table.cache_clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("survey") / "sim"
    simulate.simulate(path, sources=SOURCES, bands=BANDS, seed=SEED, processes=1)
    return path


@pytest.fixture(scope="module")
def scene() -> render.Scene:
    return simulate._with_background(simulate._scene(SOURCES, BANDS, SEED, 64))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Table, Table]]:
    root = tmp_path_factory.mktemp("large")
    tables = {}
    for scenario in ("s0", "s1"):
        simulate.simulate(root / scenario, sources=20_000, scenario=scenario, catalogue_only=True)
        tables[scenario] = read(root / scenario)
    return tables


def read(folder: Path) -> tuple[Table, Table]:
    return tuple(Table.read(folder / name, mask_invalid=False) for name in ("catalogue.fits", "truth.fits"))


def test_the_survey_file_loads_and_does_not_name_the_truth(folder: Path) -> None:
    loaded = survey.load(folder / "survey.toml")
    assert loaded.band_names == BANDS
    assert loaded.has_images
    assert "truth" not in (folder / "survey.toml").read_text()
    assert sorted(p.name for p in folder.iterdir()) == [
        "catalogue.fits",
        "mosaics",
        "survey.toml",
        "truth.fits",
        "weights",
    ]
    for band in BANDS:
        tiles = {f"{tile}.fits" for tile in loaded.tiles.names or []}
        assert {p.name for p in (folder / "mosaics" / band).iterdir()} == tiles
        assert {p.name for p in (folder / "weights" / band).iterdir()} == tiles


def test_the_catalogue_has_one_row_a_source_and_the_truth_the_same_ids(folder: Path) -> None:
    catalogue, truth = read(folder)
    assert len(set(catalogue["ID"])) == SOURCES
    assert list(catalogue["ID"]) == list(truth["ID"])
    galaxies = truth["CLASS"] == "galaxy"
    assert abs(np.corrcoef(np.arange(SOURCES)[galaxies], truth["Z_TRUE"][galaxies])[0, 1]) < 0.2
    assert "Z_TRUE" not in catalogue.colnames


def test_a_bright_source_lies_where_the_catalogue_says(folder: Path, scene: render.Scene) -> None:
    catalogue, truth = read(folder)
    flux = np.where((truth["NEIGHBOUR_ARCSEC"] > 4) & (catalogue["SAT_i"] == 0), catalogue["FLUX_i"], 0)
    brightest = np.argsort(-flux)[:20]
    offsets = []
    dy, dx = np.mgrid[-5:6, -5:6]
    for tile in scene.field.tiles():
        image, header = fits.getdata(folder / "mosaics" / "i" / f"{tile.name}.fits", header=True)
        x, y = WCS(header).all_world2pix(catalogue["RA"], catalogue["DEC"], 0)
        for n in brightest:
            column, row = round(float(x[n])), round(float(y[n]))
            box = image[max(row - 5, 0) : row + 6, max(column - 5, 0) : column + 6].astype(float)
            if box.shape == (11, 11):
                offsets.append(
                    (np.sum(box * dx) / box.sum() + column - x[n], np.sum(box * dy) / box.sum() + row - y[n])
                )
    assert len(offsets) >= 15
    assert np.abs(np.median(offsets, axis=0)).max() < 0.05  # half a pixel would be a wrong origin
    assert np.abs(offsets).max() < 0.5


def test_catalogue_minus_truth_is_the_noise_of_the_pixels(folder: Path, scene: render.Scene) -> None:
    catalogue, truth = read(folder)
    band, residual, noise = "u", [], []
    window = forced.aperture(band, forced.APERTURE_FWHM_ARCSEC)
    reddening = 10 ** (-0.4 * telescope.BANDS[band].extinction * catalogue["EBV"])
    for number, tile in enumerate(scene.field.tiles()):
        mine = (scene.row >= 0) & (scene.field.owner(scene.x_px, scene.y_px) == number)
        rows = scene.row[mine]
        pixels = render.noise(scene, tile, telescope.BANDS[band])
        x, y = scene.x_px[mine] - tile.x0, scene.y_px[mine] - tile.y0
        noise.append(forced.measure(pixels, np.ones_like(pixels), x, y, window)[0])
        residual.append((catalogue["FLUX_u"] - truth["FLUX_u"] * reddening)[rows])
        faint = (truth["FLUX_u"][rows] < ab_to_flux(25.5)) & (truth["NEIGHBOUR_ARCSEC"][rows] > 3)
        noise[-1], residual[-1] = noise[-1][faint], residual[-1][faint]
    both = np.array([np.concatenate(residual), np.concatenate(noise)])
    both = both[:, np.all(np.isfinite(both), axis=0)]
    assert both.shape[1] > 60
    assert np.corrcoef(both)[0, 1] > 0.5


def test_a_flux_is_its_noiseless_flux_plus_that_of_the_noise_alone(scene: render.Scene) -> None:
    tile = scene.field.tiles()[0]
    mine = scene.row[(scene.row >= 0) & (scene.field.owner(scene.x_px, scene.y_px) == 0)]
    x, y = scene.x_px[mine] - tile.x0, scene.y_px[mine] - tile.y0
    sky = render.models(scene.near(tile), tile)[2]
    image, _, variance = render.expose(scene, tile, sky, 2)
    window = forced.aperture("i", forced.APERTURE_FWHM_ARCSEC)
    whole, alone, noise = (
        forced.measure(pixels, variance, x, y, window)[0]
        for pixels in (image, sky, render.noise(scene, tile, telescope.BANDS["i"]))
    )
    cut = sky >= 0.9 * telescope.saturation_ujy(telescope.BANDS["i"])
    cut |= variance == 0
    reach = forced.RADIUS_PX + 1
    clean = np.array(
        [
            not cut[max(0, int(b) - reach) : int(b) + reach + 1, max(0, int(a) - reach) : int(a) + reach + 1].any()
            for a, b in zip(x, y, strict=True)
        ]
    )
    assert clean.sum() > 20
    np.testing.assert_allclose(whole[clean], (alone + noise)[clean], rtol=1e-5, atol=1e-6)


def test_forced_errors_are_the_scatter_on_blank_sky() -> None:
    rng = np.random.default_rng(0)
    x, y = (v.ravel() for v in np.meshgrid(np.arange(30.0, 970, 40), np.arange(30.0, 970, 40)))
    for name in ("u", "i"):
        window = forced.aperture(name, forced.APERTURE_FWHM_ARCSEC)
        image = rng.standard_normal((1000, 1000), dtype=np.float32)
        flux, error = forced.measure(image, np.ones_like(image), x, y, window)
        assert np.std(flux) == pytest.approx(np.mean(error), rel=0.1)
        assert np.mean(error) == pytest.approx(window.noise_factor, rel=0.01)
        assert abs(flux.mean()) < 4 * np.mean(error) / np.sqrt(len(x))


def test_apertures_are_matched_between_bands_and_total_for_points() -> None:
    import galsim

    for shape, expected in (
        (galsim.DeltaFunction(), 1.0),
        (galsim.Exponential(half_light_radius=0.5).shear(q=0.5, beta=40 * galsim.degrees), None),
    ):
        fluxes = []
        for name in telescope.BANDS:
            blurred = galsim.Convolve(shape, telescope.psf(telescope.BANDS[name]))
            image = blurred.drawImage(nx=101, ny=101, scale=telescope.PIXEL_ARCSEC, offset=(0.3, -0.2)).array
            window = forced.aperture(name, forced.APERTURE_FWHM_ARCSEC)
            flux, _ = forced.measure(image, np.ones_like(image), np.array([50.3]), np.array([49.8]), window)
            fluxes.append(flux[0])
        assert np.ptp(fluxes) < 0.01
        if expected:
            np.testing.assert_allclose(fluxes, expected, atol=0.01)


def test_the_total_of_a_disk_is_recovered_from_two_apertures() -> None:
    r50 = np.array([0.0, 0.2, 0.5, 1.0])
    narrow = forced.collected(r50, forced.APERTURE_FWHM_ARCSEC)
    wide = forced.collected(r50, forced.WIDE_FWHM_ARCSEC)
    np.testing.assert_allclose(narrow * forced.to_total(narrow, wide), 1.0, atol=2e-3)
    np.testing.assert_array_equal(forced.to_total(np.array([np.nan, -1.0]), np.array([1.0, 1.0])), 1.0)


def test_catalogue_fluxes_are_total_fluxes_to_a_few_percent(folder: Path) -> None:
    catalogue, truth = read(folder)
    isolated = (truth["NEIGHBOUR_ARCSEC"] > 3) & (catalogue["FLUX_i"] < ab_to_flux(20))
    for name in BANDS:
        expected = truth[f"FLUX_{name}"] * 10 ** (-0.4 * telescope.BANDS[name].extinction * catalogue["EBV"])
        bright = isolated & (catalogue[f"FLUX_{name}"] > 30 * catalogue[f"FLUXERR_{name}"])
        ratio = catalogue[f"FLUX_{name}"][bright] / expected[bright]
        assert len(ratio) > 50
        assert np.median(ratio) == pytest.approx(1.0, abs=0.04)
        assert np.percentile(ratio, 84) - np.percentile(ratio, 16) < 0.35


def test_bright_stars_saturate_and_the_weights_of_their_cores_are_zero(folder: Path, scene: render.Scene) -> None:
    catalogue, truth = read(folder)
    stars = (truth["CLASS"] == "star") & (truth["FLUX_i"] > ab_to_flux(telescope.BANDS["i"].saturation_ab - 0.3))
    observed = np.isfinite(catalogue["FLUX_i"])
    assert (stars & observed).sum() >= 1
    assert np.all(catalogue["SAT_i"][stars & observed] == 1)
    assert np.all(catalogue["CLASS"][stars] == "star")
    assert catalogue["SAT_i"].sum() < 0.05 * SOURCES
    level = np.float32(telescope.saturation_ujy(telescope.BANDS["i"]))
    for tile in scene.field.tiles():
        image = fits.getdata(folder / "mosaics" / "i" / f"{tile.name}.fits")
        weight = fits.getdata(folder / "weights" / "i" / f"{tile.name}.fits")
        assert np.nanmax(image) <= level
        assert np.all(weight[image >= level] == 0)


def test_the_first_band_misses_a_strip_and_says_so(folder: Path, scene: render.Scene) -> None:
    catalogue, _ = read(folder)
    assert 0.01 < np.isnan(catalogue["FLUX_u"]).mean() < 0.1
    assert np.isnan(catalogue["FLUX_i"]).mean() < 0.03
    np.testing.assert_array_equal(np.isnan(catalogue["FLUX_u"]), np.isnan(catalogue["FLUXERR_u"]))
    last = scene.field.tiles()[-1]
    image = fits.getdata(folder / "mosaics" / "u" / f"{last.name}.fits")
    weight = fits.getdata(folder / "weights" / "u" / f"{last.name}.fits")
    assert np.isnan(image).any()
    assert np.all(weight[np.isnan(image)] == 0)


def test_weights_are_the_inverse_variance_of_the_sky(folder: Path, scene: render.Scene) -> None:
    tile = scene.field.tiles()[0]
    for name in BANDS:
        image = fits.getdata(folder / "mosaics" / name / f"{tile.name}.fits")
        weight = fits.getdata(folder / "weights" / name / f"{tile.name}.fits")
        good = image[weight > 0]
        rms = 1.4826 * np.median(np.abs(good - np.median(good)))
        assert rms == pytest.approx(weight.max() ** -0.5, rel=0.15)  # faint galaxies add a little
        assert 0 < (weight == 0).mean() < 0.05


def test_a_pixel_is_the_same_in_every_tile_that_has_it(folder: Path, scene: render.Scene) -> None:
    first, second = scene.field.tiles()[:2]
    assert second.x0 < first.x1
    for name in BANDS:
        left = fits.getdata(folder / "mosaics" / name / f"{first.name}.fits")
        right = fits.getdata(folder / "mosaics" / name / f"{second.name}.fits")
        np.testing.assert_allclose(left[:, second.x0 - first.x0 :], right[:, : first.x1 - second.x0], atol=1e-6)


@pytest.mark.parametrize("side_px", [100, 799, 1201, 2500, 5003])
def test_tiles_cover_the_field_and_each_source_has_one_owner(side_px: int) -> None:
    field = telescope.Field(side_px, 64)
    tiles = field.tiles()
    seen = np.zeros((side_px, side_px), dtype=bool)
    for tile in tiles:
        seen[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
    assert seen.all()
    x, y = np.random.default_rng(side_px).uniform(0, side_px - 1, (2, 300))
    for n, owner in enumerate(field.owner(x, y)):
        tile = tiles[owner]
        for value, low, high in ((x[n], tile.x0, tile.x1), (y[n], tile.y0, tile.y1)):
            assert low <= value < high
            assert low == 0 or value - low >= 31  # a cutout at a seam is whole
            assert high == side_px or high - value >= 31


def test_redshifts_colours_and_density_are_those_of_a_deep_field() -> None:
    galaxies, per_arcmin2 = population.galaxies(20_000, seed=3)
    assert 25 < per_arcmin2 < 50
    magnitude = flux_to_ab(galaxies.total_ujy[:, 1:5])  # g, r, i, z
    i = magnitude[:, 2]
    assert np.median(galaxies.z) == pytest.approx(0.91, abs=0.15)
    assert np.mean(galaxies.z) == pytest.approx(1.03, abs=0.15)
    for low, high, median in ((17, 20, 0.25), (20, 22.5, 0.55), (22.5, 24, 0.84), (24, 25, 1.11)):
        assert np.median(galaxies.z[(i >= low) & (i < high)]) == pytest.approx(median, abs=0.15)
    assert np.nanmedian(magnitude[:, 0] - magnitude[:, 1]) == pytest.approx(0.52, abs=0.15)
    assert np.nanmedian(magnitude[:, 1] - i) == pytest.approx(0.54, abs=0.15)
    assert i.max() < population.LIMIT_I


def test_the_faint_background_continues_the_counts() -> None:
    bright, per_arcmin2 = population.galaxies(5_000, seed=3)
    faint = population.background(60.0, seed=3)
    i = flux_to_ab(faint.total_ujy[:, 3])
    assert i.min() >= population.LIMIT_I and i.max() < population.FAINT_LIMIT_I
    last = np.mean(flux_to_ab(bright.total_ujy[:, 3]) > 24.5) * per_arcmin2  # the last half magnitude
    first = np.sum(i < 25.5) / 60
    assert 1.0 < first / last < 2.0


def test_representative_labels_are_like_the_rest(large: dict[str, tuple[Table, Table]]) -> None:
    catalogue, truth = large["s0"]
    galaxies = truth["CLASS"] == "galaxy"
    labelled = np.isfinite(catalogue["Z_SPEC"])
    assert labelled[galaxies].mean() == pytest.approx(0.2, abs=0.015)
    z = truth["Z_TRUE"]
    assert z[labelled].mean() == pytest.approx(z[galaxies & ~labelled].mean(), abs=0.04)
    assert not labelled[~galaxies].any()


def test_selected_labels_are_a_fifth_and_nearer(large: dict[str, tuple[Table, Table]]) -> None:
    catalogue, truth = large["s1"]
    galaxies = truth["CLASS"] == "galaxy"
    labelled = np.isfinite(catalogue["Z_SPEC"])
    assert labelled.mean() == pytest.approx(0.18, abs=0.03)
    np.testing.assert_array_equal(labelled, truth["LABELLED"])
    z = truth["Z_TRUE"]
    assert z[labelled].mean() < z[galaxies & ~labelled].mean() - 0.2
    np.testing.assert_array_equal(catalogue["Z_Q"] > 0, labelled)
    assert np.abs(catalogue["Z_SPEC"] - z)[labelled].max() < 0.01


def test_sources_that_can_get_no_spectrum_are_marked_and_get_none(large: dict[str, tuple[Table, Table]]) -> None:
    catalogue, truth = large["s1"]
    galaxies = truth["CLASS"] == "galaxy"
    np.testing.assert_array_equal(truth["P_ZERO"], truth["P_LABEL"] == 0)
    assert 0.03 < truth["P_ZERO"][galaxies].mean() < 0.15
    assert not np.isfinite(catalogue["Z_SPEC"][truth["P_ZERO"]]).any()


def test_success_rates_are_read_with_g_minus_z_on_the_first_axis(large: dict[str, tuple[Table, Table]]) -> None:
    catalogue, truth = large["s1"]
    galaxies = truth["CLASS"] == "galaxy"
    i, g, z = (flux_to_ab(catalogue[f"FLUX_{name}"][galaxies]) for name in ("i", "g", "z"))
    rates = spectroscopy.success_rates()
    assert rates.shape == (200, 200)
    right, transposed = (spectroscopy.look_up(r, i, g - z) for r in (rates, rates.T))
    assert (right == 0).mean() < 0.15
    assert (transposed == 0).mean() > 0.4  # the wrong way round starves the labels
    assert right[i < 20].mean() > 0.3 > 0.05 > right[i > 24].mean()


def test_a_rate_is_looked_up_in_its_own_cell() -> None:
    rates = np.zeros((200, 200))
    rates[75, 120] = 0.5  # g-z = 1.02, i = 20.83
    i, colour = np.array([20.83, 1.02, 20.83, np.nan, 30.0]), np.array([1.02, 20.83, 1.2, 1.02, 1.02])
    np.testing.assert_array_equal(spectroscopy.look_up(rates, i, colour), [0.5, 0, 0, 0, 0])


def test_scaling_keeps_zeros_and_order_and_reaches_the_fraction() -> None:
    rates = np.concatenate([np.zeros(100), np.random.default_rng(1).uniform(0, 0.3, 900)])
    scaled = spectroscopy.scaled(rates, 0.2)
    assert scaled.mean() == pytest.approx(0.2, abs=1e-6)
    assert np.all(scaled[rates == 0] == 0)
    np.testing.assert_array_equal(np.argsort(scaled[100:]), np.argsort(rates[100:]))
    with pytest.raises(BadInput, match="fewer than 20%"):
        spectroscopy.scaled(np.array([0.0] * 9 + [0.5]), 0.2)


def test_catalogue_only_errors_are_the_scatter_about_the_truth(large: dict[str, tuple[Table, Table]]) -> None:
    catalogue, truth = large["s0"]
    for name in "ugrizy":
        expected = truth[f"FLUX_{name}"] * 10 ** (-0.4 * telescope.BANDS[name].extinction * catalogue["EBV"])
        pull = (catalogue[f"FLUX_{name}"] - expected) / catalogue[f"FLUXERR_{name}"]
        assert np.nanstd(pull) == pytest.approx(1.0, abs=0.03)
        assert np.nanmean(pull) == pytest.approx(0.0, abs=0.03)


def test_catalogue_only_survey_has_no_images(tmp_path: Path) -> None:
    path = simulate.simulate(tmp_path / "c", sources=50, scenario="s0", catalogue_only=True)
    assert not survey.load(path).has_images
    assert sorted(p.name for p in path.parent.iterdir()) == ["catalogue.fits", "survey.toml", "truth.fits"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_processes(tmp_path: Path) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        simulate.simulate(
            tmp_path / name, sources=330, bands=("i",), scenario="s0", seed=7, processes=processes, cutout_px=32
        )
    one, two = (files.manifest(tmp_path / name, [tmp_path / name]) for name in ("one", "two"))
    assert len(one) == 11  # four tiles, their weights, and three files
    assert one == two


def test_another_seed_gives_another_sky(tmp_path: Path) -> None:
    for seed in (1, 2):
        simulate.simulate(tmp_path / str(seed), sources=40, scenario="s0", seed=seed, catalogue_only=True)
    first, second = (read(tmp_path / str(seed))[0] for seed in (1, 2))
    assert not np.any(first["RA"] == second["RA"])
    assert not np.any(first["FLUX_i"] == second["FLUX_i"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bands": ("g", "q")}, "band 'q' is not simulated"),
        ({"bands": ("g", "g")}, "stands twice"),
        ({"bands": ()}, "none given"),
        ({"scenario": "s3"}, "s0, s1, s2"),
        ({"bands": ("g", "r"), "scenario": "s1"}, "selects on i and g-z: add the bands i, z"),
        ({"bands": ("g", "r"), "scenario": "s2"}, "selects on i, r and the redshift: add the bands i"),
        ({"sources": 3}, "sources=3"),
        ({"seed": -1}, "seed=-1"),
        ({"cutout_px": 4}, "cutout_px=4"),
        ({"processes": 0}, "processes=0"),
    ],
)
def test_bad_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        simulate.simulate(tmp_path / "s", **{"sources": 20, **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(Conflict, match="not an empty folder"):
        simulate.simulate(tmp_path, sources=20, catalogue_only=True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(simulate, "_write_tables", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate.simulate(tmp_path / "s", sources=20, scenario="s0", catalogue_only=True)
    assert not list(tmp_path.iterdir())
