"""Where else a place on the sky is shown, and how the same is asked from a terminal and from Python."""

from __future__ import annotations

import json
import shlex
from urllib.parse import quote, urlencode

RADIUS_ARCSEC = 5


def links(ra_deg: float, dec_deg: float) -> list[tuple[str, str, str]]:
    """(name, address, what it shows) of services of others; nothing is asked of them until somebody clicks."""
    at = f"{ra_deg:.6f} {dec_deg:+.6f}"
    told: dict[str, tuple[str, dict[str, object], str]] = {
        "SIMBAD": (
            "https://simbad.cds.unistra.fr/simbad/sim-coo",
            {"Coord": at, "CooFrame": "ICRS", "Radius": RADIUS_ARCSEC, "Radius.unit": "arcsec"},
            "what is known there",
        ),
        "NED": (
            "https://ned.ipac.caltech.edu/conesearch",
            {
                "search_type": "Near Position Search",
                "in_csys": "Equatorial",
                "in_equinox": "J2000",
                "ra": f"{ra_deg:.6f}d",
                "dec": f"{dec_deg:+.6f}d",
                "radius": f"{RADIUS_ARCSEC / 60:.4f}",
            },
            "extragalactic objects there",
        ),
        "Legacy Survey": (
            "https://www.legacysurvey.org/viewer",
            {
                "ra": f"{ra_deg:.6f}",
                "dec": f"{dec_deg:.6f}",
                "zoom": 16,
                "layer": "ls-dr10",
                "mark": f"{ra_deg:.6f},{dec_deg:.6f}",
            },
            "the sky around it",
        ),
        "ESASky": (
            "https://sky.esa.int/esasky/",
            {"target": at, "hips": "DSS2 color", "fov": "0.05", "cooframe": "J2000", "sci": "true"},
            "at other wavelengths",
        ),
        "Aladin": (
            "https://aladin.cds.unistra.fr/AladinLite/",
            {"target": at, "fov": "0.03"},
            "in any survey of the sky",
        ),
    }
    return [(name, f"{address}?{urlencode(fields)}", words) for name, (address, fields, words) in told.items()]


def curl(base_url: str, source_id: str, encoder: str) -> str:
    """The commands that answer what a source's page answers."""
    here = f"{base_url.rstrip('/')}/v1/sources/{quote(source_id, safe='')}"
    asked = (f"{here}/redshift", f"{here}/neighbours?{urlencode({'encoder': encoder, 'k': 24})}")
    return "\n".join(f"curl {shlex.quote(address)}" for address in asked)


def python(base_url: str, source_id: str, encoder: str) -> str:
    """The same with the Python client."""
    url, name, space = (json.dumps(word) for word in (base_url.rstrip("/"), source_id, encoder))
    return (
        "from redshelf.api.client import Client\n\n"
        f"with Client({url}) as shelf:\n"
        f"    redshift = shelf.redshift({name})\n"
        f"    alike = shelf.neighbours({name}, encoder={space}, k=24)"
    )
