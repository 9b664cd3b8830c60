"""The Python client in a minute: `redshelf serve --shelf shelf`, then `python docs/client.py [URL] [API_KEY]`.

Run by tests/test_client.py.
"""

import sys

from redshelf.api.client import Client

url, api_key = (*sys.argv[1:], None, None)[:2]
with Client(url or "http://127.0.0.1:8000", api_key=api_key) as shelf:
    about = shelf.shelf()
    print(f"{about.survey}: {about.n_sources} sources, encoders {', '.join(one.name for one in about.encoders)}")

    first = shelf.outliers(n=1)["source_id"][0]
    row = shelf.source(first)
    print(f"{row.iau_name} at {row.ra_deg:.5f} {row.dec_deg:+.5f}")

    alike = shelf.neighbours(first, k=5)  # a table of astropy
    print(alike["source_id", "distance", "z_spec", "z_phot"])
    print(f"by {alike.meta['encoder']} {alike.meta['revision']}, generation {alike.meta['generation']}")

    around = shelf.cone(row.ra_deg, row.dec_deg, radius_arcsec=60)
    redshifts = shelf.redshifts(list(around["source_id"]), progress=True)  # any number of ids
    supported = redshifts[redshifts["in_support"]]
    print(supported["source_id", "z_median", "z_q16", "z_q84"])

    redshifts.write("redshifts.ecsv", overwrite=True)  # with units, descriptions and provenance
