"""survey.toml: what a survey's catalogue, bands, images and labels are called and which units they are in.

`load(path)` returns a checked `Survey`; every key is documented on its model. Unknown keys are refused with the nearest
known one. Relative paths are relative to the survey file.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from redshelf.models.errors import BadInput, nearest

Columns = str | list[str]  # several: the first valid value wins
LabelKind = Literal["spec", "grism", "photoz_many_band"]
ObjectClass = Literal["galaxy", "star", "agn", "unknown"]
TableFormat = Literal["fits", "votable", "ecsv", "csv", "parquet", "hats"]
Unit = Literal["uJy", "nJy", "Jy", "erg/s/cm2/Hz"]
BandName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]{1,24}$")]  # a part of column names


def as_list(columns: Columns | None) -> list[str]:
    """A column, several or none, as a list."""
    return [] if columns is None else [columns] if isinstance(columns, str) else columns


class Section(BaseModel):
    """Base of every section: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SurveySection(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")  # letters, digits, ".", "_" and "-"
    pixel_scale_arcsec: float | None = Field(default=None, gt=0.01, lt=60)  # compulsory with images
    cutout_px: int = Field(default=64, ge=8, le=512)  # side of a cutout


class Cut(Section):
    """Keep the rows where `column operator value`, of the column itself or of its modulo, floored."""

    column: str  # of the catalogue
    operator: Literal["<", "<=", ">", ">=", "==", "!=", "in", "not in"]  # "in" and "not in" take a list
    value: int | float | str | list[int | float] | list[str]  # of the type of the column
    floor: bool = False  # compare floor(column), after the modulo
    modulo: float | None = None  # compare column mod this

    def __str__(self) -> str:
        column = self.column if self.modulo is None else f"{self.column} mod {self.modulo:g}"
        return f"{f'floor({column})' if self.floor else column} {self.operator} {self.value}"

    @model_validator(mode="after")
    def _list_where_in(self) -> Cut:
        if isinstance(self.value, list) != (self.operator in ("in", "not in")):
            expected = "a list" if self.operator in ("in", "not in") else "one value"
            raise ValueError(f"cut on {self.column}: operator {self.operator!r} expects {expected}, got {self.value!r}")
        return self


class Catalogue(Section):
    path: str  # of the table, or of a HATS folder
    format: TableFormat | None = None  # None: by the file's ending; a folder is HATS
    hdu: int | None = None  # FITS: which table, the first by default
    id: str  # column; the ids must match [A-Za-z0-9._:+-]{1,64}
    ra: str  # column, degrees
    dec: str  # column, degrees
    ebv: Columns | None = None  # E(B-V); several names: the first that the table has
    object_class: str | None = None  # column that tells stars from galaxies; without it every class is "unknown"
    class_values: dict[str, ObjectClass] = {}  # value in the object_class column -> class; others are "unknown"
    class_ranges: list[ClassRange] = []  # the same by ranges of a number column
    mask_flags: list[str] = []  # non-zero: bad photometry; the row is kept, flagged, never given a redshift
    saturation_flags: list[str] = []  # non-zero: saturated in every band
    size_arcsec: str | None = None  # column
    z_reference: str | None = None  # the catalogue's own photo-z, carried to be scored; outside -0.01 to 20: none
    z_references: dict[BandName, str] = {}  # further ones: name -> column, stored as z_reference_<name>
    cuts: list[Cut] = []  # the rows that are kept; ingest says what each has removed


class ClassRange(Section):
    """Rows with low <= value < high in the object_class column are of this class."""

    low: float  # included
    high: float  # not included
    object_class: ObjectClass  # of the rows between


class BandSection(Section):
    """One band. Photometry is `flux` (with `unit` or `zero_point`) or `magnitude` (AB); errors go with it.

    Not observed is: a missing value, an error <= 0, a value in `missing`, outside `valid_range`.
    """

    name: BandName  # letters, digits and "_"
    wavelength_nm: float = Field(gt=10, lt=1e6)  # effective; tells the order of the bands
    flux: Columns | None = None  # column, in `unit` or by `zero_point`
    flux_error: Columns | None = None  # column, likewise
    unit: Unit | None = None  # of flux and error
    zero_point: float | None = None  # AB magnitude of flux 1, instead of `unit`; for images too
    magnitude: Columns | None = None  # AB
    magnitude_error: Columns | None = None  # column
    missing: list[float] = []  # exact values that mean "not observed", of `aperture_to_total` too
    valid_range: tuple[float, float] | None = None  # of the flux or magnitude column, in its own unit
    saturated: str | None = None  # column, non-zero: saturated in this band
    aperture_to_total: str | None = None  # column of magnitudes added to this band's magnitude
    zero_point_offset: float = 0.0  # magnitudes added to this band's catalogue magnitudes
    extinction: float = 0.0  # A_band / E(B-V); catalogue fluxes are dereddened with `catalogue.ebv`
    dereddened: bool = False  # the catalogue's fluxes already are
    error_floor: float = Field(default=0.0, ge=0, lt=1)  # fraction of the flux added in quadrature to its error
    default_error: float | None = Field(default=None, gt=0)  # magnitudes; where there is no error column or value
    image: str | None = None  # pattern with {band} and {tile}, e.g. "mosaics/{band}/{tile}.fits"
    image_hdu: int | None = None  # the first with an image by default
    weight: str | None = None  # pattern; inverse variance in the image's unit, 0 = bad
    mask: str | None = None  # pattern; non-zero = bad
    image_zero_point: float | None = None  # AB magnitude of 1 image unit; default `zero_point`, else 23.9 (uJy)
    saturation: float | None = None  # image values at or above are saturated
    psf_fwhm_arcsec: float | None = Field(default=None, gt=0, lt=60)  # told to encoders

    @model_validator(mode="after")
    def _one_photometry(self) -> BandSection:
        if self.flux is not None and self.magnitude is not None:
            raise ValueError(f"band {self.name}: give flux or magnitude, not both")
        if self.flux is not None and (self.unit is None) == (self.zero_point is None):
            raise ValueError(f"band {self.name}: a flux needs exactly one of unit and zero_point")
        if (self.flux_error is not None and self.flux is None) or (
            self.magnitude_error is not None and self.magnitude is None
        ):
            raise ValueError(f"band {self.name}: flux_error goes with flux, magnitude_error with magnitude")
        values, errors = self.photometry_columns, self.error_columns
        if values and not errors and self.default_error is None:
            raise ValueError(f"band {self.name}: without an error column or default_error nothing would be observed")
        if isinstance(self.flux_error or self.magnitude_error, list) and len(errors) != len(values):
            raise ValueError(f"band {self.name}: {len(errors)} error columns for {len(values)} columns")
        return self

    @property
    def photometry_columns(self) -> list[str]:
        """The flux or magnitude columns, first choice first; empty for a band of images only."""
        return as_list(self.flux if self.flux is not None else self.magnitude)

    @property
    def error_columns(self) -> list[str]:
        """One for each of `photometry_columns`, or one for all of them, or none."""
        return as_list(self.flux_error if self.flux_error is not None else self.magnitude_error)


class Tiles(Section):
    names: list[str] | None = None  # None: every tile that the image pattern of any band finds


class Stamps(Section):
    """Cutouts that were cut already, instead of the bands' images: one array a file, its first axis the sources.

    The central pixel n // 2 of a stamp is that of the cutout; a larger stamp is cropped, a smaller one padded as bad.
    `image_zero_point` and `saturation` of the bands hold for stamps too.
    """

    path: str  # one file, a glob, or a pattern with {tile}; a file's tile is its {tile} or its name without the ending
    format: Literal["npz", "hdf5", "fits"] | None = None  # None: by the file's ending
    array: str | int | None = None  # key of the npz, dataset of the HDF5 ("images"), HDU of the FITS (the first image)
    ids: str | None = None  # key, dataset or column of the FITS table; None: stamps in the catalogue's order of rows
    axes: Literal["nhwc", "nchw", "nhw"] = "nhwc"  # as numpy gives them, the last of them NAXIS1 of a FITS; nhw: a band
    bands: list[BandName] = Field(min_length=1)  # the order of the axis c; other bands of the survey are not observed
    unit: Unit | None = None  # of the pixels
    zero_point: float | None = None  # AB magnitude of 1, instead of `unit`; default the band's `zero_point`, else 23.9
    weight: str | int | None = None  # array of the stamps' shape; inverse variance in their unit, 0 = bad
    mask: str | int | None = None  # array of the stamps' shape, or without c for all bands; non-zero = bad

    @model_validator(mode="after")
    def _consistent(self) -> Stamps:
        twice = sorted({n for n in self.bands if self.bands.count(n) > 1})
        if twice:
            raise ValueError(f"stamps.bands: {twice[0]!r} stands twice")
        if self.unit is not None and self.zero_point is not None:
            raise ValueError("stamps: give unit or zero_point, not both")
        if self.axes == "nhw" and len(self.bands) != 1:
            raise ValueError(f"stamps: axes = 'nhw' holds one band, not {len(self.bands)}")
        return self


class Labels(Section):
    """Redshifts from one catalogue (`path` none: the survey's own)."""

    path: str | None = None  # of their table; without it the survey's own catalogue
    format: TableFormat | None = None  # None: by the file's ending
    match: Literal["id", "position"] = "id"  # by which their rows find the survey's sources
    radius_arcsec: float = Field(default=1.0, gt=0, le=10)  # with match = "position"
    id: str | None = None  # column, with match = "id"
    ra: str | None = None  # column, degrees, with match = "position"
    dec: str | None = None  # column, degrees
    z: str  # column
    z_error: str | None = None  # column
    quality: str | None = None  # column stored as z_quality
    survey: str  # stored as z_survey
    kind: LabelKind = "spec"  # stored as z_kind
    priority: int = 0  # the highest wins where several labels fall on one source
    object_class: str | None = None  # column, as in the catalogue
    class_values: dict[str, ObjectClass] = {}  # likewise
    class_ranges: list[ClassRange] = []  # likewise
    cuts: list[Cut] = []  # quality ranges and everything else

    @model_validator(mode="after")
    def _match_columns(self) -> Labels:
        if self.path is None:
            if self.match == "position" or self.id or self.ra or self.dec:
                raise ValueError(
                    f"labels {self.survey}: without a path the survey's own rows are taken; drop match columns"
                )
        elif self.match == "id" and self.id is None:
            raise ValueError(f"labels {self.survey}: match = 'id' needs the column `id`")
        elif self.match == "position" and (self.ra is None or self.dec is None):
            raise ValueError(f"labels {self.survey}: match = 'position' needs the columns `ra` and `dec`")
        return self


class Survey(Section):
    """A whole survey file. `folder` is where relative paths start."""

    survey: SurveySection
    catalogue: Catalogue
    bands: list[BandSection] = Field(min_length=1, max_length=64)
    tiles: Tiles = Tiles()
    stamps: Stamps | None = None
    labels: list[Labels] = []
    folder: Path = Field(default=Path(), exclude=True)

    @model_validator(mode="after")
    def _consistent(self) -> Survey:
        names = [band.name for band in self.bands]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"bands: {twice[0]!r} stands twice")
        if self.has_images and self.survey.pixel_scale_arcsec is None:
            raise ValueError("survey.pixel_scale_arcsec is compulsory where a band has an image, or with stamps")
        stamped = [] if self.stamps is None else self.stamps.bands
        foreign = next((n for n in stamped if n not in names), None)
        if foreign is not None:
            raise ValueError(f"stamps.bands: {foreign!r} is no band of the survey; {nearest(foreign, names)}")
        for band in self.bands:
            if band.flux is None and band.magnitude is None and band.image is None and band.name not in stamped:
                raise ValueError(f"band {band.name}: has neither flux, magnitude nor image, nor stamps")
            for key in ("image", "image_hdu", "weight", "mask") if self.stamps is not None else ():
                if getattr(band, key) is not None:
                    raise ValueError(f"band {band.name}: {key!r} and [stamps] exclude one another")
            if band.photometry_columns and band.extinction and not band.dereddened and self.catalogue.ebv is None:
                raise ValueError(
                    f"band {band.name}: extinction={band.extinction} needs the column catalogue.ebv; "
                    "say dereddened = true if the catalogue's fluxes already are"
                )
        return self

    @property
    def has_images(self) -> bool:
        return self.stamps is not None or any(band.image is not None for band in self.bands)

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    def resolve(self, path: str) -> Path:
        """An absolute path of one written in the survey file; `$REDSHELF_DATA`-like variables are expanded.

        `BadInput` naming a variable that is not set."""
        expanded = os.path.expandvars(path)
        unset = re.search(r"\$(\w+|\{\w+\})", expanded)
        if unset:
            raise BadInput(f"path {path!r}: the environment variable {unset[0]} is not set")
        return (self.folder / expanded).resolve()


