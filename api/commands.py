"""What each command of `cli.py` does: read the settings, call one service, print its answer, return the exit status."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redshelf.models.errors import RedshelfError

if TYPE_CHECKING:
    from redshelf.api.ask import Question
    from redshelf.models.training import Report
    from redshelf.service.outputs import OutputReport, What
    from redshelf.service.settings import Settings
    from redshelf.service.training import Run


def _settings(arguments: Namespace) -> Settings:
    from redshelf.service import settings

    given = {name: getattr(arguments, name, None) for name in ("shelf", "host", "port", "workers")}
    return settings.load(getattr(arguments, "settings", None), **given)


def _shelf(arguments: Namespace) -> Path:
    return _settings(arguments).shelf


def _progress() -> bool:
    return sys.stderr.isatty()


def _report(values: Any, arguments: Namespace) -> int:
    from redshelf.api import show

    print(show.facts(values, as_json=arguments.json))
    return 0


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
        progress=_progress(),
    )
    return _report({"survey": written}, arguments)


def ingest(arguments: Namespace) -> int:
    from redshelf.service import ingest

    survey, shelf = arguments.survey, _shelf(arguments)
    on_slurm = arguments.runner == "slurm"
    if arguments.part is not None or arguments.task is not None:
        return _report(ingest.do(survey, shelf, part=arguments.part, task=arguments.task), arguments)
    if arguments.commit:
        return _report(
            ingest.commit_or_resubmit(survey, shelf) if on_slurm else ingest.commit(survey, shelf), arguments
        )
    how: dict[str, Any] = {"update": arguments.update, "part_rows": arguments.part_rows}
    sizes = {"task_parts": arguments.task_parts}
    if arguments.plan:
        plan = ingest.make_plan(survey, shelf, **how, **sizes)
        told = {"parts": 0} if plan is None else {"plan": plan.facts.id, "parts": plan.parts, "tasks": plan.tasks}
        return _report(told, arguments)
    if on_slurm:
        return _report(ingest.submit(survey, shelf, **how, **sizes, settings=arguments.slurm), arguments)
    processes = 1 if arguments.processes is None else arguments.processes
    found = ingest.ingest(survey, shelf, **how, processes=processes, runner=arguments.runner, progress=_progress())
    return _report(found, arguments)


def delete(arguments: Namespace) -> int:
    from redshelf.service.delete import delete, read_ids

    return _report(delete(_shelf(arguments), read_ids(arguments.ids)), arguments)


def _run(arguments: Namespace) -> Run:
    from redshelf.service.training import Run

    return Run(
        **{f.name: getattr(arguments, f.name) for f in fields(Run) if f.name != "progress"}, progress=_progress()
    )


def pretrain(arguments: Namespace) -> int:
    from redshelf.service.training import pretrain

    folder, report = pretrain(
        _shelf(arguments),
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
        _shelf(arguments),
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
    return _report(summary, arguments)


def embed(arguments: Namespace) -> int:
    from redshelf.service import bulk
    from redshelf.service.embedding import Pretrained, embed

    shelf, encoder = _shelf(arguments), arguments.encoder
    on_slurm = arguments.runner == "slurm"
    doing = {"batch_size": arguments.batch_size, "device": arguments.device}
    if arguments.part is not None or arguments.task is not None:
        return _report(bulk.do(shelf, encoder=encoder, part=arguments.part, task=arguments.task, **doing), arguments)
    if arguments.commit:
        found = (
            bulk.commit_or_resubmit(shelf, encoder=encoder)
            if on_slurm
            else {"rows": bulk.commit(shelf, encoder=encoder)}
        )
        return _report({"encoder": encoder, **found}, arguments)
    options = Pretrained(
        input_px=arguments.input_px,
        pca=arguments.pca,
        photometry=arguments.with_photometry,
        space=arguments.space,
        sha256=arguments.sha256,
        random_seed=arguments.random_seed,
    )
    what: dict[str, Any] = {"encoder": encoder, "weights": arguments.weights, "options": options}
    sizes = {"part_rows": arguments.part_rows, "task_parts": arguments.task_parts}
    if arguments.plan:
        plan = bulk.make_plan(shelf, **what, **sizes)
        told = {"parts": 0} if plan is None else {"plan": plan.id, "parts": plan.parts, "tasks": plan.tasks}
        return _report({"encoder": encoder, **told}, arguments)
    if on_slurm:
        return _report(bulk.submit(shelf, **what, **sizes, settings=arguments.slurm, gpu=arguments.gpu), arguments)
    sizes = {"batch_size": arguments.batch_size, "part_rows": arguments.part_rows}
    revision, rows = embed(
        shelf, **what, **sizes, device=arguments.device, runner=arguments.runner, progress=_progress()
    )
    return _report({"encoder": encoder, "revision": revision, "rows": rows}, arguments)


def index(arguments: Namespace) -> int:
    from redshelf.service import index as service

    shelf, encoder = _shelf(arguments), arguments.encoder
    on_slurm = arguments.runner == "slurm"

    def built(found: service.Built) -> dict[str, Any]:
        revision, told = found
        summary = {"encoder": encoder, "revision": revision, "kind": told["kind"]}
        return summary | {"recall": told["recall"]["value"], "table": told.get("table", [])}

    if arguments.part is not None or arguments.task is not None:
        return _report(service.do(shelf, encoder=encoder, part=arguments.part, task=arguments.task), arguments)
    if arguments.commit:
        end = service.commit_or_resubmit if on_slurm else service.commit
        found = end(shelf, encoder=encoder)
        return _report(built(found) if isinstance(found, tuple) else {"encoder": encoder, **found}, arguments)
    memory = None if arguments.memory is None else service.size_of(arguments.memory)
    how: dict[str, Any] = {"memory": memory, "recall": arguments.recall, "part_rows": arguments.part_rows}
    sizes = {"task_parts": arguments.task_parts}
    if arguments.plan:
        plan = service.make_plan(shelf, encoder=encoder, **how, **sizes)
        told = {"parts": 0} if plan is None else {"plan": plan.id, "parts": plan.parts, "tasks": plan.tasks}
        return _report({"encoder": encoder, **told}, arguments)
    if on_slurm:
        return _report(service.submit(shelf, encoder=encoder, **how, **sizes, settings=arguments.slurm), arguments)
    processes = 1 if arguments.processes is None else arguments.processes
    made = service.build_index(
        shelf, encoder=encoder, **how, processes=processes, runner=arguments.runner, progress=_progress()
    )
    return _report(built(made), arguments)


def fit(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.fit import fit

    report = fit(_shelf(arguments), encoder=arguments.encoder)
    print(show.facts(report, as_json=True) if arguments.json else show.fit(report))
    return 0


def publish(arguments: Namespace) -> int:
    from redshelf.service.publish import publish

    found = publish(
        _shelf(arguments),
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
    return _report(summary, arguments)


def serve(arguments: Namespace) -> int:
    from redshelf.api.app import serve

    serve(_settings(arguments))
    return 0


def keys(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service import keys as service

    state_dir = _settings(arguments).state_dir
    if arguments.action == "add":
        key = service.add(state_dir, arguments.name, arguments.scope)
        return _report({"name": arguments.name, "scope": arguments.scope, "key": key}, arguments)
    if arguments.action == "revoke":
        service.revoke(state_dir, arguments.name)
        return _report({"revoked": arguments.name}, arguments)
    found = service.read(state_dir)
    if arguments.json:
        return _report({"keys": [{"name": k.name, "scope": k.scope, "created": k.created} for k in found]}, arguments)
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

    asked, question = open_asked(_shelf(arguments), arguments.url, arguments.api_key), _question(arguments)
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


def _output(arguments: Namespace, what: What, **of_its_own: Any) -> int:
    from redshelf.service import outputs

    shelf, path, on_slurm = _shelf(arguments), arguments.path, arguments.runner == "slurm"
    if arguments.part is not None or arguments.task is not None:
        return _report(outputs.do(shelf, path, what, part=arguments.part, task=arguments.task), arguments)
    if arguments.commit:
        ended = outputs.commit_or_resubmit(shelf, path, what) if on_slurm else outputs.commit(shelf, path, what)
        return _written(ended, arguments)
    asked = outputs.Asked(
        what,
        encoder=arguments.encoder,
        generation=arguments.generation,
        part_rows=arguments.part_rows,
        task_parts=arguments.task_parts,
        **of_its_own,
    )
    if arguments.plan:
        plan = outputs.make_plan(shelf, path, asked)
        return _report({"plan": plan.id, "parts": plan.parts, "tasks": plan.tasks}, arguments)
    if on_slurm:
        return _report(outputs.submit(shelf, path, asked, settings=arguments.slurm), arguments)
    processes = 1 if arguments.processes is None else arguments.processes
    how: dict[str, Any] = {"processes": processes, "runner": arguments.runner, "progress": _progress()}
    return _written(outputs.write(shelf, path, asked, **how), arguments)


def _written(found: OutputReport | dict[str, Any], arguments: Namespace) -> int:
    told = found if isinstance(found, dict) else {"path": found.path, "sources": found.sources, **found.facts}
    return _report(told, arguments)


def neighbours(arguments: Namespace) -> int:
    return _output(arguments, "neighbours", k=arguments.k)


def redshift(arguments: Namespace) -> int:
    return _output(arguments, "redshift", estimator=arguments.estimator)


def targets(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service import targets as service

    if arguments.path is not None:
        service.check_path(arguments.path)  # before minutes of work
    shelf = service.open_for(_shelf(arguments), arguments.encoder, arguments.generation)
    names = ("encoder", "mag_band", "mag_max", "ra", "dec", "radius_arcsec")
    found = service.targets(shelf, arguments.n, **{name: getattr(arguments, name) for name in names})
    if arguments.path is not None:
        service.write(arguments.path, found)
        return _report({"path": arguments.path, **found.facts}, arguments)
    if arguments.json:
        return _report({**found.facts, "targets": found.table.to_pylist()}, arguments)
    print(show.targets(found))
    return 0


def map(arguments: Namespace) -> int:
    from redshelf.service.mapping import make

    shelf = _shelf(arguments)
    told = {"method": arguments.method, "seed": arguments.seed, "progress": _progress()}
    return _report(make(shelf, arguments.encoder, **told), arguments)


def export(arguments: Namespace) -> int:
    from redshelf.indexing.export import export_hats
    from redshelf.indexing.layout import Layout

    sources = export_hats(Layout(_shelf(arguments)), arguments.folder)
    return _report({"folder": arguments.folder, "sources": sources}, arguments)


def check(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.check import check

    found = check(_shelf(arguments), every=arguments.all, progress=_progress())
    print(show.facts(found, as_json=True) if arguments.json else show.checked(found))
    return 1 if found.faults else 0


def status(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.status import status

    found = status(_shelf(arguments))
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
    _report(found, arguments)
    return 1 if found.failed else 0


def demo(arguments: Namespace) -> int:
    from redshelf.api import show
    from redshelf.service.demo import demo

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    size = {} if arguments.sources is None else {"sources": arguments.sources}
    report = demo(arguments.dir, say=say, progress=_progress(), **size)
    print(show.facts(report, as_json=True) if arguments.json else show.demo(report), flush=True)
    if arguments.serve:
        from redshelf.api.app import serve

        settings = _settings(arguments).model_copy(update={"shelf": report.shelf})
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
