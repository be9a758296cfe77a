"""Where pipelines come from: directories, files, repositories, and civitai.com, played by a server."""

from __future__ import annotations

import hashlib
import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from chutes.exception import ModelError
from chutes.model import civitai, pipelines, source
from chutes.model.files import RepoFile
from chutes.model.packaged import Cancelled

INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}


def safetensors(parameters: int, dtype: str = "F16") -> bytes:
    size = parameters * {"F16": 2, "F32": 4}[dtype]
    header = json.dumps({"w": {"dtype": dtype, "shape": [parameters], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size)


def repository(names: str) -> list[RepoFile]:
    return [RepoFile(name, 1, None, None) for name in names.split()]


def chosen(files: list[RepoFile], variant: str = "") -> set[str]:
    return {file.path for file in pipelines.choose("org/model", files, INDEX, variant)}


SDXL = repository(
    "model_index.json README.md sd_xl_base_1.0.safetensors sd_xl_base_1.0_0.9vae.safetensors pic.png "
    "scheduler/scheduler_config.json tokenizer/merges.txt tokenizer/vocab.json "
    "text_encoder/config.json text_encoder/model.safetensors text_encoder/model.fp16.safetensors "
    "text_encoder/flax_model.msgpack text_encoder/model.onnx text_encoder/openvino_model.bin "
    "unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.bin "
    "unet/diffusion_pytorch_model.fp16.safetensors unet/diffusion_pytorch_model.non_ema.safetensors "
    "vae/config.json vae/diffusion_pytorch_model.safetensors vae_1_0/config.json "
    "vae_1_0/diffusion_pytorch_model.safetensors vae_decoder/model.onnx"
)


def test_one_set_of_weights_of_each_part_is_chosen():
    plain = {
        "model_index.json", "tokenizer/merges.txt", "tokenizer/vocab.json", "text_encoder/config.json",
        "text_encoder/model.safetensors", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
    }  # fmt: skip
    assert chosen(SDXL) == plain
    half = chosen(SDXL, "fp16")
    assert {"unet/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model.fp16.safetensors"} <= half
    assert "vae/diffusion_pytorch_model.safetensors" in half  # where there is no such variant
    assert len(half) == len(plain)


def test_shards_come_with_their_own_list():
    files = repository(
        "model_index.json unet/config.json "
        "unet/m-00001-of-00002.safetensors unet/m-00002-of-00002.safetensors "
        "unet/m.safetensors.index.json unet/m.fp16-00001-of-00001.safetensors "
        "unet/m.safetensors.index.fp16.json unet/m.bin.index.json"
    )
    assert chosen(files) == {
        "model_index.json", "unet/config.json", "unet/m-00001-of-00002.safetensors",
        "unet/m-00002-of-00002.safetensors", "unet/m.safetensors.index.json",
    }  # fmt: skip
    assert chosen(files, "fp16") == {
        "model_index.json", "unet/config.json", "unet/m.fp16-00001-of-00001.safetensors",
        "unet/m.safetensors.index.fp16.json",
    }  # fmt: skip


def test_what_there_is_is_taken_where_the_plain_set_is_not():
    assert "unet/m.fp16.safetensors" in chosen(repository("model_index.json unet/m.fp16.safetensors"))
    assert "unet/m.bin" in chosen(repository("model_index.json unet/m.bin"))
    with pytest.raises(ModelError, match="no weights of its parts"):
        chosen(repository("model_index.json unet/config.json all.safetensors"))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "pipe"
    for part, size in (("unet", 1000), ("vae", 200), ("text_encoder", 300)):
        (folder / part).mkdir(parents=True)
        (folder / part / "model.safetensors").write_bytes(safetensors(size))
    (folder / "unet" / "model.fp16.safetensors").write_bytes(safetensors(1000))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
    return folder


def test_a_directory(pipeline: Path, tmp_path: Path):
    found = pipelines.resolve(str(pipeline), None)
    assert (found.kind, found.layout, found.location) == ("directory", "pipeline", str(pipeline))
    facts = pipelines.read_facts(found, tmp_path)
    assert facts.pipeline == "StableDiffusionXLPipeline"
    assert facts.parameters == 1500
    assert facts.parts["unet"].file_bytes == 2000
    assert source.fetch(found, tmp_path, lambda *_: None) == pipeline
    with pytest.raises(ModelError, match="no revisions"):
        pipelines.resolve(str(pipeline), "main")
    (pipeline / "model_index.json").unlink()
    with pytest.raises(ModelError, match=r"holds no model_index\.json"):
        pipelines.resolve(str(pipeline), None)
    with pytest.raises(ModelError, match="no pipeline any more"):
        source.fetch(found, tmp_path, lambda *_: None)


def test_a_file(tmp_path: Path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(safetensors(50))
    found = pipelines.resolve(str(file), None)
    assert (found.kind, pipelines.read_facts(found, tmp_path).parameters) == ("file", 50)
    assert source.fetch(found, tmp_path, lambda *_: None) == file
    file.write_bytes(safetensors(50)[:-1])
    with pytest.raises(ModelError, match="cut off"):
        pipelines.resolve(str(file), None)
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"not a \.safetensors file"):
        pipelines.resolve(str(tmp_path / "model.ckpt"), None)
    with pytest.raises(ModelError, match="neither a directory nor a file"):
        pipelines.resolve(str(tmp_path / "nothing"), None)


# ------------------------------------------------------------------------------------------- civitai.com

CHECKPOINT = safetensors(10_000)


class Site:
    """What the server knows, and what it was asked."""

    def __init__(self) -> None:
        self.data = CHECKPOINT
        self.sha256 = hashlib.sha256(CHECKPOINT).hexdigest().upper()
        self.size = len(CHECKPOINT)
        self.cut_after: int | None = None
        self.status = 200
        self.redirect = ""
        self.requests: list[tuple[str, str, str]] = []  # path, Range, Authorization

    def version(self) -> dict[str, Any]:
        model = {
            "name": "../../a model.safetensors",
            "type": "Model",
            "primary": True,
            "sizeKB": self.size / 1024,
            "hashes": {"SHA256": self.sha256},
            "metadata": {"fp": "fp16", "format": "SafeTensor"},
            "downloadUrl": "https://civitai.com/api/download/models/77",
        }
        vae = {**model, "name": "vae.safetensors", "type": "VAE"}
        return {"id": 77, "files": [vae, {**model, "name": "old.ckpt"}, model]}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

        def do_GET(self) -> None:
            ranged = self.headers.get("Range") or ""
            site.requests.append((self.path, ranged, self.headers.get("Authorization") or ""))
            if site.status != 200:
                return self.reply(site.status, b"")
            if self.path == "/api/v1/models/9":
                return self.reply(200, json.dumps({"modelVersions": [{"id": 77}, {"id": 66}]}).encode())
            if self.path == "/api/v1/model-versions/77":
                return self.reply(200, json.dumps(site.version()).encode())
            if self.path == "/api/download/models/77":
                self.send_response(307)
                self.send_header("Location", site.redirect or "/file")
                self.end_headers()
                return None
            begin = int(ranged.removeprefix("bytes=").rstrip("-") or 0)
            if begin >= len(site.data):
                return self.reply(416, b"")
            return self.reply(206 if begin else 200, site.data[begin:], site.cut_after)

        def reply(self, status: int, body: bytes, cut: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut])
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("CIVITAI_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("CIVITAI_API_TOKEN", "a-token")
    yield site
    server.shutdown()
    server.server_close()


PAGE = "https://civitai.com/models/9/some-name"


@pytest.mark.parametrize(
    ("url", "version"),
    [
        (PAGE, None),
        (f"{PAGE}?modelVersionId=77", None),
        ("https://www.civitai.com/api/download/models/77", None),
        (f"{PAGE}?modelVersionId=5", "77"),
    ],
)
def test_a_page_means_one_version(site: Site, url: str, version: str | None, tmp_path: Path):
    found = pipelines.resolve(url, version)
    assert (found.kind, found.revision) == ("civitai", "77")
    facts = pipelines.read_facts(found, tmp_path)
    assert facts.parameters == pytest.approx(10_000, rel=0.1)
    path = source.fetch(found, tmp_path, lambda *_: None)
    assert path.read_bytes() == CHECKPOINT
    assert path == tmp_path / "civitai" / "77" / "_.._a_model.safetensors"  # its name there is no path here
    assert {token for _, _, token in site.requests} == {"Bearer a-token"}
    asked = len(site.requests)
    assert source.fetch(found, tmp_path, lambda *_: None) == path
    assert len(site.requests) == asked


def test_what_broke_off_is_resumed(site: Site, tmp_path: Path):
    found = pipelines.resolve(PAGE, None)
    site.cut_after = 5000
    with pytest.raises(ModelError, match="cannot be reached"):
        source.fetch(found, tmp_path, lambda *_: None)
    site.cut_after = None
    assert source.fetch(found, tmp_path, lambda *_: None).read_bytes() == CHECKPOINT
    assert site.requests[-1][1] == "bytes=5000-"


def test_what_is_whole_but_not_yet_named_is_not_fetched_again(site: Site, tmp_path: Path):
    found = pipelines.resolve(PAGE, None)
    with pytest.raises(Cancelled):
        source.fetch(found, tmp_path, lambda *_: None, lambda: True)
    place = tmp_path / "civitai" / "77" / "_.._a_model.safetensors.partial"
    place.write_bytes(CHECKPOINT)
    assert source.fetch(found, tmp_path, lambda *_: None).read_bytes() == CHECKPOINT


def test_another_file_than_announced_is_not_kept(site: Site, tmp_path: Path):
    found = pipelines.resolve(PAGE, None)
    site.data = CHECKPOINT[:-1] + b"x"
    with pytest.raises(ModelError, match="arrived damaged"):
        source.fetch(found, tmp_path, lambda *_: None)
    site.data = CHECKPOINT + bytes(100_000)
    with pytest.raises(ModelError, match="longer than"):
        source.fetch(found, tmp_path, lambda *_: None)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_where_the_site_may_send_us(site: Site, tmp_path: Path):
    found = pipelines.resolve(PAGE, None)
    site.redirect = "http://169.254.169.254/latest"
    with pytest.raises(ModelError, match="not over TLS"):
        source.fetch(found, tmp_path, lambda *_: None)


@pytest.mark.parametrize(
    ("status", "said"), [(401, "CIVITAI_API_TOKEN"), (404, "Check the page's URL"), (500, "Try again")]
)
def test_refusals_say_what_to_do(site: Site, status: int, said: str):
    site.status = status
    with pytest.raises(ModelError) as caught:
        pipelines.resolve(PAGE, None)
    assert said in caught.value.fix


def test_other_sites_and_pages_are_refused(site: Site):
    for url in ("https://example.com/models/9", "http://civitai.com/models/9", "https://civitai.com/user/x"):
        with pytest.raises(ModelError):
            civitai.find(url, None)
    with pytest.raises(ModelError, match="no number"):
        civitai.find(PAGE, "v1.0")
    assert site.requests == []
