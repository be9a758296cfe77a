"""What the gateway changes in an OpenAI request, and why. Pure: a body in, a body out.

An engine gets the client's own bytes wherever it can; what differs is spliced in. Only the few fields
named in `shapes.Peek` are looked at, and messages are never decoded. Written against vLLM 0.32
(entrypoints/openai/chat_completion/protocol.py) and SGLang 0.5.23, which both ignore fields that they do not
know, so that nothing else has to be taken out.

Where a key stands twice the last one counts, for us as for Python's `json`, which both engines read with.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

import msgspec
from msgspec import UNSET, Raw, UnsetType

from chutes.gateway.answers import Refusal
from chutes.gateway.shapes import Peek

CHAT_PATHS = frozenset({b"/v1/chat/completions"})
"""An instance's paths that know messages, thinking and response formats."""
COMPLETION_PATHS = CHAT_PATHS | {b"/v1/completions"}
"""An instance's paths whose streams tell their usage only when asked to."""

THINKING_KEYS: Final = ("enable_thinking", "thinking")
"""What chat templates call it: Qwen3, GLM and most read the first, DeepSeek, Kimi and Granite the second.
Templates ignore what they do not read, so both are always set."""

EFFORTS: Final = {
    "none": False,
    "minimal": False,
    "low": True,
    "medium": True,
    "high": True,
    "xhigh": True,
    "max": True,
}
"""`reasoning_effort` → whether to think. The published table has the first five; the last two are vLLM's
own."""

HARMONY_EFFORTS: Final = {"none": "low", "minimal": "low", "xhigh": "high", "max": "high"}
"""gpt-oss always thinks and refuses all efforts but low, medium and high (vLLM's harmony_utils.py): it gets
the nearest of them."""

TAIL_BYTES: Final = 512
"""How far from the end `model` is looked for before the whole body is taken apart. The OpenAI SDK writes
messages first and model, stream and sampling parameters after."""

ASK_USAGE: Final = b'{"include_usage":true}'
_ASK_USAGE_FIRST: Final = b'{"stream_options":%b,' % ASK_USAGE

Changes = dict[str, bytes | None]
"""Top-level key → its new value in JSON; None takes it out."""

_OBJECT: Final = msgspec.json.Decoder(dict[str, Raw])
_encode: Final = msgspec.json.Encoder().encode

_FIRST: Final = re.compile(rb'\s*\{\s*"model"\s*:\s*"[^"\\]*"\s*,')
_MODEL: Final = re.compile(rb'"model"\s*:\s*("[^"\\]*")\s*[,}]')


_PEEK: Final = msgspec.json.Decoder(Peek)


def peek(body: bytes) -> Peek:
    """Read those fields in one pass that builds nothing else.

    Raises:
        Refusal: 400; says where the JSON goes wrong, or which field does.
    """
    try:
        return _PEEK.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refusal(400, "invalid_json", f"The body is not valid JSON: {_why(error, body)}.") from None


def rewrite(
    body: bytes,
    peek: Peek,
    *,
    model: str,
    capabilities: Collection[str] = (),
    thinking: bool | None = None,
    chat: bool = True,
    completions: bool = True,
) -> tuple[bytes, bool]:
    """The body as the engine is to get it.

    Args:
        model: the name that the engine serves the model under.
        capabilities: of the route; see `wire.Route`.
        thinking: what the model's suffix or `X-Enable-Thinking` said; the body's own fields are more
        particular. chat: the path is one of CHAT_PATHS.
        completions: the path is one of COMPLETION_PATHS. Elsewhere only the model is replaced:
            `/v1/responses` tells its usage unasked, and other paths are their author's own.

    Returns:
        The body, and whether the client asked to see the usage of its stream.

    Raises:
        Refusal: 400 for a field that means nothing.
    """
    changes: Changes = {}
    shown = False
    ask = completions and peek.stream and peek.stream_options is UNSET
    if completions and peek.stream and not ask:
        shown = _ask_for_usage(peek.stream_options, changes)
    if chat and (
        thinking is not None
        or peek.thinking is not UNSET
        or peek.reasoning_effort is not UNSET
        or peek.response_format is not UNSET
        or peek.chat_template_kwargs is not UNSET
    ):
        _translate_thinking(peek, thinking, "harmony" in capabilities, changes)
        _translate_format(peek.response_format, changes)
    if peek.model != model:
        name = _encode(model)
        renamed = None if changes else _rename(body, name)
        if renamed is None:
            changes["model"] = name
        else:
            body = renamed
    if changes:
        body = _apply(body, peek, changes)
    # The first brace of an object is its own.
    return (body.replace(b"{", _ASK_USAGE_FIRST, 1) if ask else body), shown


