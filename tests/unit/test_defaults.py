"""Defaults of the directions: what a checkpoint may say, and the order in which they count."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tiny_checkpoint import tiny_config

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig, LLaDAConfig
from vllm_dynin.defaults import (
    FAMILY_DEFAULTS,
    Defaults,
    default_size,
    defaults_of,
    read_defaults,
    source_side,
)
from vllm_dynin.planning import (
    PlanRequest,
    StandardOptions,
    check_defaults,
    image_size,
    make_plan,
)
from vllm_dynin.sampling.params import DenoiseParams


def config_with(**own: Any) -> DyninOmniConfig:
    config = DyninOmniConfig()
    config.generation_defaults = read_defaults({"dynin": own})
    check_defaults(config)
    return config


def planned(config: LLaDAConfig, task: Task, max_tokens: int | None = None, **options: Any):
    v = config.vocabulary
    heads = {
        Task.TEXT_TO_TEXT: (v.bos, 5, v.eos),
        Task.TEXT_TO_IMAGE: (v.t2i, v.bos, 5, v.eos, v.soi),
        Task.TEXT_TO_SPEECH: (v.t2s, v.bos, 5, v.eos, v.soa),
    }
    request = PlanRequest(
        prompt_ids=heads[task],
        standard=StandardOptions(max_tokens=max_tokens),
        options=DenoiseParams(task=task, **options),
    )
    return make_plan(request, config)


def test_every_direction_has_what_its_decoder_needs():
    assert set(FAMILY_DEFAULTS) == set(Task)
    for task, own in FAMILY_DEFAULTS.items():
        is_image = task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE)
        assert is_image == (own.block_length is None)
        is_mixed = task is Task.TEXT_IMAGE_TO_TEXT_IMAGE
        assert (is_image or is_mixed) == (own.max_tokens is None)
        assert is_mixed == (own.text_tokens is not None)


def test_speech_request_then_checkpoint_then_family():
    silent, own = DyninOmniConfig(), config_with(t2s={"max_tokens": 48, "guidance_scale": 0.0})
    family = planned(silent, Task.TEXT_TO_SPEECH)
    assert (family.canvas.num_slots, family.guidance_scale) == (512, 2.5)
    assert family.options[0].block_length == 128
    stated = planned(own, Task.TEXT_TO_SPEECH)
    assert (stated.canvas.num_slots, stated.guidance_scale) == (48, 0.0)
    assert stated.options[0].block_length == 128  # the checkpoint leaves it to the family
    asked = planned(own, Task.TEXT_TO_SPEECH, 20, cfg_scale=1.0, block_length=4, steps=10)
    assert (asked.canvas.num_slots, asked.guidance_scale) == (20, 1.0)
    assert (asked.options[0].block_length, asked.options[0].num_steps) == (4, 10)
    assert planned(own, Task.TEXT_TO_SPEECH, max_duration=1.0).canvas.num_slots == 25


def test_text_steps_block_and_unmasking():
    own = config_with(t2t={"max_tokens": 32, "steps": 8, "block_length": 32, "remasking": "random"})
    (options,) = planned(own, Task.TEXT_TO_TEXT).options
    assert (options.num_steps, options.block_length, options.remasking) == (8, 32, "random")
    (options,) = planned(own, Task.TEXT_TO_TEXT, remasking="low_confidence", steps=3).options
    assert (options.num_steps, options.remasking) == (3, "low_confidence")
    (options,) = planned(DyninOmniConfig(), Task.TEXT_TO_TEXT, 64).options
    assert (options.num_steps, options.block_length, options.remasking) == (
        64,
        16,
        "low_confidence",
    )


def test_sizes():
    task = Task.TEXT_TO_IMAGE
    square = config_with(t2i={"resolution": 256, "noise_schedule": "linear", "steps": 4})
    assert default_size(task, square) == image_size(DenoiseParams(), task, square) == (256, 256)
    (options,) = planned(square, task).options
    assert (options.num_steps, options.schedule) == (4, "linear")
    assert image_size(DenoiseParams(width=64, height=32), task, square) == (32, 64)
    wide = config_with(t2i={"width": 64, "height": 32}, i2i={"resolution": 128})
    assert image_size(DenoiseParams(), task, wide) == (32, 64)
    assert image_size(DenoiseParams(resolution=48), task, wide) == (48, 48)
    assert image_size(DenoiseParams(), Task.IMAGE_TO_IMAGE, wide) == (128, 128)
    assert source_side(Task.IMAGE_TO_IMAGE, wide) == 128
    assert source_side(Task.IMAGE_TO_IMAGE, wide, 64) == 64
    assert source_side(Task.TEXT_IMAGE_TO_TEXT_IMAGE, wide) == DyninOmniConfig().edit_resolution


def test_what_other_programs_know():
    """`max_new_tokens` and `temperature`, where the directions do not say."""
    found = read_defaults(
        {"max_new_tokens": 64, "temperature": 0.5, "dynin": {"t2s": {"steps": 2}}}
    )
    assert found["t2s"] == {"max_tokens": 64, "steps": 2}
    assert found["s2s"] == found["v2s"] == {"max_tokens": 64}
    assert found["t2t"] == found["s2t"] == {"max_tokens": 64, "temperature": 0.5}
    assert found["ti2ti"] == {"text_tokens": 64}
    assert "t2i" not in found and "i2i" not in found
    own = read_defaults({"max_new_tokens": 64, "dynin": {"t2s": {"max_tokens": 48}}})
    assert own["t2s"] == {"max_tokens": 48}


def test_the_operator_comes_before_the_file():
    file = {"max_new_tokens": 64, "dynin": {"t2i": {"resolution": 64, "steps": 4}}}
    found = read_defaults(file, {"dynin": {"t2i": {"width": 32, "height": 64}}})
    assert found["t2i"] == {"steps": 4, "width": 32, "height": 64}
    assert read_defaults(file, {"max_new_tokens": 8})["t2t"] == {"max_tokens": 8}


def test_a_config_as_it_is_trained_and_saved_says_nothing():
    assert "generation_defaults" not in DyninOmniConfig().to_dict()
    assert DyninOmniConfig().generation_defaults == {}


BAD: dict[str, tuple[Any, str]] = {
    "no object": (5, "dynin is 5; write an object"),
    "list": ([], "dynin is"),
    "direction": ({"tts": {}}, r"dynin\.tts is no direction; use t2t"),
    "values": ({"t2s": 3}, r"dynin\.t2s is 3; write an object"),
    "misspelt": ({"t2s": {"step": 3}}, r"dynin\.t2s\.step is unknown; did you mean steps"),
    "word": ({"t2s": {"steps": "many"}}, r"dynin\.t2s: Expected `int"),
    "zero": ({"t2s": {"steps": 0}}, r"dynin\.t2s: Expected `int` >= 1"),
    "true": ({"t2t": {"max_tokens": True}}, r"dynin\.t2t: Expected `int"),
    "too much": ({"t2i": {"guidance_scale": 1e6}}, "<= 100"),
    "hot": ({"t2t": {"temperature": 3}}, "<= 2"),
    "remasking": ({"t2t": {"remasking": "best"}}, r"dynin\.t2t: Invalid enum value 'best'"),
    "image option": ({"t2t": {"resolution": 64}}, r"dynin\.t2t: resolution=64 is for image"),
    "speech option": ({"t2i": {"style": "x"}}, r"dynin\.t2i: style='x' is for speech"),
    "block of an image": ({"t2i": {"block_length": 4}}, "decoded as a whole"),
    "length of an image": ({"i2i": {"max_tokens": 4}}, "the length of an image is its size"),
    "no multiple": ({"t2i": {"resolution": 100}}, "multiples of 16"),
    "half a size": ({"t2i": {"width": 64}}, "go together"),
    "two sizes": ({"t2i": {"width": 64, "height": 64, "resolution": 64}}, "resolution stands for"),
    "schedule": ({"t2i": {"noise_schedule": "zigzag"}}, "zigzag"),
    "style": ({"t2s": {"style": "loud"}}, "loud"),
    "mixed text": ({"t2t": {"text_tokens": 4}}, "for ti2ti"),
}


@pytest.mark.parametrize(("own", "message"), BAD.values(), ids=list(BAD))
def test_bad_defaults(own, message):
    config = DyninOmniConfig()
    with pytest.raises(ValueError, match=message) as error:
        config.generation_defaults = read_defaults({"dynin": own})
        check_defaults(config)
    assert str(error.value).startswith("generation_config.json")


def test_bad_general_length():
    with pytest.raises(ValueError, match="max_tokens"):
        read_defaults({"max_new_tokens": "many"})


def test_a_text_model_takes_them_too():
    config = tiny_config()
    config.generation_defaults = read_defaults({"dynin": {"t2t": {"max_tokens": 7}}})
    assert defaults_of(Task.TEXT_TO_TEXT, config) == Defaults(max_tokens=7, block_length=16)
