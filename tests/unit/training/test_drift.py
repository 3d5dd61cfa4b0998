"""No drift: what a direction is trained on is what serving plans for the same request.

The request goes the whole way a client's does (`vllm_dynin.requests`, `planning.make_plan`); the
training sample with every target hidden must be its canvas, in both parities.
"""

import random

import numpy as np
import pytest
from PIL import Image

from vllm_dynin import requests as R
from vllm_dynin.canvas import Parity, Task
from vllm_dynin.codec_runner import CodecRunner
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.entrypoints.stand_in import TINY_IMAGE_DIRECTORY
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.processors.assemble import expand_media
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY
from vllm_dynin.processors.media import CodecFolders
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.training_ext.collate import collate
from vllm_dynin.training_ext.directions import TRAINED, objectives
from vllm_dynin.training_ext.records import (
    Draws,
    Record,
    SampleContext,
    make_sample,
    sample_policies,
)

PICTURE = Image.new("RGB", (16, 16), (200, 30, 40))
CLIP = [PICTURE, PICTURE]
RECORDING = (np.zeros(8000, np.float32), 16_000)
CODES, OTHER, FRAMES, UNITS = (1, 2, 3, 4), (5, 6, 7, 8), ((1, 2, 3, 4), (8, 7, 6, 5)), (3, 4)
VIDEO = tuple(code for frame in FRAMES for code in frame)


class NothingSaid(R.TextToImage):
    """What no client may ask for, but guidance computes."""

    def prompt(self, checkpoint: R.Checkpoint) -> R.Prompt:
        return R.Prompt(token_ids=checkpoint.assembler.text_to_image(""), options=self.options)


# direction → the record, the request a client would make, and the codes of its media by kind.
PAIRS = {
    "text": (
        {"task": Task.TEXT_TO_TEXT, "text": "a red cube", "answer": "blue table"},
        R.TextToText("a red cube"),
        {},
    ),
    "text, system prompt": (
        {
            "task": Task.TEXT_TO_TEXT,
            "turns": ({"role": "system", "content": "in detail"},),
            "text": "a red cube",
            "answer": "blue table",
            "thinking": True,
        },
        R.TextToText("a red cube", system="in detail", thinking=True),
        {},
    ),
    "images": (
        {
            "task": Task.IMAGE_TO_TEXT,
            "images": (CODES, OTHER),
            "text": "What stands on it?",
            "answer": "two spheres",
        },
        R.ImageToText([PICTURE, PICTURE], "What stands on it?"),
        {"images": (CODES, OTHER)},
    ),
    "image, own question": (
        {"task": Task.IMAGE_TO_TEXT, "images": (CODES,), "answer": "two spheres"},
        R.ImageToText(PICTURE),
        {"images": (CODES,)},
    ),
    "image, earlier turn": (
        {
            "task": Task.IMAGE_TO_TEXT,
            "images": (CODES,),
            "turns": (
                {"role": "user", "content": "a cube?"},
                {"role": "assistant", "content": "red"},
            ),
            "text": "a table?",
            "answer": "blue",
        },
        R.Chat(
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "image", "image": PICTURE},
                        {"type": "text", "text": "a cube?"},
                    ],
                },
                {"role": "assistant", "content": "red"},
                {"role": "user", "content": "a table?"},
            ]
        ),
        {"images": (CODES,)},
    ),
    "video": (
        {"task": Task.VIDEO_TO_TEXT, "images": FRAMES, "answer": "two spheres", "thinking": False},
        R.VideoToText(CLIP, thinking=False),
        {"videos": (VIDEO,)},
    ),
    "transcription": (
        {"task": Task.SPEECH_TO_TEXT, "units": UNITS, "answer": "a table"},
        R.SpeechToText(RECORDING),
        {"speech": (UNITS,)},
    ),
    "image generation": (
        {"task": Task.TEXT_TO_IMAGE, "text": "a red cube", "target_image": CODES},
        R.TextToImage("a red cube"),
        {},
    ),
    "image generation, nothing said": (
        {"task": Task.TEXT_TO_IMAGE, "target_image": CODES},
        NothingSaid(""),
        {},
    ),
    "edit": (
        {
            "task": Task.IMAGE_TO_IMAGE,
            "text": "paint it blue",
            "images": (CODES,),
            "target_image": OTHER,
        },
        R.EditImage(PICTURE, "paint it blue"),
        {"images": (CODES,)},
    ),
    "mixed answer": (
        {
            "task": Task.TEXT_IMAGE_TO_TEXT_IMAGE,
            "text": "paint it blue",
            "images": (CODES,),
            "target_image": OTHER,
            "answer": "red",
        },
        R.MixedAnswer(PICTURE, "paint it blue"),
        {"images": (CODES,)},
    ),
    "synthesis": (
        {"task": Task.TEXT_TO_SPEECH, "text": "a table", "units": UNITS},
        R.TextToSpeech("a table"),
        {},
    ),
    "spoken answer": (
        {
            "task": Task.SPEECH_TO_SPEECH,
            "units": UNITS,
            "images": (CODES,),
            "reply_units": (1, 2, 3),
        },
        R.SpeechToSpeech(RECORDING, [PICTURE]),
        {"images": (CODES,), "speech": (UNITS,)},
    ),
    "spoken answer to a video": (
        {"task": Task.VIDEO_TO_SPEECH, "text": "a cube?", "images": FRAMES, "units": UNITS},
        R.VideoToSpeech(CLIP, "a cube?"),
        {"videos": (VIDEO,)},
    ),
}


