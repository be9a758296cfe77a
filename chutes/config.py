"""Every knob of the platform: its name in the file, its environment variable, its default.

Precedence: environment variable, then `config.ini`, then the default. (The published SDK lets the file
beat the environment; the usual order is used here because `CHUTES_PORT=9000 chutes serve` should do
what it says.) The file is `$CHUTES_HOME/config.ini`, or wherever `CHUTES_CONFIG_PATH` points; its
`[api] base_url` and `[auth] username` are the published names.
"""

from __future__ import annotations

import configparser
import getpass
import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from chutes.exception import NotConfigured

USERNAME_PATTERN = re.compile(r"^[a-zA-Z0-9_]{3,15}$")  # the published platform's rule

CONTAINERS = ("auto", "docker", "podman", "none")


@dataclass(frozen=True)
class Knob:
    """One setting: where it may be written and what it is when nobody wrote it."""

    env: str
    section: str
    key: str
    default: str
    meaning: str


KNOBS: dict[str, Knob] = {
    "home": Knob("CHUTES_HOME", "", "", "~/.chutes", "state, logs, keys; the file cannot move itself"),
    "cache": Knob("CHUTES_CACHE", "paths", "cache", "", "engines and model files; default: cache/ in home"),
    "api_url": Knob("CHUTES_API_URL", "api", "base_url", "", "a platform elsewhere; default: the local one"),
    "api_key": Knob("CHUTES_API_KEY", "auth", "api_key", "", "an admin key, for a platform elsewhere"),
    "username": Knob("CHUTES_USERNAME", "auth", "username", "", "owner of chutes; default: the system user"),
    "host": Knob("CHUTES_HOST", "serve", "host", "127.0.0.1", "address the gateway listens on"),
    "port": Knob("CHUTES_PORT", "serve", "port", "8000", "port the gateway listens on"),
    "workers": Knob("CHUTES_WORKERS", "serve", "workers", "", "gateway processes; default: one per 4 cores"),
    "no_auth": Knob("CHUTES_NO_AUTH", "serve", "no_auth", "0", "1: no keys, on a loopback address only"),
    "containers": Knob(
        "CHUTES_CONTAINERS", "serve", "containers", "auto", "docker, podman or none, for authors' images"
    ),
    "max_body_mib": Knob("CHUTES_MAX_BODY_MIB", "serve", "max_body_mib", "32", "largest request body"),
    "usage_days": Knob("CHUTES_USAGE_DAYS", "usage", "days", "30", "days that single requests are kept"),
    "usage_rows": Knob("CHUTES_USAGE_ROWS", "usage", "rows", "2000000", "single requests kept at most"),
    "access_log": Knob("CHUTES_ACCESS_LOG", "usage", "access_log", "1", "1: log every request; 0: do not"),
    "metrics_port": Knob(
        "CHUTES_METRICS_PORT", "metrics", "port", "0", "loopback port without keys; 0: none"
    ),
    "otel_endpoint": Knob("CHUTES_OTEL_ENDPOINT", "metrics", "otel_endpoint", "", "where spans are sent"),
    "startup_seconds": Knob(
        "CHUTES_STARTUP_SECONDS", "serve", "startup_seconds", "1800", "for a chute's own startup hooks"
    ),
    "profiles": Knob("CHUTES_HARDWARE_PROFILES", "paths", "hardware_profiles", "", "hardware_profiles.yaml"),
}


@dataclass(frozen=True)
class Config:
    """The settings of one process, read once. Paths are absolute; nothing is created by reading."""

    home: Path
    cache: Path
    api_url: str
    api_key: str
    username: str
    host: str
    port: int
    workers: int
    max_body_bytes: int
    profiles: Path | None
    containers: str = "auto"
    usage_days: int = 30
    usage_rows: int = 2_000_000
    access_log: bool = True
    metrics_port: int = 0
    otel_endpoint: str = ""
    no_auth: bool = False
    startup_seconds: int = 1800

    @property
    def bundles(self) -> Path:
        """Snapshots of the files of authors' own chutes."""
        return self.home / "bundles"

    @property
    def jobs(self) -> Path:
        """Runs of jobs: one directory each, with record, log and files."""
        return self.home / "jobs"

    @property
    def engines(self) -> Path:
        """Virtual environments of engines, one directory each."""
        return self.cache / "engines"

    @property
    def models(self) -> Path:
        """Model files: hub snapshots and directories converted from packages."""
        return self.cache / "models"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def database(self) -> Path:
        return self.home / "chutes.db"

    @property
    def usage_database(self) -> Path:
        """Apart from the other one, so that traffic never delays a deployment."""
        return self.home / "usage.db"

    @property
    def run(self) -> Path:
        """What a running platform leaves for others to find it by; mode 0700."""
        return self.home / "run"

    def environment(self) -> dict[str, str]:
        """These settings as environment variables, for a child that must see the same ones."""
        values = {
            "home": str(self.home),
            "cache": str(self.cache),
            "username": self.username,
            "host": self.host,
            "port": str(self.port),
            "workers": str(self.workers),
            "containers": self.containers,
            "max_body_mib": str(self.max_body_bytes >> 20),
            "profiles": str(self.profiles or ""),
            "usage_days": str(self.usage_days),
            "usage_rows": str(self.usage_rows),
            "access_log": str(int(self.access_log)),
            "metrics_port": str(self.metrics_port),
            "otel_endpoint": self.otel_endpoint,
            "no_auth": str(int(self.no_auth)),
            "startup_seconds": str(self.startup_seconds),
        }
        return {KNOBS[name].env: value for name, value in values.items() if value}


