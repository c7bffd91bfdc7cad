"""Envelopes: how a text that one of our services signed travels to a device.

    {its kind: the text, "signature": base64 of ECDSA P-256 with SHA-256 over the kind's prefix and
     the text, "chain": PEM, who signed it first}

Each kind has a prefix of its own, so no signature over one is one over another. What a text says is
for its own module (`plan`, `codes`, `assignment`); who signed it is checked by `agent.content`.
"""

import base64
from dataclasses import dataclass, field
from typing import ClassVar, Self

from protocol.content import Json, canonical, fields_of, long_text, signature_of


@dataclass(frozen=True, slots=True)
class Sealed:
    """A text of one kind as it travels; nothing of it is checked yet."""

    KIND: ClassVar[str]
    PREFIX: ClassVar[bytes]
    text: bytes = field(repr=False)
    signature: bytes = field(repr=False)
    chain: str = field(repr=False)

    @property
    def message(self) -> bytes:
        """What the signature has to be over."""
        return self.PREFIX + self.text

    def value(self) -> Json:
        """Return it as JSON holds it: a part of an answer."""
        return {
            self.KIND: self.text.decode(),
            "signature": base64.b64encode(self.signature).decode(),
            "chain": self.chain,
        }

    def content(self) -> bytes:
        """Return the bytes that travel."""
        return canonical(self.value())

    @classmethod
    def of(cls, value: object) -> Self:
        """Take apart what holds a text and nothing else; ContentError."""
        return cls(*cls.parts(fields_of(value, "", (cls.KIND, "signature", "chain"))))

    @classmethod
    def parts(cls, fields: Json) -> tuple[bytes, bytes, str]:
        """Return text, signature and chain; ContentError."""
        return (
            long_text(fields[cls.KIND], cls.KIND),
            signature_of(fields["signature"]),
            long_text(fields["chain"], "chain").decode(),
        )
