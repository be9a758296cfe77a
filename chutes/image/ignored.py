"""What is not sent: secrets, what can be made again, what a `.gitignore` names. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase

SECRETS = (
    ".env", ".env.*", "*.env", "*.pem", "*.key", "*.p12", "*.pfx", "id_rsa*", "id_dsa*", "id_ecdsa*",
    "id_ed25519*", ".netrc", "_netrc", ".npmrc", ".pypirc", ".git-credentials", ".htpasswd", ".aws", ".ssh",
    ".gnupg", ".kube", ".docker", "credentials", "credentials.*", "service-account*.json", "secrets.*",
    ".chutes",
)  # fmt: skip
"""Names of files and directories, without regard to case. They never travel, whoever asks for them."""

RUBBISH = (
    ".git", ".hg", ".svn", "__pycache__", "*.pyc", "*.pyo", ".venv", "venv", "node_modules", ".tox", ".nox",
    ".mypy_cache", ".pytest_cache", ".ruff_cache", ".ipynb_checkpoints", ".DS_Store", "*.egg-info",
)  # fmt: skip
"""The same for what is of no use elsewhere."""

# What people keep in the repository to show which variables there are.
_SHOWN = (".env.example", ".env.sample", ".env.template", "secrets.py", "credentials.py")


def is_secret(path: str) -> bool:
    """Whether a path, with slashes, names or lies below something that is kept to oneself.

    `secrets.py` and `credentials.py` are modules as a rule: code that needs them would not load without.
    """
    return any(_is_one_of(part, SECRETS) and part.lower() not in _SHOWN for part in path.split("/"))


def is_rubbish(path: str) -> bool:
    return any(_is_one_of(part, RUBBISH) for part in path.split("/"))


def _is_one_of(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


class Rules:
    """The lines of one `.gitignore`, as git reads them, for paths relative to its directory.

    Args:
        text: of the file; the last line that matches decides.
    """

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[re.Pattern[str], bool, bool]] = []
        for line in map(str.rstrip, text.splitlines()):
            if not line or line.startswith("#"):
                continue
            wanted = line.startswith("!")
            pattern = line[1:] if wanted else line.removeprefix("\\")
            self._rules.append((_compiled(pattern.rstrip("/")), pattern.endswith("/"), wanted))

    def leave_out(self, path: str, directory: bool = False) -> bool:
        """Whether `path`, or a directory that it lies in, is left out."""
        parts = path.split("/")
        return any(
            self.verdict("/".join(parts[:n]), directory or n < len(parts)) for n in range(1, len(parts) + 1)
        )

    def verdict(self, path: str, directory: bool) -> bool | None:
        """The same of `path` alone; None if no line speaks of it."""
        out = None
        for pattern, only_directories, wanted in self._rules:
            if (directory or not only_directories) and pattern.fullmatch(path):
                out = not wanted
        return out


def _compiled(pattern: str) -> re.Pattern[str]:
    anchored = "/" in pattern
    text, i = "", 0
    pattern = pattern.lstrip("/")
    while i < len(pattern):
        if pattern.startswith("**/", i):
            text, i = text + "(?:.*/)?", i + 3
        elif pattern.startswith("/**", i) and i + 3 == len(pattern):
            text, i = text + "/.*", i + 3
        elif pattern[i] == "*":
            text, i = text + "[^/]*", i + 1
        elif pattern[i] == "?":
            text, i = text + "[^/]", i + 1
        elif pattern[i] == "[" and "]" in pattern[i + 2 :]:
            end = pattern.index("]", i + 2)
            inside = pattern[i + 1 : end].replace("\\", "\\\\")
            text, i = text + "[" + ("^" + inside[1:] if inside[0] == "!" else inside) + "]", end + 1
        else:
            i += pattern[i] == "\\" and i + 1 < len(pattern)
            text, i = text + re.escape(pattern[i]), i + 1
    return re.compile(text if anchored else f"(?:.*/)?{text}", re.DOTALL)
