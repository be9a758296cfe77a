"""From the JSON body of a request to the arguments of a cord's function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Union, get_args, get_origin, is_typeddict

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError

from chutes.chute import schema


class InvalidInputError(ValueError):
    """The body does not fit the cord; `errors` says field by field what is wrong."""

    def __init__(self, errors: list[dict[str, Any]]) -> None:
        self.errors = errors
        first = errors[0]
        where = ".".join(str(part) for part in first["loc"])
        super().__init__(f"Invalid input parameters: {where + ': ' if where else ''}{first['msg']}")

    @property
    def field(self) -> str | None:
        """Dotted name of the first wrong field."""
        return ".".join(str(part) for part in self.errors[0]["loc"]) or None


MISSING: Any = object()
"""The body of a request that has none."""


class Binder:
    """Fills the parameters of one function from one JSON body.

    * no parameter: the body is ignored;
    * one parameter: it takes the whole body. A body `{"name": value}` with the parameter's own name is
      unwrapped, unless the parameter wants an object and would accept the body as it is;
    * several: the body is an object with their names as keys;
    * an explicit `input_schema` model validates the body first and is what the one parameter receives.

    Args:
        func: the author's function.
        bound: whether its first parameter is the chute.
        model: an explicit `input_schema`, when that is a model.
    """

    def __init__(self, func: Callable[..., Any], bound: bool, model: type[BaseModel] | None) -> None:
        self.parameters = schema.parameters(func, bound)
        self.model = model
        types = schema.hints(func)
        self._types = {p.name: types.get(p.name, Any) for p in self.parameters}
        self._whole: TypeAdapter[Any] | None = None
        self._fields: type[BaseModel] | None = None
        if len(self.parameters) == 1:
            self._whole = _adapter(model or self._types[self.parameters[0].name])
        elif self.parameters:
            self._fields = _fields_model(self.parameters, self._types)

    def bind(self, body: Any) -> dict[str, Any]:
        """Arguments by name.

        Args:
            body: parsed JSON, or `MISSING`.

        Raises:
            InvalidInputError: the body does not fit.
        """
        try:
            if not self.parameters:
                return {}
            if len(self.parameters) == 1:
                return self._bind_one(self.parameters[0], body)
            return self._bind_several({} if body is MISSING else body)
        except ValidationError as error:
            raise InvalidInputError(_plain(error)) from None

    def _bind_one(self, parameter: inspect.Parameter, body: Any) -> dict[str, Any]:
        assert self._whole is not None
        name = parameter.name
        optional = parameter.default is not parameter.empty
        if body is MISSING:
            if optional:
                return {}
            body = {}
        if isinstance(body, dict) and set(body) == {name} and not self._wants_key(name):
            return {name: self._whole.validate_python(body[name])}
        if body == {} and optional and not self._takes_object(name):
            return {}
        return {name: self._whole.validate_python(body)}

    def _wants_key(self, name: str) -> bool:
        """Whether an object with just this key means itself, not a wrapped argument."""
        kind = self.model or self._types[name]
        if schema.is_model(kind):
            fields = kind.model_fields
            return name in fields or any(f.alias == name for f in fields.values())
        return self._takes_object(name)

    def _takes_object(self, name: str) -> bool:
        return _is_object(self.model or self._types[name])

    def _bind_several(self, body: Any) -> dict[str, Any]:
        assert self._fields is not None
        if self.model is not None:
            checked = self.model.model_validate(body)
            return {p.name: getattr(checked, p.name) for p in self.parameters if hasattr(checked, p.name)}
        checked = self._fields.model_validate(body)
        return {
            name: getattr(checked, _field(name))
            for name in self._types
            if _field(name) in checked.model_fields_set
        }


def _adapter(annotation: Any) -> TypeAdapter[Any]:
    try:
        return TypeAdapter(annotation)
    except PydanticUserError:  # a class of a library: nothing to check a JSON value against
        return TypeAdapter(Any)


def _is_object(annotation: Any) -> bool:
    """Whether a JSON object is a natural value for this hint."""
    if annotation is Any or schema.is_model(annotation) or is_typeddict(annotation):
        return True
    origin = get_origin(annotation) or annotation
    if origin in (Union, UnionType):
        return any(_is_object(option) for option in get_args(annotation))
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _field(name: str) -> str:
    return f"p_{name}"  # a parameter may be called `model_config` or `_x`, which a model cannot have


def _fields_model(parameters: list[inspect.Parameter], types: dict[str, Any]) -> type[BaseModel]:
    definitions: dict[str, Any] = {}
    for p in parameters:
        try:
            TypeAdapter(types[p.name])
            kind = types[p.name]
        except PydanticUserError:
            kind = Any
        default = ... if p.default is p.empty else None
        definitions[_field(p.name)] = (kind, Field(default, alias=p.name))
    return create_model("Parameters", __config__=ConfigDict(protected_namespaces=()), **definitions)


def _plain(error: ValidationError) -> list[dict[str, Any]]:
    """Errors as JSON: where, what, which rule; without the input, which may be large or private."""
    return [
        {"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]}
        for e in error.errors(include_url=False, include_context=False, include_input=False)
    ]
