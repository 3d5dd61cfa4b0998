"""What a checkpoint says of its directions holds in Python too, where a request says nothing."""

import json
import shutil
from pathlib import Path

import pytest
from helpers.engines import start_llm
from vllm import SamplingParams

import vllm_dynin as dynin

OWN = {
    "t2t": {"max_tokens": 12, "steps": 3, "temperature": 0.0},
    "t2s": {"max_tokens": 20, "steps": 5, "guidance_scale": 0.0},
    "t2i": {"steps": 3, "guidance_scale": 0.0, "width": 56, "height": 28},
}
CHAT = [{"role": "user", "content": "Copy these words: seven three"}]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    shipped = Path(dynin.__file__).parent / "assets" / "dynin-tiny"
    folder = Path(shutil.copytree(shipped, tmp_path_factory.mktemp("own") / "dynin-tiny"))
    patch = json.loads((folder / "config.json").read_text())["image_patch"]
    sized = OWN | {"t2i": OWN["t2i"] | {"width": 4 * patch, "height": 2 * patch}}
    text = json.dumps({"max_new_tokens": 9, "dynin": sized})
    (folder / "generation_config.json").write_text(text)
    with start_llm(folder) as llm:
        yield llm


def test_generate(own):
    options = dynin.DenoiseParams(stop_at_eos=False)
    text, speech, image = dynin.generate(
        own,
        [
            dynin.TextToText("hello", options=options),
            dynin.TextToSpeech("one", options=options),
            dynin.TextToImage("a seven"),
        ],
        use_tqdm=False,
    )
    assert (len(text.token_ids), text.report.steps) == (12, 3)
    assert (len(speech.token_ids), speech.report.steps, speech.report.forwards) == (20, 5, 5)
    assert (image.report.steps, image.image.width) == (3, 2 * image.image.height)


def test_chat_and_generate_of_vllm(own):
    """Without parameters the checkpoint decides; what parameters say is said."""
    (output,) = own.chat(CHAT, use_tqdm=False)
    again = own.chat(CHAT, use_tqdm=False)[0]
    assert output.outputs[0].token_ids == again.outputs[0].token_ids  # greedy
    params = SamplingParams(max_tokens=None, temperature=0, ignore_eos=True)
    assert len(own.chat(CHAT, params, use_tqdm=False)[0].outputs[0].token_ids) == 12
    params = SamplingParams(max_tokens=7, temperature=0, ignore_eos=True)
    assert len(own.chat(CHAT, params, use_tqdm=False)[0].outputs[0].token_ids) == 7
    params = dynin.DenoiseParams(stop_at_eos=False).to_sampling_params()
    assert len(own.chat(CHAT, params, use_tqdm=False)[0].outputs[0].token_ids) == 12


def test_white_space_is_not_spoken(own):
    for text in (" \n", "\u200b"):
        with pytest.raises(ValueError, match="no text to speak"):
            dynin.generate(own, [dynin.TextToSpeech(text)], use_tqdm=False)
