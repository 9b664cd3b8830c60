"""What lies in `deploy/`, judged by the programs that read it: nginx, Prometheus, systemd, compose, Ray, pip."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import server as servers

from redshelf.service.settings import load

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
SBIN = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"  # where Debian puts nginx


def program(name: str) -> str:
    found = shutil.which(name, path=SBIN)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str | Path, **given: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=240, **given)


def replaced(text: str, words: Mapping[str, str]) -> str:
    """`text` with every word exchanged, each of which is there."""
    for old, new in words.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def started(folder: Path, *command: str | Path) -> Iterator[None]:
    """A program that runs until the block ends."""
    with (folder / f"{Path(command[0]).name}.log").open("wb") as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log, cwd=folder)
        try:
            yield
        finally:
            process.terminate()
            process.wait(60)


@contextlib.contextmanager
def behind_nginx(folder: Path, upstream: int) -> Iterator[tuple[int, int]]:
    """deploy/nginx.conf over that port; its own ports, for http and https."""
    nginx, openssl = program("nginx"), program("openssl")
    plain, secure = servers.free_port(), servers.free_port()
    (folder / "tls").mkdir()
    made = run(
        openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "1",
        "-keyout", folder / "tls/key.pem", "-out", folder / "tls/cert.pem",
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    words = {
        "server 127.0.0.1:8000;": f"server 127.0.0.1:{upstream};",
        "listen 80 ": f"listen 127.0.0.1:{plain} ",
        "listen 443 ": f"listen 127.0.0.1:{secure} ",
        "/dev/stdout": str(folder / "access.log"),
    }
    (folder / "nginx.conf").write_text(replaced((DEPLOY / "nginx.conf").read_text(), words))
    arguments = (nginx, "-p", folder, "-c", folder / "nginx.conf", "-g", "daemon off;")
    tested = run(*arguments, "-t")
    assert tested.returncode == 0, tested.stderr
    with started(folder, *arguments):
        servers.wait_for(lambda: ask(secure, "/healthz")[0] == 200, "nginx")
        yield plain, secure


def ask(
    port: int, path: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body by TLS."""
    trusting = ssl._create_unverified_context()
    with contextlib.closing(http.client.HTTPSConnection("127.0.0.1", port, timeout=60, context=trusting)) as connection:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@contextlib.contextmanager
