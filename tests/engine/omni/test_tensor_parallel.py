"""Two ranks, each with half of the heads and half of the 138,752 columns."""

import asyncio

import pytest
from helpers.engines import started
from helpers.omni_media import MediaRequests, clip, photograph, recording
from helpers.omni_mix import expected, mixed_directions

from vllm_dynin import envs
from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def ranks(loop, omni_folder):
    """They compare their canvases after every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(envs.CHECK_RANKS, "1")
        with started(
            loop,
            omni_folder,
            "0|1",
            tensor_parallel_size=2,
            max_model_len=1024,
            max_num_seqs=32,
            max_num_batched_tokens=2560,
            num_gpu_blocks_override=256,
            limit_mm_per_prompt={"image": 2, "video": 1, "audio": 1},
        ) as engine:
            yield engine


def answers(loop, engine, prompts, params):
    """Tokens of every request, sent at once."""

    async def one(name, prompt, params):
        async for output in engine.generate(prompt, params, name):
            last = output
        return list(last.outputs[0].token_ids)

    async def run():
        pairs = enumerate(zip(prompts, params, strict=True))
        return await asyncio.gather(*(one(f"tp-{name}", *pair) for name, pair in pairs))

    return loop.run_until_complete(run())


def test_every_direction_on_two_ranks(loop, ranks, omni_reference):
    """Half of the text columns and both media ranges lie on either side of the cut at 69,376."""
    cases = mixed_directions(omni_reference.config, 20, seed=7)
    found = answers(loop, ranks, [c.prompt for c in cases], [c.params for c in cases])
    assert found == [expected(omni_reference, case) for case in cases]


def test_media_are_encoded_by_the_first_rank_alone(loop, ranks, omni_folder, omni_reference):
    media = MediaRequests(omni_folder, omni_reference.config)
    v, query = media.vocabulary, [72, 101, 108, 108, 111]
    image, video, audio = [v.soi, v.eoi], [v.sov, v.eov], [v.soa, v.eoa]

    def params(**options):
        own = DenoiseParams(steps=4, **options)
        return own.to_sampling_params(max_tokens=12, temperature=1.0, seed=5, ignore_eos=True)

    photos = [photograph(0), photograph(1)]
    head = [v.mmu, *image, *image, v.bos, *query]
    cases = [
        media.case(head, params(cfg_scale=1.5), images=photos),
        media.case([v.v2t, *video, v.bos, *query], params(), videos=[clip()]),
        media.case([v.s2t, *audio, *query], params(cfg_scale=2.0), audios=[recording()]),
    ]
    ask = ranks.collective_rpc
    loop.run_until_complete(ask("dynin_take_encoding_times"))
    written = [case.written for case in cases]
    found = answers(loop, ranks, [c.prompt for c in cases], [c.params for c in written])
    assert found == [expected(omni_reference, case) for case in written]
    first, second = loop.run_until_complete(ask("dynin_take_encoding_times"))
    assert {codec: number for codec, (number, _) in first.items()} == {"image": 3, "speech": 1}
    assert second == {}
