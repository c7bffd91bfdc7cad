"""OpenAPI 3.1 and a readable page, both made from the route table and the structs."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import msgspec

from server.api.examples import EXAMPLES
from server.api.parquet import MEDIA_TYPE
from server.api.problems import CODES, Problem

_REF = "#/components/schemas/{name}"
_ABOUT = """Counts of people and answers of feedback kiosks.

Times are UTC (`from`, `until`) beside the site's local label (`local`). `visits` is null where
nothing was measured: missing is not zero. A row's `state` is open, complete or final; its
`revision` rises when late data changes it. `finer_than_readings` is answered rather than guessed.
"""


_HEADERS: dict[str, list[dict[str, Any]]] = {
    "POST": [
        {
            "name": "Idempotency-Key",
            "in": "header",
            "required": False,
            "description": "The same key with the same body gets the same answer for a day.",
            "schema": {"type": "string", "maxLength": 128},
        }
    ],
    "PATCH": [
        {
            "name": "If-Match",
            "in": "header",
            "required": True,
            "description": "The ETag of the state that you have seen; `*`: whatever it is.",
            "schema": {"type": "string"},
        }
    ],
}


_TEXT = {"type": "string"}
_ANSWER_HEADERS: dict[str, dict[str, Any]] = {
    "ETag": {"description": "What this answer says, for `If-None-Match` and `If-Match`."},
    "Link": {"description": 'The following page, `rel="next"`, where there is one.'},
    "Location": {"description": "Where what was made is found."},
    "RateLimit": {
        "description": "What the key may still ask: `r` requests, all of them again after `t` s "
        "(draft-ietf-httpapi-ratelimit-headers-10)."
    },
    "RateLimit-Policy": {"description": "`q` requests at once, which `w` s restore."},
    "Retry-After": {"description": "Seconds to wait before the next try."},
    "WWW-Authenticate": {"description": "How to sign in."},
    "X-Next-Cursor": {"description": "`cursor` of the following page, where there is one."},
    "X-Request-Id": {"description": "The request's own id, or one given to it; it is in our log."},
}
_PROBLEM_HEADERS = {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}


class Described(Protocol):
    """What is needed of a route."""

    @property
    def path(self) -> str: ...
    @property
    def scope(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def parameters(self) -> type[msgspec.Struct]: ...
    @property
    def answer(self) -> type[msgspec.Struct]: ...
    @property
    def row(self) -> type[msgspec.Struct] | None: ...
    @property
    def method(self) -> str: ...
    @property
    def body(self) -> type[msgspec.Struct] | None: ...
    @property
    def makes(self) -> bool: ...


Schema = dict[str, Any]
"""A part of the document, as JSON has it."""


def describe(routes: Sequence[Described]) -> Schema:
    """Return the OpenAPI 3.1 document."""
    types = [route.answer for route in routes] + [route.parameters for route in routes]
    bodies = [route.body for route in routes if route.body is not None]
    schemas, components = msgspec.json.schema_components(
        [*types, Problem, *bodies], ref_template=_REF.replace("{name}", "{name}")
    )
    components = {name: schema for name, schema in components.items() if "Parameters" not in name}
    count = len(routes)
    paths: Schema = {}
    for number, route in enumerate(routes):
        operation = _operation(route, schemas[number], schemas[count + number])
        paths.setdefault(route.path, {})[route.method.lower()] = operation
    _, everything = msgspec.json.schema_components(types, ref_template=_REF)
    for number, route in enumerate(routes):
        name = str(schemas[count + number]["$ref"]).rsplit("/", 1)[1]
        paths[route.path][route.method.lower()]["parameters"] = [
            *_path_parameters(route),
            *(_HEADERS[route.method] if route.makes or route.method == "PATCH" else ()),
            *(_HEADERS["PATCH"] if getattr(route, "compares", False) else ()),
            *_query_parameters(everything[name], route),
        ]
    unused = {str(schemas[count + n]["$ref"]).rsplit("/", 1)[1] for n in range(count)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Vestibule", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/v1"}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "schemas": {k: v for k, v in components.items() if k not in unused},
            "responses": _problems(),
            "headers": {
                name: {**header, "schema": _TEXT} for name, header in _ANSWER_HEADERS.items()
            },
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "bearerFormat": "vk_<prefix>_<secret>"}
            },
        },
    }


def _operation(route: Described, answer: Schema, _: Schema) -> Schema:
    content: Schema = {"application/json": {"schema": answer}}
    if route.row is not None:
        content["text/csv"] = {"schema": {"type": "string"}}
        content[MEDIA_TYPE] = {"schema": {"type": "string", "format": "binary"}}
    name = re.sub(r"[^a-z]+", "_", route.path).strip("_")
    if route.method != "GET":
        name = f"{route.method.lower()}_{name}"
    headers = ["ETag", "RateLimit", "RateLimit-Policy", "X-Request-Id"]
    if route.row is not None:
        headers.append("Link" if route.method == "GET" else "X-Next-Cursor")
    if route.makes:
        headers.append("Location")
    responses: Schema = {
        "201" if route.makes else "200": {
            "description": route.summary,
            "headers": _headers(headers),
            "content": content,
        }
    }
    if route.method == "GET" or route.row is not None:
        responses["304"] = {
            "description": "Known already: the ETag of If-None-Match still holds",
            "headers": _headers(headers),
        }
    for status in _statuses(route):
        responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
    described: Schema = {
        "operationId": name,
        "summary": route.summary,
        "description": (route.parameters.__doc__ or "").strip(),
        "security": [{"key": [route.scope]}],
        "responses": responses,
    }
    if route.body is not None:
        sent: Schema = {"schema": {"$ref": _REF.format(name=route.body.__name__)}}
        example = EXAMPLES.get(f"{route.method} {route.path}")
        if example is not None and example.body is not None:
            sent["example"] = example.body
        described["requestBody"] = {"required": True, "content": {"application/json": sent}}
    return described


def _statuses(route: Described) -> list[int]:
    """Return the statuses of the problems that a route may answer."""
    found = {400, 401, 403, 422, 429, 500, 503}
    if "{" in route.path or route.body is not None or msgspec.structs.fields(route.parameters):
        found.add(404)
    if route.row is not None:
        found.add(406)
    if route.scope != "read":
        found.add(409)
    if route.path == "/changes":
        found.add(410)
    if route.body is not None:
        found |= {413, 415}
        if any(each.name == "seen" for each in msgspec.structs.fields(route.body)):
            found.add(412)
    if route.method == "PATCH" or getattr(route, "compares", False):
        found |= {412, 428}
    return sorted(found)


def _headers(names: Iterable[str]) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _problems() -> Schema:
    """Return a response for each status that CODES has, with its codes."""
    found: Schema = {}
    for status in sorted({known.status for known in CODES.values()}):
        codes = ", ".join(f"`{code}`" for code, known in CODES.items() if known.status == status)
        names = [*_PROBLEM_HEADERS.get(status, ()), "X-Request-Id"]
        found[str(status)] = {
            "description": f"A problem; its `code` is stable: {codes}",
            "headers": _headers(names),
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            },
        }
    return found


def _path_parameters(route: Described) -> list[Schema]:
    example = EXAMPLES.get(f"{route.method} {route.path}")
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1},
            **({"example": example.path[name]} if example and name in example.path else {}),
        }
        for name in re.findall(r"{(\w+)}", route.path)
    ]


def _query_parameters(schema: Schema, route: Described) -> list[Schema]:
    required = set(schema.get("required", ()))
    example = EXAMPLES.get(f"{route.method} {route.path}")
    found: list[Schema] = []
    for name, value in schema.get("properties", {}).items():
        value = _sendable(value)
        text = value.pop("description", "")
        value.pop("examples", None)
        shown: Schema = {}
        if example is not None and name in example.query:
            text_of = example.query[name]
            listed = value.get("type") == "array"
            number = value.get("type") == "integer"
            shown["example"] = [text_of] if listed else int(text_of) if number else text_of
        found.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "description": text,
                "schema": value,
                **shown,
            }
        )
    return found


def _sendable(schema: Schema) -> Schema:
    """Return a parameter's schema without null, which no address can hold: it is left out."""
    found = {key: value for key, value in schema.items() if key != "default" or value is not None}
    kinds = [each for each in found.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) == 1:
        del found["anyOf"]
        found = {**kinds[0], **found}
    return found


