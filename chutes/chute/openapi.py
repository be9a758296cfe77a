"""The OpenAPI document of a chute: its cords at their public paths, with the schemas that were declared.

FastAPI's own knows nothing of cords, which take their bodies apart themselves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chutes.chute.base import Chute
    from chutes.chute.cord import Cord

MINIMAL = "x-minimal-schema"
"""Extension of a request body: the short form for a playground."""


def document(chute: Chute) -> dict[str, Any]:
    """OpenAPI 3.1. Paths are relative to where the document itself was read."""
    components: dict[str, Any] = {}
    paths: dict[str, dict[str, Any]] = {}
    for cord in chute.cords:
        if cord.public_api_path is None:
            continue
        operations = paths.setdefault(cord.public_api_path, {})
        method = cord.public_api_method.lower()
        known = operations.get(method)
        described = _operation(cord, components)
        if known is None:
            operations[method] = described
        else:  # the streaming and the plain half of one operation
            known["responses"]["200"]["content"] |= described["responses"]["200"]["content"]
            known.setdefault("requestBody", described.get("requestBody", {}))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": chute.name,
            "version": chute.revision or "1",
            "summary": chute.tagline,
            "description": chute.readme,
        },
        "servers": [{"url": "."}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }


def _operation(cord: Cord, components: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    if cord.output_schema is not None:
        answer["schema"] = _hoisted(cord.output_schema, f"{cord.name}_output", components)
    what = "What the stream is made of, item by item." if cord.stream else "The answer."
    said = (cord.func.__doc__ or "").strip()
    operation: dict[str, Any] = {
        "operationId": cord.name,
        "summary": said.split("\n")[0] or cord.name,
        "description": said,
        "responses": {
            "200": {"description": what, "content": {_kind(cord): answer}},
            "400": {"description": "The body does not fit; `error.param` names the field."},
            "500": {"description": "The function failed; the log has the traceback under the id given."},
        },
    }
    body = cord.body_schema
    if cord.public_api_method in ("GET", "DELETE"):
        needed = (body or {}).get("required", [])
        operation["parameters"] = [
            {
                "name": name,
                "in": "query",
                "required": name in needed,
                "schema": _hoisted(schema, f"{cord.name}_{name}", components),
            }
            for name, schema in (body or {}).get("properties", {}).items()
        ]
    elif body is not None:
        content: dict[str, Any] = {"schema": _hoisted(body, f"{cord.name}_input", components)}
        if cord.minimal_input_schema is not None:
            content[MINIMAL] = _hoisted(cord.minimal_input_schema, f"{cord.name}_minimal", components)
        operation["requestBody"] = {
            "required": bool(body.get("required") or "$ref" in body),
            "content": {"application/json": content},
        }
    return operation


def _kind(cord: Cord) -> str:
    """The media type that `serving` sends. The cord's `output_content_type` follows the published rule, by
    which a string would be text; it is sent as JSON, there as here."""
    if cord.declared_content_type:
        return cord.declared_content_type
    if cord.stream:
        return "text/event-stream"
    if cord.passthrough:
        return cord.output_content_type or "application/json"
    binary = (cord.output_schema or {}).get("format") == "binary"
    return "application/octet-stream" if binary else "application/json"


def _hoisted(schema: dict[str, Any], prefix: str, components: dict[str, Any]) -> dict[str, Any]:
    """The schema with its definitions moved into the document's own components."""
    defined = {**schema.get("definitions", {}), **schema.get("$defs", {})}

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(one) for one in value]
        if not isinstance(value, dict):
            return value
        return {
            key: f"#/components/schemas/{prefix}_{one.rpartition('/')[2]}"
            if key == "$ref" and isinstance(one, str) and one.rpartition("/")[2] in defined
            else moved(one)
            for key, one in value.items()
            if key not in ("definitions", "$defs") or not isinstance(one, dict)
        }

    for name, definition in defined.items():
        components[f"{prefix}_{name}"] = moved(definition)
    return moved(schema)
