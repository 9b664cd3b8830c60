"""The Virtual Observatory: the data of a source (DataLink 1.1), and parts of its cutout (like SODA 1.0).

What `/soda/sync` can do is less than SODA's name promises, and its descriptor says so: it cuts the stamp that the shelf
holds, along rows and columns, and never gives more sky than that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pyarrow as pa
from fastapi import APIRouter, Request, Response

from redshelf.api import dali
from redshelf.api.caching import ByGeneration
from redshelf.api.cone import STANDARDS, site
from redshelf.api.queries import Served
from redshelf.indexing import votable
from redshelf.indexing.votable import element, param, text
from redshelf.models.errors import BadInput, NotFound, RedshelfError
from redshelf.service import pictures, search
from redshelf.service.shelf import OpenShelf

router = APIRouter(tags=["virtual observatory"], route_class=ByGeneration)
MAX_IDS = 100  # of one request for links
LINKS = f"{dali.VOTABLE};content=datalink"
COLUMNS = {  # name -> UCD, unit
    "ID": ("meta.id;meta.main", None),
    "access_url": ("meta.ref.url", None),
    "service_def": ("meta.ref", None),
    "error_message": ("meta.code.error", None),
    "semantics": ("meta.code", None),
    "description": ("meta.note", None),
    "content_type": ("meta.code.mime", None),
    "content_length": ("phys.size;meta.file", "byte"),
}
Link = dict[str, str]


def _links(request: Request, shelf: OpenShelf, source_id: str) -> Iterator[Link]:
    """What there is of one source; a line with the error where there is no such source."""
    try:
        shelf.row(source_id)
    except NotFound as error:
        yield {"ID": source_id, "error_message": f"NotFoundFault: {error}", "semantics": "#this"}
        return
    name = quote(source_id, safe="")
    here, pinned = site(request, f"/v1/sources/{name}"), {"generation": shelf.generation.number}

    def link(semantics: str, url: str, description: str, media: str) -> Link:
        told = {"semantics": semantics, "access_url": url, "description": description, "content_type": media}
        return {"ID": source_id, **told}

    def of_generation(path: str = "", **more: str) -> str:
        return f"{here}{path}?{urlencode({**more, **pinned})}"

    yield link("#this", of_generation(), "catalogue row: photometry, labels, class", "application/json")
    yield link("#documentation", site(request, f"/source/{name}"), "the source's page", "text/html")
    if shelf.redshifts:
        says = "redshift with its density, support and calibration"
        yield link("#derivation", of_generation("/redshift"), says, "application/json")
    neighbours = of_generation("/neighbours", format="votable", encoder=shelf.generation.default_encoder)
    yield link("#auxiliary", neighbours, "the galaxies that look like it", dali.VOTABLE)
    if shelf.info.has_images:
        yield link("#preview-image", of_generation("/cutout"), "colour picture", "image/png")
        says = "the cutout, a band an HDU, in microjansky"
        yield link("#progenitor", of_generation("/cutout", format="fits"), says, "application/fits")
        yield {"ID": source_id, "service_def": "soda", "semantics": "#cutout", "description": "a part of the cutout"}


def _table(links: list[Link]) -> str:
    fields, arrays = [], []
    for name, (ucd, unit) in COLUMNS.items():
        told = {key: value for key, value in (("ucd", ucd), ("unit", unit)) if value}
        kind = pa.int32() if name == "content_length" else pa.string()
        fields.append(pa.field(name, kind, metadata=told))
        arrays.append(pa.array([one.get(name) for one in links], kind))
    return votable.table(pa.Table.from_arrays(arrays, schema=pa.schema(fields)))


def _soda(request: Request, shelf: OpenShelf, source_ids: list[str]) -> str:
    """The descriptor of the cutout service, with what it can do: parameters are known by name, UCD and unit together
    (SODA 1.0, 3.4), and that of one source says which circle covers its stamp (4.2)."""
    info = shelf.info
    side = info.cutout_px * info.pixel_scale_arcsec
    says = (
        f"Cuts the stored stamp of a source ({info.cutout_px} x {info.cutout_px} pixels, {side:.1f} arcsec a side) to "
        "the rows and columns that a circle touches, and chooses bands by their wavelength. It resamples nothing, "
        "gives no sky beyond the stamp, and takes one ID, one CIRCLE and one BAND."
    )
    metres = [band.wavelength_nm / 1e9 for band in info.bands if band.name in pictures.imaged(shelf)]
    low, high = min(metres), max(metres)
    band = element("VALUES", element("MIN", value=repr(low)) + element("MAX", value=repr(high)))
    one, covered = "", ""
    if len(source_ids) == 1:
        one = source_ids[0]
        row = shelf.row(one)
        place = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row]), side / math.sqrt(2) / 3600
        covered = element("VALUES", element("MAX", value=" ".join(map(repr, place))))
    inputs = (
        param("ID", one, ucd="meta.ref.url;meta.curation", ref="ID")
        + element("PARAM", covered, name="CIRCLE", datatype="double", arraysize="3", xtype="circle", unit="deg",
                  ucd="pos.outline;obs", value="")
        + element("PARAM", band, name="BAND", datatype="double", arraysize="2", xtype="interval", unit="m",
                  ucd="em.wl;stat.interval", value="")
    )  # fmt: skip
    told = (
        element("DESCRIPTION", text(says))
        + param("standardID", STANDARDS["/soda/sync"])
        + param("accessURL", site(request, "/soda/sync"))
        + element("GROUP", "\n" + inputs, name="inputParams")
    )
    return element("RESOURCE", "\n" + told, type="meta", utype="adhoc:service", ID="soda", name="soda")


@router.get(
    "/datalink",
    response_class=Response,
    responses={200: {"content": {LINKS: {}, dali.TEXT_XML: {}}, "description": "The links, or what is wrong"}},
    openapi_extra=dali.documented(ID=f"of the source; up to {MAX_IDS} of them", RESPONSEFORMAT="votable"),
)
def datalink(request: Request, shelf: Served) -> Response:
    """Where the data of a source are: its row, page, redshift, neighbours and cutout (DataLink 1.1)."""
    try:
        given = dali.Parameters.of(request)
        if dali.response_format(given).name != "votable":
            raise BadInput("RESPONSEFORMAT: links are answered as votable")
        source_ids = given.all("ID")
        links = [link for one in source_ids[:MAX_IDS] for link in _links(request, shelf, one)]
    except RedshelfError as error:
        return dali.failed("/datalink", error)
    content = votable.answered(_table(links), overflow=len(source_ids) > MAX_IDS)
    if shelf.info.has_images:
        content += _soda(request, shelf, [link["ID"] for link in links if link.get("service_def")])
    return Response(votable.document(content), media_type=LINKS)


def _circle(given: dali.Parameters) -> pictures.Circle | None:
    """CIRCLE, or POS with a circle."""
    numbers, shape = given.numbers("CIRCLE", 3), given.one("POS")
    if shape is not None:
        if numbers is not None:
            raise dali.Repeated("CIRCLE and POS: expected one of the two")
        kind, _, rest = shape.partition(" ")
        if kind.upper() != "CIRCLE":
            raise BadInput(f"POS={shape[:80]}: expected CIRCLE and three numbers; other shapes are not cut here")
        numbers = dali.Parameters({"POS": [rest]}).numbers("POS", 3)
    if numbers is None:
        return None
    circle = pictures.Circle(*numbers)
    if not (0 <= circle.ra_deg <= 360 and -90 <= circle.dec_deg <= 90 and 0 < circle.radius_deg <= 180):
        raise BadInput(
            f"CIRCLE={' '.join(map(str, numbers))}: expected RA 0 to 360, Dec -90 to 90 and a radius above 0"
        )
    return circle


def _bands(shelf: OpenShelf, given: dali.Parameters) -> tuple[str, ...]:
    """The bands with images whose wavelength lies in BAND, in metres; all without it."""
    wanted = given.numbers("BAND", 2, infinite=True)
    known = pictures.imaged(shelf)
    if wanted is None:
        return known
    if wanted[0] > wanted[1]:
        raise BadInput(f"BAND={wanted[0]} {wanted[1]}: expected two wavelengths in metres, the shorter one first")
    low, high = (value * (1 + side * 1e-9) for value, side in zip(wanted, (-1, 1), strict=True))
    return tuple(
        band.name for band in shelf.info.bands if band.name in known and low <= band.wavelength_nm / 1e9 <= high
    )


def _cut(request: Request, shelf: OpenShelf) -> Response:
    given = dali.Parameters.of(request)
    source_id, circle, bands = given.one("ID"), _circle(given), _bands(shelf, given)
    if not shelf.info.has_images:
        raise NotFound(f"survey {shelf.info.survey} has no images")
    info, box = shelf.info, None
    if source_id is None:
        if circle is None:
            raise BadInput("ID is missing: expected an ID, a CIRCLE, or both")
        reach = max(circle.radius_deg * 3600, info.cutout_px * info.pixel_scale_arcsec / 2)
        source_id = search.nearest_source(shelf, circle.ra_deg % 360, circle.dec_deg, radius_arcsec=reach)
    row = shelf.row(source_id)
    if circle is not None:
        place = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
        box = circle.box(*place, size_px=info.cutout_px, scale_arcsec=info.pixel_scale_arcsec)
    if not bands or (circle is not None and box is None):
        return Response(status_code=204)
    name = {"content-disposition": f'attachment; filename="{source_id}.fits"'}
    return Response(pictures.fits(shelf, row, bands=bands, box=box), media_type="application/fits", headers=name)


SODA = {
    200: {"content": {"application/fits": {}}, "description": "The part of the cutout, a band an HDU"},
    204: {"description": "The cutout has no such part"},
    400: {"content": {dali.PLAIN: {}}, "description": "What is wrong with the parameters, as SODA writes it"},
    404: {"content": {dali.PLAIN: {}}, "description": "What was named does not exist"},
}


@router.get(
    "/soda/sync",
    response_class=Response,
    responses=SODA,  # type: ignore[arg-type]
    openapi_extra=dali.documented(
        ID="of the source; without, the one nearest to the circle's centre",
        CIRCLE="RA, Dec and radius in degrees",
        POS="CIRCLE and the same",
        BAND="two wavelengths in metres",
    ),
)
def soda(request: Request, shelf: Served) -> Response:
    """A part of a stored cutout as FITS: the rows and columns that CIRCLE touches, in the bands that BAND holds. 204
    where that is nothing; errors are text/plain, as SODA 1.0 has them."""
    try:
        return _cut(request, shelf)
    except dali.Repeated as error:
        return Response(f"MultiValuedParamNotSupported: {error}\n", 400, media_type=dali.PLAIN)
    except RedshelfError as error:
        return dali.refused(dali.SODA, 404 if isinstance(error, NotFound) else 400, str(error))
