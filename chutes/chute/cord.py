"""A cord: one function of a chute that callers reach over HTTP."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import warnings
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from chutes.chute import schema
from chutes.chute.spec import CordSpec
from chutes.exception import DuplicatePath, InvalidPath, InvalidSpec
from chutes.util.context import is_remote

if TYPE_CHECKING:
    from chutes.chute.base import Chute

# The published pattern, written so that it cannot backtrack.
_PATH = re.compile(r"(/[a-z0-9_][a-z0-9_-]*)+")

# What the published SDK hands to aiohttp's session for local calls; accepted, of use here:
# headers and timeout.
_SESSION_OPTIONS = frozenset(
    {
        *("auth", "auto_decompress", "base_url", "connector", "connector_owner", "conn_timeout"),
        *(
            "cookie_jar",
            "cookies",
            "headers",
            "json_serialize",
            "loop",
            "max_field_size",
            "max_line_size",
            "proxy",
        ),
        *("proxy_auth", "raise_for_status", "read_bufsize", "read_timeout", "request_class"),
        *("requote_redirect_url", "response_class", "skip_auto_headers", "timeout", "trace_configs"),
        *("trust_env", "version", "ws_response_class"),
    }
)


class Cord:
    """The options of one cord; calling it with a function (as `@chute.cord(...)` does) completes it.

    Args:
        app: the chute.
        stream: the function is a generator; its items are sent as they come.
        path: internal path; default: the function's name.
        passthrough_path: path on the local server; default: the function's name.
        passthrough: relay to a local server instead of running the function.
        passthrough_port: its port; default: the chute's `passthrough_port`, then 8000.
        public_api_path: path callers use. Two cords may share one: the streaming and the plain half.
        public_api_method: HTTP method callers use.
        method: HTTP method towards the local server.
        provision_timeout: seconds a local call waits for a cold chute.
        input_schema: pydantic model or JSON schema of the body; default: from the type hints.
        minimal_input_schema: a short form of it for a playground.
        output_content_type: media type of the answer; default: from the return hint.
        output_schema: as `input_schema`, for the answer.
        sglang_passthrough: give each request an id and tell SGLang to abort it when the client goes.
        session_kwargs: accepted as published; `headers` and a number as `timeout` apply to local calls.

    Raises:
        InvalidPath: a path breaks the rule.
        DuplicatePath: another cord of the chute has this internal path.
        TypeError: a schema is neither a pydantic model nor a dict.
    """

    def __init__(
        self,
        app: Chute,
        stream: bool = False,
        path: str | None = None,
        passthrough_path: str | None = None,
        passthrough: bool = False,
        passthrough_port: int | None = None,
        public_api_path: str | None = None,
        public_api_method: str = "POST",
        method: str = "POST",
        provision_timeout: int = 180,
        input_schema: type[BaseModel] | dict[str, Any] | None = None,
        minimal_input_schema: type[BaseModel] | dict[str, Any] | None = None,
        output_content_type: str | None = None,
        output_schema: type[BaseModel] | dict[str, Any] | None = None,
        sglang_passthrough: bool = False,
        **session_kwargs: Any,
    ) -> None:
        self._app = app
        self._func: Callable[..., Any] | None = None
        self._path: str | None = None
        self._passthrough_path: str | None = None
        self._public_api_path: str | None = None
        self.stream = stream
        self.passthrough = passthrough
        self.passthrough_port = passthrough_port
        self.public_api_method = public_api_method.upper()
        self.method = method.upper()
        self.provision_timeout = provision_timeout
        self.sglang_passthrough = sglang_passthrough
        self.session_kwargs = session_kwargs
        self.input_model = input_schema if schema.is_model(input_schema) else None
        self.input_schema = schema.explicit(input_schema)
        self._declared_input = input_schema is not None
        self.minimal_input_schema = schema.explicit(minimal_input_schema)
        self.output_schema = schema.explicit(output_schema)
        self.output_model: Any = output_schema if schema.is_model(output_schema) else None
        self.declared_content_type = output_content_type
        self.output_content_type = output_content_type
        self.takes_chute = True
        if path is not None:
            self.path = path
        if passthrough_path is not None:
            self.passthrough_path = passthrough_path
        if public_api_path is not None:
            self.public_api_path = public_api_path
        _warn_of_typos(session_kwargs)

    @property
    def func(self) -> Callable[..., Any]:
        """The author's function."""
        if self._func is None:
            raise TypeError("This Cord has no function yet; use it as a decorator: @chute.cord(...)")
        return self._func

    @property
    def name(self) -> str:
        return self.func.__name__

    @property
    def path(self) -> str:
        """Internal path; unique in its chute."""
        if self._path is None:
            raise TypeError("This Cord has no function yet, and so no path.")
        return self._path

    @path.setter
    def path(self, value: str) -> None:
        value = normal_path(value)
        for other in self._app.cords:
            if other is not self and other._path == value:
                raise DuplicatePath(
                    f"Two cords of chute {self._app.name!r} have the path {value!r}.",
                    "Give one another path=. (public_api_path may be shared.)",
                )
        self._path = value

    @property
    def passthrough_path(self) -> str | None:
        return self._passthrough_path

    @passthrough_path.setter
    def passthrough_path(self, value: str) -> None:
        self._passthrough_path = normal_path(value)

    @property
    def public_api_path(self) -> str | None:
        return self._public_api_path

    @public_api_path.setter
    def public_api_path(self, value: str) -> None:
        self._public_api_path = normal_path(value)

    def _check_first(self, func: Callable[..., Any]) -> None:
        first = next(iter(inspect.signature(func).parameters.values()), None)
        hint = schema.hints(func).get(first.name) if first is not None else None
        is_chute = hint in (None, Any) or (isinstance(hint, type) and isinstance(self._app, hint))
        if first is None or not is_chute:
            raise InvalidSpec(
                f"Cord {func.__name__!r} of {self._app.name!r} has no first argument for the chute.",
                f"Write `def {func.__name__}(self, …)`: `self` is the chute, as in a hook.",
            )

    @property
    def body_schema(self) -> dict[str, Any] | None:
        """Schema of the JSON that callers send: what was declared or, of a single parameter found in the
        hints, that parameter's own, since it takes the whole body."""
        if self.input_schema is None or self._declared_input:
            return self.input_schema
        properties = self.input_schema["properties"]
        if len(properties) != 1:
            return self.input_schema
        (only,) = properties.values()
        if not ("$ref" in only or only.get("type") == "object"):
            return self.input_schema
        return {**only, "definitions": self.input_schema.get("definitions", {})}

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Complete the cord with its function and register it with the chute.

        Raises:
            InvalidSpec: the function has no place for the chute, which is always its first argument.
        """
        if not self.passthrough:
            self._check_first(func)
        if self._path is None:
            self.path = func.__name__
        if self._passthrough_path is None and (self.passthrough or _PATH.fullmatch(f"/{func.__name__}")):
            self.passthrough_path = func.__name__
        self._func = func
        self.takes_chute = schema.takes_chute(func, self.passthrough)
        types = schema.hints(func)
        if self.input_schema is None:
            params = schema.parameters(func, self.takes_chute)
            # The parameter of a passthrough cord is the answer, unless its hint says what it sends.
            if not self.passthrough or any(schema.is_model(types.get(p.name)) for p in params):
                self.input_schema = schema.input_schema(params, types)
        if self.output_schema is None:
            self.output_schema = schema.output_schema(types.get("return"))
        if self.output_model is None and schema.is_model(types.get("return")):
            self.output_model = types["return"]
        if self.output_content_type is None:
            self.output_content_type = (
                "text/event-stream" if self.stream else schema.content_type(self.output_schema)
            )
        self._app._register(self)
        return self._callable(func)

    def to_spec(self) -> CordSpec:
        return CordSpec(
            function=self.name,
            path=self.path,
            method=self.method,
            public_api_path=self.public_api_path,
            public_api_method=self.public_api_method,
            passthrough=self.passthrough,
            passthrough_path=self.passthrough_path,
            stream=self.stream,
            input_schema=self.input_schema,
            minimal_input_schema=self.minimal_input_schema,
            output_schema=self.output_schema,
            output_content_type=self.output_content_type,
        )

    def _callable(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """What the decorated name becomes: the function inside an instance, a client anywhere else."""

        @functools.wraps(func)
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_remote():
                return func(*args, **kwargs)
            from chutes.chute import remote

            return remote.stream(self, args, kwargs) if self.stream else remote.call(self, args, kwargs)

        call.cord = self  # type: ignore[attr-defined]
        return call

    def bind_local(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a local call by name.

        Raises:
            TypeError: they do not fit the function, as calling it would.
        """
        if self.passthrough and not args and not kwargs:
            return {}
        params = schema.parameters(self.func, self.takes_chute)
        return dict(inspect.Signature(params).bind(*args, **kwargs).arguments)

    async def post_process(self, result: Any) -> Any:
        """In a local call of a passthrough cord the function's body sees each result first."""
        if not self.passthrough:
            return result
        given = (self._app, result) if self.takes_chute else (result,)
        if len(schema.parameters(self.func, self.takes_chute)) != 1:
            return result
        value = self.func(*given)
        if isinstance(value, AsyncIterator):
            async for item in value:
                return item
            return None
        return await value if inspect.isawaitable(value) else value


def normal_path(path: str) -> str:
    """`path` with one leading and no trailing slash.

    Raises:
        InvalidPath: its segments are not lower-case letters, digits, `_` and `-`.
    """
    normal = "/" + str(path).lstrip("/").rstrip("/")
    if not _PATH.fullmatch(normal):
        raise InvalidPath(
            f"Path {path!r} is not one that a cord can have.",
            "Each segment is lower-case letters, digits, '_' and '-', and does not begin with '-'; "
            "there are no parameters such as {id}. For instance '/v1/generate'.",
        )
    return normal


def _warn_of_typos(session_kwargs: dict[str, Any]) -> None:
    options = [p for p in inspect.signature(Cord.__init__).parameters if p not in ("self", "app")]
    for key in session_kwargs.keys() - _SESSION_OPTIONS:
        near = difflib.get_close_matches(key, options, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        warnings.warn(f"Cord option {key!r} is unknown and has no effect{hint}", stacklevel=4)
