"""Whatever is sent: no answer is an internal error, and nothing of a refused upload stays."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from conftest import listening
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from service_fakes import Scripted
from starlette.testclient import TestClient

QUICK = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}
OPERATIONS = [
    "POST /v1/prunings",
    "GET /v1/prunings",
    "GET /v1/prunings/{id}",
    "POST /v1/prunings/{id}/cancel",
    "GET /v1/prunings/{id}/events",
    "GET /v1/prunings/{id}/{artifact}",
    "POST /v1/weights",
    "DELETE /v1/weights/{id}",
    "GET /v1/controllers",
    "POST /v1/controllers/{name}/act",
    "GET /healthz",
    "GET /metrics",
]


@pytest.fixture
def client(serve, checkpoint: Path) -> TestClient:
    # Not a matter of time: a busy machine may stall for long.
    limits = {
        "request_seconds": 600,
        "requests_per_minute": 10**9,
        "stored_uploads": 3,
        "concurrent_jobs": 10**6,
        "upload_bytes": 10**6,
    }
    return serve(executor=Scripted(), controllers={"small": checkpoint}, limits=limits)


def mutations(original: bytes) -> st.SearchStrategy[bytes]:
    """A file with some bytes changed, cut off, or put in; the header more often than the rest."""
    header = int.from_bytes(original[:8], "little") + 8
    places = st.one_of(st.integers(0, 8), st.integers(0, header), st.integers(0, len(original)))
    edits = st.lists(st.tuples(places, st.integers(0, 3), st.binary(max_size=9)), max_size=6)

    def edited(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = original
        for place, cut, piece in changes:
            content = content[:place] + piece + content[place + cut :]
        return content

    def cut(content: bytes, end: int) -> bytes:
        return content[:end]

    return st.one_of(
        edits.map(edited), st.builds(cut, edits.map(edited), st.integers(0, len(original))), st.binary(max_size=200)
    )


def _mutated_uploads(client: TestClient, weights: Path, examples: int, part: int) -> None:
    service = client.app.state.service
    folder = service.settings.directory / "uploads"

    @seed(part)
    @settings(max_examples=examples, **QUICK)
    @given(mutations(weights.read_bytes()))
    def upload(content: bytes) -> None:
        answer = client.post("/v1/weights", content=content)
        assert answer.status_code in (201, 422), answer.text
        if answer.status_code == 201:
            assert client.delete(f"/v1/weights/{answer.json()['id']}").status_code == 204
        assert not list(folder.iterdir())

    upload()


def test_mutated_uploads(client: TestClient, weights: Path) -> None:
    _mutated_uploads(client, weights, 60, 0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", range(10))
def test_ten_thousand_mutated_uploads(client: TestClient, weights: Path, part: int) -> None:
    _mutated_uploads(client, weights, 1000, part)


@pytest.fixture
def url(client: TestClient) -> Iterator[str]:
    with listening(client) as address:
        yield address


def _requests(url: str, label: str, examples: int) -> None:
    """What schemathesis makes of an operation of the OpenAPI document."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.checks.status_code_conformance,
        schemathesis.checks.content_type_conformance,
        schemathesis.checks.response_schema_conformance,
    ]
    operations = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert operations.keys() == set(OPERATIONS)

    @seed(0)
    @settings(max_examples=examples, **QUICK)
    @given(operations[label].as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=checks)

    ask()


def test_requests_of_any_form(client: TestClient, url: str) -> None:
    for label in OPERATIONS:
        _requests(url, label, 8)
    assert not list((client.app.state.service.settings.directory / "uploads").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("label", OPERATIONS)
def test_many_requests_of_any_form(url: str, label: str) -> None:
    _requests(url, label, 300)
