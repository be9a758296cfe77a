"""The drawing server over HTTP; it draws plain squares, so that neither torch nor a model is needed."""

from __future__ import annotations

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection
from typing import Any

import pytest
import uvicorn
from PIL import Image

from chutes.engine.inside.drawing.app import Server
from chutes.engine.inside.drawing.asked import Picture, Skill
from chutes.engine.inside.drawing.shelf import Shelf
from chutes.engine.inside.drawing.studio import Drawn, Studio

KEY = "sk-secret"
IMAGES = "/v1/images/generations"


class Squares:
    """Paints the seed as a colour; a prompt of `rude` is flagged, `hold` waits to be let go."""

    skill = Skill("SquarePipeline", factor=8, width=128, height=256)

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.steps = 0

    def tokens(self, text: str) -> int:
        return len(text.split())

    def draw(
        self, pictures: Sequence[Picture], on_step: Callable[[int, int, Callable[[int], Any]], None]
    ) -> list[Drawn]:
        def paint(one: Picture) -> Image.Image:
            return Image.new("RGB", (one.width, one.height), (one.seed % 256, 0, 0))

        total = pictures[0].steps or 2
        for step in range(1, total + 1):
            if pictures[0].prompt == "hold":
                self.let_go.wait(0.05)
            self.steps += 1
            on_step(step, total, lambda index: paint(pictures[index]))
        return [Drawn(paint(one), one.prompt == "rude") for one in pictures]


