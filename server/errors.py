"""What may go wrong, in the product's own words; each edge translates (no HTTP, no MQTT here)."""


class VestibuleError(Exception):
    """Base of our own errors: `code` is stable and for machines, the text helps a person."""

    code = "error"


class NotFoundError(VestibuleError):
    """What was asked for does not exist, or is not the asker's to see: the same answer."""

    code = "not_found"


class ConflictError(VestibuleError):
    """It contradicts what is already there."""

    code = "conflict"


class RefusedError(VestibuleError):
    """It is understood and not allowed; `code` says which rule."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class UnavailableError(VestibuleError):
    """Something that is needed does not answer just now; trying again may help."""

    code = "unavailable"
