"""Who is let in: the right host, no page from elsewhere, the right token."""

import asyncio

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
httpx = pytest.importorskip("httpx")

from starlette.responses import PlainTextResponse  # noqa: E402

from bach.core.errors import InputError  # noqa: E402
from bach.serve.figures import Figures  # noqa: E402
from bach.serve.guard import COOKIE, Guard  # noqa: E402
from bach.serve.settings import Options, find_root, read_token  # noqa: E402

TOKEN = "a-token-of-some-length"
URL = "http://127.0.0.1:8000"


def ask(method="GET", path="/jobs", token=None, loopback=True, url=URL, guard=None, **headers):
    guard = guard or Guard(PlainTextResponse("in"), token, loopback, Figures())

    async def call():
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url=url) as client:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return await client.request(method, path, headers=named)

    return asyncio.run(call())


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000"])
def test_this_machine_by_any_of_its_names_is_let_in(host):
    assert ask(host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:8000", "[", "", "10.0.0.1"]
)
def test_a_name_that_was_led_here_is_refused(host):
    assert ask(host=host).status_code == 421
    assert ask("POST", host=host).status_code == 421


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH"])
def test_pages_of_other_places_change_nothing(method):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:9999", "http://[", ""):
        assert ask(method, origin=origin).status_code == 403, origin
    assert ask(method, sec_fetch_site="cross-site").status_code == 403
    assert ask(method, origin=URL, sec_fetch_site="same-origin").status_code == 200
    assert ask(method).status_code == 200  # curl and programs say no origin


def test_without_the_token_only_health_is_told():
    for path in ("/jobs", "/model/predict", "/metrics", "/openapi.json", "/docs", "/v2"):
        answer = ask(path=path, token=TOKEN)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert ask(path=path, token=TOKEN).status_code == 200


@pytest.mark.parametrize(
    "given", ["Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x", "Bearer é"]
)
def test_a_wrong_token_is_refused(given):
    assert ask(token=TOKEN, authorization=given.encode()).status_code == 401


def test_the_right_token_or_its_cookie_is_let_in():
    assert ask(token=TOKEN, authorization=f"Bearer {TOKEN}").status_code == 200
    guard = Guard(PlainTextResponse("in"), TOKEN, True, Figures())
    assert ask(guard=guard, cookie=f"{COOKIE}={guard.session}").status_code == 200
    assert ask(guard=guard, cookie=f"{COOKIE}={TOKEN}").status_code == 401
    other = Guard(PlainTextResponse("in"), TOKEN, True, Figures())
    assert ask(guard=guard, cookie=f"{COOKIE}={other.session}").status_code == 401


def test_every_answer_says_what_its_pages_may_load():
    for answer in (ask(), ask(host="evil.example")):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"


def test_others_are_served_only_with_a_token(monkeypatch, tmp_path):
    monkeypatch.delenv("BACH_SERVE_TOKEN", raising=False)
    assert read_token(Options()) is None
    with pytest.raises(InputError, match="must ask for a token"):
        read_token(Options(host="0.0.0.0"))
    file = tmp_path / "token"
    for bad in ("", "\n", "short", "é" * 40, "\x00" * 20):
        file.write_text(bad, encoding="utf-8")
        with pytest.raises(InputError, match="at least 16"):
            read_token(Options(host="0.0.0.0", token_file=str(file)))
    file.write_text(f"{TOKEN}\n# more\n", encoding="utf-8")
    assert read_token(Options(host="0.0.0.0", token_file=str(file))) == TOKEN
    monkeypatch.setenv("BACH_SERVE_TOKEN", f" {TOKEN} ")
    assert read_token(Options(host="0.0.0.0")) == TOKEN
    with pytest.raises(InputError, match="No such file"):
        read_token(Options(token_file=str(tmp_path / "none")))


def test_a_folder_of_slides_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match="--slides-root"):
        find_root(Options(slides_root=str(tmp_path / "none")))
    (tmp_path / "link").symlink_to(tmp_path)
    assert find_root(Options(slides_root=str(tmp_path / "link"))) == tmp_path.resolve()