@pytest.fixture(scope="module")
def checkpoint(tokenizer) -> R.Checkpoint:
    config = DyninOmniConfig(
        text_vocab_size=len(tokenizer),
        codebook_size=8_192,
        speech_codebook_size=81,
        image_patch=4,
        video_num_frames=2,
        generation_resolution=8,
        edit_resolution=8,
        speech_text_block=80,
        image_text_block=20,
        video_text_block=20,
    )
    folders = CodecFolders(image=str(TINY_IMAGE_DIRECTORY), speech=str(TOY_SPEECH_DIRECTORY))
    return R.Checkpoint(config, tokenizer, folders, CodecRunner(folders, config.vocabulary))


def sample_of(record, checkpoint, parity):
    context = SampleContext(
        config=checkpoint.config,
        tokenizer=checkpoint.tokenizer,
        policies=sample_policies(dropout=0.0),
        parity=parity,
    )
    rng = random.Random(0)
    # What a server takes where the client says nothing: the first instruction of the list.
    rng.choice = lambda options: options[0]
    return make_sample(Record(**record), context, rng)


def plan_of(request, codes, checkpoint, parity, max_tokens, text_tokens):
    prompt = request.prompt(checkpoint)
    ids = expand_media(prompt.token_ids, checkpoint.config.vocabulary, **codes)
    options = DenoiseParams(parity=parity, text_tokens=text_tokens)
    return make_plan(
        PlanRequest(
            prompt_ids=ids,
            standard=StandardOptions(max_tokens=max_tokens),
            options=options,
        ),
        checkpoint.config,
    )


@pytest.mark.parametrize("parity", list(Parity))
@pytest.mark.parametrize("name", list(PAIRS))
def test_a_sample_is_the_planned_canvas(name, parity, checkpoint):
    record, request, codes = PAIRS[name]
    sample = sample_of(record, checkpoint, parity)
    text_tokens = None
    if sample.task is Task.TEXT_IMAGE_TO_TEXT_IMAGE:
        text_tokens = sample.region_length - len(OTHER)
    plan = plan_of(request, codes, checkpoint, parity, sample.region_length, text_tokens)
    canvas, mask = plan.canvas, checkpoint.config.vocabulary.mask
    assert canvas.task == sample.task == record["task"]

    batch = collate([sample])
    hidden = batch.ids_BT[0].masked_fill(batch.is_target_BT[0], mask).tolist()
    assert hidden == [*canvas.conditional.ids, *canvas.slots]
    start = canvas.conditional.canvas_start
    positions = [*canvas.conditional.positions, *range(start, start + canvas.num_slots)]
    given = batch.positions_BT
    assert (list(range(len(hidden))) if given is None else given[0].tolist()) == positions
    assert batch.is_visible_BT is None
    assert batch.is_target_BT[0].tolist() == [
        *[False] * len(canvas.conditional.ids),
        *(slot == mask for slot in canvas.slots),
    ]


def test_every_direction_has_a_pair():
    assert {record["task"] for record, _, _ in PAIRS.values()} == set(Task)


@pytest.mark.parametrize("name", ["image generation", "edit", "synthesis"])
def test_a_dropped_condition_is_the_second_stream_of_guidance(name, checkpoint):
    """Images are guided away from what was trained with the text dropped; speech has its own."""
    record, request, codes = PAIRS[name]
    context = SampleContext(
        config=checkpoint.config, tokenizer=checkpoint.tokenizer, policies=sample_policies()
    )
    draws = Draws(instruction="Say it.", is_text_dropped=True)
    dropped = make_sample(Record(**record), context, random.Random(0), draws)
    shown = [i for i, is_seen in enumerate(dropped.is_visible) if is_seen]
    start = len(dropped.ids) - dropped.region_length
    condition = [(dropped.ids[i], i) for i in shown if i < start]
    v = checkpoint.config.vocabulary
    if name == "synthesis":
        assert [token for token, _ in condition] == [v.t2s, v.bos, v.eos, v.soa]
        return
    stream = plan_of(request, codes, checkpoint, Parity.DEFAULT, None, None).canvas.unconditional
    served = list(zip(stream.stream.ids, stream.stream.positions, strict=True))
    assert condition[: len(served)] == served
    assert all(stream.follows)


@pytest.mark.parametrize("name", [n for n, pair in PAIRS.items() if pair[0]["task"] in TRAINED])
def test_classes_are_those_serving_chooses_from(name, checkpoint):
    record, request, codes = PAIRS[name]
    task, config, made = record["task"], checkpoint.config, {}
    for parity in Parity:
        region = plan_of(request, codes, checkpoint, parity, 5, None).canvas.regions[0]
        objective = objectives(reference=parity is Parity.REFERENCE)[task]
        made[parity] = (
            objective.columns(config.vocabulary, config.vocab_size),
            region.columns,
        )
    trained, served = made[Parity.DEFAULT]
    assert trained == served
    trained, served = made[Parity.REFERENCE]
    if task is Task.TEXT_TO_TEXT:  # trained over the text ids, served over the whole table
        assert trained == ((0, config.vocabulary.text.stop),)
    elif objective.classes == "units_and_rest":  # trained with the rows nobody uses
        assert trained == ((served[0][0], config.vocab_size), *served[1:])
    else:
        assert trained == served
