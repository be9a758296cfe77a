"""The hub, played by a small HTTP server: commits, refusals, facts from headers, downloads that resume."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from chutes.exception import ModelError
from chutes.model import files, pipelines, source
from chutes.model.files import RepoFile
from chutes.model.packaged import Cancelled

COMMIT = "a" * 40
HEADER = json.dumps({"w": {"dtype": "F16", "shape": [1000, 50], "data_offsets": [0, 100_000]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(100_000)
FILES = {
    "config.json": json.dumps({"architectures": ["TinyForCausalLM"], "num_hidden_layers": 2}).encode(),
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"the same weights again" * 1000,
    "original/consolidated.00.pth": b"and again" * 1000,
    "picture.png": b"png",
}


class Hub:
    """What the server knows, and what it was asked."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        """What is sent."""
        self.listed = dict(FILES)
        """What hashes are made of."""
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.refuse: tuple[int, str] | None = None
        self.cut_after: int | None = None
        """Bytes after which a download of weights breaks off, once."""
        self.tokens: set[str] = set()
        self.url = ""

    def asked(self, method: str, part: str) -> list[str]:
        return [ranged for verb, path, ranged in self.requests if verb == method and part in path]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None: ...

    def reply(self, status: int, headers: dict[str, str], body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, self.path.split("?")[0]
        hub.requests.append((self.command, self.path, self.headers.get("Range") or ""))
        if "org/tiny" in path:  # the library has small talk of its own with a hub
            hub.tokens.add(self.headers.get("Authorization") or "")
        if hub.refuse:
            status, code = hub.refuse
            return self.reply(status, {"X-Error-Code": code} if code else {}, b"{}")
        if found := re.fullmatch(r"/api/models/org/tiny(?:/revision/(.+))?", path):
            if found[1] not in (None, "main", COMMIT):
                return self.reply(404, {"X-Error-Code": "RevisionNotFound"}, b"{}")
            return self.reply(200, {"Content-Type": "application/json"}, json.dumps(self.listing()).encode())
        if found := re.fullmatch(rf"/org/tiny/resolve/{COMMIT}/(.+)", path):
            return self.file(found[1])
        return self.reply(404, {"X-Error-Code": "RepoNotFound"}, b"{}")

    def listing(self) -> dict[str, object]:
        siblings = []
        for name, data in self.hub.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data)}
            if name.endswith(("safetensors", "bin", "pth")):
                sha = hashlib.sha256(self.hub.listed[name]).hexdigest()
                entry |= {"blobId": "0" * 40, "lfs": {"sha256": sha, "size": len(data), "pointerSize": 1}}
            else:
                listed = self.hub.listed[name]
                entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(listed) + listed).hexdigest()
            siblings.append(entry)
        return {"id": "org/tiny", "modelId": "org/tiny", "sha": COMMIT, "siblings": siblings}

    def file(self, name: str) -> None:
        if name not in self.hub.files:
            return self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"")
        data = self.hub.files[name]
        headers = {"ETag": f'"{hashlib.sha256(self.hub.listed[name]).hexdigest()}"', "X-Repo-Commit": COMMIT}
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not ranged:
            cut = None
            if self.command == "GET" and name.endswith("safetensors"):
                cut, self.hub.cut_after = self.hub.cut_after, None
            return self.reply(200, headers, data, cut)
        begin, end = int(ranged[1]), min(int(ranged[2] or len(data) - 1), len(data) - 1)
        headers["Content-Range"] = f"bytes {begin}-{end}/{len(data)}"
        return self.reply(206, headers, data[begin : end + 1])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    listener = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    listener.daemon_threads = True
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{listener.server_address[1]}"
    monkeypatch.setenv("HF_ENDPOINT", state.url)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_testtoken")
    yield state
    listener.shutdown()
    listener.server_close()


def quiet(what: str, done: int, total: int) -> None: ...


def test_a_name_becomes_a_commit(server: Hub):
    found = source.resolve("org/tiny")
    assert (found.kind, found.location, found.revision) == ("hub", "org/tiny", COMMIT)
    assert COMMIT[:12] in found.note
    assert source.resolve("org/tiny", "main").revision == COMMIT
    assert server.tokens == {"Bearer hf_testtoken"}


@pytest.mark.parametrize(
    ("refuse", "message", "fix"),
    [
        ((404, "RepoNotFound"), "no model org/tiny", "Check the spelling"),
        ((401, "RepoNotFound"), "no model org/tiny, or is private", "HF_TOKEN"),
        ((401, ""), "no model org/tiny, or is private", "HF_TOKEN"),
        ((403, "GatedRepo"), "is gated", "Accept its terms at"),
        ((401, "GatedRepo"), "is gated", "Accept its terms at"),
        ((500, ""), "cannot be reached .* status 500", "SmolLM2-135M-Instruct"),
    ],
)
def test_refusals_are_told_apart(server: Hub, refuse: tuple[int, str], message: str, fix: str):
    server.refuse = refuse
    with pytest.raises(ModelError, match=message) as caught:
        source.resolve("org/tiny")
    assert fix in caught.value.fix
    assert "hf_testtoken" not in caught.value.message + caught.value.fix


def test_an_unknown_revision(server: Hub):
    with pytest.raises(ModelError, match="no revision 'nope'"):
        source.resolve("org/tiny", "nope")


def test_no_hub_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nothing listens
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9 cannot be reached") as caught:
        source.resolve("org/tiny")
    assert "local directory" in caught.value.fix
    assert "SmolLM2-135M-Instruct" in caught.value.fix
    assert source.resolve("org/tiny", COMMIT).revision == COMMIT  # pinned already: its files may be here
    with pytest.raises(ModelError, match="cannot be reached"):
        source.fetch(source.resolve("org/tiny", COMMIT), tmp_path, quiet)


def test_facts_take_headers_only_and_are_kept(server: Hub, tmp_path: Path):
    found = source.resolve("org/tiny")
    facts = source.read_facts(found, tmp_path)
    assert (facts.architecture, facts.layers) == ("TinyForCausalLM", 2)
    assert (facts.parameters, facts.weights_bytes, facts.dtype) == (50_000, 100_000, "float16")
    ranges = server.asked("GET", "model.safetensors")
    assert ranges
    assert all(ranges)  # never the whole file
    server.refuse = (500, "")
    assert source.read_facts(found, tmp_path) == facts


def test_a_repository_without_all_of_its_weights_files(server: Hub, tmp_path: Path):
    del server.files["model.safetensors"], server.listed["model.safetensors"]
    server.files["model-00001-of-00003.safetensors"] = WEIGHTS
    server.listed["model-00001-of-00003.safetensors"] = WEIGHTS
    with pytest.raises(ModelError, match=r"model-00002-of-00003\.safetensors and 1 more are missing"):
        source.read_facts(source.resolve("org/tiny"), tmp_path)


def test_damaged_files_on_the_hub_are_named(server: Hub, tmp_path: Path):
    found = source.resolve("org/tiny")
    server.files["config.json"] = server.listed["config.json"] = b"[" * 100_000
    with pytest.raises(ModelError, match=r"config\.json of org/tiny is not JSON: it is nested deeper"):
        source.read_facts(found, tmp_path / "one")
    server.files["config.json"] = server.listed["config.json"] = FILES["config.json"]
    server.files["model.safetensors"] = struct.pack("<Q", 100_000) + b"[" * 100_000
    with pytest.raises(ModelError, match=r"header of model\.safetensors of org/tiny does not describe"):
        source.read_facts(found, tmp_path / "two")


def test_fetch_takes_one_set_of_weights_verifies_it_and_asks_once(server: Hub, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    found = source.resolve("org/tiny")
    path = source.fetch(found, tmp_path, lambda *report: seen.append(report))
    names = sorted(p.name for p in path.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert path.name == COMMIT
    total = sum(len(FILES[name]) for name in names)
    assert ("downloading org/tiny", total, total) in seen
    assert seen[-1] == ("verifying org/tiny", total, total)
    server.refuse = (500, "")
    server.requests.clear()
    assert source.fetch(found, tmp_path, quiet) == path
    assert server.requests == []


def test_a_broken_download_is_resumed(server: Hub, tmp_path: Path):
    # The library writes 10 MB at a time: what breaks off must be longer than that to be worth keeping.
    large = WEIGHTS + bytes(24_000_000)
    server.files["model.safetensors"] = server.listed["model.safetensors"] = large
    server.cut_after = 21_000_000
    path = source.fetch(source.resolve("org/tiny"), tmp_path, quiet)
    assert (path / "model.safetensors").read_bytes() == large
    again = re.fullmatch(r"bytes=(\d+)-.*", server.asked("GET", "model.safetensors")[-1])
    assert again
    assert int(again[1]) >= 10_000_000  # it went on where it broke off


def test_damaged_weights_are_removed_and_named(server: Hub, tmp_path: Path):
    server.files["model.safetensors"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ModelError, match=r"model\.safetensors of org/tiny arrived damaged"):
        source.fetch(source.resolve("org/tiny"), tmp_path, quiet)
    server.files["model.safetensors"] = WEIGHTS
    path = source.fetch(source.resolve("org/tiny"), tmp_path, quiet)
    assert (path / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_lost_after_verification_is_fetched_again(server: Hub, tmp_path: Path):
    found = source.resolve("org/tiny")
    path = source.fetch(found, tmp_path, quiet)
    lost = path / "tokenizer.json"
    lost.resolve().unlink()
    lost.unlink(missing_ok=True)
    assert (source.fetch(found, tmp_path, quiet) / "tokenizer.json").read_bytes() == b"{}"


def test_fetch_can_be_cancelled(server: Hub, tmp_path: Path):
    with pytest.raises(Cancelled):
        source.fetch(source.resolve("org/tiny"), tmp_path, quiet, lambda: True)


def repo(*names: str) -> list[RepoFile]:
    return [RepoFile(name, 1, None, None) for name in names]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (
            [
                "config.json",
                "model-1-of-2.safetensors",
                "model-2-of-2.safetensors",
                "consolidated.safetensors",
            ],
            ["config.json", "model-1-of-2.safetensors", "model-2-of-2.safetensors"],
        ),
        (["config.json", "pytorch_model.bin", "a.pth"], ["config.json", "pytorch_model.bin"]),
        (["config.json", "consolidated.safetensors"], ["config.json", "consolidated.safetensors"]),
        (["README.md", "m.q4.gguf"], ["m.q4.gguf"]),
        (
            [
                "1_Pooling/config.json",
                "modeling.py",
                "chat_template.jinja",
                "tf_model.h5",
                "model.safetensors",
            ],
            ["1_Pooling/config.json", "modeling.py", "chat_template.jinja", "model.safetensors"],
        ),
    ],
)
def test_which_files_are_fetched(names: list[str], chosen: list[str]):
    assert sorted(file.path for file in files.choose("o/m", repo(*names))) == sorted(chosen)


def test_repositories_without_one_set_of_weights():
    with pytest.raises(ModelError, match="2 GGUF files"):
        files.choose("o/m", repo("a.gguf", "b.gguf"))
    with pytest.raises(ModelError, match="no weights"):
        files.choose("o/m", repo("config.json"))


def test_of_a_pipeline_only_what_it_needs_is_fetched(server: Hub, tmp_path: Path):
    index = {"_class_name": "TinyPipeline", "unet": ["diffusers", "UNet"], "tokenizer": ["transformers", "T"]}
    parts = {
        "model_index.json": json.dumps(index).encode(),
        "unet/config.json": b"{}",
        "unet/model.safetensors": WEIGHTS,
        "unet/model.fp16.safetensors": WEIGHTS,
        "unet/model.bin": b"again",
        "tokenizer/vocab.json": b"{}",
        "all_in_one.safetensors": WEIGHTS,
    }
    server.files, server.listed = dict(parts), dict(parts)
    plain = pipelines.resolve("org/tiny", None)
    assert (plain.kind, plain.layout, plain.revision) == ("hub", "pipeline", COMMIT)
    facts = pipelines.read_facts(plain, tmp_path)
    assert (facts.pipeline, facts.parameters) == ("TinyPipeline", 50_000)
    place = source.fetch(plain, tmp_path, quiet)
    there = {str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()}
    assert there == {"model_index.json", "unet/config.json", "unet/model.safetensors", "tokenizer/vocab.json"}

    half = pipelines.resolve("org/tiny", None, "fp16")
    assert (source.fetch(half, tmp_path, quiet) / "unet/model.fp16.safetensors").is_file()
    asked = len(server.requests)
    assert source.fetch(half, tmp_path, quiet) == place  # verified once
    assert len(server.requests) == asked


def test_a_repository_that_is_no_pipeline(server: Hub, tmp_path: Path):
    with pytest.raises(ModelError, match="is missing on the hub"):
        pipelines.read_facts(pipelines.resolve("org/tiny", None), tmp_path)
