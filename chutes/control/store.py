"""What survives a restart: deployments, keys, slugs, prices and aliases, in one SQLite file.

One writer: the platform's event loop. Calls are a millisecond each and rare (a deploy, a new key), so
they are made straight from that loop.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from pydantic import ValidationError

from chutes.control.keys import ApiKey
from chutes.control.reconcile import Deployment
from chutes.control.secrets import Secret
from chutes.exception import AlreadyExists, ChutesError
from chutes.wire import Price

# The steps from an empty file to today's format. A step that has been released is never changed; a new
# one is added, so that whatever version wrote a file, the rest of them brings it here.
_STEPS = (
    """
CREATE TABLE deployments (
    chute_id TEXT PRIMARY KEY,
    name     TEXT NOT NULL,
    document TEXT NOT NULL              -- Deployment as JSON
) STRICT;
CREATE TABLE api_keys (
    api_key_id TEXT PRIMARY KEY,
    name       TEXT NOT NULL UNIQUE,
    digest     TEXT NOT NULL UNIQUE,    -- never the key itself
    admin      INTEGER NOT NULL,
    chute_ids  TEXT,                    -- JSON list, or NULL for all
    created_at REAL NOT NULL
) STRICT;
""",
    """
ALTER TABLE api_keys ADD COLUMN expires_at REAL;             -- Unix seconds; this and the next: NULL for none
ALTER TABLE api_keys ADD COLUMN requests_per_minute INTEGER;
ALTER TABLE api_keys ADD COLUMN tokens_per_minute INTEGER;
ALTER TABLE api_keys ADD COLUMN concurrency INTEGER;
CREATE TABLE slugs (
    chute_id TEXT PRIMARY KEY,
    slug     TEXT NOT NULL UNIQUE
) STRICT;
CREATE TABLE prices (                   -- US dollars per million tokens
    chute_id   TEXT PRIMARY KEY,
    prompt     REAL NOT NULL,
    completion REAL NOT NULL,
    cached     REAL NOT NULL
) STRICT;
CREATE TABLE aliases (
    alias    TEXT PRIMARY KEY,
    chute_id TEXT NOT NULL              -- may be gone; then the alias waits for it
) STRICT;
""",
    """