_MODELS: dict[str, type[Section]] = {
    "survey": SurveySection,
    "catalogue": Catalogue,
    "bands": BandSection,
    "tiles": Tiles,
    "stamps": Stamps,
    "labels": Labels,
    "cuts": Cut,
    "class_ranges": ClassRange,
}


def _explain(error: dict[str, Any]) -> str:
    where = [str(part) for part in error["loc"]]
    key = ".".join(where)
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        shown = "" if isinstance(error["input"], dict) else f"={error['input']!r}"
        return f"{key}{shown}: {message}" if key else message
    section = next((s for s in reversed(where[:-1]) if s in _MODELS), None)
    model: type[BaseModel] = _MODELS[section] if section else Survey
    known = [f for f in model.model_fields if f != "folder"]
    return f"unknown key {key!r}; {nearest(where[-1], known)}"


def parse(document: dict[str, Any], *, folder: Path, source: str) -> Survey:
    """A checked `Survey` from a parsed TOML document; `source` names the file in errors."""
    if "folder" in document:
        raise BadInput(f"{source}: unknown key 'folder'; {nearest('folder', Survey.model_fields.keys() - {'folder'})}")
    try:
        return Survey.model_validate({**document, "folder": folder})
    except ValidationError as error:
        lines = "; ".join(_explain(dict(e)) for e in error.errors())
        raise BadInput(f"{source}: {lines}") from error


def load(path: Path) -> Survey:
    """Read and check a survey file. Raises `BadInput` naming the key, its value and what was expected."""
    if not path.is_file():
        raise BadInput(f"survey file {path} does not exist")
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    return parse(document, folder=path.resolve().parent, source=path.name)


Catalogue.model_rebuild()
Labels.model_rebuild()