def _ask_for_usage(options: Raw | UnsetType, changes: Changes) -> bool:
    """Streams are metered, so each must tell its usage. Returns whether the client wants to see it."""
    if not (text := _given(options)):
        changes["stream_options"] = ASK_USAGE
        return False
    given = _object(text)
    if given is None:  # a list, a string: the engine says so better
        return False
    if _is_true(given.get("include_usage")):
        return True
    given["include_usage"] = Raw(b"true")
    given.pop("continuous_usage_stats", None)  # vLLM would add usage to every event, which nobody asked for
    changes["stream_options"] = _join(given)
    return False


def _given(raw: Raw | UnsetType) -> bytes:
    """A field's JSON; empty where it is absent or null, which mean the same to engines."""
    text = b"" if raw is UNSET else bytes(raw)
    return b"" if text == b"null" else text


def _object(text: bytes) -> dict[str, Raw] | None:
    """The keys of an object and the bytes of its values; None for anything else."""
    try:
        return _OBJECT.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_true(value: Raw | None) -> bool:
    """As pydantic, which engines judge with, reads a boolean."""
    return value is not None and bytes(value).strip(b'"').lower() in (
        b"true", b"1", b"1.0", b"yes", b"y", b"on", b"t",
    )  # fmt: skip


def _translate_thinking(peek: Peek, thinking: bool | None, harmony: bool, changes: Changes) -> None:
    """Set `chat_template_kwargs` to what the request means, by its most particular word.

    That is: a key there, then `thinking`, then `reasoning_effort`, then the model's suffix or the header.
    """
    effort = _effort(peek.reasoning_effort)
    said = _thinking_field(peek.thinking)
    if peek.thinking is not UNSET:
        changes["thinking"] = None  # engines do not know it
    if effort is not None:
        thinking = EFFORTS[effort]
        if harmony and effort in HARMONY_EFFORTS:
            changes["reasoning_effort"] = _encode(HARMONY_EFFORTS[effort])
    if said is not None:
        thinking = said
        # Else vLLM would go on by the effort where a template or parser reads that as well.
        if effort is not None and EFFORTS[effort] != said and not harmony:
            changes["reasoning_effort"] = None
    kwargs: dict[str, Raw] = {}
    if text := _given(peek.chat_template_kwargs):
        found = _object(text)
        if found is None:
            raise _bad("chat_template_kwargs", "must be an object", 'Send {"enable_thinking": true}.')
        kwargs = found
    given = [kwargs[key] for key in THINKING_KEYS if key in kwargs]
    if len(given) == len(THINKING_KEYS) or (not given and thinking is None):
        return
    value = given[0] if given else Raw(b"true" if thinking else b"false")
    changes["chat_template_kwargs"] = _join(kwargs | dict.fromkeys(THINKING_KEYS, value))


def _effort(raw: Raw | UnsetType) -> str | None:
    if not (text := _given(raw)):
        return None
    effort = text[1:-1].decode("ascii", "replace") if text.startswith(b'"') else ""
    if effort not in EFFORTS:
        raise _bad("reasoning_effort", "is not known", f"Use one of {', '.join(EFFORTS)}.")
    return effort


def _thinking_field(raw: Raw | UnsetType) -> bool | None:
    """`true`, `false`, or Anthropic's object, whose `budget_tokens` no two engines enforce in the same
    way."""
    text = _given(raw)
    if not text:
        return None
    if text in (b"true", b"false"):
        return text == b"true"
    kind = bytes((_object(text) or {}).get("type", b""))
    if kind not in (b'"enabled"', b'"disabled"'):
        raise _bad(
            "thinking", "is not known", 'Use true, false, {"type": "enabled"} or {"type": "disabled"}.'
        )
    return kind == b'"enabled"'


