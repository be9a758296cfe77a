"""Cords: path rules, options, schemas from type hints."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator
from enum import Enum
from typing import Any, Dict, List, Literal, Optional, Set, Tuple, Union  # noqa: UP035  # as authors write

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from chutes.chute import Chute, Cord
from chutes.chute.cord import normal_path
from chutes.exception import DuplicatePath, InvalidPath, InvalidSpec


def chute() -> Chute:
    return Chute("someone", "a/chute", "i")


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("generate", "/generate"),
        ("/a/b/", "/a/b"),
        ("v1/chat/completions", "/v1/chat/completions"),
        ("/1", "/1"),
        ("/a-b_c", "/a-b_c"),
        ("//a", "/a"),
    ],
)
def test_accepted_paths(path, normal):
    assert normal_path(path) == normal


@pytest.mark.parametrize("path", ["/A", "/a.b", "/a/{id}", "/a//b", "", "/-a", "/a\n", "/a b", "/a/-b"])
def test_rejected_paths(path):
    with pytest.raises(InvalidPath):
        normal_path(path)


PUBLISHED = re.compile(r"^(/[a-z0-9_]+[a-z0-9-_]*)+\Z")


@given(st.text(alphabet="ab0_-/A.{ é\n", max_size=14))
def test_the_path_rule_is_the_published_one(path):
    normal = "/" + path.lstrip("/").rstrip("/")
    allowed = bool(PUBLISHED.match(normal)) and "//" not in normal
    try:
        assert normal_path(path) == normal
        assert allowed
    except InvalidPath:
        assert not allowed


@given(st.from_regex(r"(/[a-z0-9_][a-z0-9_-]{0,8}){1,5}/?", fullmatch=True))
def test_normalising_twice_changes_nothing(path):
    assert normal_path(normal_path(path)) == normal_path(path)


def test_the_options_are_the_published_ones():
    found = inspect.signature(Cord.__init__).parameters
    assert {n: p.default for n, p in found.items() if p.default is not p.empty} == {
        "stream": False,
        "path": None,
        "passthrough_path": None,
        "passthrough": False,
        "passthrough_port": None,
        "public_api_path": None,
        "public_api_method": "POST",
        "method": "POST",
        "provision_timeout": 180,
        "input_schema": None,
        "minimal_input_schema": None,
        "output_content_type": None,
        "output_schema": None,
        "sglang_passthrough": False,
    }
    assert list(found)[1] == "app"
    assert list(found)[-1] == "session_kwargs"


def test_paths_default_to_the_functions_name():
    app = chute()

    @app.cord()
    def do_it(self):
        return 1

    cord = app.cords[0]
    assert (cord.path, cord.passthrough_path, cord.public_api_path) == ("/do_it", "/do_it", None)


def test_internal_paths_are_unique_and_public_ones_may_be_shared():
    app = chute()
    app.cord(path="/a", public_api_path="/p")(lambda self: 1)
    app.cord(path="/b", public_api_path="/p", stream=True)(lambda self: 1)
    with pytest.raises(DuplicatePath, match="/a"):
        app.cord(path="a/")(lambda self: 1)
    assert len(app.cords) == 2


def test_a_schema_must_be_a_model_or_a_dict():
    with pytest.raises(TypeError, match="Schema must be a Pydantic BaseModel class or a dict, got"):
        chute().cord(input_schema="text")


def test_a_misspelt_option_is_warned_of():
    with pytest.warns(UserWarning, match="public_api_path"):
        chute().cord(public_api_pat="/x")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    colour: Colour
    sizes: List[int] = []  # noqa: UP006


class Args(BaseModel):
    inner: Inner
    mode: Literal["fast", "good"] = "fast"
    note: Optional[str] = None  # noqa: UP045


def schema_of(func, **options) -> Any:
    app = chute()
    app.cord(**options)(func)
    return app.cords[0]


def test_a_model_parameter_has_the_published_form():
    async def run(self, args: Args) -> Inner: ...

    cord = schema_of(run)
    definitions = cord.input_schema.pop("definitions")
    assert cord.input_schema == {
        "type": "object",
        "properties": {"args": {"$ref": "#/definitions/Args"}},
        "required": ["args"],
    }
    assert set(definitions) == {"Args", "Inner", "Colour"}
    assert definitions["Colour"]["enum"] == ["red", "blue"]
    assert definitions["Inner"]["properties"]["colour"]["$ref"] == "#/definitions/Colour"
    assert cord.output_schema["properties"]["sizes"] == {
        "default": [],
        "items": {"type": "integer"},
        "title": "Sizes",
        "type": "array",
    }
    assert cord.output_content_type == "application/json"


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (int, {"type": "integer"}),
        (List[str], {"type": "array", "items": {"type": "string"}}),  # noqa: UP006
        (Dict[str, int], {"type": "object", "additionalProperties": {"type": "integer"}}),  # noqa: UP006
        (Set[int], {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}),  # noqa: UP006
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}),
        (
            Tuple[int, str],  # noqa: UP006
            {
                "type": "array",
                "minItems": 2,
                "maxItems": 2,
                "prefixItems": [{"type": "integer"}, {"type": "string"}],
            },
        ),
        (Optional[int], {"anyOf": [{"type": "integer"}, {"type": "null"}], "nullable": True}),  # noqa: UP045
        (
            Union[int, str, None],  # noqa: UP007
            {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}], "nullable": True},
        ),
        (Any, {}),
    ],
)
def test_plain_hints(hint, expected):
    def run(self, value, other=3):
        return None

    run.__annotations__ = {"value": hint, "other": int}
    schema = schema_of(run).input_schema
    assert schema["properties"]["value"] == expected
    assert schema["required"] == ["value"]


@pytest.mark.parametrize(
    ("hint", "content_type"),
    [
        (str, "text/plain"),
        (dict, "application/json"),
        (Args, "application/json"),
        (None, None),
        (int, "text/plain"),
    ],
)
def test_content_types(hint, content_type):
    def run(self): ...

    run.__annotations__ = {"return": hint}
    assert schema_of(run).output_content_type == content_type


def test_streams_are_events_and_describe_their_items():
    async def run(self) -> AsyncIterator[int]:
        yield 1

    cord = schema_of(run, stream=True)
    assert cord.output_content_type == "text/event-stream"
    assert cord.output_schema == {"type": "integer"}


def test_explicit_schemas_win():
    async def run(self, args: Inner) -> Inner: ...

    cord = schema_of(
        run,
        input_schema=Args,
        minimal_input_schema={"type": "object"},
        output_schema={"type": "string"},
        output_content_type="image/png",
    )
    assert cord.input_schema["properties"]["inner"] == {"$ref": "#/definitions/Inner"}
    assert "$defs" not in cord.input_schema
    assert cord.minimal_input_schema == {"type": "object"}
    assert (cord.output_schema, cord.output_content_type) == ({"type": "string"}, "image/png")


def test_a_hint_that_cannot_be_resolved_does_not_break_the_chute():
    def run(self, picture: "torch.Tensor", n: int) -> "torch.Tensor": ...  # type: ignore[name-defined]  # noqa: F821, UP037

    schema = schema_of(run).input_schema
    assert schema["properties"] == {"picture": {}, "n": {"type": "integer"}}


def test_a_class_without_a_schema_does_not_break_the_chute():
    class Picture: ...

    def run(self, picture, n):
        return None

    run.__annotations__ = {"picture": Picture, "n": int, "return": Picture}
    cord = schema_of(run)
    assert cord.input_schema["properties"] == {"picture": {}, "n": {"type": "integer"}}
    assert cord.output_schema is None


@pytest.mark.parametrize("hint", ["str", "int", "dict", "list[str]"])
def test_a_function_without_a_place_for_the_chute_is_refused(hint: str):
    names: dict[str, Any] = {}
    exec(f"def shout(text: {hint}) -> str: ...\ndef nothing(): ...", names)  # a hint of each kind
    chute = Chute("tester", "forgot-self", image="python:3.12")
    for func in (names["shout"], names["nothing"]):
        with pytest.raises(InvalidSpec, match="no first argument for the chute") as caught:
            chute.cord()(func)
        assert f"def {func.__name__}(self" in caught.value.fix
