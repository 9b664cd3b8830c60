"""The commands of `redshelf` and their options. `usage.py` says which go together, `commands.py` does the work."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        from redshelf.models.revision import revision, version

        git = revision()
        print(f"redshelf {version() or '(not installed: a checkout)'}{f' (git {git[:12]}{git[40:]})' if git else ''}")
        parser.exit(0)


def _parent(*, json: bool = True) -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument("--shelf", type=Path, metavar="DIR", help="the shelf's folder [shelf, or $REDSHELF_SHELF]")
    parent.add_argument("--settings", type=Path, metavar="FILE", help="redshelf.toml [$REDSHELF_SETTINGS]")
    if json:
        parent.add_argument("--json", action="store_true", help="print JSON")
    return parent


def _training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", required=True, help="name of the new encoder: lower case, digits, - and _")
    shape = parser.add_argument_group("the transformer")
    shape.add_argument("--size", help="tiny, small or base [tiny]")
    shape.add_argument("--patch-px", type=int, metavar="PX", help="width of a patch [the size's]")
    run = parser.add_argument_group("the run; it goes on from its checkpoint, and under torchrun or srun is shared")
    run.add_argument("--steps", type=int, metavar="N", help="stop after so many batches")
    run.add_argument("--max-seconds", type=float, metavar="S", help="stop after this time")
    run.add_argument("--batch-size", type=int, metavar="N", help="sources a step, over all processes")
    run.add_argument(
        "--micro-batches", type=int, default=1, metavar="N", help="equal parts of a step [1, or a process]"
    )
    run.add_argument("--precision", choices=("bfloat16", "float16", "float32"), help="float16: for a V100")
    run.add_argument("--compile", action="store_true", help="through torch.compile")
    run.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the log for TensorBoard, too")
    run.add_argument("--checkpoint-seconds", type=float, default=30.0, metavar="S", help="between checkpoints [30]")
    run.add_argument("--device", help="[cuda where there is one, else cpu]")
    run.add_argument("--seed", type=int, default=0, help="of weights, batches and views [0]")


def _parts(parser: argparse.ArgumentParser, *, rows: str, tasks: str) -> None:
    parser.add_argument("--runner", choices=("local", "slurm", "ray"), default="local", help="who does it [local]")
    parser.add_argument("--part-rows", type=int, metavar="N", help=f"sources a part [{rows}]")
    parser.add_argument("--task-parts", type=int, metavar="N", help=f"parts a task of SLURM [{tasks}]")
    parser.add_argument("--slurm", type=Path, metavar="FILE", help="SLURM's settings, like deploy/slurm/jeanzay.toml")
    steps = parser.add_argument_group("single steps, as a scheduler calls them; one of").add_mutually_exclusive_group()
    steps.add_argument("--plan", action="store_true", help="write what is to do, and do nothing of it")
    steps.add_argument("--part", type=int, metavar="I", help="do one part of the plan")
    steps.add_argument("--task", type=int, metavar="T", help="do the parts of one task of the plan")
    steps.add_argument("--commit", action="store_true", help="end the plan; with --runner slurm, or send what misses")


def _output(parser: argparse.ArgumentParser, *, file: str) -> None:
    parser.add_argument("-o", dest="path", type=Path, required=True, metavar="FILE", help=f"a new file, {file}")
    parser.add_argument("--generation", type=int, metavar="N", help="published [the newest]")
    parser.add_argument("--processes", type=int, metavar="N", help="that do it, on this machine [1]")
    _parts(parser, rows="65536", tasks="8")


def _question(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_argument_group("the question, one of")
    asked.add_argument("--id", dest="source_id", help="a source of the survey")
    asked.add_argument("--ra", type=float, help="degrees, with --dec")
    asked.add_argument("--dec", type=float, help="degrees")
    asked.add_argument(
        "--cutout", type=Path, metavar="FILE", help="FITS (an HDU a band, or a cube; .gz too), .npy or .npz"
    )
    asked.add_argument("--text", help="words, in the space of a CLIP whose texts the shelf can embed")
    asked.add_argument("--like", metavar="ID", action="append", default=[], help="sources like this one; repeatable")
    parser.add_argument("--unlike", metavar="ID", action="append", default=[], help="and unlike this; repeatable")
    parser.add_argument("--bands", help="comma-separated bands of the planes of a cube or array")
    parser.add_argument("--unit", choices=("uJy", "noise"), default="uJy", help="of the cutout's pixels [uJy]")
    parser.add_argument(
        "--pixel-scale-arcsec", type=float, metavar="S", help="of the cutout [its FITS header's WCS, else the survey's]"
    )
    parser.add_argument(
        "--ebv", type=float, metavar="MAG", help="the cutout's Galactic reddening [its FITS header's EBV]"
    )
    parser.add_argument("--url", help="ask this server instead of the shelf on disk, e.g. http://127.0.0.1:8000")
    parser.add_argument("--api-key", default=os.environ.get("REDSHELF_KEY") or None, help="of it [$REDSHELF_KEY]")
    parser.add_argument("--encoder", help="embedding space [the shelf's default]")


def _address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on [127.0.0.1]")
    parser.add_argument("--port", type=int, help="[8000]")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="redshelf", description="Which galaxies look like this one, and how far away is it?"
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    shelf = _parent()

    def add(name: str, text: str, parent: argparse.ArgumentParser | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[parent or shelf])

    p = commands.add_parser("simulate", help="write a survey as a telescope would", description="Write a survey.")
    p.add_argument("folder", type=Path, metavar="DIR", help="a new folder")
    p.add_argument("--sources", type=int, default=4000, metavar="N", help="[4000]")
    p.add_argument("--bands", default="u,g,r,i,z,y", help="comma-separated [u,g,r,i,z,y]")
    p.add_argument(
        "--scenario",
        choices=("s0", "s1", "s2"),
        default="s1",
        help="labels: s0 representative, s1 by brightness and colour, s2 by redshift too, as spectrographs do [s1]",
    )
    p.add_argument("--seed", type=int, default=1, help="of everything; the same one gives the same bytes [1]")
    p.add_argument("--catalogue-only", action="store_true", help="no images")
    p.add_argument("--two-depths", action="store_true", help="half of the field is shallower by a magnitude")
    p.add_argument("--u-star", action="store_true", help="half of the field has the band ustar instead of u")
    p.add_argument("--missing-nir", action="store_true", help="half of the field has no Y, J, H and Ks")
    p.add_argument("--wrong-redshifts", action="store_true", help="1%% of the labels have a wrong redshift")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = add("ingest", "read a survey's catalogue and images into the shelf; resumable")
    p.add_argument("survey", type=Path, metavar="SURVEY.toml", help="what describes the survey")
    p.add_argument("--update", action="store_true", help="take over what has changed in the survey since")
    p.add_argument("--processes", type=int, metavar="N", help="that cut cutouts, on this machine [1]")
    _parts(p, rows="4096", tasks="256")

    p = add("delete", "leave sources out of all answers; their rows stay")
    p.add_argument("--ids", type=Path, required=True, metavar="FILE", help="text file of source ids, one a line")

    p = add("pretrain", "train an encoder on the shelf's own cutouts, without labels; resumable")
    p.add_argument("--objective", choices=("masked", "contrastive"), default="masked", help="[masked]")
    p.add_argument("--with-redshifts", action="store_true", help="learn from the labelled sources' redshifts besides")
    _training(p)

    p = add("train", "train an encoder on the labelled sources; resumable")
    start = p.add_mutually_exclusive_group(required=True)
    start.add_argument("--model", choices=("network", "vit", "cnn", "multimodal-cnn"), help="network: on photometry")
    start.add_argument("--from", dest="start", metavar="NAME", help="an image encoder of the shelf")
    p.add_argument("--mode", choices=("probe", "finetune", "contrastive"), help="what --from is put through [finetune]")
    p.add_argument("--photometry", action="store_true", help="catalogue photometry beside the images")
    p.add_argument("--loss", choices=("bins", "regression"), default="bins", help="[bins]")
    p.add_argument(
        "--imbalance",
        choices=("none", "logit", "capped", "density", "balanced-mse"),
        default="none",
        help="remedy for rare redshifts: logit and capped with bins, the last two with regression [none]",
    )
    p.add_argument("--width", type=float, help="of a CNN's layers, 1 as published [1]")
    _training(p)

    p = add("embed", "a vector for every source; resumable")
    p.add_argument("--encoder", required=True, help="photometry, one that was trained, or a new name for --weights")
    p.add_argument(
        "--weights",
        type=Path,
        metavar="DIR",
        help="an encoder's folder from elsewhere, or a network's from a model hub",
    )
    p.add_argument("--batch-size", type=int, metavar="N", help="sources a step [what suits encoder and device]")
    p.add_argument("--device", help="one, or several with commas, a process each [every GPU, else cpu]")
    _parts(p, rows="16384, or 131072 without pixels", tasks="8")
    p.add_argument("--gpu", metavar="NAME", help="with --runner slurm, a kind of the settings' [gpu], or cpu")
    hub = p.add_argument_group("a published network (DINO, DINOv2, DINOv3, CLIP)")
    hub.add_argument("--input-px", type=int, metavar="PX", help="side that cutouts are resampled to [1.75 cutouts]")
    hub.add_argument("--pca", type=int, metavar="D", help="project to D dimensions, fitted on the shelf")
    hub.add_argument("--with-photometry", action="store_true", help="append colours and magnitude")
    hub.add_argument("--space", choices=("trunk", "projected"), default="trunk", help="projected: CLIP's, for texts")
    hub.add_argument("--sha256", metavar="HEX", help="refuse other weights")
    hub.add_argument("--random-seed", type=int, metavar="S", help="random weights instead, as a control")

    p = add("index", "build and measure the search index of an embedding; resumable")
    p.add_argument("--encoder", required=True, help="an embedding of the shelf")
    p.add_argument("--memory", metavar="SIZE", help="what its lists may take, which all processes share [8GiB]")
    p.add_argument("--recall", type=float, metavar="R", help="of the ten nearest, where it is not exact [0.95]")
    p.add_argument("--processes", type=int, metavar="N", help="that fill the lists, on this machine [1]")
    _parts(p, rows="1048576", tasks="4")

    p = add("fit", "fit the redshift estimators on an embedding")
    p.add_argument(
        "--encoder",
        required=True,
        metavar="NAME[+photometry]",
        help="the features: an embedding, or one and photometry",
    )

    p = add("publish", "freeze and check what there is as a new generation")
    p.add_argument(
        "--default-encoder", metavar="NAME", help="of a question that names none [the first fitted on pixels]"
    )
    p.add_argument("--default-estimator", metavar="NAME", help="likewise, of redshifts [the best by validation]")

    p = add("serve", "serve HTTP and the page, of the newest generation", _parent(json=False))
    _address(p)
    p.add_argument("--workers", type=int, metavar="N", help="processes that answer, on the one port [1]")

    p = commands.add_parser("keys", help="API keys of `serve`", description="API keys of `serve`, in `state_dir`.")
    keys = p.add_subparsers(dest="action", metavar="ACTION", required=True)
    for action, text in (
        ("add", "make a key, and show it once"),
        ("list", "the keys there are"),
        ("revoke", "end one"),
    ):
        k = keys.add_parser(action, help=text, description=text)
        if action != "list":
            k.add_argument("name", metavar="NAME", help="of the key: whose it is, or what uses it")
        if action == "add":
            k.add_argument(
                "--scope", choices=("read", "write", "admin"), default="read", help="how far it opens [read]"
            )
        k.add_argument("--settings", type=Path, metavar="FILE", help="redshelf.toml [$REDSHELF_SETTINGS]")
        k.add_argument("--json", action="store_true", help="print JSON")

    p = add("search", "sources that look like one, and how far away it is")
    _question(p)
    p.add_argument("-k", type=int, help="how many [10]")
    p.add_argument("--estimator", metavar="NAME", help="of the redshift [the shelf's default]")

    p = add("neighbours", "the nearest of every source, as a Parquet file; resumable")
    p.add_argument("-k", type=int, help="how many of each [64]")
    p.add_argument("--encoder", help="embedding space [the shelf's default]")
    _output(p, file=".parquet")

    p = add("redshift", "a photo-z for every source, as Parquet, FITS, or the HDF5 of qp; resumable")
    p.add_argument("--encoder", metavar="NAME[+photometry]", help="a fit [the shelf's default]")
    p.add_argument("--estimator", metavar="NAME", help="of the fit [its default]")
    _output(p, file=".parquet, .fits, or .hdf5 with the densities")

    p = add("targets", "where to point a spectrograph: the galaxies whose labels would lower the error of a fit most")
    p.add_argument("-n", type=int, default=500, help="how many [500]")
    p.add_argument("--encoder", metavar="NAME[+photometry]", help="a fit [the shelf's default]")
    p.add_argument("--mag-max", type=float, metavar="M", help="none fainter than this, AB")
    p.add_argument("--mag-band", metavar="NAME", help="of the magnitude [i, or the nearest to it]")
    p.add_argument("--ra", type=float, help="degrees: the centre of the area, with --dec and --radius-arcsec")
    p.add_argument("--dec", type=float, help="degrees")
    p.add_argument("--radius-arcsec", type=float, metavar="R", help="none farther from the centre than this")
    p.add_argument("--generation", type=int, metavar="N", help="published [the newest]")
    p.add_argument("-o", dest="path", type=Path, metavar="FILE", help="a new file, .parquet, .fits, .vot or .csv")

    p = add("map", "two dimensions of an embedding, or the sky, for the page; made anew for each generation")
    p.add_argument("--encoder", metavar="NAME", help="an encoder, or sky [the shelf's default encoder]")
    p.add_argument(
        "--method", metavar="NAME", help="umap, which needs the `map` extra, or pca [umap where it is there]"
    )
    p.add_argument("--seed", type=int, default=0, help="of the sample and of UMAP [0]")

    p = add("export", "sources and labels as a HATS folder, which LSDB opens and `ingest` reads")
    p.add_argument("-o", dest="folder", type=Path, required=True, metavar="DIR", help="a new folder")

    p = add("check", "every checksum, id, count and vector; exit status 1 on any fault")
    p.add_argument("--all", action="store_true", help="every generation, not the newest alone")
    add("status", "what the shelf has, and what is missing")

    text = "compare the ways to a redshift under labels that do not represent the sky; resumable, with a report"
    p = commands.add_parser("study", help=text, description=text[0].upper() + text[1:] + ".")
    p.add_argument("-o", dest="folder", type=Path, required=True, metavar="DIR", help="a new folder, or to go on in")
    p.add_argument("--size", choices=("quick", "tiny", "full"), default="tiny", help="full: with GPUs [tiny]")
    p.add_argument("--quick", dest="size", action="store_const", const="quick", help="--size quick: three minutes")
    p.add_argument("--seeds", type=int, metavar="N", help="draws of labels and of trainings [the size's]")
    p.add_argument(
        "--weights",
        action="append",
        default=[],
        metavar="NAME=FOLDER[:SHA256]",
        help="published weights of dino, dinov2 or clip; may be repeated",
    )
    p.add_argument("--data", type=Path, metavar="DIR", help="real catalogues [$REDSHELF_DATA; else none]")
    p.add_argument("--processes", type=int, default=2, metavar="N", help="jobs at a time, a thread each [2]")
    p.add_argument("--device", default="cpu", help="of trainings and encoders [cpu]")
    p.add_argument("--any-revision", action="store_true", help="go on with results of other revisions of the code")
    p.add_argument("--stage", action="append", metavar="NAME", help="skies, weights, spaces, cells or report [all]")
    p.add_argument(
        "--sky", action="append", default=[], metavar="NAME", help="the jobs of this sky alone: catalogue ..."
    )
    p.add_argument("--part", metavar="I/N", help="of each stage the jobs I, I + N ...: what a scheduler's task does")
    p.add_argument("--json", action="store_true", help="print JSON")

    p = commands.add_parser(
        "demo", help="all of it on a small simulated survey, then serve", description="The whole way."
    )
    p.add_argument("--dir", type=Path, default=Path("demo"), help="a new folder [demo]")
    p.add_argument("--sources", type=int, metavar="N", help="of the survey [4000]")
    p.add_argument("--serve", action=argparse.BooleanOptionalAction, default=True, help="serve at the end [yes]")
    p.add_argument("--json", action="store_true", help="print JSON")
    _address(p)
    return parser