def page(document: Schema) -> bytes:
    """Return the document as a page that needs nothing from elsewhere."""
    parts = [_HEAD, f"<h1>Vestibule API, v1</h1><p>{_prose(_ABOUT)}</p>"]
    parts.append("<p><a href='openapi.json'>openapi.json</a></p>")
    for path, method, operation in (
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ):
        rows = "".join(_parameter_row(each) for each in operation["parameters"])
        parts.append(
            f"<section><h2 id='{operation['operationId']}'>"
            f"<code>{method.upper()} /v1{html.escape(path)}</code></h2>"
            f"<p>{_prose(operation['summary'])}.</p>"
        )
        if rows:
            parts.append(
                "<table><thead><tr><th>parameter</th><th>values</th><th>meaning</th></tr></thead>"
                f"<tbody>{rows}</tbody></table>"
            )
        if "requestBody" in operation:
            sent = operation["requestBody"]["content"]["application/json"]["schema"]
            parts.append(f"<p>Takes {_values(sent)}.</p>")
        responses = operation["responses"]
        answered = responses.get("200") or responses["201"]
        schema = answered["content"]["application/json"]["schema"]
        name = str(schema.get("$ref", "")).rsplit("/", 1)[-1]
        parts.append(f"<p>Answers <a href='#{name}'><code>{name}</code></a>.</p></section>")
    parts.append("<h2>Answers</h2>")
    parts += [_schema(name, each) for name, each in document["components"]["schemas"].items()]
    parts.append("<h2>Problems</h2><dl>")
    for code, known in CODES.items():
        parts.append(
            f"<dt id='{code}'><code>{code}</code> ({known.status})</dt>"
            f"<dd>{_prose(known.explanation)}</dd>"
        )
    return "".join([*parts, "</dl></main></html>"]).encode()


