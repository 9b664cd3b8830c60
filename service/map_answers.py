"""What is answered about a map: `service/answers` for maps. Positions are on the unit square, x to the right and y
downwards."""

from __future__ import annotations

from pydantic import Field

from redshelf.service.answers import Answer, Listed


class MapColour(Answer):
    name: str
    says: str
    low: float | None = Field(description="value of the first colour; null for density, which each zoom scales anew")
    high: float | None = Field(description="value of the last colour")
    known: int = Field(description="sources that have a value")
    colours: list[str] = Field(description="from low to high")


class MapAnswer(Answer):
    """What a map is and how it is drawn."""

    encoder: str
    revision: str = Field(description="of the encoder; empty for the sky")
    generation: int
    map: str = Field(description="changes whenever the map is made anew")
    method: str = Field(description="umap, pca or sky: how two dimensions were found")
    sample: int = Field(description="sources that they were found with; the others lie among these")
    shares: list[float] = Field(description="of pca: how much of all that vectors vary lies along x and along y")
    n_sources: int
    n_without_vector: int
    home: list[float] = Field(description="x_min, y_min, x_max, y_max of the box that holds nearly all sources")
    tile_px: int
    max_zoom: int
    peaks: list[int] = Field(description="of each zoom, sources of a pixel that the scale of density ends with")
    max_points: int
    ra_deg: float | None = Field(description="of the middle of a map of the sky")
    dec_deg: float | None
    side_deg: float | None = Field(description="along the sides of a map of the sky, on which east is to the left")
    colours: list[MapColour]


class PointsAnswer(Answer):
    """Sources of a box as points: `x` and `y` are base64 of little-endian 16-bit numbers, of which 65536 would be the
    width and the height of the box; `value` is base64 of bytes, the place in the colouring's `colours`, 255 without."""

    encoder: str
    generation: int
    map: str
    colour: str
    box: list[float] = Field(description="x_min, y_min, x_max, y_max: as asked, cut to the map")
    n: int
    n_within: int = Field(description="sources in the box; where there are more than n, each point stands for as many")
    x: str
    y: str
    value: str


class MapSource(Listed):
    """A source and where it is on a map."""

    magnitude: float | None = Field(description="AB, in the band `mag_band`")
    x: float
    y: float


class NearestAnswer(Answer):
    encoder: str
    generation: int
    map: str
    mag_band: str
    source: MapSource | None = Field(
        description="the one nearest to the position; null where none is within the radius"
    )


class SelectAnswer(Answer):
    """The sources inside a polygon."""

    encoder: str
    generation: int
    map: str
    mag_band: str
    n_within: int
    n_labelled: int | None = Field(description="of them, with a measured redshift; null of more than 1,000,000")
    left_out: int = Field(description="sources inside that are not listed; those listed are spread evenly over all")
    sources: list[MapSource]
