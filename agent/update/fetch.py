"""The releases' metadata over our own HTTPS: with the device's certificate, and within a time.

python-tuf asks for one file after the other and says how long each may be; it reads no further.
Here stands what it leaves open: every wait has an end, and all of them together (`limit_s`), so
that who sends a byte a second is refused as who sends none. One connection serves for all.
"""

import http.client
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Self

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

METADATA = "/v1/update/metadata/"
IDLE_S = 20.0
CHUNK = 16_384
MAX_REFUSAL = 4_096


class Exchange(FetcherInterface):
    """Fetches from the server that we are enrolled at, until `limit_s` from now."""

    def __init__(
        self,
        server: tuple[str, int],
        context: ssl.SSLContext,
        *,
        check: Callable[[bytes], None],
        limit_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._server = server
        self._context = context
        self._check = check
        self._monotonic = monotonic
        self._until_s = monotonic() + limit_s
        self._open: http.client.HTTPSConnection | None = None
        self._sock: ssl.SSLSocket | None = None
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._response, self._open, self._sock):  # who broke off left them open
            if each is not None:
                each.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        connection, self._open = self._open, None
        try:
            connection, response = self._answer(connection, url)
            self._response = response
            if response.status == 200:
                yield from self._chunks(response)
            else:
                response.read(MAX_REFUSAL)
            if response.length == 0 and not response.will_close:  # read whole: ask on, on this one
                response.close()
                self._open, connection = connection, None
            if response.status != 200:
                said = f"the server refused {url}: {response.reason} ({response.status})"
                raise DownloadHTTPError(said, response.status)
        except TimeoutError as error:
            raise SlowRetrievalError(f"{url} did not come in time") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            said = f"{url} was not fetched: {str(error) or type(error).__name__}"
            raise DownloadError(said) from error
        finally:
            if connection is not None:
                connection.close()

    def _answer(
        self, connection: http.client.HTTPSConnection | None, url: str
    ) -> tuple[http.client.HTTPSConnection, http.client.HTTPResponse]:
        """Ask on a connection that is open, or on a new one where the server has hung up."""
        if connection is not None:
            try:
                connection.sock.settimeout(self._wait_s())
                connection.request("GET", url)
                return connection, connection.getresponse()
            except ConnectionError:
                connection.close()
        host, port = self._server
        connection = http.client.HTTPSConnection(
            host, port, timeout=self._wait_s(), context=self._context
        )
        try:
            connection.connect()
            self._sock = connection.sock  # it lets go of it where an answer is its last
            self._check(connection.sock.getpeercert(binary_form=True) or b"")
            connection.request("GET", url)
            return connection, connection.getresponse()
        except BaseException:
            connection.close()
            raise

    def _chunks(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        assert self._sock is not None
        while True:
            self._sock.settimeout(self._wait_s())
            if not (chunk := response.read1(CHUNK)):
                break
            yield chunk
        if response.length:  # it was cut off: a matter of the network, not of trust
            raise http.client.IncompleteRead(b"", response.length)

    def _wait_s(self) -> float:
        left_s = self._until_s - self._monotonic()
        if left_s <= 0:
            raise SlowRetrievalError("the releases did not come in time")
        return min(IDLE_S, left_s)
