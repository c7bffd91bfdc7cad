"""The devices' listener waits for nobody without end."""

import asyncio
from unittest.mock import Mock, patch

import pytest
from aiohttp import StreamReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web import Request, Response, StreamResponse

from server.provisioning import web


async def test_who_shows_no_certificate_is_refused_before_anything_is_read() -> None:
    content = StreamReader(Mock(), 65_536, loop=asyncio.get_running_loop())  # nothing ever comes
    request = make_mocked_request("POST", "/v1/state", payload=content)

    async def reads(asked: Request) -> StreamResponse:
        await web.body_of(asked, 16_384)
        raise AssertionError("it was read")

    with patch.object(web, "peer_certificate", return_value=None):
        async with asyncio.timeout(5):
            answer = await web.answered(reads)(request)
    assert isinstance(answer, Response)
    assert (answer.status, "no_certificate" in (answer.text or "")) == (401, True)


async def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READ_S", 0.0)
    content = StreamReader(Mock(), 65_536, loop=asyncio.get_running_loop())
    content.feed_data(b"{")
    request = make_mocked_request("POST", "/v1/state", payload=content)
    with pytest.raises(TimeoutError):
        await web.body_of(request, 16_384)
