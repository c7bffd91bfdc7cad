"""A mail server on a socket, for whoever hands mail in."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes, policy
from email.message import EmailMessage


@dataclass
class Post:
    """A mail server on a socket; `answer` says what it answers to a command, None: it hangs up."""

    port: int = 0
    answer: Callable[[str], str | None] = lambda _: "250 ok"
    taken: list[EmailMessage] = field(default_factory=list)
    to: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak SMTP as far as a client needs."""
        try:
            writer.write(b"220 post ESMTP\r\n")
            while line := (await reader.readline()).decode().strip():
                said = self.answer(line)
                if said is None:
                    return
                if line.upper().startswith("DATA") and said.startswith("250"):
                    writer.write(b"354 go on\r\n")
                    body = await reader.readuntil(b"\r\n.\r\n")
                    said = self.answer("<body>")
                    if said is None or said.startswith("250"):
                        parsed = message_from_bytes(body[:-3], policy=policy.default)
                        assert isinstance(parsed, EmailMessage)
                        self.taken.append(parsed)
                    if said is None:  # taken, and then the line is cut
                        return
                if line.upper().startswith("RCPT") and said.startswith("250"):
                    self.to.append(line)
                writer.write(said.encode() + b"\r\n")
                if line.upper() == "QUIT":
                    return
        finally:
            writer.close()


@asynccontextmanager
async def listening() -> AsyncIterator[Post]:
    """Open a mail server."""
    office = Post()
    server = await asyncio.start_server(office.serve, "127.0.0.1", 0)
    office.port = server.sockets[0].getsockname()[1]
    try:
        yield office
    finally:
        server.close()
