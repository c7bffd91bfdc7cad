"""Static files: never stale, and small on the way."""

import gzip
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from server.web.static_files import StaticFiles

SCRIPT = "export const answer = 42;\n" * 100


@pytest.fixture
def files(tmp_path: Path) -> StaticFiles:
    (tmp_path / "a.js").write_text(SCRIPT)
    (tmp_path / "secret.txt").write_text("not for the web")
    made = StaticFiles([])
    assert made.add(tmp_path) == ["a.js"]
    return made


async def ask(files: StaticFiles, path: str, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request(
        "GET", path, headers=named, match_info={"name": path.split("/")[-1].split("?")[0]}
    )
    return await files.serve(request)


async def test_an_address_with_its_digest_is_good_for_ever(files: StaticFiles) -> None:
    answer = await ask(files, files.url("a.js"))
    assert "immutable" in answer.headers["Cache-Control"]
    assert answer.text == SCRIPT


@pytest.mark.parametrize("path", ["/static/a.js", "/static/a.js?v=of-another-time"])
async def test_an_address_without_it_is_checked_at_each_use(files: StaticFiles, path: str) -> None:
    answer = await ask(files, path)
    assert answer.headers["Cache-Control"] == "no-cache"
    again = await ask(files, path, If_None_Match=answer.headers["ETag"])
    assert (again.status, again.body) == (304, None)
    assert (await ask(files, path, If_None_Match='"older"')).status == 200


async def test_who_takes_gzip_gets_it(files: StaticFiles) -> None:
    answer = await ask(files, "/static/a.js", Accept_Encoding="gzip, br")
    assert isinstance(answer.body, bytes)
    assert gzip.decompress(answer.body).decode() == SCRIPT
    assert len(answer.body) < len(SCRIPT) / 10


async def test_what_is_no_page_file_is_not_there(files: StaticFiles) -> None:
    with pytest.raises(web.HTTPNotFound):
        await ask(files, "/static/secret.txt")
