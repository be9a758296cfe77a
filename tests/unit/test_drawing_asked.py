"""What may be asked of a server that draws: every bound, and the field that is named when one is passed."""

from __future__ import annotations

from typing import Any

import pytest

from chutes.engine.inside.drawing.asked import Invalid, Skill, openai, published

SKILL = Skill("StableDiffusionXLPipeline", factor=8, width=1024, height=768)


def wrong(reader: Any, skill: Any = SKILL, **fields: Any) -> Invalid:
    with pytest.raises(Invalid) as caught:
        reader({"prompt": "a cat", **fields}, skill)
    return caught.value


def test_the_published_defaults():
    (picture,) = published({"prompt": "a cat"}, SKILL).pictures
    assert (picture.width, picture.height, picture.steps, picture.guidance) == (1024, 1024, 25, 7.5)
    assert (picture.negative_prompt, picture.true_cfg) == ("", None)
    assert 0 <= picture.seed < 2**32


def test_what_the_published_platform_takes_out_is_taken():
    body = {
        "prompt": "a cat",
        "model": "x",
        "cord": "y",
        "method": "z",
        "img_guidance_scale": 2,
        "image_b64": [],
    }
    assert published({**body, "true_cfg_scale": 3}, SKILL).pictures[0].true_cfg is None
    other = Skill("FluxPipeline", 16, 1024, 1024, true_cfg=True)
    assert published({**body, "true_cfg_scale": 3}, other).pictures[0].true_cfg == 3


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [
        ("width", 128, 2048),
        ("height", 128, 2048),
        ("num_inference_steps", 1, 50),
        ("guidance_scale", 1, 20),
        ("seed", 0, 2**32 - 1),
        ("img_guidance_scale", 1, 20),
        ("true_cfg_scale", 0, 10),
    ],
)
def test_bounds_hold_and_name_their_field(field: str, low: int, high: int):
    for value in (low, high, None):
        published({"prompt": "a cat", field: value}, SKILL)
    for value in (low - 1, high + 1, "12", True, [], float("nan"), float("inf"), 10**400):
        found = wrong(published, **{field: value})
        assert found.field == field
        assert field in found.message
        assert len(found.message) < 200


def test_sizes_are_multiples_of_what_the_pipeline_draws():
    found = wrong(published, width=1001)
    assert (found.field, "1000 or 1008" in found.message) == ("width", True)
    assert "128 or 144" in wrong(openai, Skill("P", 16, 128, 128), size="130x128").message
    assert wrong(published, Skill("P", 96, 1024, 1024), width=130).message.endswith("take 192.")


@pytest.mark.parametrize("prompt", [None, "", "  ", 3, ["a"], "x" * 32_001])
def test_a_prompt_is_a_text(prompt: Any):
    for reader in (published, openai):
        assert wrong(reader, prompt=prompt).field == "prompt"


def test_fields_that_nobody_knows_are_refused_with_the_nearest():
    for reader in (published, openai):
        found = wrong(reader, num_inference_step=3)
        assert (found.field, found.code) == ("num_inference_step", "unknown_parameter")
        assert "'num_inference_steps'" in found.message
        assert wrong(lambda _, skill, reader=reader: reader([], skill)).field is None


def test_openai_draws_the_pipelines_own_size_and_as_it_thinks_right():
    asked = openai({"prompt": "a cat", "model": "x", "quality": "hd", "style": "vivid", "user": "me"}, SKILL)
    (picture,) = asked.pictures
    assert (picture.width, picture.height, picture.steps, picture.guidance) == (1024, 768, None, None)
    assert (asked.format, asked.by_url, asked.stream) == ("png", False, False)


def test_an_authors_defaults_count_where_a_request_says_nothing():
    skill = Skill("P", 8, 512, 512, defaults={"num_inference_steps": 4, "guidance_scale": 1.0})
    for reader in (published, openai):
        first = reader({"prompt": "a cat"}, skill).pictures[0]
        assert (first.steps, first.guidance) == (4, 1.0)
        assert reader({"prompt": "a cat", "num_inference_steps": 9}, skill).pictures[0].steps == 9


def test_the_pictures_of_one_request_have_seeds_in_a_row():
    seeds = [picture.seed for picture in openai({"prompt": "a", "n": 3, "seed": 2**32 - 2}, SKILL).pictures]
    assert seeds == [2**32 - 2, 2**32 - 1, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0), ("n", 11), ("n", 1.5), ("size", "big"), ("size", "64x128"), ("size", "128x4096"),
        ("size", 3),
        ("size", "1024x1024x3"), ("response_format", "png"), ("output_format", "gif"), ("stream", "yes"),
        ("partial_images", 4), ("output_compression", 101), ("background", "transparent"),
    ],
)  # fmt: skip
def test_openai_fields_name_themselves(field: str, value: Any):
    assert wrong(openai, **{field: value}).field == field


def test_fields_that_contradict_each_other():
    assert wrong(openai, partial_images=2).field == "partial_images"
    assert wrong(openai, progress=True).field == "progress"
    assert wrong(openai, stream=True, response_format="url").field == "response_format"
    assert wrong(published, image_b64=["x"]).field == "image_b64"
    assert (
        wrong(published, Skill("P", 8, 512, 512, negative=False), negative_prompt="dog").field
        == "negative_prompt"
    )


def test_only_pictures_of_one_kind_are_drawn_together():
    def kind(**fields: Any) -> object:
        return openai({"prompt": "a cat", **fields}, SKILL).pictures[0].kind

    assert kind(seed=1, prompt="a dog") == kind(seed=2)
    assert kind(negative_prompt="x") == kind(negative_prompt="y")
    assert len({kind(), kind(size="512x512"), kind(num_inference_steps=3), kind(guidance_scale=2)}) == 4
    assert kind() != kind(negative_prompt="x")
