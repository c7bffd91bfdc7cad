"""The API's edge for errors: our own become problem+json (RFC 9457), here and nowhere else.

Every code is stable and explained; `/v1/docs` lists them from this table.
"""

import math
from dataclasses import dataclass

import msgspec
from aiohttp import web

from server.db.engine import DATABASE_SILENT
from server.errors import NotFoundError, RefusedError, UnavailableError, VestibuleError


@dataclass(frozen=True, slots=True)
class Code:
    """What a code means: its HTTP status, and what the caller can do."""

    status: int
    title: str
    explanation: str


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error: `code` is stable, `detail` is about this request, `explanation` about the code."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    explanation: str
    request_id: str
    parameter: str | None = None


class ParameterError(RefusedError):
    """A query parameter is unknown, missing or malformed."""

    def __init__(self, parameter: str, message: str, *, code: str = "bad_parameter") -> None:
        self.parameter = parameter
        super().__init__(code, message)


class BodyError(RefusedError):
    """A body, or a field of it, is not what the route takes."""

    def __init__(self, parameter: str, message: str, *, code: str = "bad_body") -> None:
        self.parameter = parameter or None
        super().__init__(code, message)


class PreconditionError(VestibuleError):
    """An edit does not say what it has seen."""

    code = "precondition_required"


class KeyReusedError(VestibuleError):
    """An Idempotency-Key bears another request than before."""

    code = "idempotency_key_reused"


class MediaTypeError(VestibuleError):
    """A body is not JSON."""

    code = "unsupported_media_type"


class NotInstalledError(VestibuleError):
    """What would write the wanted format is not installed."""

    code = "format_not_installed"


class TooLargeError(VestibuleError):
    """A body is too large."""

    code = "too_large"


class SignInError(VestibuleError):
    """No key, or none that is valid."""

    code = "not_signed_in"


