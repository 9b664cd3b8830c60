"""API keys: made once, kept hashed, asked for where they are needed, in headers and by the form of the page."""

from __future__ import annotations

import json
import re
import shutil
import stat
import time
from pathlib import Path

import pytest
import server as servers
from fastapi.testclient import TestClient

from redshelf.api.app import create_app, serve
from redshelf.api.cli import main
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import keys
from redshelf.service.publish import publish
from redshelf.service.settings import Settings, environment, load

AWAY = "192.0.2.7"  # an address that is not loopback


def client_of(shelf: Path, state: Path, **given: object) -> TestClient:
    settings = load(environ={}, shelf=shelf, state_dir=state, **{"refresh_seconds": 0.01, **given})
    return TestClient(create_app(settings), follow_redirects=False)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_is_256_bits_that_the_file_does_not_hold_and_its_owner_alone_can_read(tmp_path: Path) -> None:
    made = [keys.add(tmp_path / "state", name, "read") for name in ("a", "b")]
    assert len(set(made)) == 2 and all(re.fullmatch("[A-Za-z0-9_-]{43}", key) for key in made)  # 43 x 6 bits
    file = keys.path_of(tmp_path / "state")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert not any(key in file.read_text() for key in made)
    assert [(k.name, k.scope, k.sha256) for k in keys.read(tmp_path / "state")] == [
        (name, "read", keys.digest(key)) for name, key in zip("ab", made, strict=True)
    ]


def test_a_name_stands_once_and_what_is_revoked_was_there(tmp_path: Path) -> None:
    keys.add(tmp_path, "alice", "read")
    with pytest.raises(Conflict, match="there is a key named 'alice'"):
        keys.add(tmp_path, "alice", "admin")
    with pytest.raises(NotFound, match="no key 'alic'; nearest: alice"):
        keys.revoke(tmp_path, "alic")
    keys.revoke(tmp_path, "alice")
    assert keys.read(tmp_path) == ()


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/b", "é", "x" * 65, "a\nb"])
def test_a_name_that_is_no_word_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="name of a key"):
        keys.add(tmp_path, name, "read")


def test_a_file_that_others_can_read_or_that_is_damaged_opens_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = keys.add(tmp_path, "alice", "admin")
    ring = keys.Keyring(tmp_path, refresh_seconds=0)
    assert ring.exist and ring.find(key) == keys.read(tmp_path)[0] and ring.find(key[:-1]) is None
    file = keys.path_of(tmp_path)
    file.chmod(0o644)
    assert ring.find(key) is None and ring.exist and "has mode 644" in caplog.text
    file.chmod(0o600)
    assert ring.find(key) is not None
    for damage in ('{"keys": [', '{"keys": [{"name": "alice"}]}', "[]"):
        file.write_text(damage)
        assert ring.find(key) is None and ring.exist, damage
        with pytest.raises(BadInput):
            keys.read(tmp_path)