def load(environ: Mapping[str, str] | None = None) -> Config:
    """Read the settings.

    Raises:
        NotConfigured: a value is not of its kind; the message names the variable and the file.
    """
    environ = os.environ if environ is None else environ
    home = Path(environ.get(KNOBS["home"].env) or KNOBS["home"].default).expanduser().absolute()
    path = Path(environ.get("CHUTES_CONFIG_PATH") or home / "config.ini").expanduser()
    file = configparser.ConfigParser(interpolation=None)
    try:
        file.read(path)
    except configparser.Error as error:
        raise NotConfigured(f"{path} cannot be read: {error}", "Mend the file or move it away.") from None

    def text(name: str) -> str:
        knob = KNOBS[name]
        return environ.get(knob.env) or file.get(knob.section, knob.key, fallback="") or knob.default

    def number(name: str, low: int, high: int) -> int:
        knob, value = KNOBS[name], text(name)
        if not value.isdecimal() or not low <= int(value) <= high:
            raise NotConfigured(
                f"{knob.env} must be a number from {low} to {high}, not {value!r} ({knob.meaning}).",
                f"Set {knob.env}, or `{knob.key}` under [{knob.section}] in {path}.",
            )
        return int(value)

    username = text("username")
    if not username:
        username = _system_user()
    elif not USERNAME_PATTERN.match(username):
        raise NotConfigured(
            f"Username {username!r} must be 3 to 15 letters, digits or underscores.",
            f"Set {KNOBS['username'].env}, or `username` under [auth] in {path}.",
        )
    cache = text("cache")
    profiles = text("profiles")
    config = Config(
        home=home,
        cache=Path(cache).expanduser().absolute() if cache else home / "cache",
        api_url=text("api_url").rstrip("/"),
        api_key=text("api_key"),
        username=username,
        host=text("host"),
        port=number("port", 1, 65535),
        workers=number("workers", 1, 64) if text("workers") else default_workers(os.cpu_count() or 1),
        containers=text("containers"),
        max_body_bytes=number("max_body_mib", 1, 1024) << 20,
        profiles=Path(profiles).expanduser().absolute() if profiles else None,
        usage_days=number("usage_days", 1, 3660),
        usage_rows=number("usage_rows", 1000, 100_000_000),
        access_log=bool(number("access_log", 0, 1)),
        metrics_port=number("metrics_port", 0, 65535),
        otel_endpoint=text("otel_endpoint"),
        no_auth=bool(number("no_auth", 0, 1)),
        startup_seconds=number("startup_seconds", 1, 3500),  # the fleet waits an hour for any engine
    )
    check(config)
    return config


def check(config: Config) -> None:
    """What must hold between settings. Raises NotConfigured."""
    if config.containers not in CONTAINERS:
        raise NotConfigured(
            f"{KNOBS['containers'].env} must be one of {', '.join(CONTAINERS)}, not {config.containers!r}.",
            f"Set {KNOBS['containers'].env}, or leave it out.",
        )
    if config.no_auth and not is_loopback(config.host):
        raise NotConfigured(
            f"Without keys the gateway may only listen on this machine, not on {config.host}.",
            f"Leave --no-auth and {KNOBS['no_auth'].env} out, or set {KNOBS['host'].env}=127.0.0.1.",
        )


def is_loopback(host: str) -> bool:
    """Whether an address, or the name of one, can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def default_workers(cores: int) -> int:
    """One gateway worker relays tens of thousands of requests a second; engines want the cores more."""
    return max(1, min(4, cores // 4))


def _system_user() -> str:
    try:
        name = re.sub(r"[^a-zA-Z0-9_]", "_", getpass.getuser())[:15]
    except (KeyError, OSError):  # no passwd entry, as in many containers
        name = ""
    return name if USERNAME_PATTERN.match(name) else "local"
