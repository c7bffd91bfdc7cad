"""The devices' listener waits for nobody without end."""

import asyncio
from unittest.mock import Mock

import pytest
from aiohttp import StreamReader
from aiohttp.test_utils import make_mocked_request

from server.provisioning import web


async def test_a_body_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "READ_S", 0.0)
    content = StreamReader(Mock(), 65_536, loop=asyncio.get_running_loop())
    content.feed_data(b"{")
    request = make_mocked_request("POST", "/v1/state", payload=content)
    with pytest.raises(TimeoutError):
        await web.body_of(request, 16_384)
