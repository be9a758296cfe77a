"""From a reference such as `my_chute:chute` to the chute it names.

The file is executed anew on every load, in this process, so it must be light; that is the author's
part. Ours is to say, when it fails, what to change and in which line.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import tokenize
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from chutes.chute.base import Chute
from chutes.chute.pack import ChutePack
from chutes.exception import BadReference, ChutesError
from chutes.util.context import is_remote

DEFAULT_ATTRIBUTE = "chute"

# Modules whose package has another name.
_PACKAGES = {"PIL": "Pillow", "cv2": "opencv-python", "sklearn": "scikit-learn", "yaml": "PyYAML"}


@dataclass(frozen=True)
class Loaded:
    """A chute and where it came from."""

    chute: Chute
    ref: str
    """The reference as it was given, with its attribute."""
    path: Path
    code: str
    """Source text of the file, exactly as executed."""
    root: Path
    """The directory that was first on `sys.path` for it."""
    module: str
    """Its dotted name below `root`."""


@dataclass(frozen=True)
class _Target:
    """A file to execute, as which module, with which directory on `sys.path`."""

    path: Path
    module: str
    root: Path


def load(ref: str, cwd: Path | None = None) -> Loaded:
    """Load the chute that `ref` names.

    Args:
        ref: `module:attr`, `package.module:attr` or `path/to/file.py:attr`. The attribute may be left out
            and is then `chute`. Modules are looked for in `cwd` first, then among installed packages.
        cwd: directory that modules and relative paths start from; the current one by default.

    While the file runs its root directory is first on `sys.path` (inside an instance: from then on, for
    imports in hooks).

    Raises:
        BadReference: it does not lead to a chute; says why and what to do.
    """
    here = (cwd or Path.cwd()).resolve()
    where, attribute = _parse(ref)
    full = f"{where}:{attribute}"
    target = _file(where, here) if _is_path(where) else _module(where, here)
    code = _read(target.path)
    module = _execute(target, code, full)
    chute = _pick(module, attribute, full, target.path)
    return Loaded(chute, full, target.path, code, target.root, target.module)


def _parse(ref: str) -> tuple[str, str]:
    where, colon, attribute = ref.strip().rpartition(":")
    if not colon:
        where, attribute = ref.strip(), DEFAULT_ATTRIBUTE
    if not where or not attribute.isidentifier():
        raise BadReference(
            f"{ref!r} is not a reference to a chute.",
            "Write module:attribute or path/to/file.py:attribute, for instance my_chute:chute.",
        )
    return where, attribute


def _is_path(where: str) -> bool:
    return "/" in where or where.endswith(".py")


def _file(where: str, here: Path) -> _Target:
    path = (here / Path(where).expanduser()).resolve()
    if path.is_dir():
        raise BadReference(f"{path} is a directory.", _nearby(path, "") or "Name the file in it.")
    if not path.is_file():
        python = path.with_name(path.name + ".py")
        if path.suffix != ".py" and python.is_file():
            path = python
        else:
            raise BadReference(f"There is no file {path}.", _nearby(path.parent, path.name))
    # A file in a package (a directory with __init__.py) is executed as its member, so `from .x` works.
    names, root = [path.stem], path.parent
    while (root / "__init__.py").is_file() and root.name.isidentifier():
        names.insert(0, root.name)
        root = root.parent
    return _Target(path, ".".join(names), root)


def _module(where: str, here: Path) -> _Target:
    parts = where.split(".")
    if not all(part.isidentifier() for part in parts):
        raise BadReference(
            f"{where!r} is not a module name.", "For a file, give its path: path/to/file.py:attribute."
        )
    stem = here.joinpath(*parts)
    for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
        if path.is_file():
            return _Target(path, where, here)
    try:
        spec = importlib.util.find_spec(where)
    except (ImportError, ValueError):  # a parent package is missing, or is not a package
        spec = None
    if spec is not None and spec.origin and spec.origin.endswith(".py"):
        path = Path(spec.origin)
        depth = len(parts) + (path.name == "__init__.py")
        return _Target(path, where, path.parents[depth - 1])
    raise BadReference(
        f"There is no module {where!r}: neither {stem.with_name(stem.name + '.py')} nor an installed one.",
        _nearby(stem.parent, f"{stem.name}.py"),
    )


def _nearby(directory: Path, name: str) -> str:
    """A proposal from the Python files that are there."""
    if not directory.is_dir():
        siblings = [p.name for p in directory.parent.glob("*/") if not p.name.startswith(".")]
        near = difflib.get_close_matches(directory.name, siblings, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"There is no directory {directory} either.{hint}"
    files = sorted(p.name for p in directory.glob("*.py") if p.name != "__init__.py")
    # By their stems: all of them end alike, which would make short names look near.
    stems = {file.removesuffix(".py"): file for file in files}
    near = [stems[one] for one in difflib.get_close_matches(name.removesuffix(".py"), stems, n=3, cutoff=0.6)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    if not files:
        return f"There are no Python files in {directory}. `templates.vllm_chute:chute` is always there."
    shown = ", ".join(files[:8]) + (", …" if len(files) > 8 else "")
    return f"Python files in {directory}: {shown}."


def _read(path: Path) -> str:
    try:
        with tokenize.open(path) as file:  # honours an encoding line
            return file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise BadReference(f"{path} cannot be read: {error}", "It must be a Python file in UTF-8.") from None


def _execute(target: _Target, code: str, ref: str) -> ModuleType:
    with _modules_of(target), _on_path(target.root):
        try:
            # Compiled here, not imported: the executed text is the one returned, whatever bytecode is
            # cached, and nothing is written beside the author's file.
            compiled = compile(code, str(target.path), "exec", dont_inherit=True)
            parent, _, _ = target.module.rpartition(".")
            if parent:
                importlib.import_module(parent)
            module = _blank(target)
            sys.modules[target.module] = module  # dataclasses and pydantic look their module up here
            exec(compiled, module.__dict__)
            return module
        except SyntaxError as error:
            raise _syntax(error, target) from None
        except ModuleNotFoundError as error:
            raise _missing_import(error, target) from error
        except (Exception, SystemExit) as error:
            raise _raised(error, target, ref) from error


def _blank(target: _Target) -> ModuleType:
    package = target.path.name == "__init__.py"
    spec = importlib.util.spec_from_file_location(
        target.module,
        target.path,
        submodule_search_locations=[str(target.path.parent)] if package else None,
    )
    assert spec is not None
    return importlib.util.module_from_spec(spec)


@contextmanager
def _modules_of(target: _Target) -> Iterator[None]:
    """Hide modules of the same name from elsewhere while loading; bring them back afterwards.

    Otherwise a `templates` package that is installed, or was loaded from another directory before, would
    be found in place of the one in this directory, and ours would be found by others.
    """
    top = target.module.partition(".")[0]
    before = _named(top)
    foreign = [name for name, module in before.items() if not _below(module, target.root)]
    for name in {*foreign, target.module}:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    loaded = False
    try:
        yield
        loaded = True
    finally:
        if foreign or not loaded:
            for name in _named(top):
                del sys.modules[name]
            sys.modules.update(before)


def _named(top: str) -> dict[str, ModuleType]:
    return {name: m for name, m in list(sys.modules.items()) if name.partition(".")[0] == top}


def _below(module: ModuleType, root: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place and Path(place).resolve().is_relative_to(root) for place in places)


@contextmanager
def _on_path(root: Path) -> Iterator[None]:
    entry = str(root)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if not is_remote():
            sys.path.remove(entry)


def _pick(module: ModuleType, attribute: str, ref: str, path: Path) -> Chute:
    chutes = {n: v for n, v in vars(module).items() if isinstance(v, (Chute, ChutePack))}
    there = f"Chutes in {path.name}: {', '.join(chutes)}." if chutes else f"{path.name} has no chute in it."
    if not hasattr(module, attribute):
        public = [*chutes, *(n for n in vars(module) if not n.startswith("_") and n not in chutes)]
        near = difflib.get_close_matches(attribute, public, n=1)
        meant = f"Did you mean {near[0]}? " if near else ""
        raise BadReference(f"{path} has no attribute {attribute!r}.", meant + there)
    value = getattr(module, attribute)
    if isinstance(value, ChutePack):
        return value.chute
    if isinstance(value, Chute):
        return value
    raise BadReference(f"{ref} is {_kind(value)}, not a chute.", there)


def _kind(value: Any) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, ModuleType):
        return f"the module {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"


def _line(error: BaseException, target: _Target) -> str:
    """file:line of the deepest frame in the author's file, else in the author's directory."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename == str(target.path)]
    if not own:
        own = [f for f in frames if Path(f.filename).is_relative_to(target.root)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else str(target.path)


def _syntax(error: SyntaxError, target: _Target) -> BadReference:
    text = (error.text or "").strip()
    return BadReference(
        f"{error.filename or target.path}:{error.lineno}: {type(error).__name__}: {error.msg}"
        + (f": {text}" if text else ""),
        "Mend that line.",
    )


def _missing_import(error: ModuleNotFoundError, target: _Target) -> BadReference:
    name = error.name or str(error)
    top = name.partition(".")[0]
    where = _line(error, target)
    if top == "chutes":
        return BadReference(
            f"{where}: this version of chutes has no module {name!r}.",
            "See `from chutes.chute.template import ...` in templates/ for what there is.",
        )
    return BadReference(
        f"{where}: the chute imports {name!r}, which is not installed here.",
        f"Run `pip install {_PACKAGES.get(top, top)}`; or, when only instances need it, import it inside the "
        "startup hook or the cord.",
    )


def _keyword(said: str) -> str:
    """The argument that was meant, where Python only says which one is not there."""
    found = re.match(r"(?:\w+\.)*(\w+)(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", said)
    if found is None:
        return ""
    from chutes.chute.base import Chute
    from chutes.chute.template.vllm import build_vllm_chute

    functions = {"build_vllm_chute": build_vllm_chute, "Chute": Chute, "__init__": Chute}
    if (function := functions.get(found[1])) is None:
        return ""
    near = difflib.get_close_matches(found[2], inspect.signature(function).parameters, n=1)
    return f"Did you mean {near[0]}=?" if near else ""


def _raised(error: BaseException, target: _Target, ref: str) -> BadReference:
    said = str(error).strip()
    what = f"{type(error).__name__}: {said}" if said else type(error).__name__
    fix = (
        error.fix if isinstance(error, ChutesError) else _keyword(said) or f"Mend it, then load {ref} again."
    )
    return BadReference(f"{_line(error, target)}: loading the chute raised {what}", fix)
