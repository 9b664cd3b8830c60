"""The reference pages of the site, made from the code when the site is built: commands, routes, settings, survey keys.

`mkdocs build` calls `on_files` below (a hook of MkDocs, named in mkdocs.yml); `make docs` runs it. Nothing of this is
committed, so that it cannot go stale. `tests/test_docs.py` compares the pages with parser, routes and settings.
"""

from __future__ import annotations

import argparse
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

NEEDS = re.compile(r"<!-- needs: ([^;]*?)(?:;[^>]*)? -->")  # behind the semicolon: how it is tried
ROOT = Path(__file__).resolve().parent.parent
COMMENT = re.compile(r"^    (\w+): .*?(?:  # (.*))?$", re.MULTILINE)  # a field of a model, and what it says behind it
TAGS = {
    "sources": "Sources",
    "neighbours": "Neighbours",
    "lists": "Lists",
    "redshifts": "Redshifts",
    "jobs": "Jobs",
    "virtual observatory": "Virtual Observatory",
    "operations": "Operations",
}
NAMED = {"Cut": "cuts", "ClassRange": "class_ranges"}  # models by the key that holds them


def cell(text: object) -> str:
    """A text as one cell of a Markdown table; `<` begins no tag in it."""
    pieces = " ".join(str(text).split()).replace("|", "\\|").split("`")
    return "`".join(piece if n % 2 else piece.replace("<", "&lt;") for n, piece in enumerate(pieces))


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A Markdown table, or nothing without rows."""
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell(one) for one in line) + " |" for line in lines) + "\n"


# ---- commands


def parsers(parser: argparse.ArgumentParser, name: str = "redshelf") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Each command that does something, with its name: those that only hold other ones are left out."""
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield name, parser
    for action in inner:
        for word, one in action.choices.items():
            yield from parsers(one, f"{name} {word}")


def options(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """How each option of a command is written, and what it says of itself; `--help` left out."""
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if action.choices is not None:
            value = "|".join(str(choice) for choice in action.choices)
        else:
            value = "" if action.nargs == 0 else str(action.metavar or action.dest.upper())
        names = [f"`{one} {value}`" if value else f"`{one}`" for one in action.option_strings]
        told = (action.help or "").replace("%%", "%")
        rows.append((", ".join(names) or f"`{value}`", told + ("; required" if action.required else "")))
    return rows


def commands() -> str:
    """The page of the commands, from the parser."""
    from redshelf.api.parser import build_parser

    parser = build_parser()
    summary, parts = [], []
    for name, one in parsers(parser):
        one.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=88)
        title, does = name.removeprefix("redshelf "), (one.description or name).rstrip(".")
        does = does[0].upper() + does[1:]
        summary.append((f"[`{title}`](#{title.replace(' ', '-')})", does))
        usage = one.format_usage().removeprefix("usage: ").rstrip()
        parts.append(f"## {title}\n\n{does}.\n\n```text\n{usage}\n```\n")
        parts.append(table(("option", "meaning; [what holds without it]"), options(one)))
    return f"""# Commands

Made from the parser of `redshelf`, as `redshelf COMMAND --help` prints it. `redshelf --version` tells the version.

Exit status: 0 done, 1 failed (one line on stderr says why), 2 wrong usage, 85 stopped by SIGTERM or SIGUSR1 with the
work saved: the same command goes on from there.

{table(("command", "does"), summary)}
{chr(10).join(parts)}"""


# ---- routes


