"""A chute that draws, on the CPU: its two endpoints, and whether what it draws can be recognised."""

from __future__ import annotations

import base64
import http.client
import io
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image, ImageChops

from tests.integration.platform_kit import PlatformKit, platform, until
from tests.story import Story

DEPLOY_SECONDS = 1800  # the first run makes an environment of 1.2 GB
INSIDE = Path(__file__).parent / "inside"
JUDGE = ("scikit-learn==1.9.1", "numpy==2.4.6", "pillow==13.0.0")
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
EACH = 12
"""Pictures of each digit for the judge."""
FEW: Any = {"num_inference_steps": 10, "guidance_scale": 4}

pytestmark = pytest.mark.timeout(DEPLOY_SECONDS + 600)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Iterator[PlatformKit]:
    """`chutes deploy templates.diffusion_chute:chute`, as a user types it, on the CPU."""
    with platform(tmp_path_factory.mktemp("diffusion"), cache=cache_dir) as kit:
        kit.run("deploy", "templates.diffusion_chute:chute", timeout=DEPLOY_SECONDS)
        yield kit


@pytest.fixture(scope="module")
def client(kit: PlatformKit) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{kit.url}/v1", api_key=kit.key("draws"), max_retries=0)


@pytest.fixture(scope="module")
def slug(kit: PlatformKit) -> str:
    return next(chute["slug"] for chute in kit.json("ps") if chute["name"] == "digits")


def draw(client: openai.OpenAI, prompt: str = "the digit seven", **more: Any) -> list[bytes]:
    extra = {**FEW, "seed": 1, **more.pop("extra", {})}
    answer = client.images.generate(model="digits", prompt=prompt, extra_body=extra, **more)
    return [base64.b64decode(item.b64_json or "") for item in answer.data or []]


def image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def difference(one: bytes, other: bytes) -> int:
    """The most by which any pixel differs, of 255."""
    bands = ImageChops.difference(image(one), image(other)).getextrema()
    return max(int(band[1]) for band in bands if isinstance(band, tuple))


@pytest.mark.parametrize("where", ["{slug}/generate", "generate"])
def test_generate_answers_with_a_jpeg(kit: PlatformKit, client: openai.OpenAI, slug: str, where: str):
    body = {"prompt": "the digit seven", "width": 128, "height": 128, "seed": 3, "num_inference_steps": 10}
    if "slug" not in where:
        body["model"] = "digits"
    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=120)
    headers = {"Authorization": f"Bearer {client.api_key}", "Content-Type": "application/json"}
    connection.request("POST", "/" + where.format(slug=slug), json.dumps(body), headers)
    response = connection.getresponse()
    data = response.read()
    assert (response.status, response.headers["content-type"]) == (200, "image/jpeg"), data
    assert response.headers["content-disposition"].startswith('attachment; filename="')
    assert (image(data).format, image(data).size) == ("JPEG", (128, 128))


def test_the_openai_sdk_draws_two(client: openai.OpenAI):
    one, other = draw(client, n=2, size="128x128")
    assert image(one).format == "PNG"
    assert image(one).size == (128, 128)
    assert one != other
    (webp,) = draw(client, output_format="webp")
    assert image(webp).format == "WEBP"


def test_urls_show_the_picture_to_whoever_has_them(client: openai.OpenAI):
    answer = client.images.generate(
        model="digits", prompt="the digit seven", response_format="url", extra_body={**FEW, "seed": 1}
    )
    (item,) = answer.data or []
    assert item.url
    with urllib.request.urlopen(item.url, timeout=60) as response:  # without a key
        assert response.headers["content-type"] == "image/png"
        assert response.read() == draw(client)[0]
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(item.url[:-6] + "guess!", timeout=60)


