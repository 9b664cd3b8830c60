"""The OpenAPI document against the routes: schemathesis asks what it allows and what not, and checks the answers.

A few hundred questions, and 20,000 in `make torture`. What one field allows and another one forbids, such as `mag_min`
without `mag_band`, a schema cannot say: there a question that it allows may be 422, and nothing else.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import torture
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from redshelf.api.app import create_app
from redshelf.service.settings import load

pytestmark = pytest.mark.security
EXAMPLES = torture.count(12, 800)  # of each operation as it should be, and as many that it should refuse
ALLOWED = [
    "2xx",
    "303",
    "400",
    "401",
    "403",
    "404",
    "409",
    "410",
    "422",
    "429",
]  # 400: of SODA, which writes its own errors
STATUSES = {200, 204, 303, 400, 404, 409, 410, 422, 429}  # 409, 410: of generations that are not served; 429: of jobs
WRITTEN = {"/soda/sync": "text/plain", "/scs": "text/xml", "/datalink": "text/xml"}  # errors of the VO's addresses
JOB_IDS: list[str] = []  # of one that is done
HOW = {
    "max_examples": EXAMPLES, "deadline": None, "database": None, "derandomize": True, "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
}  # fmt: skip


@pytest.fixture(scope="module")
def described(mapped_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    state = tmp_path_factory.mktemp("described")
    how = {"state_dir": state, "max_upload_bytes": 1 << 20, "max_jobs": 40, "site_names": "testserver"}  # its own Host
    app = create_app(load(environ={}, shelf=mapped_shelf, **how))
    done = TestClient(app).post("/v1/jobs", json={"what": "redshifts", "ids": ["s0003"]}, follow_redirects=False)
    assert done.status_code == 303 and app.state.working.one()
    JOB_IDS.append(done.headers["location"].rpartition("/")[2])
    checks = {"positive_data_acceptance": {"expected-statuses": ALLOWED}}
    return schemathesis.openapi.from_asgi("/openapi.json", app, config=SchemathesisConfig.from_dict({"checks": checks}))


def _made_real(case: Any, n: int) -> None:
    """Ask about what there is, every other time: of made-up names the answer is 404 before anything is done."""
    if n % 2:
        return
    source_id = f"s{n % 300:04d}"
    if "job_id" in (case.path_parameters or {}) and case.method != "DELETE":
        case.path_parameters["job_id"] = JOB_IDS[-1]
    if "source_id" in (case.path_parameters or {}):
        case.path_parameters["source_id"] = source_id
    if "encoder" in (case.path_parameters or {}):
        case.path_parameters["encoder"] = ("vit", "sky")[n // 2 % 2]
        for axis, past in (("z", 3), ("x", 4), ("y", 4)):
            if axis in case.path_parameters:
                case.path_parameters[axis] = n % past
    for given_ in (case.query or {}, case.body if isinstance(case.body, dict) else {}):
        if "encoder" in given_:
            given_["encoder"] = "vit"
        if "encoders" in given_:
            given_["encoders"] = "vit,photometry"
        for name, value in {"source_id": source_id, "ids": [source_id], "positive": [source_id]}.items():
            if given_.get(name):
                given_[name] = value


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_answer_is_one_that_the_description_allows(described: Any, mode: GenerationMode) -> None:
    faults, statuses = [], Counter[int]()

    def ask(operation: Any) -> None:
        @settings(**HOW)
        @given(case=operation.as_strategy(generation_mode=mode))
        def one(case: Any) -> None:
            if mode is GenerationMode.POSITIVE:
                _made_real(case, statuses.total())
            answer = case.call()
            statuses[answer.status_code] += 1
            try:
                case.validate_response(answer)
            except Exception as error:
                faults.append(f"{case.as_curl_command()[:300]}\n{error}"[:1500])

        try:
            one()
        except Unsatisfiable:  # nothing can be wrong with a question that has no parameters
            assert mode is GenerationMode.NEGATIVE, operation.label

    for result in described.get_all_operations():
        ask(result.ok())
    print(f"{statuses.total()} {mode.value} questions: {dict(statuses)}")
    assert faults == [], f"{len(faults)} of {statuses.total()}\n\n" + "\n\n".join(faults[:5])
    assert set(statuses) <= STATUSES
    assert statuses.total() > 10 * EXAMPLES


def test_a_method_that_is_not_described_is_405_and_told_which_is(described: Any) -> None:
    client = TestClient(described.app)
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in {"get", "post", "put", "patch", "delete", "trace"} - set(operations):
            answer = client.request(method, path.replace("{source_id}", "s0003"))
            assert answer.status_code == 405, f"{method} {path}"
            assert set(answer.headers["allow"].lower().split(", ")) - {"head"} == set(operations)
            written = WRITTEN.get(path, "application/problem+json")
            assert answer.headers["content-type"].partition(";")[0] == written


def test_every_problem_is_described_as_one(described: Any) -> None:
    document = TestClient(described.app).get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    written = WRITTEN.get(path, "application/problem+json")
                    assert list(answer["content"]) == [written], f"{path} {status}"