def _parameter_row(parameter: Schema) -> str:
    values = _values(parameter["schema"])
    name = html.escape(parameter["name"])
    needed = " (required)" if parameter["required"] else ""
    text = _prose(parameter.get("description", ""))
    return f"<tr><td><code>{name}</code>{needed}</td><td>{values}</td><td>{text}</td></tr>"


def _values(schema: Schema) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rsplit("/", 1)[-1]
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(_values(each) for each in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_values(schema.get('prefixItems', [schema.get('items', {})])[0])}"
    return html.escape(str(schema.get("type", "any")))


def _schema(name: str, schema: Schema) -> str:
    text = _prose(str(schema.get("description", "")))
    if "enum" in schema:
        values = ", ".join(f"<code>{html.escape(str(v))}</code>" for v in schema["enum"])
        return f"<section><h3 id='{name}'>{name}</h3><p>{text} {values}</p></section>"
    rows = "".join(
        f"<tr><td><code>{html.escape(key)}</code></td><td>{_values(value)}</td></tr>"
        for key, value in schema.get("properties", {}).items()
    )
    return (
        f"<section><h3 id='{name}'>{name}</h3><p>{text}</p>"
        f"<table><tbody>{rows}</tbody></table></section>"
    )


def _prose(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Vestibule API</title>
<meta name="viewport" content="width=device-width"><style>
:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;margin:0}
main{max-width:60rem;margin:auto;padding:1rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;vertical-align:top;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #8886}
code{font-size:.95em}section{overflow-x:auto;margin:2rem 0}</style><main>"""
