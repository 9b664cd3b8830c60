"""Redshift estimators beside RAIL's, on a simulated sky under covariate shift, and at a million sources.

    python benchmarks/redshift.py [rail simulated scale] [--quick] [--check] [--out bench-out/redshift]

`rail`: RAIL's own DC2 tables (10,225 galaxies to train on, 20,449 to answer for), its k nearest neighbours and
FlexZBoost beside our kNN and the estimator that our validation chose, all with full densities, in one run. RAIL's are
used beside us, never by us (FlexCode is GPL): install `pz-rail-sklearn pz-rail-flexzboost flexcode xgboost` with
`pip install --no-deps --target FOLDER` and put FOLDER last on the path by --rail-packages. `simulated`: a catalogue
without images, labels drawn by s0 and by s1, answered for through the `photometry` encoder as `redshelf fit` does,
several draws of the labels (results stay in --out, a killed run goes on). `scale`: 100,000 labels and a million sources
in 64 dimensions, each step a process of its own, with its peak memory and its costliest functions.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import redshift_rail
import redshift_scale
import redshift_simulated

from redshelf.models import boost, network

QUICK_STEPS, QUICK_ROUNDS = 40, 20  # of training, which takes minutes whatever the number of labels
PARTS = {"rail": redshift_rail, "simulated": redshift_simulated, "scale": redshift_scale}


def main() -> int:
    """Print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} [all]")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/redshift"))
    parser.add_argument("--rail-packages", type=Path, help="folder of RAIL's estimators [as installed]")
    parser.add_argument("--draws", type=int, help="of the labels [5, quick 1]")
    parser.add_argument("--sources", type=int, help="of the last step of `scale` [1,000,000, quick 20,000]")
    parser.add_argument("--fit", type=int, help="labels that `scale` fits on; the others only fill its bank [all]")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}: there are {', '.join(PARTS)}")
    if arguments.quick:
        network.STEPS, boost.ROUNDS = QUICK_STEPS, QUICK_ROUNDS
    if arguments.child is not None:
        PARTS[arguments.parts[0]].child(**arguments.child)
        return 0
    wrong = []
    for name in arguments.parts or PARTS:
        print(f"\n## {name}\n", flush=True)
        wrong += PARTS[name].run(arguments)
    print("\n".join(wrong))
    return 1 if arguments.check and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
