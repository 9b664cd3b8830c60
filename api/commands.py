"""What each command does: read the settings, call one service, print its answer, return the exit status.

Those that work in parts are in `bulk_commands.py`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from redshelf.api.arguments import progress, settings_of, shelf_of, tell
from redshelf.api.bulk_commands import embed, index, ingest, neighbours, redshift
from redshelf.models.errors import RedshelfError

if TYPE_CHECKING:
    from redshelf.api.ask import Question
    from redshelf.models.training import Report
    from redshelf.service.training import Run


def simulate(arguments: Namespace) -> int:
    from redshelf.indexing.simulate import simulate

    written = simulate(
        arguments.folder,
        sources=arguments.sources,
        bands=tuple(name.strip() for name in arguments.bands.split(",")),
        scenario=arguments.scenario,
        seed=arguments.seed,
        catalogue_only=arguments.catalogue_only,
        two_depths=arguments.two_depths,
        u_star=arguments.u_star,
        missing_nir=arguments.missing_nir,
        wrong_redshifts=arguments.wrong_redshifts,
        progress=progress(),
    )
    return tell({"survey": written}, arguments)


def delete(arguments: Namespace) -> int:
    from redshelf.service.delete import delete, read_ids

    return tell(delete(shelf_of(arguments), read_ids(arguments.ids)), arguments)


def _run(arguments: Namespace) -> Run:
    from redshelf.service.training import Run

    return Run(**{f.name: getattr(arguments, f.name) for f in fields(Run) if f.name != "progress"}, progress=progress())


def pretrain(arguments: Namespace) -> int:
    from redshelf.service.training import pretrain

    folder, report = pretrain(
        shelf_of(arguments),
        name=arguments.name,
        objective=arguments.objective,
        size=arguments.size,
        patch_px=arguments.patch_px,
        with_redshifts=arguments.with_redshifts,
        run=_run(arguments),
    )
    return _trained(folder, report, arguments)


def train(arguments: Namespace) -> int:
    from redshelf.service.training import train

    folder, report = train(
        shelf_of(arguments),
        name=arguments.name,
        model=arguments.model,
        start=arguments.start,
        mode=arguments.mode,
        photometry=arguments.photometry,
        loss=arguments.loss,
        imbalance=arguments.imbalance,
        size=arguments.size,
        patch_px=arguments.patch_px,
        width=arguments.width,
        run=_run(arguments),
    )
    return _trained(folder, report, arguments)


def _trained(folder: Path, report: Report, arguments: Namespace) -> int:
    from redshelf.models.parallel import find_processes

    if not find_processes().is_first:  # of those that trained together one tells
        return 0
    name, _, revision = folder.name.rpartition(".")
    summary = {
        "encoder": name,
        "revision": revision,
        "steps": report.steps,
        "seconds": report.seconds,
        "loss": report.loss,
    }
    if report.stages:
        summary["of_which"] = {f"{name} stage": steps for name, steps in report.stages.items()}
    if report.kept:
        summary["kept"] = f"the {report.kept} stage: the one after it did no better on the labels held out"
    return tell(summary, arguments)


def fit(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.fit import fit

    report = fit(shelf_of(arguments), encoder=arguments.encoder)
    print(show.facts(report, as_json=True) if arguments.json else show.fit(report))
    return 0


def publish(arguments: Namespace) -> int:
    from redshelf.service.publish import publish

    found = publish(
        shelf_of(arguments),
        default_encoder=arguments.default_encoder,
        default_estimator=arguments.default_estimator,
    )
    summary = {
        "generation": found.number,
        "sources": found.tables["sources"].rows,
        "encoders": [encoder.name for encoder in found.encoders],
        "redshifts": [fit.encoder for fit in found.redshifts],
        "default_encoder": found.default_encoder,
        "default_redshift": found.default_redshift,
        "default_estimator": found.default_estimator,
        "files": len(found.files),
    }
    return tell(summary, arguments)


def serve(arguments: Namespace) -> int:
    from redshelf.api.app import serve

    serve(settings_of(arguments))
    return 0


def keys(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service import keys as service

    state_dir = settings_of(arguments).state_dir
    if arguments.action == "add":
        key = service.add(state_dir, arguments.name, arguments.scope)
        return tell({"name": arguments.name, "scope": arguments.scope, "key": key}, arguments)
    if arguments.action == "revoke":
        service.revoke(state_dir, arguments.name)
        return tell({"revoked": arguments.name}, arguments)
    found = service.read(state_dir)
    if arguments.json:
        return tell({"keys": [{"name": k.name, "scope": k.scope, "created": k.created} for k in found]}, arguments)
    print(show.table(("name", "scope", "created"), [(k.name, k.scope, k.created) for k in found], left=3))
    return 0


def _question(arguments: Namespace) -> Question:
    from redshelf.api.ask import Question

    position = None if arguments.ra is None else (arguments.ra, arguments.dec)
    return Question(
        arguments.source_id,
        position,
        arguments.cutout,
        arguments.bands,
        arguments.unit,
        arguments.pixel_scale_arcsec,
        arguments.ebv,
        arguments.text,
        tuple(arguments.like),
        tuple(arguments.unlike),
    )


def search(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.api.ask import open_asked

    asked, question = open_asked(shelf_of(arguments), arguments.url, arguments.api_key), _question(arguments)
    found = asked.neighbours(question, encoder=arguments.encoder, k=arguments.k)
    if arguments.json:
        print(found.model_dump_json())
        return 0
    print(show.neighbours(found, str(question)))
    if not question.of_one:
        return 0
    print()
    try:
        print(show.redshift(asked.redshift(question, estimator=arguments.estimator)))
    except RedshelfError as error:  # a shelf without a fit still answers what it was asked
        if arguments.estimator:
            raise
        print(f"no redshift: {error}")
    return 0


def targets(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service import targets as service

    if arguments.path is not None:
        service.check_path(arguments.path)  # before minutes of work
    shelf = service.open_for(shelf_of(arguments), arguments.encoder, arguments.generation)
    names = ("encoder", "mag_band", "mag_max", "ra", "dec", "radius_arcsec")
    found = service.targets(shelf, arguments.n, **{name: getattr(arguments, name) for name in names})
    if arguments.path is not None:
        service.write(arguments.path, found)
        return tell({"path": arguments.path, **found.facts}, arguments)
    if arguments.json:
        return tell({**found.facts, "targets": found.table.to_pylist()}, arguments)
    print(show.targets(found))
    return 0


def map(arguments: Namespace) -> int:
    from redshelf.service.mapping import make

    shelf = shelf_of(arguments)
    told = {"method": arguments.method, "seed": arguments.seed, "progress": progress()}
    return tell(make(shelf, arguments.encoder, **told), arguments)


def export(arguments: Namespace) -> int:
    from redshelf.indexing.export import export_hats
    from redshelf.indexing.layout import Layout

    sources = export_hats(Layout(shelf_of(arguments)), arguments.folder)
    return tell({"folder": arguments.folder, "sources": sources}, arguments)


def check(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.check import check

    found = check(shelf_of(arguments), every=arguments.all, progress=progress())
    print(show.facts(found, as_json=True) if arguments.json else show.checked(found))
    return 1 if found.faults else 0


def status(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.status import status

    found = status(shelf_of(arguments))
    print(show.facts(found, as_json=True) if arguments.json else show.status(found))
    return 0


def study(arguments: Namespace) -> int:
    import os

    from redshelf.service import study as use

    data = arguments.data or (Path(os.environ["REDSHELF_DATA"]) if os.environ.get("REDSHELF_DATA") else None)
    if data is None:
        print("no real catalogues: give --data, or set REDSHELF_DATA; the simulated part goes on", file=sys.stderr)
    found = use.study(
        arguments.folder,
        size=arguments.size,
        seeds=arguments.seeds,
        weights=use.published(arguments.weights),
        data=data,
        stages=tuple(arguments.stage) if arguments.stage else use.STAGES,
        skies=arguments.sky,
        part=use.share(arguments.part) if arguments.part else (0, 1),
        processes=arguments.processes,
        device=arguments.device,
        any_revision=arguments.any_revision,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    tell(found, arguments)
    return 1 if found.failed else 0


def demo(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.demo import demo

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    size = {} if arguments.sources is None else {"sources": arguments.sources}
    report = demo(arguments.dir, say=say, progress=progress(), **size)
    print(show.facts(report, as_json=True) if arguments.json else show.demo(report), flush=True)
    if arguments.serve:
        from redshelf.api.app import serve

        settings = settings_of(arguments).model_copy(update={"shelf": report.shelf})
        say(f"the page: http://{settings.host}:{settings.port}/source/{report.source_id}")
        serve(settings)
    return 0


RUN: dict[str, Callable[[Namespace], int]] = {
    function.__name__: function
    for function in (
        simulate, ingest, delete, pretrain, train, embed, index, fit, publish, serve, keys, search, neighbours,
        redshift, targets, map, export, check, status, study, demo,
    )
}  # fmt: skip