CREATE TABLE secrets (
    secret_id  TEXT PRIMARY KEY,
    purpose    TEXT NOT NULL,           -- a chute's id or name in lower case, deployed or not; '' for all
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,           -- as it is: who can read this file can read the platform's memory
    created_at REAL NOT NULL,
    UNIQUE (purpose, key)
) STRICT;
""",
)
SCHEMA_VERSION = len(_STEPS)
_KEY_COLUMNS = (
    "api_key_id, name, digest, admin, chute_ids, created_at,"
    " expires_at, requests_per_minute, tokens_per_minute, concurrency"
)


class Store:
    """Open for as long as the platform runs; `close` when it ends."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make it.

        Raises:
            ChutesError: it was written by a newer chutes, or is not a database.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Private before SQLite sees it, because its journal files take its permissions: digests are not
        # secrets, but chute files may hold what their authors forgot.
        path.touch(mode=0o600)
        path.chmod(0o600)
        try:
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            for number, step in enumerate(_STEPS[version:], version + 1):
                self._db.executescript(f"BEGIN; {step} PRAGMA user_version = {number}; COMMIT;")
        except sqlite3.DatabaseError as error:
            raise ChutesError(f"{path} cannot be used: {error}.", "Move it away to begin anew.") from None
        if version > SCHEMA_VERSION:
            raise ChutesError(
                f"{path} was written by a newer chutes (format {version}, this one knows {SCHEMA_VERSION}).",
                "Upgrade chutes, or set CHUTES_HOME to another directory.",
            )

    def close(self) -> None:
        self._db.close()

    def deployments(self) -> list[Deployment]:
        """All that should run, in the order of their first deploy.

        Raises:
            ChutesError: a row cannot be read; the message names it.
        """
        found: list[Deployment] = []
        for name, document in self._db.execute("SELECT name, document FROM deployments ORDER BY rowid"):
            try:
                found.append(Deployment.model_validate_json(document))
            except ValidationError as error:
                raise ChutesError(
                    f"The deployment of {name!r} in {self._path} cannot be read: {error.errors()[0]['msg']}.",
                    f"Remove it: sqlite3 {self._path} \"DELETE FROM deployments WHERE name = '{name}'\"",
                ) from None
        return found

    def save_deployment(self, deployment: Deployment) -> None:
        self._db.execute(
            "INSERT INTO deployments VALUES (?, ?, ?)"
            " ON CONFLICT (chute_id) DO UPDATE SET name = excluded.name, document = excluded.document",
            (deployment.chute_id, deployment.spec.name, deployment.model_dump_json()),
        )

    def delete_deployment(self, chute_id: str) -> None:
        """Forget it with its slug and price. Aliases stay: the same chute may come back."""
        for table in ("deployments", "slugs", "prices"):
            self._db.execute(f"DELETE FROM {table} WHERE chute_id = ?", (chute_id,))

    def api_keys(self) -> list[ApiKey]:
        rows = self._db.execute(f"SELECT {_KEY_COLUMNS} FROM api_keys ORDER BY created_at")
        return [
            ApiKey(
                api_key_id=key_id,
                name=name,
                digest=digest,
                admin=bool(admin),
                chute_ids=json.loads(chute_ids) if chute_ids else None,
                created_at=created_at,
                expires_at=expires_at,
                requests_per_minute=requests,
                tokens_per_minute=tokens,
                concurrency=concurrency,
            )
            for (
                key_id, name, digest, admin, chute_ids, created_at, expires_at, requests, tokens, concurrency
            ) in rows
        ]  # fmt: skip

    def save_key(self, key: ApiKey) -> None:
        """Raises AlreadyExists when a key of that name is there."""
        try:
            self._db.execute(
                f"INSERT INTO api_keys ({_KEY_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    key.api_key_id,
                    key.name,
                    key.digest,
                    key.admin,
                    None if key.chute_ids is None else json.dumps(key.chute_ids),
                    key.created_at,
                    key.expires_at,
                    key.requests_per_minute,
                    key.tokens_per_minute,
                    key.concurrency,
                ),
            )
        except sqlite3.IntegrityError:
            raise AlreadyExists(
                f"An API key named {key.name!r} already exists.",
                f"Choose another name, or `chutes keys delete {key.name}` first.",
            ) from None

    def delete_key(self, key_id: str) -> None:
        self._db.execute("DELETE FROM api_keys WHERE api_key_id = ?", (key_id,))

    def slugs(self) -> dict[str, str]:
        """Slug by chute id."""
        return dict(self._db.execute("SELECT chute_id, slug FROM slugs"))

    def save_slug(self, chute_id: str, slug: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO slugs VALUES (?, ?)", (chute_id, slug))

    def prices(self) -> dict[str, Price]:
        """Price by chute id; a chute without one costs nothing."""
        rows = self._db.execute("SELECT chute_id, prompt, completion, cached FROM prices")
        return {chute_id: Price(*price) for chute_id, *price in rows}

    def save_price(self, chute_id: str, price: Price | None) -> None:
        if price is None:
            self._db.execute("DELETE FROM prices WHERE chute_id = ?", (chute_id,))
        else:
            row = (chute_id, price.prompt, price.completion, price.cached)
            self._db.execute("INSERT OR REPLACE INTO prices VALUES (?, ?, ?, ?)", row)

    def aliases(self) -> dict[str, str]:
        """Chute id by alias, in the order of the alphabet."""
        return dict(self._db.execute("SELECT alias, chute_id FROM aliases ORDER BY alias"))

    def save_alias(self, alias: str, chute_id: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO aliases VALUES (?, ?)", (alias, chute_id))

    def delete_alias(self, alias: str) -> None:
        self._db.execute("DELETE FROM aliases WHERE alias = ?", (alias,))

    def secrets(self) -> list[Secret]:
        rows = self._db.execute(
            "SELECT secret_id, purpose, key, value, created_at FROM secrets ORDER BY purpose, key"
        )
        return [Secret(*row) for row in rows]

    def save_secret(self, secret: Secret) -> None:
        """A new one, or another value for the one of that purpose and key."""
        self._db.execute(
            "INSERT INTO secrets VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (purpose, key) DO UPDATE SET value = excluded.value",
            (secret.secret_id, secret.purpose, secret.key, secret.value, secret.created_at),
        )

    def delete_secret(self, secret_id: str) -> None:
        self._db.execute("DELETE FROM secrets WHERE secret_id = ?", (secret_id,))
