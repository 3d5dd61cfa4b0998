"""The paper's stages have room for data of the lengths that its sets have.

Lengths as the sets' cards say: utterances of LibriSpeech-360 last 12.6 s on average and end near
17, those of GigaSpeech 4 s and end at 20, those of Common Voice 5 s; traces of OpenR1-Math have a
median of 2,000 tokens and more; detailed captions of LLaVA-Video some hundreds; Mantis asks about
several images at once. Texts are made of bytes here, four of them a token of the real tokenizer.
"""

import random

import pytest

from vllm_dynin.canvas import Task
from vllm_dynin.config import DyninOmniConfig
from vllm_dynin.training_ext.data.bad import BadLog
from vllm_dynin.training_ext.data.sources import ReadyRecords, ShuffledSource
from vllm_dynin.training_ext.data.stage import sample_length
from vllm_dynin.training_ext.records import Record, make_sample
from vllm_dynin.training_ext.stages import STAGES
from vllm_dynin.training_ext.stages.recipes import image_tokens

UNITS = 25  # a second


def text(tokens, rng):
    return "".join(rng.choice("abcdefgh ") for _ in range(max(1, round(tokens))))


def lognormal(rng, median, spread, limit=1e9):
    return min(limit, rng.lognormvariate(0, spread) * median)


def utterance(rng, number):
    """Seconds of an utterance; every other one is of LibriSpeech, whose are the longest."""
    if number % 2:
        return min(rng.gauss(14.6, 2.2), 16.9) if rng.random() < 0.75 else rng.uniform(2, 12)
    return lognormal(rng, 3.2, 0.7, 20) if rng.random() < 0.85 else lognormal(rng, 5, 0.3, 14)


def fields_of(task, stage, rng, number):
    one = stage.tasks[task]
    image = (1,) * image_tokens(one.resolution) if one.resolution else ()
    if task is Task.TEXT_TO_TEXT:
        median = 2000 if stage.name == "stage3" else 350
        return {
            "text": text(lognormal(rng, 60, 0.8, 800), rng),
            "answer": text(lognormal(rng, median, 0.6), rng),
        }
    if task is Task.IMAGE_TO_TEXT:
        return {
            "images": (image,) * rng.choice((1, 1, 1, 2, 3)),
            "text": text(lognormal(rng, 30, 0.6), rng),
            "answer": text(lognormal(rng, 40, 1.2, 900), rng),
        }
    if task is Task.VIDEO_TO_TEXT:
        median = 15 if stage.name == "stage1" else 300
        return {
            "images": (image,) * one.num_frames,
            "answer": text(lognormal(rng, median, 0.4), rng),
        }
    seconds = max(0.5, utterance(rng, number))
    said = "answer" if task is Task.SPEECH_TO_TEXT else "text"
    return {"units": (1,) * round(UNITS * seconds), said: text(3.7 * seconds, rng)}


TEXTS = (
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
)


def records(task, stage, rng, count=250):
    return [
        Record(task=task, key=str(number), source="s", **fields_of(task, stage, rng, number))
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def config(tokenizer):
    return DyninOmniConfig(
        d_model=16,
        n_heads=2,
        n_layers=1,
        mlp_hidden_size=32,
        text_vocab_size=len(tokenizer),
        codebook_size=16,
        speech_codebook_size=16,
        image_text_block=128,
        speech_text_block=240,  # a byte is a token here: the instruction alone takes 100
    )


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_sets_of_the_papers_lengths_fit(name, config, tokenizer):
    stage, rng = STAGES[name]("paper"), random.Random(name)
    measure = sample_length(stage.context(config, tokenizer))
    for task in filter(TEXTS.__contains__, stage.tasks):
        made = records(task, stage, rng)
        log = BadLog()
        source = ShuffledSource(ReadyRecords(made, "s", task), task, 0, log, measure)
        for position in range(len(made)):
            source.at(position)  # the limits are looked at on the way
        log.check()
        assert log.bad_of("s") == 0, task
        assert log.filtered_of("s") / log.num_read["s"] < 0.2, (task, log.filtered[:2])


@pytest.mark.parametrize("name", ["stage1", "stage2", "stage3"])
def test_a_transcript_is_not_drowned_by_its_audio(name, config, tokenizer):
    """Twelve tokens heard in 2.4 s or in 15 s: the same region, of which they are a tenth."""
    stage = STAGES[name]("paper")
    context = stage.context(config, tokenizer)
    regions = set()
    for seconds in (2.4, 15):
        units = (1,) * round(UNITS * seconds)
        heard = Record(task=Task.SPEECH_TO_TEXT, units=units, answer="twelve bytes")
        sample = make_sample(heard, context, random.Random(0))
        regions.add(sample.region_length)
        assert len(sample.ids) < len(units) + 3 + 128 + 128
    assert regions == {128}


def test_the_number_of_end_tokens_behind_an_answer_tells_nothing(config, tokenizer):
    """It is drawn: neither the question nor the media leave it over."""
    context = STAGES["stage2"]("paper").context(config, tokenizer)
    short, long = (
        [
            make_sample(
                Record(task=Task.TEXT_TO_TEXT, text="q" * size, answer="yes"),
                context,
                random.Random(seed),
            ).region_length
            for seed in range(40)
        ]
        for size in (5, 800)
    )
    assert short == long
    assert min(short) < 150 and max(short) > 850
