"""The documentation against the code: commands of pages run, references whole, numbers as they were measured, the site.

Pages that go on from the first hour share one folder, and are run in the order in which a reader meets them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/slurm/README.md")),
]
pytestmark = pytest.mark.timeout(900)  # whoever is first waits for the whole first hour, on a busy machine for minutes
STEPS = "<!-- steps: run by tests/test_docs.py -->"
# those of one folder, in the order of reading
IN_ORDER = ("first-hour", "encoders", "forty-million", "your-survey", "targets", "security", "operations")
ADDRESS = "http://127.0.0.1:8000"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def blocks(text: str, marker: str) -> list[str]:
    """The code below each such comment."""
    return re.findall(re.escape(marker) + r"\n```\w+\n(.*?)```", text, re.DOTALL)


def example(name: str, what: str) -> str:
    (code,) = blocks(page(name), f"<!-- example: {what} -->")
    return code


@pytest.fixture(scope="module")
def generate() -> types.ModuleType:
    """docs/generate.py, which is of no package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- every shell block


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_shell_block_says_what_runs_it_or_what_it_needs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    told = re.findall(r"(?:^|\n)(.*)\n```sh\n", text)
    if path == ROOT / "CONTRIBUTING.md":  # targets of the Makefile, see test_readme
        return
    for line in told:
        assert re.fullmatch(r"<!-- (steps: run by|asked: run by|example:|needs:) ?\S.* -->", line), line


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_every_page_is_one_that_the_parser_takes(path: Path) -> None:
    from redshelf.api.parser import build_parser

    parser = build_parser()
    for block in re.findall(r"```sh\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["redshelf"]:
                parser.parse_args(words[1:])  # leaves with what is wrong


# ---- commands, run


Run = Callable[[str], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Runs lines in one folder, redshelf's in this process: as many starts of Python would take longer than they do."""
    from redshelf.api.cli import main

    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT / "tests" / "links"), prepend=os.pathsep)  # of processes that they start
        for name in ("CACHE", "STATE"):
            patch.setenv(f"XDG_{name}_HOME", str(folder / name.lower()))

        def lines(block: str) -> None:
            for line in block.replace("\\\n", " ").strip().splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["redshelf"]:
                    assert main(words[1:]) == 0, line
                elif words:
                    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
                    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"

        yield lines


@pytest.fixture(scope="module")
def first_hour(run: Run) -> Path:
    """The folder of the first hour."""
    pytest.importorskip("galsim", reason="the `sim` extra is not installed")
    for block in blocks(page("first-hour"), STEPS):
        run(block)
    return Path.cwd()


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_ORDER[1:])
def test_the_steps_of_every_page_run_in_the_folder_of_the_first_hour(name: str, first_hour: Path, run: Run) -> None:
    found = blocks(page(name), STEPS)
    assert found
    for block in found:
        run(block)


def test_no_page_has_steps_that_are_not_run() -> None:
    assert {path.stem for path in PAGES if STEPS in path.read_text(encoding="utf-8")} == set(IN_ORDER)


@pytest.fixture(scope="module")
def app(first_hour: Path) -> FastAPI:
    """The service of the first hour's shelf, which `url` serves."""
    from redshelf.api.app import create_app
    from redshelf.service.settings import load

    return create_app(load(environ={}, shelf=first_hour / "shelf", state_dir=first_hour / "served"))


@pytest.mark.slow
def test_the_questions_of_the_pages_are_answered(url: str, run: Run) -> None:
    found = blocks(page("asking"), "<!-- asked: run by tests/test_docs.py -->")
    assert len(found) == 2
    for block in found:
        run(block.replace(ADDRESS, url).replace("curl ", "curl --silent --show-error --fail-with-body "))


@pytest.mark.slow
def test_the_client_of_the_page_is_answered(url: str) -> None:
    pytest.importorskip("qp", reason="the `sim` extra is not installed")
    (code,) = blocks(page("python"), "<!-- asked: run by tests/test_docs.py -->")
    scope: dict[str, Any] = {}
    exec(code.replace(ADDRESS, url), scope)
    assert len(scope["alike"]) == len(scope["redshifts"]) == scope["densities"].npdf > 0


