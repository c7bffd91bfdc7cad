"""The releases' metadata over our own HTTPS: with the device's certificate, and within a time.

python-tuf asks for one file after the other and says how long each may be; it reads no further.
Here stands what it leaves open: every wait has an end, and all of them together (`limit_s`), so
that who sends a byte a second is refused as who sends none.
"""

import http.client
import ssl
import time
from collections.abc import Callable, Iterator

from tuf.api.exceptions import DownloadError, DownloadHTTPError, SlowRetrievalError
from tuf.ngclient import FetcherInterface

METADATA = "/v1/update/metadata/"
IDLE_S = 20.0
CHUNK = 16_384


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

    def _fetch(self, url: str) -> Iterator[bytes]:
        host, port = self._server
        connection = http.client.HTTPSConnection(
            host, port, timeout=self._wait_s(), context=self._context
        )
        try:
            connection.connect()
            sock = connection.sock  # the connection lets go of it once the answer is the last
            self._check(sock.getpeercert(binary_form=True) or b"")
            connection.request("GET", url)
            response = connection.getresponse()
            if response.status != 200:
                said = f"the server refused {url}: {response.reason} ({response.status})"
                raise DownloadHTTPError(said, response.status)
            while True:
                sock.settimeout(self._wait_s())
                if not (chunk := response.read1(CHUNK)):
                    return
                yield chunk
        except TimeoutError as error:
            raise SlowRetrievalError(f"{url} did not come in time") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise DownloadError(
                f"{url} was not fetched: {str(error) or type(error).__name__}"
            ) from error
        finally:
            connection.close()

    def _wait_s(self) -> float:
        left_s = self._until_s - self._monotonic()
        if left_s <= 0:
            raise SlowRetrievalError("the releases did not come in time")
        return min(IDLE_S, left_s)