def watched(folder: Path, target: int) -> Iterator[int]:
    """deploy/prometheus.yml and alerts.yaml over that port, every second; its own port."""
    prometheus, port = program("prometheus"), servers.free_port()
    words = {"127.0.0.1:8000": f"127.0.0.1:{target}", "interval: 15s": "interval: 1s"}
    (folder / "prometheus.yml").write_text(replaced((DEPLOY / "prometheus.yml").read_text(), words))
    shutil.copy(DEPLOY / "alerts.yaml", folder)
    options = (f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/measured")
    with started(folder, prometheus, *options, f"--web.listen-address=127.0.0.1:{port}"):
        yield port


def prometheus(port: int, path: str, **query: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}/api/v1/{path}?{urlencode(query)}", timeout=60) as answer:
        return json.load(answer)["data"]


@pytest.mark.slow
def test_two_workers_answer_through_nginx_and_prometheus_sees_both(bare_shelf: Path, tmp_path: Path) -> None:
    program("prometheus")
    state = tmp_path / "state"
    with (
        servers.serve(
            bare_shelf, tmp_path, "--workers", "2", state_dir=state, refresh_seconds=0.2, site_names="shelf.example"
        ) as server,
        behind_nginx(tmp_path, server.port) as (plain, secure),
        watched(tmp_path, server.port) as port,
    ):
        status, headers, body = ask(secure, "/v1/shelf")
        assert status == 200 and json.loads(body)["n_sources"] == 60
        assert headers["strict-transport-security"] == "max-age=31536000" and "server" in headers
        assert "nginx/" not in headers["server"]

        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", plain, timeout=60)) as bare:
            bare.request("GET", "/v1/shelf?x=1")
            moved = bare.getresponse()
            assert moved.status == 308 and moved.headers["location"] == "https://127.0.0.1/v1/shelf?x=1"

        assert ask(secure, "/metrics")[0] == ask(secure, "/admin/generation", "POST")[0] == 404
        assert ask(secure, "/v1/cutouts/redshift", "POST", headers={"content-length": str(34 << 20)})[0] == 413
        # the client's address is nginx's word, not the client's own: what it claims does not count
        said = {"x-forwarded-for": "192.0.2.9", "host": "shelf.example"}
        assert "https://shelf.example/scs" in ask(secure, "/capabilities", headers=said)[2].decode()
        assert "192.0.2.9" not in (tmp_path / "access.log").read_text()

        for _ in range(40):
            assert ask(secure, "/v1/shelf")[0] == 200
        asked = 'sum(redshelf_requests_total{route="/v1/shelf",status="200"})'
        servers.wait_for(
            lambda: [float(one["value"][1]) for one in prometheus(port, "query", query=asked)["result"]] == [41.0],
            "Prometheus to see 41 requests of two workers",
        )
        assert prometheus(port, "query", query='up{job="redshelf"}')["result"][0]["value"][1] == "1"
        rules = prometheus(port, "rules")["groups"][0]["rules"]
        assert "RedshelfDown" in {rule["name"] for rule in rules} and {rule["health"] for rule in rules} <= {
            "ok",
            "unknown",
        }


def test_prometheus_takes_our_configuration_and_rules() -> None:
    checked = run(program("promtool"), "check", "config", DEPLOY / "prometheus.yml")
    assert checked.returncode == 0 and "rules found" in checked.stdout, checked.stdout + checked.stderr


def test_systemd_takes_the_unit_and_finds_it_shut_in(tmp_path: Path) -> None:
    unit = tmp_path / "redshelf.service"
    text = (DEPLOY / "redshelf.service").read_text()
    unit.write_text(replaced(text, {"/opt/redshelf/bin/redshelf": shutil.which("true") or "/bin/true"}))
    analyze = program("systemd-analyze")
    checked = run(analyze, "verify", unit)
    assert checked.returncode == 0 and not checked.stderr.strip(), checked.stderr
    judged = run(analyze, "security", "--offline=true", "--threshold=15", unit)
    assert judged.returncode == 0, judged.stdout[-200:]  # an exposure of at most 1.5 of 10


def test_systemd_takes_the_unit_of_nginx_which_serves_our_configuration(tmp_path: Path) -> None:
    unit = tmp_path / "redshelf-nginx.service"
    text = (DEPLOY / "redshelf-nginx.service").read_text()
    unit.write_text(replaced(text, {"/usr/sbin/nginx": program("nginx")}))
    checked = run(program("systemd-analyze"), "verify", unit)
    assert checked.returncode == 0 and not checked.stderr.strip(), checked.stderr
    assert "-c /etc/redshelf/nginx.conf" in text and "listen" in (DEPLOY / "nginx.conf").read_text()


def test_compose_takes_our_file_and_every_file_that_it_mounts_is_there() -> None:
    compose = program("docker-compose")
    checked = run(compose, "-f", DEPLOY / "compose.yaml", "config", env={**os.environ, "SHELF": "/srv", "TLS": "/tls"})
    assert checked.returncode == 0, checked.stderr
    mounted = re.findall(rf"- ({re.escape(str(DEPLOY))}/\S+?):/", checked.stdout)
    assert len(mounted) == 6
    for path in mounted:
        assert Path(path).is_file(), path


def test_ray_takes_the_cluster() -> None:
    import yaml

    util = pytest.importorskip("ray.autoscaler._private.util", reason="ray is not installed")
    cluster = util.prepare_config(yaml.safe_load((DEPLOY / "ray.yaml").read_text()))
    util.validate_config(cluster)
    assert cluster["cluster_name"] == "redshelf" and cluster["max_workers"] == 2


def test_the_settings_file_is_one_that_serve_takes() -> None:
    settings = load(DEPLOY / "redshelf.toml", environ={})
    assert (settings.host, settings.port, settings.workers) == ("127.0.0.1", 8000, 2)
    unit = (DEPLOY / "redshelf.service").read_text()
    assert f"RequiresMountsFor={settings.shelf}" in unit and f"ReadOnlyPaths={settings.shelf}" in unit


def let_in() -> set[str]:
    """What .dockerignore leaves of the tree."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return {line.removeprefix("!") for line in lines if line.startswith("!")}


def test_an_image_is_built_from_what_a_wheel_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {*project["tool"]["setuptools"]["package-dir"].values(), project["project"]["readme"], "LICENSE"}
    assert let_in() == {*wanted, "pyproject.toml", "MANIFEST.in", "deploy"}
    for recipe in ("Dockerfile", "redshelf.def"):
        assert "/src/deploy/install.sh --prefix /opt/redshelf" in (DEPLOY / recipe).read_text()


def built(folder: Path) -> Path:
    """The wheel of a copy of the tree, since setuptools writes into the one that it builds."""
    tree, out = folder / "tree", folder / "out"
    shutil.copytree(ROOT, tree, ignore=lambda at, names: set(names) - let_in() if at == str(ROOT) else {"__pycache__"})
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", out)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800", "REDSHELF_REVISION": "0123456789ab"}
    made = run(*pip, tree, env=environment)
    assert made.returncode == 0, made.stderr
    (found,) = out.glob("redshelf-*.whl")
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("wheel"))


def test_a_wheel_holds_the_layers_their_files_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert archive.read("redshelf/models/revision.txt") == b"0123456789ab\n"
    kinds = (".py", "py.typed", ".html", ".css", ".js", ".toml", ".svg", ".sh")
    there = {
        f"redshelf/{path.relative_to(ROOT)}"
        for layer in ("api", "indexing", "models", "service")
        for path in (ROOT / layer).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names - {"redshelf/models/revision.txt"} == there and all(name.endswith(kinds) for name in there)
    assert wheel.stat().st_size < 1 << 20


def test_the_same_tree_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert built(tmp_path).read_bytes() == wheel.read_bytes()


def install(prefix: Path, *arguments: str | Path, **given: str) -> subprocess.CompletedProcess[str]:
    """install.sh, with the packages that redshelf asks for lent by the environment of the tests."""
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    environment = {**os.environ, "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PYTHONPATH": lent, "PYTHON": sys.executable}
    command = (DEPLOY / "install.sh", "--prefix", prefix, *arguments)
    return run("sh", *command, env={**environment, "NEEDS_MB": "20", **given})


def version_of(prefix: Path) -> str:
    lent = next(path for path in sys.path if path.endswith("site-packages"))
    done = run(prefix / "bin" / "redshelf", "--version", env={"PATH": "/usr/bin:/bin", "PYTHONPATH": lent})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_an_installation_is_made_kept_and_followed_by_another(wheel: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "redshelf"
    first = install(prefix, wheel)
    assert first.returncode == 0, first.stderr
    assert f"installed: {prefix}/bin/redshelf" in first.stdout and version_of(prefix).startswith("redshelf ")
    made = (prefix / "current").readlink()

    again = install(prefix, wheel)
    assert again.returncode == 0 and f"{prefix} has it already" in again.stdout
    assert (prefix / "current").readlink() == made and not (prefix / "previous").exists()

    (prefix / "current" / "installed").write_text("another one")  # as an older wheel's would be
    newer = install(prefix, wheel)
    assert newer.returncode == 0 and "the one before is" in newer.stdout, newer.stderr
    assert (prefix / "previous").readlink() == made != (prefix / "current").readlink()
    assert version_of(prefix).startswith("redshelf ")

    (prefix / "current" / "installed").write_text("a third")
    assert install(prefix, wheel).returncode == 0
    kept = {path.name for path in prefix.glob("2*")}
    assert kept == {str((prefix / name).readlink()) for name in ("current", "previous")} and str(made) not in kept


def test_another_user_is_told_where_he_may_not_write() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    refused = run(
        program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups",
        "sh", DEPLOY / "install.sh", "--prefix", "/opt/of-root", env={**os.environ, "HOME": "/nonexistent"},
    )  # fmt: skip
    assert refused.returncode == 1
    assert "/opt/of-root cannot be written by nobody: name another --prefix" in refused.stderr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"NEEDS_MB": "99999999"}, "MB free, 99999999 are needed"),
        (
            {"PYTHON": "/nonexistent/python3.9"},
            "Python 3.11 or newer is needed, and /nonexistent/python3.9; install it",
        ),
        ({"PIP_NO_DEPS": "0", "PIP_NO_INDEX": "1", "PYTHONPATH": ""}, "Behind a proxy set https_proxy"),
    ],
)
def test_an_installation_that_cannot_be_says_why_and_leaves_nothing(
    wheel: Path, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    prefix = tmp_path / "redshelf"
    failed = install(prefix, wheel, **given)
    assert failed.returncode == 1 and said in failed.stderr, failed.stderr
    assert not prefix.exists() or [path.name for path in prefix.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--extra", "tpu"], "--extra tpu: expected cpu or gpu"),
        (["--prefx", "x"], "unknown option --prefx; expected --prefix, --extra or a wheel"),
        (["gone.whl"], "gone.whl: no such file; expected a wheel"),
    ],
)
def test_a_wrong_argument_of_install_is_named(tmp_path: Path, arguments: list[str], said: str) -> None:
    failed = install(tmp_path / "redshelf", *arguments)
    assert failed.returncode == 1 and said in failed.stderr