class Kit:
    def __init__(self) -> None:
        self.squares = Squares()
        self.studio = Studio(self.squares, most_waiting=2)
        self.studio.start()
        self.server = Server(self.studio, self.squares, ["squares", "id"], Shelf("i-1."))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        config = uvicorn.Config(self.server.app(KEY), port=self.port, log_level="warning")
        self.uvicorn = uvicorn.Server(config)
        threading.Thread(target=self.uvicorn.run, daemon=True).start()
        while not self.uvicorn.started:
            time.sleep(0.01)

    def open(self, path: str, body: Any = None, key: str = KEY, **headers: str) -> Any:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = {"Authorization": f"Bearer {key}", **headers}
        connection.request(
            "GET" if body is None else "POST", path, None if body is None else json.dumps(body), sent
        )
        return connection.getresponse()

    def ask(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        response = self.open(path, body, **headers)
        data = response.read()
        is_json = "json" in response.headers.get("content-type", "")
        return response.status, json.loads(data) if is_json else data

    def events(self, **body: Any) -> list[tuple[str, dict[str, Any]]]:
        text = self.open(IMAGES, {"prompt": "x", "stream": True, **body}).read().decode()
        found = []
        for event in text.strip().split("\n\n"):
            kind, data = event.split("\n")
            found.append((kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
        return found


@pytest.fixture(scope="module")
def kit() -> Iterator[Kit]:
    kit = Kit()
    yield kit
    kit.uvicorn.should_exit = True


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def image(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def test_generate_answers_with_the_bytes_of_a_jpeg(kit: Kit):
    response = kit.open("/generate", {"prompt": "x", "width": 128, "height": 136, "seed": 200})
    picture = image(response.read())
    assert (response.status, picture.format, picture.size) == (200, "JPEG", (128, 136))
    red = picture.getpixel((5, 5))
    assert isinstance(red, tuple)
    assert abs(red[0] - 200) < 4
    disposition = response.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="')
    assert disposition.endswith('.jpg"')
    assert response.headers["x-seed"] == "200"


def test_generations_in_json_in_every_format(kit: Kit):
    for format in ("png", "jpeg", "webp"):
        status, answer = kit.ask(IMAGES, {"prompt": "two words", "n": 2, "seed": 7, "output_format": format})
        assert status == 200
        pictures = [image(base64.b64decode(item["b64_json"])) for item in answer["data"]]
        assert [picture.format for picture in pictures] == [format.upper()] * 2
        assert [item["seed"] for item in answer["data"]] == [7, 8]
        assert (answer["size"], answer["output_format"]) == ("128x256", format)
        assert answer["usage"]["input_tokens"] == answer["usage"]["total_tokens"] == 4
    assert image(base64.b64decode(kit.ask(IMAGES, {"prompt": "x"})[1]["data"][0]["b64_json"])).format == "PNG"


def test_urls_are_where_the_gateway_says_and_only_there(kit: Kit):
    base = "https://draws.example/me/images/"
    status, answer = kit.ask(IMAGES, {"prompt": "x", "response_format": "url"}, **{"X-Chutes-Images": base})
    (item,) = answer["data"]
    assert (status, item["url"].startswith(f"{base}i-1.")) == (200, True)
    status, data = kit.ask("/images/" + item["url"].removeprefix(base))
    assert (status, image(data).size) == (200, (128, 256))
    assert kit.ask("/images/i-1.guessed")[0] == 404
    status, answer = kit.ask(IMAGES, {"prompt": "x", "response_format": "url"})
    assert (status, answer["error"]["param"]) == (400, "response_format")


def test_a_stream_shows_steps_previews_and_pictures(kit: Kit):
    events = kit.events(num_inference_steps=4, partial_images=1, progress=True, seed=3)
    assert [kind for kind, _ in events] == [
        "image_generation.progress",
        "image_generation.progress",
        "image_generation.partial_image",
        "image_generation.progress",
        "image_generation.progress",
        "image_generation.completed",
    ]
    assert all(data["type"] == kind for kind, data in events)
    assert [(data["step"], data["steps"]) for kind, data in events if "progress" in kind] == [
        (1, 4), (2, 4), (3, 4), (4, 4),
    ]  # fmt: skip
    assert events[2][1]["partial_image_index"] == 0
    assert events[-1][1]["usage"]["input_tokens"] == 1
    assert {kind for kind, _ in kit.events()} == {"image_generation.completed"}
    assert sorted(data["image_index"] for _, data in kit.events(n=2)) == [0, 1]


def test_bad_requests_name_their_field(kit: Kit):
    for path, body, field in (
        ("/generate", {"prompt": "x", "width": 3}, "width"),
        ("/generate", {"prompt": "x", "n": 2}, "n"),
        (IMAGES, {"prompt": "x", "n": 99}, "n"),
        (IMAGES, {}, "prompt"),
    ):
        status, answer = kit.ask(path, body)
        assert (status, answer["error"]["param"], answer["error"]["type"]) == (
            400, field, "invalid_request_error",
        )  # fmt: skip
    response = kit.open("/generate", "not an object")
    assert (response.status, json.loads(response.read())["error"]["code"]) == (400, "invalid_json")


def test_what_the_safety_checker_flags_is_refused(kit: Kit):
    assert kit.ask("/generate", {"prompt": "rude"})[1]["error"]["code"] == "content_policy_violation"
    ((kind, data),) = kit.events(prompt="rude")
    assert (kind, data["error"]["code"]) == ("error", "content_policy_violation")


def test_the_key_is_asked_for_but_by_health(kit: Kit):
    assert kit.open("/health", key="wrong").status == 200
    for path in ("/metrics", "/v1/models", "/images/x"):
        assert kit.open(path, key="wrong").status == 401
    assert kit.open("/generate", {"prompt": "x"}, key="").status == 401
    assert [model["id"] for model in kit.ask("/v1/models")[1]["data"]] == ["squares", "id"]


def test_a_full_line_is_429_and_leaving_makes_room(kit: Kit):
    body = {"prompt": "hold", "num_inference_steps": 50, "seed": 1}
    responses = []
    before = kit.squares.steps
    for guidance in (2, 3, 4):  # of different kinds, so that they are not drawn together
        connection = HTTPConnection("127.0.0.1", kit.port, timeout=30)
        data = json.dumps({**body, "guidance_scale": guidance})
        connection.request("POST", "/generate", data, {"Authorization": f"Bearer {KEY}"})
        responses.append(connection)
        until(lambda: kit.studio.counts.drawing + kit.studio.waiting == len(responses))
    refused = kit.open("/generate", {"prompt": "x"})
    assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    assert json.loads(refused.read())["error"]["type"] == "rate_limit_error"
    assert kit.ask("/health")[0] == 200
    for connection in responses:
        connection.close()
    until(lambda: kit.studio.waiting == 0)
    assert kit.ask("/generate", {"prompt": "x", "width": 128, "height": 128})[0] == 200
    # 150 steps were asked for. Those of a client that has gone are not done.
    assert kit.squares.steps - before < 100
    kit.squares.let_go.set()


def test_metrics_count_requests_and_pictures(kit: Kit):
    before = kit.studio.counts.pictures
    kit.ask("/generate", {"prompt": "x"})
    text = kit.ask("/metrics")[1].decode()
    assert f"diffusers:images_total {before + 1}\n" in text
    assert "diffusers:images_waiting 0\n" in text
    assert 'diffusers:requests_total{path="/generate",status="200"}' in text