def test_a_stream_shows_how_it_comes_about(client: openai.OpenAI):
    stream: Any = client.images.generate(
        model="digits", prompt="the digit seven", stream=True, partial_images=2, extra_body={**FEW, "seed": 1}
    )
    events = list(stream)
    assert [event.type for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    pictures = [base64.b64decode(event.b64_json) for event in events]
    # What comes closer and closer, and in the end what is drawn without a stream.
    assert difference(pictures[0], pictures[2]) > 20
    assert pictures[2] == draw(client)[0]


def test_a_stream_tells_its_steps_when_asked(client: openai.OpenAI):
    extra = {**FEW, "progress": True}
    stream: Any = client.images.generate(model="digits", prompt="a two", stream=True, extra_body=extra)
    events = list(stream)
    assert [event.step for event in events[:-1]] == list(range(1, 11))
    assert events[-1].type == "image_generation.completed"


def test_a_seed_is_a_picture(client: openai.OpenAI, story: Story):
    alone = [draw(client, extra={"seed": 40 + number})[0] for number in range(4)]
    assert draw(client, extra={"seed": 41})[0] == alone[1]
    together = draw(client, n=4, extra={"seed": 40})
    # Sums of a batch are rounded otherwise than alone: by a step or two of 255 here and there.
    worst = max(difference(one, other) for one, other in zip(alone, together, strict=True))
    same = sum(one == other for one, other in zip(alone, together, strict=True))
    story.tell(
        "a seed drawn alone and in a batch of 4", f"{same} of 4 byte for byte", f"worst pixel {worst} / 255"
    )
    assert worst <= 3
    assert min(difference(alone[0], other) for other in alone[1:]) > 20


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {"prompt": "x", "width": 127}, "width"),
        ("/generate", {"prompt": "x", "height": 4096}, "height"),
        ("/generate", {"prompt": "x", "height": 130}, "height"),
        ("/generate", {"prompt": "x", "num_inference_steps": 51}, "num_inference_steps"),
        ("/generate", {"prompt": "x", "guidance_scale": 0.5}, "guidance_scale"),
        ("/generate", {"prompt": "x", "seed": -1}, "seed"),
        ("/generate", {"prompt": "x", "steps": 3}, "steps"),
        ("/generate", {}, "prompt"),
        ("/v1/images/generations", {"prompt": "x", "size": "100x100"}, "size"),
        ("/v1/images/generations", {"prompt": "x", "n": 11}, "n"),
    ],
)
def test_bounds_name_their_field(
    kit: PlatformKit, client: openai.OpenAI, path: str, body: dict[str, Any], field: str
):
    status, answer = kit.ask(client.api_key, path, {"model": "digits", **body})
    error = json.loads(answer)["error"]
    assert (status, error["param"], error["type"]) == (400, field, "invalid_request_error")
    assert field in error["message"]


def test_a_large_answer_passes_whole(client: openai.OpenAI):
    """Ten pictures of a quarter of a million pixels are a megabyte of JSON and more."""
    pictures = draw(client, n=10, size="512x512", extra={"num_inference_steps": 1})
    assert [image(data).size for data in pictures] == [(512, 512)] * 10
    assert sum(map(len, pictures)) > 1_000_000
    stream: Any = client.images.generate(
        model="digits", prompt="x", size="512x512", stream=True, extra_body={"num_inference_steps": 1}
    )
    (event,) = stream  # one event, far longer than what the gateway holds back
    assert image(base64.b64decode(event.b64_json)).size == (512, 512)


def test_who_leaves_is_not_drawn(kit: PlatformKit, client: openai.OpenAI):
    admin = kit.run("keys", "create", "--admin", "--name", "watcher").stdout.strip()

    def running() -> float:
        page = kit.ask(admin, "/metrics")[1].decode().splitlines()
        rows = [line for line in page if line.startswith("chutes_engine_running_requests")]
        return sum(float(row.rpartition(" ")[2]) for row in rows)

    minutes = {"model": "digits", "prompt": "x", "n": 4, "size": "512x512", "num_inference_steps": 50}
    connection = http.client.HTTPConnection("127.0.0.1", kit.port, timeout=120)
    headers = {"Authorization": f"Bearer {client.api_key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/images/generations", json.dumps(minutes), headers)
    until(lambda: running() > 0)
    connection.close()
    until(lambda: running() == 0, 60)  # within a step
    assert len(draw(client)) == 1


def test_it_draws_what_the_prompt_names(client: openai.OpenAI, tmp_path: Path, cache_dir: Path, story: Story):
    """Nine of ten pictures at least are recognised by a classifier that has never seen their data."""

    def some(digit: int, name: str) -> None:
        pictures = draw(client, f"the digit {name}", n=EACH // 2, extra={"seed": 100 * digit + len(name)})
        for number, data in enumerate(pictures):
            (tmp_path / f"{digit}-{name}-{number}.png").write_bytes(data)

    begun = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        for digit, name in enumerate(NAMES):
            pool.submit(some, digit, name)
            pool.submit(some, digit, str(digit))
    seconds = time.monotonic() - begun
    wanted = [int(path.name[0]) for path in sorted(tmp_path.iterdir())]
    assert len(wanted) == EACH * len(NAMES)
    done = subprocess.run(
        [_judge(cache_dir), INSIDE / "read_digits.py", tmp_path], capture_output=True, text=True, check=True
    )
    seen = json.loads(done.stdout)
    right = sum(one == other for one, other in zip(wanted, seen, strict=True))
    accuracy = right / len(wanted)
    story.tell(
        "digits recognised by a classifier of its own", f"{right} of {len(wanted)} ({accuracy:.1%})",
        f"{len(wanted) / seconds:.1f} pictures/s in {FEW['num_inference_steps']} steps",
    )  # fmt: skip
    assert accuracy >= 0.9


def _judge(cache_dir: Path) -> Path:
    """The interpreter of an environment with scikit-learn, which nothing else here needs."""
    place = cache_dir / "judge" / "-".join(JUDGE).replace("==", "-")
    python = place / "bin" / "python"
    if not (place / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *JUDGE], check=True, timeout=600)
        (place / "complete").touch()
    return python
