"""OpenAPI 3.1 and a readable page, both made from the route table and the structs."""

import html
import re
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

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


class Described(Protocol):
    """What is needed of a route."""

    @property
    def path(self) -> str: ...
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
            *_path_parameters(route.path),
            *(_HEADERS.get(route.method, ()) if route.makes or route.method == "PATCH" else ()),
            *_query_parameters(everything[name], route.parameters),
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
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "bearerFormat": "vk_<prefix>_<secret>"}
            },
        },
    }


def _operation(route: Described, answer: Schema, _: Schema) -> Schema:
    content: Schema = {"application/json": {"schema": answer}}
    if route.row is not None:
        content["text/csv"] = {"schema": {"type": "string"}}
    name = re.sub(r"[^a-z]+", "_", route.path).strip("_")
    if route.method != "GET":
        name = f"{route.method.lower()}_{name}"
    answered: Schema = {"description": route.summary, "content": content}
    described: Schema = {
        "operationId": name,
        "summary": route.summary,
        "description": (route.parameters.__doc__ or "").strip(),
        "responses": {
            "201" if route.makes else "200": answered,
            "304": {"description": "Known already: the ETag of If-None-Match still holds"},
            "default": {
                "description": "A problem; `code` is stable",
                "content": {
                    "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
                },
            },
        },
    }
    if route.body is not None:
        schema = {"$ref": _REF.format(name=route.body.__name__)}
        described["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return described


def _path_parameters(path: str) -> list[Schema]:
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in re.findall(r"{(\w+)}", path)
    ]


def _query_parameters(schema: Schema, kind: type[msgspec.Struct]) -> list[Schema]:
    required = set(schema.get("required", ()))
    found: list[Schema] = []
    for name, value in schema.get("properties", {}).items():
        value = dict(value)
        text = value.pop("description", "")
        found.append(
            {
                "name": name,
                "in": "query",
                "required": name in required,
                "description": text,
                "schema": value,
            }
        )
    return found


def page(routes: Sequence[Described]) -> bytes:
    """Return the document as a page that needs nothing from elsewhere."""
    document = describe(routes)
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
        return f"list of {_values(schema.get('items', {}))}"
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