def kind(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in a few words; a named one as a link to its section."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{NAMED.get(name, name)}](#{NAMED.get(name, name.lower())})"
    if "anyOf" in schema or "oneOf" in schema:
        found = [kind(one) for one in schema.get("anyOf") or schema["oneOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(found))
    if "enum" in schema:
        return " or ".join(f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if schema.get("type") == "array":
        most = f", at most {schema['maxItems']:,}" if "maxItems" in schema else ""
        return f"list of {kind(schema['items'])}{most}" if "items" in schema else "list"
    return f"{schema.get('type', 'any')}{limits(schema)}"


def number(value: float) -> str:
    """A number with commas, without a point where it is whole."""
    return f"{int(value):,}" if value == int(value) else f"{value}"


def limits(schema: dict[str, Any]) -> str:
    """The range that a schema allows, such as `, 1 to 1000`."""
    least = schema.get("minimum", schema.get("exclusiveMinimum"))
    most = schema.get("maximum", schema.get("exclusiveMaximum"))
    if least is None and most is None:
        return ""
    least = None if least is None else f"{'at least' if 'minimum' in schema else 'more than'} {number(least)}"
    most = None if most is None else f"{'at most' if 'maximum' in schema else 'less than'} {number(most)}"
    if least and most and "minimum" in schema and "maximum" in schema:
        return f", {number(schema['minimum'])} to {number(schema['maximum'])}"
    return f", {' and '.join(part for part in (least, most) if part)}"


def fields(schema: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The fields of an object: name, kind, and what is said of it."""
    needed = schema.get("required", [])
    rows = []
    for name, one in schema.get("properties", {}).items():
        told = one.get("description", "")
        if name not in needed and one.get("default") is not None:
            told += f" [{one['default']}]"
        rows.append((f"`{name}`", kind(one), told))
    return rows


def route(path: str, method: str, operation: dict[str, Any]) -> str:
    """The section of one route."""
    out = [f"### {method.upper()} {path}\n", operation.get("description", "").strip() + "\n"]
    if {} not in operation.get("security", [{}]):
        out.append("Wants a key, on loopback once there are keys (`/admin/`: scope `admin`; jobs: `write`).\n")
    asked = []
    for one in operation.get("parameters", []):
        schema, told = one.get("schema", {}), one.get("description") or one.get("schema", {}).get("description", "")
        if one.get("required"):
            told += " (required)" if one["in"] != "path" else ""
        elif schema.get("default") is not None:
            told += f" [{schema['default']}]"
        asked.append((f"`{one['name']}`", one["in"], kind(schema), told.strip()))
    out.append(table(("parameter", "in", "is", "meaning; [what holds without it]"), asked))
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        out.append(f"The body, `{media}`: {kind(body['schema'])}.\n")
    for status, answer in operation["responses"].items():
        if status.startswith(("2", "3")):
            made = [
                f"`{media}`"
                + (f": {kind(body['schema'])}" if media == "application/json" and body.get("schema") else "")
                for media, body in answer.get("content", {}).items()
            ]
            out.append(f"Answers **{status}**{', ' + '; '.join(made) if made else ''}.\n")
    return "\n".join(part for part in out if part)


def pages(routes: Iterable[Any], *, hidden: bool = False) -> Iterator[Any]:
    """The routes that the OpenAPI document leaves out, those of routers inside routers too."""
    for one in routes:
        inner = getattr(one, "original_router", None)
        if inner is not None:  # FastAPI keeps the routers that it includes
            yield from pages(inner.routes, hidden=hidden or not one.include_context.include_in_schema)
        elif hasattr(one, "endpoint") and one.path != "/openapi.json" and (hidden or not one.include_in_schema):
            yield one


def routes() -> str:
    """The page of the routes, from the OpenAPI document."""
    from redshelf.api.app import described

    app = described()
    document = app.openapi()
    shown_to_people = [
        (f"`{method} {one.path}`", (one.endpoint.__doc__ or "").strip())
        for one in pages(app.routes)
        for method in sorted(one.methods - {"HEAD"})
    ]
    grouped: dict[str, list[str]] = {}
    summary = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = (operation.get("tags") or ["others"])[0]
            grouped.setdefault(tag, []).append(route(path, method, operation))
            anchor = re.sub(r"[^a-z0-9_-]+", "", f"{method} {path}".lower().replace(" ", "-"))
            first = re.split(r"(?<=[.:;])\s", operation.get("description", "").strip())[0].rstrip(".:;")
            summary.append((f"[`{method.upper()} {path}`](#{anchor})", first))
    shown = document["components"]["schemas"]
    problems = sorted({s for ops in document["paths"].values() for o in ops.values() for s in o["responses"]})
    sections = [f"## {TAGS.get(tag, tag.capitalize())}\n\n" + "\n".join(parts) for tag, parts in grouped.items()]
    schemas = []
    for name, schema in sorted(shown.items()):
        body = table(("field", "is", "meaning; [default]"), fields(schema)) or f"{kind(schema)}\n"
        schemas.append(f"### {name}\n\n{schema.get('description', '').strip()}\n\n{body}")
    return f"""# HTTP and VO reference

Made from the OpenAPI document, which a server gives at `/openapi.json`. How to ask is told with examples in
[Asking over HTTP](../asking.md); how `/scs`, `/datalink` and `/soda/sync` fit TOPCAT, pyvo and Aladin in
[its section on the Virtual Observatory](../asking.md#from-the-virtual-observatory).

Angles are in degrees unless a name says otherwise, fluxes in microjansky, magnitudes AB; ids are strings. Every error
is an RFC 9457 problem (`application/problem+json`) that says what was wrong, the value, and what was expected; the
statuses there are: {", ".join(s for s in problems if s >= "400")}. Any parameter that is not listed is refused (422),
but by the routes of the Virtual Observatory, whose standards want it ignored. Routes that read need no key on loopback;
see [Security](../security.md).

{table(("route", "answer"), summary)}
{chr(10).join(sections)}
## Pages

Of [the page](../asking.md#the-page), in HTML: no part of the OpenAPI document.

{table(("route", "shows"), shown_to_people)}
## Schemas

{chr(10).join(schemas)}"""


# ---- settings


def comments(model: type) -> dict[str, str]:
    """What the source of a pydantic model says behind each of its fields."""
    return {name: text or "" for name, text in COMMENT.findall(inspect.getsource(model))}


def settings() -> str:
    """The page of the settings, from the model that reads them."""
    from redshelf.service.settings import Settings

    told, schema = comments(Settings), Settings.model_json_schema()
    rows = []
    for name, one in schema["properties"].items():
        default = one.get("default", "see there" if Settings.model_fields[name].default_factory else None)
        if isinstance(default, int) and not isinstance(default, bool) and default >= 1 << 20:
            default = f"{default:,}"
        shown = (
            "–" if default is None else '""' if default == "" else f"`{default}`" if default != "see there" else default
        )
        rows.append(
            (f"`{name}`", shown.replace("True", "true").replace("False", "false"), kind(one), told.get(name, ""))
        )
    return f"""# Settings

Made from `service/settings.py`. Of a setting the command line wins over the environment, that over the file, and that
over the default. The file is named by `--settings FILE` or `$REDSHELF_SETTINGS`; the variable of a setting is its name
in capitals behind `REDSHELF_`, such as `REDSHELF_MAX_K`. A key that is not in this table is refused with the nearest
right one.

{table(("setting", "default", "is", "meaning"), rows)}
`state_dir` is by default `redshelf` in `$XDG_STATE_HOME`, or `~/.local/state/redshelf`; `threads` as many as the
cores that it may run on, at most four. Rates are such as `6000/minute` or `50/second`, and empty for none. Of lists,
the variable holds the values separated by commas.
A file for a lab stands in [Serving a lab](../serving.md#workers).

Variables that are no settings: `REDSHELF_SETTINGS` (the file), `REDSHELF_KEY` (the key that `redshelf search --url`
sends, and the notebook), `REDSHELF_DATA` (the folder of the public catalogues that survey files and benchmarks name),
`REDSHELF_REVISION` (what is told as the revision where there is no git at installation) and, of the tests,
`REDSHELF_TORTURE`.
"""


# ---- survey files


def survey_files() -> str:
    """The page of the keys of survey.toml, from the models that check them."""
    from redshelf.indexing import survey

    parts = []
    sections: dict[str, tuple[str, type[survey.Section]]] = {
        "survey": ("[survey]", survey.SurveySection),
        "catalogue": ("[catalogue]", survey.Catalogue),
        "bands": ("[[bands]]", survey.BandSection),
        "tiles": ("[tiles]", survey.Tiles),
        "stamps": ("[stamps]", survey.Stamps),
        "labels": ("[[labels]]", survey.Labels),
        "cuts": ("cuts, a list of", survey.Cut),
        "class_ranges": ("class_ranges, a list of", survey.ClassRange),
    }
    for section, (title, model) in sections.items():
        told, needed = comments(model), {n for n, f in model.model_fields.items() if f.is_required()}
        rows = []
        for name, one in model.model_json_schema()["properties"].items():
            meaning = told.get(name, "").replace("None:", "without it:")
            if name in needed:
                meaning += " (required)"
            elif one.get("default") not in (None, "", [], {}, False, 0):
                meaning += f" [{one['default']}]"
            rows.append((f"`{name}`", kind(one), meaning.strip()))
        text = (
            "" if model.__doc__ is None or model.__doc__ == survey.Section.__doc__ else inspect.cleandoc(model.__doc__)
        )
        parts.append(
            f"## {title} {{ #{section} }}\n\n{text}\n\n{table(('key', 'is', 'meaning; [what holds without it]'), rows)}"
        )
    return f"""# Survey files

Made from `indexing/survey.py`, which checks them. A catalogue step by step: [Your own survey](../your-survey.md).
Relative paths are relative to the survey file; variables such as `$REDSHELF_DATA` in them are replaced. A key that is
not here is refused with the nearest right one. Where a key takes several columns, the first valid value of a row wins.

{chr(10).join(parts)}"""


# ---- the hook of MkDocs

PAGES = {
    "reference/commands.md": commands,
    "reference/http.md": routes,
    "reference/settings.md": settings,
    "reference/survey.md": survey_files,
}
ELSEWHERE = {
    "jean-zay.md": "deploy/slurm/README.md",
    "study.md": "docs/study/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
}  # pages that stand beside what they are about; links of theirs are turned


def turned(markdown: str, source: str, *, page: str) -> str:
    """The links of a file of the repository, such as docs/trust.md, as they lead on the site from its `page`."""
    pages = {path: name for name, path in ELSEWHERE.items()}
    up = "../" * page.count("/")

    def turn(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        path, _, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return match[0]
        found = (ROOT / source).parent.joinpath(path).resolve().relative_to(ROOT).as_posix()
        if found in pages or found.startswith("docs/"):
            return f"{text}({up}{pages.get(found, found.removeprefix('docs/'))}{'#' + anchor if anchor else ''})"
        return f"{text.removeprefix('[').removesuffix(']')} (`{found}`)"  # a file that is not on the site

    return re.sub(r"(!?\[[^\]\n]*\])\(([^)\s]+)\)", turn, markdown)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made, and those that stand elsewhere in the repository."""
    from mkdocs.structure.files import File

    for name, make in PAGES.items():
        files.append(File.generated(config, name, content=make()))
    for name, source in ELSEWHERE.items():
        content = turned((ROOT / source).read_text(encoding="utf-8"), source, page=name)
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """A page as the site shows it: links of the repository turned, what a block of commands needs said above it, and
    bars in the code of a table's cell without the backslash that GitHub needs."""
    name = page.file.src_uri
    if name not in PAGES and name not in ELSEWHERE:
        markdown = turned(markdown, f"docs/{name}", page=name)
    markdown = NEEDS.sub(r"*Needs \1.*\n", markdown)
    lines = markdown.split("\n")
    bare = [re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), one) for one in lines]
    return "\n".join(new if old.startswith("|") else old for old, new in zip(lines, bare, strict=True))
