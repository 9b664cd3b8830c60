"""survey.toml: what is refused, and how the message helps."""

from pathlib import Path

import pytest

from redshelf.indexing import survey as surveys
from redshelf.models.errors import BadInput

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "surveys"
MINIMAL = """
[survey]
name = "s"
{survey}
[catalogue]
path = "c.csv"
id = "id"
ra = "ra"
dec = "dec"
{catalogue}
[[bands]]
name = "g"
wavelength_nm = 480
{band}
{rest}
"""


def load(tmp_path: Path, *, survey: str = "", catalogue: str = "", band: str = "", rest: str = "") -> surveys.Survey:
    band = band or 'magnitude = "g"\nmagnitude_error = "eg"'
    path = tmp_path / "survey.toml"
    path.write_text(MINIMAL.format(survey=survey, catalogue=catalogue, band=band, rest=rest))
    return surveys.load(path)


def test_a_minimal_survey_loads_with_its_defaults(tmp_path: Path) -> None:
    survey = load(tmp_path)
    assert survey.band_names == ("g",) and not survey.has_images and survey.survey.cutout_px == 64
    assert survey.resolve("c.csv") == tmp_path.resolve() / "c.csv"


@pytest.mark.parametrize(
    ("where", "text", "nearest"),
    [
        ("survey", "cutuot_px = 32", "cutout_px"),
        ("catalogue", 'ebvv = "e"', "ebv"),
        ("band", 'magnitude = "g"\nmagnitude_eror = "e"', "magnitude_error"),
        ("rest", '[[lables]]\nz = "z"', "labels"),
        ("rest", '[[labels]]\nz = "z"\nsurvey = "a"\nkinds = "spec"', "kind"),
    ],
)
def test_a_misspelt_key_is_refused_with_the_nearest_known_one(
    tmp_path: Path, where: str, text: str, nearest: str
) -> None:
    with pytest.raises(BadInput, match=rf"unknown key.*nearest: .*{nearest}"):
        load(tmp_path, **{where: text})


@pytest.mark.parametrize(
    ("where", "text", "says"),
    [
        ("band", 'flux = "f"\nflux_error = "e"', "exactly one of unit and zero_point"),
        ("band", 'flux = "f"\nmagnitude = "m"\nunit = "uJy"', "not both"),
        ("band", 'magnitude = "g"', "without an error column or default_error"),
        ("band", 'magnitude = "g"\nflux_error = "e"', "flux_error goes with flux"),
        ("band", 'magnitude = ["a", "b"]\nmagnitude_error = ["c", "d", "e"]', "3 error columns for 2"),
        ("band", 'magnitude = "g"\nmagnitude_error = "e"\nextinction = 3.2', "needs the column catalogue.ebv"),
        ("band", 'image = "{band}.fits"', "pixel_scale_arcsec is compulsory"),
        ("catalogue", 'cuts = [{column = "a", operator = "in", value = 3}]', "expects a list"),
        ("catalogue", 'cuts = [{column = "a", operator = "==", value = [3]}]', "expects one value"),
        ("rest", '[[labels]]\nsurvey = "x"\npath = "l.csv"\nz = "z"', "needs the column `id`"),
        ("rest", '[[labels]]\nsurvey = "x"\nmatch = "position"\nz = "z"', "own rows"),
        ("rest", '[[bands]]\nname = "g"\nwavelength_nm = 480\nmagnitude = "a"\ndefault_error = 0.1', "stands twice"),
    ],
)
def test_a_contradiction_is_refused_and_named(tmp_path: Path, where: str, text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load(tmp_path, **{where: text})


def test_an_unset_variable_in_a_path_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = load(tmp_path)
    monkeypatch.delenv("NOWHERE", raising=False)
    with pytest.raises(BadInput, match=r"\$NOWHERE is not set"):
        survey.resolve("$NOWHERE/a.csv")
    with pytest.raises(BadInput, match=r"\$\{NOWHERE\} is not set"):
        survey.resolve("${NOWHERE}/a.csv")
    monkeypatch.setenv("NOWHERE", str(tmp_path))
    assert survey.resolve("$NOWHERE/a.csv") == tmp_path.resolve() / "a.csv"


def test_a_file_that_is_absent_or_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"absent\.toml does not exist"):
        surveys.load(tmp_path / "absent.toml")
    (tmp_path / "broken.toml").write_text("[survey\n")
    with pytest.raises(BadInput, match="not valid TOML"):
        surveys.load(tmp_path / "broken.toml")


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("*.toml")), ids=lambda p: p.stem)
def test_every_ready_made_survey_file_loads_with_bands_in_order_of_wavelength(path: Path) -> None:
    wavelengths = [band.wavelength_nm for band in surveys.load(path).bands]
    assert wavelengths == sorted(wavelengths)
