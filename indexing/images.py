"""FITS images on disk, plain or compressed (fpack, gzip): the one that is meant, checked, and read by its pixel rows.

Only whole-file gzip has to be unpacked from its beginning to reach a row.
"""

from __future__ import annotations

import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

DAMAGE = (OSError, EOFError, TypeError, ValueError, KeyError, zlib.error, zipfile.BadZipFile)


@contextmanager
def naming(path: Path, what: str = "a FITS image") -> Iterator[None]:
    """What damaged FITS, npz, HDF5 and compressed files raise becomes `BadInput` with the name of the file."""
    try:
        yield
    except BadInput:
        raise
    except DAMAGE as error:
        raise BadInput(f"{path} cannot be read as {what}: {error}") from error


@contextmanager
def open_image(path: Path, hdu: int | str | None, dimensions: Sequence[int] = (2,)) -> Iterator[tuple[Any, int, Any]]:
    """(HDU, its number, all HDUs) of a FITS image of so many dimensions; `hdu` is its number or name, None for the
    first. `BadInput` naming a file that is damaged, truncated or no such image."""
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    if not path.is_file():
        raise BadInput(f"image {path} does not exist")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # what matters of it is checked below
        with naming(path), fits.open(path, memmap=False) as units:
            images = (n for n, u in enumerate(units) if u.is_image and u.shape)  # HDUs behind the first are not read
            number = next(images, None) if hdu is None else units.index_of(hdu)
            if number is None or number >= len(units) or len(units[number].shape) not in dimensions:
                wanted = " or ".join("two" if n == 2 else str(n) for n in dimensions)
                raise BadInput(
                    f"{path}: {'no HDU' if hdu is None else f'HDU {hdu}'} holds an image of {wanted} dimensions"
                )
            unit = units[number]
            place = unit.fileinfo()
            ends = place["datLoc"] + min(unit.size, place["datSpan"])
            if path.suffix != ".gz" and ends > path.stat().st_size:
                raise BadInput(f"{path} is truncated: {path.stat().st_size} bytes, its header promises {ends}")
            yield unit, number, units


@contextmanager
def rows_of(path: Path, hdu: int | None, span: tuple[int, int]) -> Iterator[Callable[[int, int], npt.NDArray[Any]]]:
    """A function to the stored pixels of whole rows [first, past) within `span`, to be asked from top to bottom."""
    from astropy.io import fits

    def read(first: int, past: int) -> npt.NDArray[Any]:
        with naming(path):  # other files are open too, and none of them is to be blamed
            return np.asarray(unit.section[first:past, :])

    with open_image(path, hdu) as (unit, _, _):
        if isinstance(unit, fits.CompImageHDU):  # by pieces, compression tiles on their edges would be unpacked twice
            whole = read(*span)
            yield lambda first, past: whole[first - span[0] : past - span[0]]
        else:
            yield read
