"""Only pages and programs of this machine are answered; the page loads nothing else."""

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from finetune.serving.guard import is_local, security_headers


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:9", "LOCALHOST:9"])
def test_this_machine_by_its_names(host: str) -> None:
    assert is_local([host], [])
    assert is_local([host], [f"http://{host}"])
    assert not is_local([host], [f"https://{host}"])


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "evil.example#127.0.0.1",
        "127.0.0.1/evil",
        "localhost:99999",
        "localhost:x",
        "user@localhost",
        "[::1",
        "0.0.0.0:8000",
        "localhost\t",
    ],
)
def test_other_names_are_not_this_machine(host: str) -> None:
    assert not is_local([host], [])


@pytest.mark.parametrize("origin", ["null", "", "http://evil.example", "http://localhost:8001"])
def test_other_origins_are_refused(origin: str) -> None:
    assert not is_local(["localhost:8000"], [origin])


def test_several_or_no_hosts_are_refused() -> None:
    assert not is_local([], [])
    assert not is_local(["localhost", "localhost"], [])
    assert not is_local(["localhost"], ["http://localhost", "http://localhost"])


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_judged_and_only_two_names_pass(host: str, origin: str) -> None:
    if is_local([host], []):
        assert host.lower().split(":")[0] in ("localhost", "127.0.0.1")
    assert is_local(["localhost"], [origin]) == (origin == "http://localhost")


@pytest.mark.parametrize("path", ["/", "/health", "/openapi.json", "/predict", "/nothing"])
def test_a_rebound_name_gets_nothing_from_any_path(ask, path: str) -> None:
    response = ask("POST" if path == "/predict" else "GET", path, headers={"Host": "evil.example"})
    assert response.status_code == 403
    assert set(response.json()) == {"error"}


def test_another_site_cannot_post(ask, pictures: list[bytes]) -> None:
    for origin, status in (("http://evil.example", 403), ("http://127.0.0.1:8000", 200)):
        response = ask("POST", "/predict", content=pictures[0], headers={"Origin": origin})
        assert response.status_code == status
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("path", "host"), [("/", "localhost"), ("/nothing", "localhost"), ("/", "evil.example")]
)
def test_every_answer_has_the_headers(ask, path: str, host: str) -> None:
    headers = ask("GET", path, headers={"Host": host}).headers
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in headers["content-security-policy"]
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_the_policy_names_each_hash() -> None:
    policy = security_headers(["sha256-a"], ["sha256-b", "sha256-c"])["Content-Security-Policy"]
    assert "script-src 'sha256-a';" in policy
    assert "style-src 'sha256-b' 'sha256-c';" in policy


def test_a_failure_is_told_to_the_terminal_and_not_to_the_sender(make_app, talk, failures) -> None:
    app: FastAPI = make_app()

    @app.get("/fail")
    async def fail() -> None:
        raise RuntimeError("secret: /home/me")

    response = talk(app, lambda client: client.get("/fail"))
    assert response.status_code == 500
    assert "secret" not in response.text
    assert failures == ["'/fail': RuntimeError: secret: /home/me"]
