"""Link what a wheel asks for into the environment that it was installed in without any: `link.py ENV NAME[EXTRA]`.

ENV then holds what pip would put there beside the wheel, and nothing else of the environment that runs this; the exact
versions are those of `make venv`, and their 6 GB are not unpacked a second time. `pip check` in ENV tells what lacks.
"""

from __future__ import annotations

import sys
import sysconfig
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def by_name(folder: str) -> dict[str, Distribution]:
    return {canonicalize_name(one.metadata["Name"]): one for one in distributions(path=[folder])}


def required(root: Requirement, there: dict[str, Distribution], here: dict[str, Distribution]) -> dict[str, set[str]]:
    """The distributions that `root` asks for, itself among them, each with its extras; `there` goes before `here`."""
    found: dict[str, set[str]] = {}
    todo = [root]
    while todo:
        asked = todo.pop()
        name, extras = canonicalize_name(asked.name), {"", *asked.extras}
        if name in found and extras <= found[name]:
            continue
        extras |= found.get(name, set())
        found[name] = extras
        one = there.get(name) or here.get(name)
        if one is None:
            sys.exit(f"link.py: {name} is asked for and not installed")
        for text in one.requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)
    return found


def link(one: Distribution, folder: Path) -> None:
    """Each of its files but for programs, which lie outside of `folder`."""
    for file in one.files or []:
        if ".." not in file.parts:
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(Path(str(file.locate())).resolve())


def main() -> None:
    environment, wanted = Path(sys.argv[1]), Requirement(sys.argv[2])
    (folder,) = environment.glob("lib/python3*/site-packages")
    there, here = by_name(str(folder)), by_name(sysconfig.get_paths()["purelib"])
    names = required(wanted, there, here).keys() - there.keys()
    for name in sorted(names):
        link(here[name], folder)
    print(f"linked {len(names)} packages")


if __name__ == "__main__":
    main()
