"""GPU types by the many names that people have for them."""

from __future__ import annotations

import difflib
import re

from chutes.exception import InvalidSpec
from chutes.hardware.choice import Request
from chutes.hardware.profiles import Profiles

# Words of a product name that say nothing about which product it is.
_EMPTY = re.compile(r"nvidia|geforce|tesla|quadro|rtx|blackwell|server|edition|generation")

NEAREST = 4  # ids that an error proposes


def asked(request: Request, profiles: Profiles) -> tuple[str, ...]:
    """The ids of the GPU types that a request names; none: any will do.

    Raises:
        InvalidSpec: nothing is called so.
    """
    if request.gpu is None:
        return ()
    names = (request.gpu,) if isinstance(request.gpu, str) else request.gpu
    return tuple(dict.fromkeys(find(name, profiles) for name in names))


def find(text: str, profiles: Profiles) -> str:
    """The id that a person means: an id, a product name or a Kubernetes label, however it is written.

    Raises:
        InvalidSpec: nothing is called so; the message names the nearest.
    """
    wanted = _plain(text)
    names = {
        id_: {_plain(name) for name in (id_, gpu.name, gpu.kubernetes) if name}
        for id_, gpu in profiles.gpus.items()
    }
    for id_, known in names.items():
        if wanted in known:
            return id_
    bare = _EMPTY.sub("", wanted)
    short = {id_: {_EMPTY.sub("", name) for name in known} for id_, known in names.items()}
    fitting = [id_ for id_, known in short.items() if bare and bare in known]
    if len(fitting) == 1:
        return fitting[0]
    if (by_memory := _by_memory(bare, short, profiles)) is not None:
        return by_memory
    raise InvalidSpec(f"There is no GPU type {text!r} in the profiles.{_hint(bare, short)}", _FIX)


def check_ids(ids: list[str], field: str, profiles: Profiles) -> None:
    """Raise InvalidSpec for a GPU id of a NodeSelector that is not in the profiles."""
    short = {id_: {_plain(id_)} for id_ in profiles.gpus}
    for id_ in ids:
        if id_.lower() not in profiles.gpus:
            hint = _hint(_EMPTY.sub("", _plain(id_)), short)
            raise InvalidSpec(f"NodeSelector {field} names an unknown GPU {id_!r}.{hint}", _FIX)


def sibling(id_: str, profiles: Profiles) -> str:
    """Of a GPU that is sold as a card and as a module: that the id means the card."""
    module = f"{id_}_sxm"
    if id_ not in profiles.gpus or module not in profiles.gpus:
        return ""
    return f"{id_} is the PCIe card; the SXM module is --gpu {module}"


_FIX = "hardware_profiles.yaml lists every id, and a GPU of your own can be added to it."


def _by_memory(bare: str, short: dict[str, set[str]], profiles: Profiles) -> str | None:
    """`a10080gb`: the type that is called like what is left without the memory, and has that much."""
    for id_, known in short.items():
        for size in (f"{profiles.gpus[id_].label_gb}gb", f"{profiles.gpus[id_].label_gb}g"):
            if size in bare and bare.replace(size, "", 1) in known:
                return id_
    return None


def _hint(wanted: str, short: dict[str, set[str]]) -> str:
    """The nearest ids, those that begin alike first."""
    by_name = {name: id_ for id_, known in reversed(short.items()) for name in known}
    begin = [name for name in sorted(by_name, key=len) if wanted and name.startswith(wanted)]
    near = difflib.get_close_matches(wanted, by_name, n=2 * NEAREST, cutoff=0.6)
    ids = list(dict.fromkeys(by_name[name] for name in [*near[:1], *begin, *near]))[:NEAREST]
    if not ids:
        return ""
    return f" Did you mean {' or '.join(repr(id_) for id_ in ids)}?"


def _plain(name: str) -> str:
    """A name without what people write differently: case, maker, blanks and dashes."""
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("nvidia"))