def test_the_command_line_makes_lists_and_revokes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REDSHELF_STATE_DIR", str(tmp_path))
    assert main(["keys", "add", "alice", "--scope", "write", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["scope"]) == ("alice", "write")
    ring = keys.Keyring(tmp_path, refresh_seconds=0)
    found = ring.find(made["key"])
    assert found is not None and found.name == "alice"
    assert main(["keys", "list"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["name", "scope", "created"] and "alice" in out and made["key"] not in out
    assert main(["keys", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"][0]["name"] == "alice"
    assert main(["keys", "add", "alice"]) == 1
    assert "there is a key named 'alice'" in capsys.readouterr().err
    assert main(["keys", "revoke", "alice"]) == 0 and ring.find(made["key"]) is None
    assert main(["keys", "revoke", "alice"]) == 1
    with pytest.raises(SystemExit) as stop:
        main(["keys", "add", "bob", "--scope", "root"])
    assert stop.value.code == 2


def test_state_lies_in_the_users_folder_and_never_in_the_shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Settings().state_dir == tmp_path / "redshelf"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")  # which the standard says to ignore
    assert Settings().state_dir == Path.home() / ".local" / "state" / "redshelf"
    with pytest.raises(BadInput, match="is in the shelf"):
        load(environ={}, shelf=tmp_path, state_dir=tmp_path / "state")


def test_settings_reach_a_worker_by_the_environment() -> None:
    origins = ("https://a.example", "http://[::1]:8080")
    settings = load(environ={}, cors_origins=origins, require_key=True, rate_per_key="", state_dir=Path("/somewhere"))
    assert load(environ=environment(settings)) == settings
    for wrong in ({"cors_origins": ["*"]}, {"rate_per_key": "fast"}, {"log_format": "xml"}, {"max_concurrent": 0}):
        with pytest.raises(BadInput, match=f"{next(iter(wrong))}"):
            load(environ={}, **wrong)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", AWAY, "example.org", "::ffff:127.0.0.1"])
def test_an_address_that_others_reach_is_refused_without_a_key(bare_shelf: Path, tmp_path: Path, host: str) -> None:
    with pytest.raises(Conflict, match="can be reached by others, and there is no key"):
        serve(Settings(shelf=bare_shelf, host=host, state_dir=tmp_path))


@pytest.mark.parametrize(
    ("host", "inside"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("a.org", False),
    ],
)
def test_loopback_is_known(host: str, inside: bool) -> None:
    assert Settings(host=host).on_loopback is inside


def test_who_comes_through_a_proxy_on_this_machine_reads_and_no_more(bare_shelf: Path, tmp_path: Path) -> None:
    app = create_app(load(environ={}, shelf=bare_shelf, state_dir=tmp_path, refresh_seconds=0.01))
    away = TestClient(app, client=(AWAY, 5000))  # as uvicorn has it from X-Forwarded-For
    assert away.get("/v1/shelf").status_code == 200
    for path in ("/admin/generation", "/v1/jobs"):
        assert away.post(path).status_code == 401
    assert TestClient(app, client=("127.0.0.1", 5000)).post("/admin/generation").status_code == 200


def test_on_loopback_reading_is_free_and_the_rest_is_until_there_is_a_key(bare_shelf: Path, tmp_path: Path) -> None:
    client = client_of(bare_shelf, tmp_path)
    assert client.get("/v1/shelf").status_code == client.post("/admin/generation").status_code == 200
    admin, reader = keys.add(tmp_path, "root", "admin"), keys.add(tmp_path, "alice", "read")
    time.sleep(0.02)
    assert client.get("/v1/shelf").status_code == client.get("/metrics").status_code == 200
    refused = client.post("/admin/generation")
    assert refused.status_code == 401 and refused.headers["www-authenticate"] == 'Bearer realm="redshelf"'
    assert refused.headers["content-type"] == "application/problem+json"
    assert "a key with scope admin is needed" in refused.json()["detail"]
    refused = client.post("/admin/generation", headers=bearer(reader))
    assert refused.status_code == 403 and 'scope="admin"' in refused.headers["www-authenticate"]
    assert refused.json()["detail"] == "key 'alice' has scope read, and this needs admin"
    assert client.post("/admin/generation", headers={"x-api-key": admin}).status_code == 200


@pytest.mark.parametrize("how", [{"host": AWAY}, {"require_key": True}])
def test_where_others_reach_it_everything_needs_a_key_but_what_tells_that_it_lives(
    bare_shelf: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    client, key = client_of(bare_shelf, tmp_path, **how), None
    for attempt in range(2):  # the first without any key: nobody is let in
        for path in ("/v1/shelf", "/metrics", "/openapi.json", "/v1/sources/s0003/neighbours", "/nothing", "/"):
            assert client.get(path).status_code == 401, path
            assert client.get(path, headers=bearer("wrong")).status_code == 401, path
        for path in ("/healthz", "/readyz", "/static/page.css", "/key"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/redshifts", json={"ids": ["s0003"]}).status_code == 401
        if attempt == 0:
            key = keys.add(tmp_path, "alice", "read")
            time.sleep(0.02)
    assert key is not None
    for headers in (bearer(key), {"x-api-key": key}, {"authorization": f"bearer  {key} "}):
        answer = client.get("/v1/shelf", headers=headers)
        assert answer.status_code == 200 and answer.headers["cache-control"].startswith("private")
    for headers in ({"authorization": f"Basic {key}"}, {"authorization": key}, {"x-api-key": f"{key}x"}, bearer("")):
        assert client.get("/v1/shelf", headers=headers).status_code == 401


@pytest.mark.security
@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("LocalHost", 200),
        ("[::1]:8000", 200),
        ("shelf.example:443", 200),
        ("attacker.example:8000", 403),
        ("127.0.0.1.attacker.example", 403),
        ("shelf.example.attacker.example", 403),
    ],
)
def test_a_name_that_was_made_to_point_here_reads_nothing_without_a_key(
    bare_shelf: Path, tmp_path: Path, asked: str, status: int
) -> None:
    client, told = client_of(bare_shelf, tmp_path, site_names="shelf.example, other.example"), {"host": asked}
    for forwarded in ({}, {"x-forwarded-for": AWAY}):  # which a page can send, too
        answer = client.get("/v1/shelf", headers=told | forwarded)
        assert answer.status_code == client.post("/admin/generation", headers=told | forwarded).status_code == status
    if status == 403:
        said = (
            f"Host {asked!r}: without a key expected one of 127.0.0.1, [::1], localhost, other.example, shelf.example"
        )
        assert said in answer.json()["detail"]
        assert client.get("/healthz", headers=told).status_code == 200
        key = keys.add(tmp_path, "alice", "read")
        time.sleep(0.02)
        assert client.get("/v1/shelf", headers=told | bearer(key)).status_code == 200


def test_a_wrong_key_is_told_even_where_none_is_needed(bare_shelf: Path, tmp_path: Path) -> None:
    client = client_of(bare_shelf, tmp_path)
    refused = client.get("/v1/shelf", headers=bearer("wrong"))
    assert refused.status_code == 401 and 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert client.get("/v1/shelf", headers={"authorization": "Basic d3Jvbmc="}).status_code == 200  # of a proxy


def test_a_revoked_key_ends_within_the_time_of_a_refresh(bare_shelf: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path, "alice", "read")
    client = client_of(bare_shelf, tmp_path, host=AWAY, refresh_seconds=0.3)
    assert client.get("/v1/shelf", headers=bearer(key)).status_code == 200
    keys.revoke(tmp_path, "alice")
    time.sleep(0.3)
    assert client.get("/v1/shelf", headers=bearer(key)).status_code == 401


def test_a_browser_gives_its_key_in_a_form_and_reads_the_pages(tiny_shelf: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path, "alice", "admin")
    client = client_of(tiny_shelf, tmp_path, host=AWAY)
    asked = client.get("/source/s0003?k=5")
    assert asked.status_code == 401 and asked.headers["content-type"].startswith("text/html")
    assert 'type="password"' in asked.text and "small" not in asked.text  # the survey is nobody's business yet
    back = re.search('name="back" value="([^"]*)"', asked.text)
    assert back is not None and back[1] == "/source/s0003?k=5"
    wrong = client.post("/key", data={"key": "wrong"})
    assert wrong.status_code == 401 and "unknown here" in wrong.text and "set-cookie" not in wrong.headers
    entered = client.post("/key", data={"key": f" {key} ", "back": back[1]})
    assert (entered.status_code, entered.headers["location"]) == (303, "/source/s0003?k=5")
    told = entered.headers["set-cookie"].lower()
    assert "httponly" in told and "samesite=strict" in told and "path=/" in told and "secure" not in told
    page = client.get("/source/s0003?k=5")
    assert page.status_code == 200 and page.headers["cache-control"] == "private"
    assert client.get("/v1/sources/s0003/cutout").headers["cache-control"] == "private, max-age=300"
    assert "This browser holds one" in client.get("/key").text
    assert client.post("/admin/generation").status_code == 401, "a cookie reads and no more, whatever the key may"
    keys.revoke(tmp_path, "alice")
    time.sleep(0.02)
    assert client.get("/source/s0003").status_code == 401
    forgotten = client.post("/key", data={"key": ""})
    assert forgotten.status_code == 303 and 'redshelf_key=""' in forgotten.headers["set-cookie"]


def test_over_https_the_cookie_stays_there(bare_shelf: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path, "alice", "read")
    settings = load(environ={}, shelf=bare_shelf, state_dir=tmp_path, host=AWAY)
    client = TestClient(create_app(settings), base_url="https://shelf.example", follow_redirects=False)
    assert "secure" in client.post("/key", data={"key": key}).headers["set-cookie"].lower()


@pytest.mark.security
@pytest.mark.parametrize(
    "back", ["//evil.example", "https://evil.example", "/\\evil.example", "/key", "", "javascript:x"]
)
def test_the_form_leads_to_pages_of_this_server_alone(bare_shelf: Path, tmp_path: Path, back: str) -> None:
    key = keys.add(tmp_path, "alice", "read")
    client = client_of(bare_shelf, tmp_path, host=AWAY)
    assert client.post("/key", data={"key": key, "back": back}).headers["location"] == "/"


@pytest.mark.security
def test_a_page_of_another_site_cannot_make_a_browser_post(bare_shelf: Path, tmp_path: Path) -> None:
    sent = {"sec-fetch-site": "cross-site", "origin": "https://evil.example"}
    client = client_of(bare_shelf, tmp_path, cors_origins="https://portal.example")
    assert client.post("/admin/generation", headers=sent).status_code == 403
    assert client.post("/key", data={"key": "x"}, headers=sent).status_code == 403
    assert client.get("/v1/shelf", headers=sent).status_code == 200
    for allowed in ({**sent, "sec-fetch-site": "same-origin"}, {**sent, "origin": "https://portal.example"}):
        assert client.post("/admin/generation", headers=allowed).status_code == 200


@pytest.mark.security
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": b"Bearer \xff\xfe"},
        {"authorization": b"Bearer " + b"x" * 60_000},
        {"x-api-key": b"\xc3\xa9"},
        {"x-api-key": b""},
        {"cookie": b"redshelf_key=\xff; x"},
        {"cookie": b"redshelf_key=" + b"a;" * 1000},
        {"cookie": b'redshelf_key="\\'},
        {"cookie": b"redshelf_key" * 1000},
    ],
)
def test_a_hostile_key_is_a_wrong_one(bare_shelf: Path, tmp_path: Path, headers: dict[str, bytes]) -> None:
    keys.add(tmp_path, "alice", "read")
    assert client_of(bare_shelf, tmp_path, host=AWAY).get("/v1/shelf", headers=headers).status_code == 401  # type: ignore[arg-type]


def test_pages_of_other_sites_are_let_in_only_where_a_setting_names_them(bare_shelf: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path, "alice", "read")
    asked = {"origin": "https://portal.example", "access-control-request-method": "GET",
             "access-control-request-headers": "authorization"}  # fmt: skip
    closed = client_of(bare_shelf, tmp_path, host=AWAY)
    assert not [name for name in closed.options("/v1/shelf", headers=asked).headers if name.startswith("access-")]
    assert closed.get("/healthz").headers["cross-origin-resource-policy"] == "same-origin"
    opened = client_of(bare_shelf, tmp_path, host=AWAY, cors_origins=["https://portal.example"])
    preflight = opened.options("/v1/shelf", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://portal.example"
    assert "access-control-allow-credentials" not in preflight.headers
    answer = opened.get("/v1/shelf", headers={"origin": "https://portal.example", **bearer(key)})
    assert answer.headers["access-control-allow-origin"] == "https://portal.example"
    other = opened.get("/v1/shelf", headers={"origin": "https://evil.example", **bearer(key)})
    assert "access-control-allow-origin" not in other.headers


@pytest.mark.parametrize(
    "path", ["/v1/shelf", "/v1/sources/nope", "/", "/source/nope", "/nothing", "/static/page.css", "/metrics"]
)
def test_every_answer_has_the_headers_that_keep_browsers_safe(bare_shelf: Path, tmp_path: Path, path: str) -> None:
    headers = client_of(bare_shelf, tmp_path).get(path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
    assert len(headers.get_list("content-security-policy")) == 1


def test_the_description_says_where_a_key_is_needed(bare_shelf: Path, tmp_path: Path) -> None:
    key = keys.add(tmp_path, "alice", "read")
    document = client_of(bare_shelf, tmp_path).get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "header"}
    assert document["paths"]["/v1/shelf"]["get"]["security"] == [{}, {"bearer": []}, {"header": []}]
    assert document["paths"]["/admin/generation"]["post"]["security"] == [{"bearer": []}, {"header": []}]
    document = client_of(bare_shelf, tmp_path, host=AWAY).get("/openapi.json", headers=bearer(key)).json()
    assert document["paths"]["/v1/shelf"]["get"]["security"] == [{"bearer": []}, {"header": []}]
    assert {} in document["paths"]["/healthz"]["get"]["security"]


def test_the_order_to_look_takes_up_the_newest_generation_or_says_why_not(bare_shelf: Path, tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    client = client_of(root, tmp_path / "state", refresh_seconds=60)
    order = "/admin/generation"
    assert client.post(order).json() == {"generation": 1, "taken_up": False, "others_within_seconds": None}
    publish(root)
    assert client.post(order).json() == {"generation": 2, "taken_up": True, "others_within_seconds": None}
    publish(root)
    (root / "columns" / "3" / "ra.npy").write_bytes(b"")
    refused = client.post(order)
    assert refused.status_code == 409
    assert "columns/3/ra.npy" in refused.json()["detail"] and "generation 2 is served" in refused.json()["detail"]
    several = client_of(bare_shelf, tmp_path / "state", refresh_seconds=7, workers=2)
    assert several.post(order).json()["others_within_seconds"] == 7


@pytest.mark.slow
def test_several_workers_know_the_same_keys_and_forget_them(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    key = keys.add(state, "alice", "read")
    told = {"state_dir": state, "require_key": True, "refresh_seconds": 0.2}
    with servers.serve(bare_shelf, tmp_path, "--workers", "2", **told) as server:
        servers.wait_for(lambda: server.log.read_text().count("Application startup complete") == 2, "both to serve")

        def status(given: str) -> int:
            connection = server.connect()
            connection.request("GET", "/v1/shelf", headers=bearer(given))
            answer = connection.getresponse()
            answer.read()
            connection.close()
            return answer.status

        assert {status(key) for _ in range(20)} == {200} and {status("wrong") for _ in range(5)} == {401}
        asked = ["search", "--url", f"http://127.0.0.1:{server.port}", "--id", "s0003", "-k", "3", "--json"]
        assert main(asked) == 1 and "a key with scope read is needed" in capsys.readouterr().err
        monkeypatch.setenv("REDSHELF_KEY", key)
        assert main(asked) == 0 and len(json.loads(capsys.readouterr().out)["neighbours"]) == 3
        keys.revoke(state, "alice")
        time.sleep(0.25)
        assert {status(key) for _ in range(20)} == {401}
        assert key not in server.log.read_text()
