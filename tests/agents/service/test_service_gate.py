"""Who may do how much: tokens, limits, and what is noted of requests."""

import asyncio
import json
import logging
import stat
from pathlib import Path

import pytest
from conftest import uploaded
from hypothesis import given
from hypothesis import strategies as st
from service_fakes import Scripted

from agents.service.core import TOKENS, check_tokens
from agents.service.errors import TooManyError
from agents.service.logs import JsonFormatter
from agents.service.rates import Places, Rate
from agents.service.settings import ServiceSettings
from agents.service.tokens import Tokens
from recognizers.errors import ConfigurationError


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_a_token_opens_its_own_things_only(serve, tmp_path: Path, weights: Path, small) -> None:
    tokens = Tokens(tmp_path / "service" / TOKENS)
    alice, bob = tokens.create("alice"), tokens.create("bob")
    client = serve(executor=Scripted(), base_url="http://pruning.example")
    for value in ("", "Bearer", "Bearer wrong", alice, f"Bearer {alice[:-1]}", f"Basic {alice}", "Bearer é"):
        headers = {"authorization": value.encode()}
        answer = client.get("/v1/prunings", headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/healthz").json() == {"status": "ok"}
    client.headers.update(bearer(alice))
    id_ = uploaded(client, weights)
    pruning = client.post("/v1/prunings", json={**small, "weights": id_}).json()["id"]
    assert len(client.get("/v1/prunings").json()) == 1
    client.headers.update(bearer(bob))
    assert client.get("/v1/prunings").json() == []
    for path in (f"/v1/prunings/{pruning}", f"/v1/prunings/{pruning}/events", f"/v1/prunings/{pruning}/mask"):
        assert client.get(path).status_code == 404
    assert client.post(f"/v1/prunings/{pruning}/cancel").status_code == 404
    assert client.post("/v1/prunings", json={**small, "weights": id_}).status_code == 404
    assert client.delete(f"/v1/weights/{id_}").status_code == 404
    carol = Tokens(tmp_path / "service" / TOKENS).create("carol")  # while the service runs
    assert client.get("/v1/prunings", headers=bearer(carol)).status_code == 200


def test_the_file_of_tokens_holds_hashes_and_is_private(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / TOKENS)
    token = tokens.create("alice")
    assert tokens.owner(token) == "alice" and tokens.owner(token + "x") is None
    assert token not in (tmp_path / TOKENS).read_text()
    assert stat.S_IMODE((tmp_path / TOKENS).stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="there is a token 'alice' already"):
        tokens.create("alice")
    with pytest.raises(ConfigurationError, match="letters"):
        tokens.create("../x")


def test_without_a_token_only_this_machine_is_served(serve, tmp_path: Path) -> None:
    outside = ServiceSettings(directory=tmp_path / "service", host="0.0.0.0")
    with pytest.raises(ConfigurationError, match="create a token first"):
        check_tokens(outside)
    client = serve()
    assert client.get("/v1/prunings", headers={"host": "attacker.example"}).status_code == 401
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert client.get("/v1/prunings", headers={"host": host}).status_code == 200
    Tokens(tmp_path / "service" / TOKENS).create("alice")
    check_tokens(outside)


def test_limits_of_a_token(serve, weights: Path, small) -> None:
    limits = {"requests_per_minute": 9, "concurrent_jobs": 2, "stored_uploads": 1, "body_bytes": 1000}
    client = serve(executor=Scripted(), limits={**limits, "upload_bytes": 10**5})
    id_ = uploaded(client, weights)
    again = client.post("/v1/weights", content=weights.read_bytes())
    assert again.status_code == 429 and "you have 1 uploads" in again.json()["detail"]
    assert client.post("/v1/prunings", json={**small, "settings": {"x": "y" * 1000}}).status_code == 413
    assert client.post("/v1/weights", content=b"x" * (10**5 + 1)).status_code == 413
    assert client.post("/v1/weights", content=iter([b"x" * 60_000] * 2)).status_code == 413
    jobs = [client.post("/v1/prunings", json={**small, "weights": id_}).status_code for _ in range(3)]
    assert jobs == [202, 202, 429]
    assert client.get("/v1/prunings").status_code == 200
    refused = client.get("/v1/prunings")
    assert refused.status_code == 429 and "too many requests" in refused.json()["detail"]
    assert int(refused.headers["retry-after"]) >= 1


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=60))
def test_a_rate_never_gives_more_than_it_says(per_minute: int, pauses: list[float]) -> None:
    now = 0.0
    rate = Rate(per_minute, clock=lambda: now)
    given_ = 0
    for pause in pauses:
        now += pause
        wait = rate.take("a")
        given_ += wait == 0
        assert given_ <= per_minute + now * per_minute / 60 + 1e-6
        if wait:
            now += wait + 1e-6
            assert rate.take("a") == 0
            given_ += 1
    assert rate.take("b") == 0


def test_places_are_given_back() -> None:
    places = Places(1, "streams")
    with places.one("a"), places.one("b"), pytest.raises(TooManyError), places.one("a"):
        pass
    with places.one("a"):
        pass


def test_a_request_that_takes_too_long_is_ended(serve, monkeypatch) -> None:
    async def slow(*_: object) -> None:
        await asyncio.sleep(10)

    client = serve(limits={"request_seconds": 0.2})
    monkeypatch.setattr(type(client.app.state.service.uploads), "receive", slow)
    answer = client.post("/v1/weights", content=b"x")
    assert answer.status_code == 408 and answer.json()["detail"] == "the request took too long"


def test_errors_of_the_service_tell_nothing(serve, monkeypatch, caplog) -> None:
    client = serve()
    monkeypatch.setattr(client.app.state.service.store, "jobs_of", lambda *_, **__: 1 / 0)
    answer = client.get("/v1/prunings", headers={"x-request-id": "mine-1"})
    assert answer.status_code == 500 and answer.json() == {"detail": "internal error"}
    assert answer.headers["x-request-id"] == "mine-1"
    failed = next(record for record in caplog.records if record.message == "request failed")
    line = json.loads(JsonFormatter().format(failed))
    assert line["request"] == "mine-1" and "ZeroDivisionError" in line["traceback"]


def test_requests_are_noted(serve, caplog) -> None:
    client = serve()
    caplog.set_level(logging.INFO, "zeroout.service")
    client.get("/v1/prunings/" + "0" * 32, headers={"x-request-id": "not\tharmless"})
    record = next(record for record in caplog.records if record.message == "request")
    line = json.loads(JsonFormatter().format(record))
    assert line["route"] == "/v1/prunings/{id}" and line["status"] == 404 and line["owner"] == "local"
    assert "\t" not in line["request"]
    text = client.get("/metrics").text
    assert 'zeroout_requests_total{method="GET",route="/v1/prunings/{id}",status="404"} 1.0' in text


def test_the_page_needs_nothing_from_elsewhere(serve) -> None:
    client = serve()
    for path in ("/", "/page.js", "/page.css"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "") and "https://" not in answer.text
        assert "innerHTML" not in answer.text
    assert "default-src 'self'" in client.get("/").headers["content-security-policy"]
