"""Numbers as a page says them."""

from __future__ import annotations

import math

from redshelf.models.support import NEIGHBOUR
from redshelf.service.answers import RedshiftAnswer


def count(number: int) -> str:
    """12 345, with thin spaces."""
    return f"{number:,}".replace(",", "\u202f")


def fixed(number: float | None, digits: int) -> str:
    """A number with so many decimals, a dash for None."""
    return "\u2013" if number is None else f"{number:.{digits}f}"


def significant(number: float | None, digits: int = 3) -> str:
    """A number with so many digits that count, a dash for None."""
    return "\u2013" if number is None else f"{number:#.{digits}g}".rstrip(".")


def milliseconds(number: float) -> str:
    """A time with two digits that count, in seconds from a second on."""
    if number >= 995:
        return f"{significant(number / 1000, 2)} s"
    return f"{number:.0f} ms" if number >= 9.95 else f"{significant(number, 2)} ms"


def measured(value: float, error: float | None) -> str:
    """A value and its error, the error to two digits that count and the value to as many decimals."""
    if not error:
        return significant(value)
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def support(answer: RedshiftAnswer) -> list[str]:
    """What the numbers of an answer's support mean, a sentence each."""
    told = answer.support
    where = "beyond" if told.distance_ratio > 1 else "within"
    return [
        f"The {NEIGHBOUR}th nearest labelled galaxy lies {where} the distance at which labels are near: "
        f"{told.distance_ratio:.2f} of it.",
        f"{told.labels_in_radius:.0f} labelled galaxies are nearer than the 10th of as many others; 10 where they are "
        "as common as galaxies, 0 where rare.",
        f"{told.effective_neighbours:.1f} neighbours count, after weighting.",
        f"{100 * told.beyond_labels:.1f}% of the density lies beyond the labels' redshifts.",
        f"Nearest neighbours and network differ by {told.disagreement:.3f} (1 + z).",
    ]


def shift(answer: RedshiftAnswer) -> str:
    """Which weights make the labels stand for the rest, in words."""
    size = f"{answer.shift.effective_sample_size:,.0f}"
    if answer.shift.method == "none":
        return f"No weights: each of {size} labels counts alike."
    method = answer.shift.method.replace("_", " ")
    return f"Labels are weighted to stand for the rest by {method}: they are worth {size} equal ones."