class TooManyError(VestibuleError):
    """A key asks faster than it may, or an address fails to sign in more often."""

    code = "too_many_requests"

    def __init__(self, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(f"you may ask again in {wait_s:.1f} s")


CODES = {
    "not_signed_in": Code(
        401, "Not signed in", "Send `Authorization: Bearer vk_<prefix>_<secret>` with a valid key."
    ),
    "missing_scope": Code(
        403, "Not allowed", "The key is valid but was not given the scope that this route needs."
    ),
    "not_found": Code(404, "Not found", "There is nothing here, or nothing that you may see."),
    "unknown_place": Code(
        404, "Unknown site or spot", "`/v1/sites` and `/v1/spots` list those that you may see."
    ),
    "method_not_allowed": Code(405, "Method not allowed", "This route answers other methods."),
    "bad_parameter": Code(
        400, "Bad parameter", "A parameter's value is not one that this route understands."
    ),
    "bad_filter": Code(
        400,
        "Bad filter",
        "`detail` says at which character something else was expected, and what.",
    ),
    "unknown_parameter": Code(
        400, "Unknown parameter", "Unknown parameters are refused, so that no typo goes unnoticed."
    ),
    "bad_cursor": Code(
        400, "Bad cursor", "A cursor belongs to the question that gave it; start without one."
    ),
    "dataset_changed": Code(
        410, "Another dataset", "The database was restored: read all anew, then follow from there."
    ),
    "cursor_expired": Code(
        410, "Cursor expired", "Changes behind it are gone: read all anew, then follow from there."
    ),
    "finer_than_readings": Code(
        422,
        "Finer than the readings",
        "Counts are never interpolated: ask for buckets as long as the readings or longer.",
    ),
    "estimate_too_fine": Code(
        422,
        "Too fine for estimates",
        "Estimates are of quarters of an hour, and of what is longer.",
    ),
    "range_too_long": Code(
        422, "Range too long", "Ask for a shorter range, or for larger buckets."
    ),
    "unknown_metric": Code(
        422,
        "Unknown KPI",
        "`/v1/definitions` lists the KPIs, by id and name; experiments name theirs in the detail.",
    ),
    "not_answerable": Code(
        422,
        "Not answerable",
        "This question has no honest answer; `detail` says what can be asked instead.",
    ),
    "too_few_pairs": Code(
        422,
        "Too few pairs",
        "Of n pairs of sites the least two-sided p is 2 / 2^n: fewer than 6 can decide nothing.",
    ),
    "sites_overlap": Code(
        409, "In another experiment", "Of two treatments at once neither effect is known."
    ),
    "starts_too_soon": Code(
        422, "Starts too soon", "A draw is sealed before its first day, for all to know it is one."
    ),
    "look_too_early": Code(
        409,
        "Too early to decide",
        "Its horizon was locked at the start; an early look decides none.",
    ),
    "wrong_state": Code(
        409, "Not in this state", "`/v1/experiments/{ref}` says which state it is in."
    ),
    "too_few_sites": Code(
        422, "Too few sites", "What sites share can only be told from their own among 5 or more."
    ),
    "bad_body": Code(422, "Bad body", "The body is not what this route takes."),
    "unknown_field": Code(
        422, "Unknown field", "Unknown fields are refused, so that no typo goes unnoticed."
    ),
    "bad_value": Code(422, "Bad value", "`parameter` names the field whose value is not taken."),
    "name_taken": Code(409, "Name taken", "Names are unique within their site or organisation."),
    "conflict": Code(409, "Conflict", "It contradicts what is already there."),
    "too_early": Code(409, "Too early", "It can be done from the day on that `detail` names."),
    "too_little": Code(
        409, "Too little to tell", "Too few valid answers; no comparison is made up of less."
    ),
    "incident_over": Code(
        409, "Over", "The incident has ended, so nobody need see to it; it can be commented on."
    ),
    "no_devices": Code(
        409, "No devices", "No device that this names takes part, as `detail` says."
    ),
    "too_many": Code(422, "Too many", "Narrow the filter."),
    "too_many_devices": Code(422, "Too many devices", "Ask fewer at once, by site for instance."),
    "reason_needed": Code(
        422, "Reason needed", "Say why. Commands need no reason where the stores are closed."
    ),
    "frozen": Code(
        409,
        "Frozen",
        "Wait for the end of the freeze that `detail` names; what can't wait says so by "
        "`override_freeze`, and why.",
    ),
    "bad_policy": Code(422, "Bad policy", "`detail` says what of the rollout's policy, and why."),
    "in_no_wave": Code(
        422, "In no wave", "The waves leave out devices of a layer; let the last one take all."
    ),
    "bad_window": Code(422, "Bad window", "`detail` says what of the policy's windows, and why."),
    "bad_revert": Code(422, "Nothing to take back", "Say `revert failed` or `revert all`."),
    "withdrawn": Code(422, "Withdrawn", "A release of this bundle is offered to nobody any more."),
    "bad_transition": Code(
        409, "Not as it stands", "`acts` of `/v1/rollouts/{ref}` says what may be done with it now."
    ),
    "four_eyes": Code(
        403, "A second person", "Somebody else than its author approves it; a key is nobody."
    ),
    "not_its_author": Code(403, "Not its author", "A freeze ends early by who began it alone."),
    "no_way_back": Code(409, "No way back", "`detail` says why no device can go back."),
    "reverse": Code(409, "A way back", "What takes a rollout back is cancelled, not reverted."),
    "changed_meanwhile": Code(
        412, "Changed meanwhile", "Somebody else has changed it: read it again, and decide anew."
    ),
    "precondition_required": Code(
        428, "If-Match required", "Send the ETag of the state that you have seen as `If-Match`."
    ),
    "idempotency_key_reused": Code(
        422, "Idempotency-Key reused", "A key belongs to one request: draw another."
    ),
    "mixed_currencies": Code(
        422, "Several currencies", "Amounts are added up in one currency alone: name it."
    ),
    "no_rate": Code(
        422, "No rate of exchange", "State the rates of these days by `POST /v1/rates` first."
    ),
    "format_not_installed": Code(
        406, "Format not installed", "Ask for JSON or CSV, or have `vestibule[parquet]` installed."
    ),
    "unsupported_media_type": Code(415, "Not JSON", "Send `Content-Type: application/json`."),
    "too_large": Code(413, "Too large", "Send less at once."),
    "too_many_requests": Code(
        429, "Too many requests", "Wait as long as `Retry-After` says; answers carry an ETag."
    ),
    "database_away": Code(
        503, "Database away", "Nothing is lost; devices keep what is not stored. Try again soon."
    ),
    "internal_error": Code(
        500, "Internal error", "This is our fault; the request id finds it in our log."
    ),
}


def problem_response(error: Exception, *, request_id: str) -> web.Response:
    """Return an error as problem+json; an unknown one as internal_error, saying nothing of it."""
    code, detail = _explained(error)
    known = CODES[code]
    problem = Problem(
        type=f"/v1/docs#{code}",
        title=known.title,
        status=known.status,
        code=code,
        detail=detail,
        explanation=known.explanation,
        request_id=request_id,
        parameter=getattr(error, "parameter", None),
    )
    headers: dict[str, str] = {}
    if isinstance(error, SignInError):
        headers["WWW-Authenticate"] = 'Bearer realm="vestibule"'
    if isinstance(error, TooManyError):
        headers["Retry-After"] = str(math.ceil(error.wait_s))
    if isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed_methods))
    if code == "database_away":
        headers["Retry-After"] = "2"
    return web.Response(
        status=known.status,
        body=msgspec.json.encode(problem),
        content_type="application/problem+json",
        headers=headers,
    )


def is_unexpected(error: Exception) -> bool:
    """Whether an error is a fault of ours, to be logged by whoever serves the request."""
    return _explained(error)[0] == "internal_error"


def _explained(error: Exception) -> tuple[str, str]:
    """Return an error's code, one of CODES, and its sentence."""
    if isinstance(error, VestibuleError):
        code = error.code
        if code not in CODES:
            code = "not_found" if isinstance(error, NotFoundError) else "bad_parameter"
        if isinstance(error, UnavailableError):
            code = "database_away"
        return code, str(error)
    if isinstance(error, web.HTTPNotFound):
        return "not_found", "no such route; `/v1/docs` lists them"
    if isinstance(error, web.HTTPMethodNotAllowed):
        return "method_not_allowed", f"{error.method} is not answered here"
    if isinstance(error, DATABASE_SILENT):  # any other PostgresError is a fault of ours
        return "database_away", "the database does not answer just now"
    return "internal_error", "something went wrong here"
