"""What the shelf holds, and what is known of one source."""

from __future__ import annotations

from math import floor
from typing import Any
from urllib.parse import quote

import numpy as np

from redshelf.indexing.layout import finite_or_none
from redshelf.indexing.store import FLAG_MASKED, FLAG_NO_TILE
from redshelf.models.bands import State, flux_to_ab
from redshelf.service.answers import (
    BandAnswer,
    EncoderAnswer,
    LimitsAnswer,
    Photometry,
    RedshiftModelAnswer,
    ShelfAnswer,
    SourceAnswer,
)
from redshelf.service.listing import listed
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf

FLAG_WORDS = {FLAG_MASKED: "masked", FLAG_NO_TILE: "no_tile"}


def iau_name(ra_deg: float, dec_deg: float) -> str:
    """JHHMMSS.ss+DDMMSS.s; digits are truncated, never rounded, as the IAU asks."""
    # counted in 0.01 s and 0.1 arcsec; 1e-6 undoes float noise such as 27.96 stored as 27.959999999999
    ra, dec = floor(ra_deg * 24000 + 1e-6) % 8_640_000, floor(abs(dec_deg) * 36000 + 1e-6)
    ra_second, dec_second = ra % 6000 / 100, dec % 600 / 10
    sign = "-" if dec_deg < 0 else "+"
    return (
        f"J{ra // 360000:02d}{ra // 6000 % 60:02d}{ra_second:05.2f}"
        f"{sign}{dec // 36000:02d}{dec // 600 % 60:02d}{dec_second:04.1f}"
    )


def source(shelf: OpenShelf, source_id: str) -> SourceAnswer:
    """The catalogue row of one source, with its state in each band."""
    row, columns = shelf.row(source_id), shelf.columns
    ra, dec = float(columns["ra"][row]), float(columns["dec"][row])
    flags = int(columns["flags"][row])
    label = listed(shelf, np.array([row]))[0]
    here = f"/v1/sources/{quote(source_id, safe='')}"
    links = {"self": here, "neighbours": f"{here}/neighbours", "redshift": f"{here}/redshift"}
    if shelf.info.has_images:
        links["cutout"] = f"{here}/cutout"
    photometry = []
    for i, band in enumerate(shelf.info.band_names):
        flux, error = float(columns["flux"][row, i]), float(columns["flux_error"][row, i])
        state = State(int(columns["states"][row, i]))
        photometry.append(
            Photometry(
                band=band,
                state=state.name.lower(),  # type: ignore[arg-type]  # the literals are the enum's names
                flux_ujy=finite_or_none(flux),
                flux_error_ujy=finite_or_none(error),
                magnitude_ab=finite_or_none(float(flux_to_ab(flux))) if state is not State.NOT_OBSERVED else None,
            )
        )
    return SourceAnswer(
        source_id=source_id,
        iau_name=iau_name(ra, dec),
        ra_deg=ra,
        dec_deg=dec,
        tile=bytes(columns["tile"][row]).decode(),
        flags=[word for bit, word in FLAG_WORDS.items() if flags & bit],
        ebv=finite_or_none(columns["ebv"][row]),
        **{name: label[name] for name in ("z_spec", "z_error", "z_kind", "z_quality", "z_phot", "object_class")},
        z_survey=bytes(columns["z_survey"][row]).decode() or None,
        z_reference=finite_or_none(columns["z_reference"][row]),
        photometry=photometry,
        generation=shelf.generation.number,
        links=links,
    )


def describe(shelf: OpenShelf, settings: Settings) -> ShelfAnswer:
    """The survey, its bands, encoders, estimators and the limits in force."""
    info, published = shelf.info, shelf.generation
    return ShelfAnswer(
        survey=info.survey,
        generation=published.number,
        n_sources=shelf.n_sources,
        n_labelled=int(np.isfinite(shelf.columns["z_spec"]).sum()),
        bands=[
            BandAnswer(
                name=band.name,
                wavelength_nm=band.wavelength_nm,
                depth_ab=finite_or_none(band.depth_ab),
                psf_fwhm_arcsec=finite_or_none(band.psf_fwhm_arcsec),
            )
            for band in info.bands
        ],
        cutout_px=info.cutout_px,
        pixel_scale_arcsec=finite_or_none(info.pixel_scale_arcsec),
        encoders=[
            EncoderAnswer(
                **encoder.published.model_dump(),
                exact=encoder.index.exact,
                recall=encoder.index.recall,
                texts=encoder.takes_texts,
            )
            for encoder in shelf.encoders.values()
        ],
        redshifts=[
            RedshiftModelAnswer(encoder=f.encoder, estimators=f.estimators, fault=shelf.unreadable.get(f.encoder))
            for f in published.redshifts
        ],
        default_encoder=published.default_encoder,
        default_redshift=published.default_redshift,
        default_estimator=published.default_estimator,
        limits=limits(settings),
    )


def limits(settings: Settings) -> LimitsAnswer:
    """What a server with these settings takes."""
    told: dict[str, Any] = {name: getattr(settings, name) for name in LimitsAnswer.model_fields}
    return LimitsAnswer.model_validate({name: None if value == "" else value for name, value in told.items()})
