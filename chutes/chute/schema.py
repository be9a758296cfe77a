"""JSON schemas from type hints: what a cord takes and what it returns.

The shape is the published one: an object with one property per parameter, models under `definitions`.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from typing import Any, Literal, TypeGuard, get_args, get_origin

from pydantic import BaseModel, PydanticUserError, TypeAdapter
from pydantic.errors import PydanticSchemaGenerationError, PydanticUndefinedAnnotation

_TEMPLATE = "#/definitions/{model}"
_NO_SCHEMA = (PydanticSchemaGenerationError, PydanticUndefinedAnnotation, PydanticUserError)
_STREAMS = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)


def is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    """True for a pydantic model class."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def explicit(schema: Any) -> dict[str, Any] | None:
    """The JSON schema of what an author passed as `input_schema` and its like.

    Raises:
        TypeError: it is neither a pydantic model class nor a dict.
    """
    if schema is None:
        return None
    if isinstance(schema, dict):
        return schema
    if not is_model(schema):
        raise TypeError(f"Schema must be a Pydantic BaseModel class or a dict, got {schema!r}")
    return _with_definitions(schema.model_json_schema(ref_template=_TEMPLATE))


def hints(func: Callable[..., Any]) -> dict[str, Any]:
    """Type hints of `func`, resolved where they can be; a name that cannot be is left out."""
    try:
        return typing.get_type_hints(func)
    except Exception:  # a hint may name a class that exists only inside the instance
        resolved: dict[str, Any] = {}
        # A class defined in the function that defines the cord is visible in its closure only.
        names = {**getattr(func, "__globals__", {}), **_closure(func)}
        for name, hint in getattr(func, "__annotations__", {}).items():
            try:
                resolved[name] = eval(hint, names) if isinstance(hint, str) else hint
            except Exception:
                continue
        return resolved


def parameters(func: Callable[..., Any], bound: bool = True) -> list[inspect.Parameter]:
    """Parameters that a caller fills: without the chute itself, which comes first when `bound`."""
    found = [
        p
        for p in inspect.signature(func).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return found[1:] if bound else found


def takes_chute(func: Callable[..., Any], passthrough: bool) -> bool:
    """Whether the first parameter is the chute.

    It always is for code of the author's; a passthrough cord is written with or without it.
    """
    names = list(inspect.signature(func).parameters)
    return bool(names) and (not passthrough or names[0] in ("self", "chute", "app"))


def input_schema(params: list[inspect.Parameter], types: dict[str, Any]) -> dict[str, Any]:
    """Schema of a call: one property per parameter; those without a default are required."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    # One pass over all of them, so that two models of one name get two definitions.
    adapters = {p.name: _adapter(types.get(p.name, Any)) for p in params}
    usable: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = [
        (name, "validation", adapter) for name, adapter in adapters.items() if adapter is not None
    ]
    try:
        schemas, shared = TypeAdapter.json_schemas(usable, ref_template=_TEMPLATE)
        definitions = shared.get("$defs", {})
        properties = {name: schemas[name, mode] for name, mode, _ in usable}
    except Exception:  # e.g. a hint that validates but has no JSON form, such as a callable
        properties = {name: _alone(adapter, definitions) for name, _, adapter in usable}
    result: dict[str, Any] = {
        "type": "object",
        "properties": {p.name: _nullable(properties.get(p.name, {})) for p in params},
        "required": [p.name for p in params if p.default is p.empty],
    }
    if definitions:
        result["definitions"] = {name: _with_definitions(d) for name, d in definitions.items()}
    return result


def output_schema(annotation: Any) -> dict[str, Any] | None:
    """Schema of what a cord returns, or, for a stream, of each item; None when nothing is declared."""
    if get_origin(annotation) in _STREAMS:
        annotation = (get_args(annotation) or (Any,))[0]
    if annotation in (inspect.Parameter.empty, None, type(None), Any):
        return None
    adapter = _adapter(annotation)
    if adapter is None:
        return None
    try:
        return _nullable(_with_definitions(adapter.json_schema(ref_template=_TEMPLATE, mode="serialization")))
    except Exception:  # a Response, an image object: sent, but not described
        return None


def content_type(schema: dict[str, Any] | None) -> str | None:
    """Published rule: objects are JSON, everything else declared is text."""
    if schema is None:
        return None
    return "application/json" if schema.get("type") == "object" or "$ref" in schema else "text/plain"


def _adapter(annotation: Any) -> TypeAdapter[Any] | None:
    try:
        return TypeAdapter(annotation)
    except _NO_SCHEMA:
        return None


def _alone(adapter: TypeAdapter[Any], definitions: dict[str, Any]) -> dict[str, Any]:
    try:
        schema = adapter.json_schema(ref_template=_TEMPLATE)
    except Exception:
        return {}
    definitions.update(schema.pop("$defs", {}))
    return schema


def _with_definitions(schema: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema's newer `$defs` under its older name, which the published form has."""
    if "$defs" in schema:
        schema = dict(schema)
        schema["definitions"] = schema.pop("$defs")
    return schema


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """Say that null is allowed both as JSON Schema does and as the published form (OpenAPI 3.0) does."""
    if any(option == {"type": "null"} for option in schema.get("anyOf", [])):
        return {**schema, "nullable": True}
    return schema


def _closure(func: Callable[..., Any]) -> dict[str, Any]:
    try:
        return dict(inspect.getclosurevars(func).nonlocals)
    except (TypeError, ValueError):
        return {}
