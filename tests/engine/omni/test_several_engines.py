"""Data parallel: what workers know is asked of the engine that knows it, and work is shared."""

import asyncio
from functools import partial

import numpy as np
import pytest
from helpers.engines import started
from helpers.omni_media import photograph
from helpers.omni_mix import expected, mixed_directions
from PIL import Image

from vllm_dynin.api import checkpoint_for
from vllm_dynin.compat import ask_engines
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC


@pytest.fixture(scope="module")
def engines(loop, omni_folder):
    with started(
        loop,
        omni_folder,
        "nobind",
        data_parallel_size=2,
        max_model_len=288,
        max_num_seqs=32,
        num_gpu_blocks_override=64,
    ) as engine:
        yield engine


@pytest.fixture(scope="module")
def checkpoint(loop, engines):
    """As a server has it, its codecs on the workers."""

    def call(method, arguments, turn):
        asked = ask_engines(engines, method, arguments, turn)
        return asyncio.run_coroutine_threadsafe(asked, loop).result(60)

    tokenizer = engines.renderer.get_tokenizer()
    return checkpoint_for(engines.vllm_config, tokenizer, "worker", call)


def in_thread(loop, work, *arguments):
    """As the server's threads do it, while the event loop runs."""
    return loop.run_until_complete(asyncio.to_thread(work, *arguments))


def test_trajectories_are_found_wherever_a_request_ran(loop, engines, checkpoint, omni_reference):
    cases = mixed_directions(omni_reference.config, 12, seed=3)

    async def one(name, case):
        params = case.params.clone()
        params.extra_args = {**(params.extra_args or {}), "dynin_trajectory": True}
        async for output in engines.generate(case.prompt, params, name):
            last = output
        report = last.kv_transfer_params["dynin_report"]
        return list(last.outputs[0].token_ids), report["trajectory"]

    async def run():
        return await asyncio.gather(*(one(f"dp-{n}", case) for n, case in enumerate(cases)))

    found = loop.run_until_complete(run())
    assert [tokens for tokens, _ in found] == [expected(omni_reference, case) for case in cases]
    by_engine = [0, 0]
    for number, (tokens, name) in enumerate(found):
        asked = ask_engines(engines, "dynin_peek_trajectory", (f"dp-{number}",), None)
        answers = loop.run_until_complete(asked)
        (where,) = (index for index, answer in enumerate(answers) if answer is not None)
        by_engine[where] += 1
        steps = in_thread(loop, checkpoint.codecs.take_trajectory, name)
        assert len(steps) >= len(tokens)
        with pytest.raises(ValueError, match="does not keep trajectory"):
            in_thread(loop, checkpoint.codecs.take_trajectory, name)
    assert min(by_engine) > 0  # or this test would prove nothing


def test_codecs_work_by_turns_and_each_medium_once(loop, engines, checkpoint, omni_folder):
    def encoded():
        asked = ask_engines(engines, "dynin_take_encoding_times", (), None)
        return [times.get("image", (0, 0.0))[0] for times in loop.run_until_complete(asked)]

    encoded()
    image = photograph(0).resize((64, 64))
    codec = ImageCodec.from_pretrained(omni_folder / IMAGE_CODEC)
    codes = codec.encode([image])[0].tolist()
    for _ in range(4):
        assert in_thread(loop, checkpoint.codecs.encode_image, image) == codes
    assert encoded() == [2, 2]
    expected_image = codec.decode(codec.encode([image])[0][None], 64, 64)[0]
    future = in_thread(loop, checkpoint.codecs.decode_image, codes, 64, 64)
    assert isinstance(future.result(), Image.Image)
    assert np.array_equal(np.asarray(future.result()), np.asarray(expected_image))


def test_a_voice_stays_with_the_engine_it_was_opened_on(loop, checkpoint, omni_folder):
    units = [number % 60 for number in range(200)]
    codec = SpeechCodec.from_pretrained(omni_folder / SPEECH_CODEC)
    for seed in range(2):
        sound = in_thread(loop, partial(checkpoint.codecs.decode_speech, units, seed=seed)).result()
        assert np.array_equal(sound.waveform, codec.decode(units, seed=seed)[0])
