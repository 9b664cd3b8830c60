"""The colours of maps: even to the eye, told apart by the colour-blind, and bright on the dark ground that maps have.

viridis, plasma, cividis and inferno are matplotlib's (CC0), at 17 places of each, with a straight line between them:
to import matplotlib would take longer than the first view of a map may.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

_ANCHORS = {
    "viridis": (
        "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26818e 21908c 1f9f88 28ae80 3ebc74 5dc963 82d34c abdc32 "
        "d5e21a fde725"
    ),
    "plasma": (
        "0d0887 310596 4c02a1 6600a7 7e03a8 9511a2 a92396 bb3587 cb4778 d9596a e66c5c f07f4f f89441 fdab33 fdc328 "
        "f9dd25 f0f921"
    ),
    "cividis": (
        "00224e 002e6a 1a386f 32436d 434e6c 52596d 61656f 6f7073 7c7b78 8b8778 9b9376 aba072 bbad6c ccba64 ddc958 "
        "efd748 fee838"
    ),
    "inferno": (
        "000004 0b0724 210c4a 3c0965 57106d 70196e 89226a a32b61 bb3755 d14644 e35932 f1711e f98d0a fcab0f f9ca32 "
        "f2e865 fcffa4"
    ),
}
SAND, WATER = "8f7248", "3fb4ea b4f0ff"  # no label at all; some, up to all
UNKNOWN = (110, 110, 118)  # where there are sources and none has a value

Bytes = npt.NDArray[np.uint8]


def _parsed(text: str) -> npt.NDArray[np.float64]:
    return np.array([[int(one[i : i + 2], 16) for i in (0, 2, 4)] for one in text.split()], dtype=np.float64)


@cache
def ramp(name: str, n: int, *, start: float = 0.0) -> Bytes:
    """`n` colours (n, 3) of one of matplotlib's maps, from `start` of its length to its end.

    `desert` is ours: its first colour is apart from the others, which only grow brighter.
    """
    if name == "desert":
        return np.vstack([_parsed(SAND), _between(_parsed(WATER), np.linspace(0, 1, n - 1))]).round().astype(np.uint8)
    return _between(_parsed(_ANCHORS[name]), np.linspace(start, 1, n)).round().astype(np.uint8)


def _between(anchors: npt.NDArray[np.float64], at: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    places = np.linspace(0, 1, len(anchors))
    return np.column_stack([np.interp(at, places, anchors[:, channel]) for channel in range(3)])


def hexes(colours: Bytes) -> list[str]:
    """Colours (n, 3) as a page writes them."""
    return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colours.tolist()]
