"""Faults of a checkpoint that nobody but its operator can mend are found before a port opens."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.engines import DEFAULTS, environment
from helpers.tiny_tokenizer import make_tokenizer
from vllm import EngineArgs

import vllm_dynin
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig
from vllm_dynin.defaults import defaults_of

ASSETS = Path(vllm_dynin.__file__).parent / "assets"


def configured(folder: Path, **options) -> LLaDAConfig:
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="0"):
        engine = EngineArgs(model=str(folder), **(DEFAULTS | options)).create_engine_config()
    config = engine.model_config.hf_config
    assert isinstance(config, LLaDAConfig)
    return config


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(ASSETS / "dynin-tiny", tmp_path / "dynin-tiny"))


def cut(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return damage


def deleted(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def generation(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "generation_config.json").write_text(text) and None


def another_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    make_tokenizer().save_pretrained(folder)


def another_codec(folder: Path) -> None:
    shutil.rmtree(folder / "image_codec")
    shutil.copytree(ASSETS / "tiny-magvit", folder / "image_codec")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "image codec cut": (cut("image_codec/model.safetensors"), "image_codec/model.safetensors"),
    "image codec gone": (deleted("image_codec/model.safetensors"), "no .*safetensors file"),
    "image codec's config": (cut("image_codec/config.json"), "image_codec/config.json"),
    "another image codec": (another_codec, "codec"),
    "speech codec cut": (cut("speech_codec/model.safetensors"), "speech_codec/model.safetensors"),
    "speech codec gone": (deleted("speech_codec/model.safetensors"), "no .*safetensors file"),
    "weights cut": (cut("model.safetensors"), r"dynin-tiny/model\.safetensors"),
    "another tokenizer": (another_tokenizer, "the tokenizer .* use the tokenizer the checkpoint"),
    "defaults cut": (generation("{"), "generation_config.json is not valid JSON"),
    "defaults a list": (generation("[]"), "must hold a JSON object"),
    "a direction": (generation('{"dynin": {"tts": {}}}'), r"dynin\.tts is no direction"),
    "an option": (generation('{"dynin": {"t2s": {"steps": 0}}}'), r"dynin\.t2s: .*>= 1"),
    "a length": (generation('{"max_new_tokens": 0}'), "max_new_tokens"),
    "no style": (generation('{"dynin": {"t2s": {"style": "loud"}}}'), "loud"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=list(DAMAGE))
def test_what_is_damaged(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        configured(folder)


def test_what_is_whole(folder):
    config = configured(folder)
    assert defaults_of(Task.TEXT_TO_SPEECH, config).max_tokens == 48
    assert defaults_of(Task.SPEECH_TO_SPEECH, config).max_tokens == 64


def test_what_the_operator_says(folder, tmp_path):
    """VLLM's own flags hold for these defaults as well."""
    config = configured(folder, generation_config="vllm")
    assert defaults_of(Task.TEXT_TO_SPEECH, config).max_tokens == 512
    own = {"dynin": {"t2s": {"max_tokens": 20}}}
    config = configured(folder, override_generation_config=own)
    assert defaults_of(Task.TEXT_TO_SPEECH, config).max_tokens == 20
    assert defaults_of(Task.TEXT_TO_SPEECH, config).block_length == 8
    other = tmp_path / "other"
    other.mkdir()
    (other / "generation_config.json").write_text(json.dumps(own))
    config = configured(folder, generation_config=str(other))
    assert defaults_of(Task.TEXT_TO_SPEECH, config).max_tokens == 20
    assert defaults_of(Task.TEXT_TO_SPEECH, config).block_length == 128