def _translate_format(raw: Raw | UnsetType, changes: Changes) -> None:
    """`{"type": "json_object", "schema": {…}}` → what engines enforce.

    vLLM and SGLang both take that form and ignore its schema. `json_schema` with the schema beside it,
    instead of inside, is taken for the same.
    """
    given = _object(_given(raw)) or {}  # what is no object is for the engine to judge
    schema = _given(given.get("schema", UNSET))
    kind = bytes(given.get("type", b""))
    if not schema or "json_schema" in given or kind not in (b'"json_object"', b'"json_schema"'):
        return
    if not schema.startswith(b"{"):
        raise _bad("response_format", "has a schema that is not an object", 'Send {"type": "object", …}.')
    changes["response_format"] = (
        b'{"type":"json_schema","json_schema":{"name":"response","schema":%b,"strict":true}}' % schema
    )


def _apply(body: bytes, peek: Peek, changes: Changes) -> bytes:
    """The body with these top-level keys; None takes one out. All other values keep their bytes."""
    if all(getattr(peek, key) is UNSET for key in changes):  # new ones simply go before the others
        first = b"".join(b'"%b":%b,' % (key.encode(), value) for key, value in changes.items() if value)
        return body.replace(b"{", b"{" + first, 1)
    fields = _object(body)
    if fields is None:  # the peek does not look into keys that it does not know
        raise Refusal(400, "invalid_json", "The body is not valid JSON: a key is not UTF-8.")
    for key, value in changes.items():
        if value is None:
            fields.pop(key, None)
        else:
            fields[key] = Raw(value)
    return _join(fields)


def _rename(body: bytes, model: bytes) -> bytes | None:
    """Another value for the top-level `model`, if it stands where clients write it; else None.

    At the very beginning it is taken out and written at the end, where it counts even if it stands twice.
    Near the end it is replaced, if the rest from there on is JSON of its own: then its braces close
    nothing but the body itself, so this is the top level. Quotes inside of strings are escaped, so that
    no text can look like a key; only the last part of a string that ends so can, and that has a backslash
    before it.
    """
    if found := _FIRST.match(body):
        end = body.rfind(b"}")
        rest = body[found.end() : end]
        # What follows a comma is never empty in valid JSON.
        return b'{%b,"model":%b}' % (rest, model)
    at = body.rfind(b'"model"', max(0, len(body) - TAIL_BYTES))
    if at <= 0 or body[at - 1] == 0x5C:
        return None
    found = _MODEL.match(body, at)
    if found is None:
        return None
    tail = body[at:]
    if b"\\u" in tail:  # perhaps `model` once more, spelled with escapes
        return None
    if _object(b"{" + tail) is None:
        return None
    start, end = found.span(1)
    return b"%b%b%b" % (body[:start], model, body[end:])


def _join(fields: dict[str, Raw]) -> bytes:
    """An object from its keys and the bytes of its values."""
    return b"{%b}" % b",".join([b"%b:%b" % (_encode(key), bytes(value)) for key, value in fields.items()])


def _bad(field: str, what: str, fix: str) -> Refusal:
    return Refusal(400, "invalid_value", f"'{field}' {what}.", fix, param=field)


def _invalid(text: str) -> Refusal:
    if "`model`" in text or "$.model" in text:
        what = "'model' must be a string." if "$.model" in text else "The body has no 'model'."
        return Refusal(400, "invalid_model", what, "GET /v1/models lists the models.", param="model")
    return Refusal(400, "invalid_json", "The body must be a JSON object.")


def _why(error: Exception, body: bytes) -> str:
    """Why this is not JSON. The body itself is not quoted: messages end up in logs."""
    if body.startswith(b"\xef\xbb\xbf"):
        return "it begins with a byte order mark; send UTF-8 without one"
    if isinstance(error, UnicodeDecodeError):
        return "a string is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = str(error).removeprefix("JSON is malformed: ")
    return text.replace("Input data was truncated", f"it ends too early (byte {len(body)})")