@pytest.mark.slow
def test_the_steps_of_cosmos2020_run_on_a_table_of_its_columns(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_deployed_surveys import SPECZ, spectra, write

    from redshelf.indexing import survey as surveys
    from redshelf.indexing.survey import as_list

    monkeypatch.setenv("REDSHELF_DATA", str(tmp_path))
    survey = surveys.load(ROOT / "deploy" / "surveys" / "cosmos2020-farmer.toml")
    section, count, rng = survey.catalogue, 160, np.random.default_rng(0)
    z = rng.uniform(0.1, 1.5, count)
    columns: dict[str, list[float]] = {
        section.id: list(range(count)),
        section.ra: [150 + n / 100 for n in range(count)],
    }
    columns |= {section.dec: [2.0] * count, as_list(section.ebv)[0]: [0.02] * count}
    columns |= {name: [0] * count for name in [*section.mask_flags, section.object_class or ""]}
    columns |= {name or "": z.tolist() for name in [section.z_reference, *section.z_references.values()]}
    for number, band in enumerate(survey.bands):
        (flux,), (error,) = band.photometry_columns, band.error_columns
        columns |= {flux: (10 + number * z).tolist(), error: [0.2] * count}
    write(tmp_path / Path(section.path).name, columns)
    write(tmp_path / SPECZ, spectra(*((n, 0.1, float(z[n]), 4) for n in range(0, count, 2))))
    (block,) = blocks(
        page("your-survey"),
        "<!-- steps: run by tests/test_docs.py, on a table of exactly the columns that the file names -->",
    )
    run(block.replace("deploy/surveys", str(ROOT / "deploy" / "surveys")))


def test_the_survey_of_the_page_is_that_of_the_deployed_file() -> None:
    deployed = (ROOT / "deploy" / "surveys" / "cosmos2020-farmer.toml").read_text(encoding="utf-8")
    first, bands, labels = re.findall(r"```toml\n(.*?)```", page("your-survey"), re.DOTALL)[:3]
    for line in "".join((first, bands, labels)).splitlines():
        assert line.partition("   #")[0] in deployed, line


# ---- the worked examples


@pytest.mark.slow
def test_the_encoder_of_the_page_goes_the_whole_way(
    first_hour: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from redshelf.models import encoder
    from redshelf.service.shelf import open_shelf

    code = example("add-encoder", "encoder")
    assert len(code.splitlines()) < 60
    loaded("rings", code, tmp_path, monkeypatch)
    monkeypatch.setitem(encoder.KINDS, "rings", "redshelf.models.rings:Rings")
    assert '"rings": "redshelf.models.rings:Rings"' in page("add-encoder")
    exec(example("add-encoder", "encoder folder"), {})
    run(example("add-encoder", "encoder steps"))
    (published,) = [one for one in open_shelf(first_hour / "shelf").generation.encoders if one.name == "rings"]
    assert published.weights == "none: rings are computed"


def test_the_encoder_of_the_page_sees_rings_and_no_bad_pixel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import torch

    from redshelf.models.encoder import Batch

    rings = loaded("rings", example("add-encoder", "encoder"), tmp_path, monkeypatch).Rings(("g",), 2)
    pixels, bad = torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    pixels[:, 0, 4, 4], bad[1, 0, 4, 5] = 2.0, True
    pixels[1, 0, 4, 5] = float("nan")
    found = rings.embed(Batch(state=torch.full((2, 1), 2, dtype=torch.int8), pixels=pixels, pixel_mask=bad))
    inner = sum((x - 4) ** 2 + (y - 4) ** 2 < 4 for x in range(8) for y in range(8))  # within half of the side's half
    torch.testing.assert_close(found, torch.asinh(torch.tensor([[2 / inner, 0.0], [2 / (inner - 1), 0.0]])))


def test_the_estimator_of_the_page_is_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded("ridge", example("add-estimator", "estimator"), tmp_path, monkeypatch)
    rng = np.random.default_rng(0)
    z = rng.uniform(0.1, 1.0, 600)
    features = np.column_stack([np.log1p(z), rng.normal(size=600)]) + rng.normal(0, 0.02, (600, 2))
    scope: dict[str, Any] = {"features": features, "z": z, "target": features[:400] + 0.05}
    exec(example("add-estimator", "estimator scores"), scope)
    assert "recalibrated CDE loss" in capsys.readouterr().out
    assert scope["metrics"].sigma_mad(scope["metrics"].delta_z(scope["raw"].median(), z)) < 0.03


def test_the_places_that_an_estimator_goes_to_are_there() -> None:
    from redshelf.models import fitting, redshift, validate

    assert validate.MEMBERS and redshift.PARTS and redshift.ESTIMATORS
    assert callable(redshift.RedshiftModel._members) and callable(fitting._fitted)


@pytest.mark.slow
def test_the_survey_of_the_page_comes_out_as_its_table_says(run: Run) -> None:
    from redshelf.indexing import store
    from redshelf.indexing.layout import Layout
    from redshelf.models.bands import State

    for name in ("few.csv", "few.toml"):
        Path(name).write_text(example("add-survey", f"survey {name}"))
    run(example("add-survey", "survey steps"))
    layout = Layout(Path("few"))
    rows = {row["source_id"]: row for row in store.open_table(layout.sources).to_table().to_pylist()}
    labels = {row["row"]: row["z_spec"] for row in store.open_table(layout.labels).to_table().to_pylist()}
    table = re.findall(r"^\| (\d) \| ([a-z ]+) \| ([a-z ]+) \| (.*?) \|$", page("add-survey"), re.MULTILINE)
    assert len(table) == len(rows) == 6
    for source, g, r, redshift in table:
        row = rows[source]
        assert [State(row[f"state_{band}"]).name.lower().replace("_", " ") for band in "gr"] == [g, r]
        found = labels.get(row["row"])
        assert (found is None) if redshift.startswith("none") else (found == np.float32(redshift.partition(";")[0]))


def loaded(name: str, code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The module `redshelf.models.NAME` of a page's code, for this test."""
    path = folder / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(f"redshelf.models.{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


# ---- references


def test_every_command_and_option_is_in_the_reference_and_says_what_it_is(generate: types.ModuleType) -> None:
    from redshelf.api.parser import build_parser

    text = generate.commands()
    for name, parser in generate.parsers(build_parser()):
        title = name.removeprefix("redshelf ")
        assert f"\n## {title}\n" in text and parser.description, name
        section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        for action in parser._actions:
            if action.dest == "help":
                continue
            assert action.help, f"{name}: {action.dest} says nothing"
            for option in action.option_strings:
                assert f"`{option}" in section, f"{name} {option}"


def test_every_route_and_parameter_is_in_the_reference_and_says_what_it_is(generate: types.ModuleType) -> None:
    from redshelf.api.app import described

    text = generate.routes()
    for path, operations in described().openapi()["paths"].items():
        for method, operation in operations.items():
            head = f"\n### {method.upper()} {path}\n"
            assert head in text and operation.get("description"), f"{method} {path}"
            section = re.split(r"\n##+ ", text.partition(head)[2])[0]
            for one in operation.get("parameters", []):
                assert f"| `{one['name']}` |" in section, f"{method} {path} {one['name']}"


def test_every_page_is_in_the_reference_and_says_what_it_shows(generate: types.ModuleType) -> None:
    from redshelf.api.app import described

    text, found = generate.routes(), list(generate.pages(described().routes))
    assert {"/", "/source/{source_id}", "/similar", "/key"} <= {one.path for one in found}
    for one in found:
        assert f" {one.path}`" in text.partition("\n## Pages\n")[2] and one.endpoint.__doc__, one.path


def test_the_described_routes_are_those_of_a_server(tiny_shelf: Path) -> None:
    from redshelf.api.app import create_app, described
    from redshelf.service.settings import load

    assert create_app(load(environ={}, shelf=tiny_shelf)).openapi() == described().openapi()


def test_every_setting_is_in_the_reference_and_says_what_it_is(generate: types.ModuleType) -> None:
    from redshelf.service.settings import Settings

    text, told = generate.settings(), generate.comments(Settings)
    for name in Settings.model_fields:
        assert f"| `{name}` |" in text and told[name], name


def test_every_key_of_a_survey_file_is_in_the_reference_and_says_what_it_is(generate: types.ModuleType) -> None:
    from redshelf.indexing import survey

    text = generate.survey_files()
    for section, model in survey._MODELS.items():
        part = text.partition(f"{{ #{section} }}")[2].partition("\n## ")[0]
        for name in model.model_fields:
            assert f"| `{name}` |" in part and generate.comments(model)[name], f"{section}.{name}"


def test_the_settings_file_of_the_page_is_taken(tmp_path: Path) -> None:
    from redshelf.service.settings import load

    (content,) = re.findall(r"```toml\n(.*?)```", page("serving"), re.DOTALL)
    file = tmp_path / "redshelf.toml"
    file.write_text(content)
    assert load(file, environ={}).workers == 4


def test_the_data_flow_is_drawn_alike_wherever_it_is_drawn() -> None:
    (drawn,) = re.findall(r"```\n(survey.toml .*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    for name in ("index", "architecture"):
        assert drawn in page(name), name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere_in_the_repository_too(path: Path) -> None:
    """But for the references, which are made when the site is built."""
    for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", link) and not link.startswith("reference/"):
            assert (path.parent / link).exists(), link


# ---- numbers


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_copied_numbers_stand_where_they_were_measured(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for source, sentences, copy in re.findall(
        r"<!-- copied from (\S+?)(: sentences)? -->\n(?:```\w*\n)?(.*?)(?:\n```|\n\n|\Z)", text, re.DOTALL
    ):
        measured = (ROOT / source).read_text(encoding="utf-8")
        if sentences:
            assert squeezed(copy.replace("\n> ", "\n").removeprefix("> ")) in squeezed(measured), copy
        else:
            lines = {line.rstrip() for line in measured.splitlines()}
            for line in copy.splitlines():
                assert line.rstrip() in lines, line
    for source, quote in re.findall(r'<!-- source (\S+) "(.*)" -->', text):
        assert squeezed(quote) in squeezed((ROOT / source).read_text(encoding="utf-8")), quote


def test_the_trust_page_begins_with_the_limits() -> None:
    assert re.findall(r"^## (.*)$", page("trust"), re.MULTILINE)[0] == "The limits first"


# ---- the site


class Assets(HTMLParser):
    """What a page loads by itself: scripts, styles, images; not links that somebody clicks."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed"):
            self.found.append(given.get("src") or "")
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get("href") or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the `docs` extra is not installed")
    pytest.importorskip("material", reason="the `docs` extra is not installed")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_builds_without_a_warning_and_has_every_page(site: Path) -> None:
    for path in DOCS.rglob("*.md"):
        name = path.relative_to(DOCS).with_suffix(".html").as_posix()
        assert (site / name.replace("study/README", "study")).is_file(), name
    assert {path.stem for path in (site / "reference").iterdir()} == {"commands", "http", "settings", "survey"}
    assert not [*site.rglob("*.py"), *site.rglob("*.pyc"), *site.rglob("__pycache__")]
    assert "redshelf: the study" in (site / "study" / "index.html").read_text(encoding="utf-8")


def test_the_site_shows_bars_in_tables_and_no_backslash_before_them(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert not re.search(r"<td>.*\\\|", path.read_text(encoding="utf-8")), path.name
    assert "<code>--runner local|slurm|ray</code>" in (site / "reference" / "commands.html").read_text(encoding="utf-8")


def test_the_site_says_what_a_block_of_commands_needs_and_leads_to_the_pages_of_other_folders(site: Path) -> None:
    deploying = (site / "deploy.html").read_text(encoding="utf-8")
    assert "<em>Needs root.</em>" in deploying and "tests/test_deploy.py runs install.sh" not in deploying
    assert 'href="benchmarks.html#targetspy' in (site / "targets.html").read_text(encoding="utf-8")


def test_the_site_asks_nothing_of_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        assets = Assets()
        assets.feed(path.read_text(encoding="utf-8"))
        away = [one for one in assets.found if re.match(r"(https?:)?//", one)]
        assert not away, (path.name, away)
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path.name
