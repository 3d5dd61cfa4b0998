"""Requests that cannot be served are refused at admission, while others go on unharmed."""

import numpy as np
import pytest
from helpers.omni_media import clip, photograph
from helpers.omni_mix import Heads, case_of, expected
from vllm.exceptions import VLLMValidationError

from vllm_dynin.canvas import Task
from vllm_dynin.sampling.params import DenoiseParams
from vllm_dynin.tokens import DYNIN_OMNI as V

REFUSED = (ValueError, VLLMValidationError)  # from the media processor, from admission
QUERY = [72, 105]
MMU = [V.mmu, V.soi, V.eoi, V.bos, *QUERY]
V2T = [V.v2t, V.sov, V.eov, V.bos, *QUERY]
S2T = [V.s2t, V.soa, V.eoa, *QUERY]
T2I = [V.t2i, V.bos, *QUERY, V.eos, V.soi]
T2S = [V.t2s, V.bos, *QUERY, V.eos, V.soa]
I2I = [V.i2i, V.soi, V.eoi, V.bos, *QUERY, V.eos, V.soi]
SOURCE = [V.i2i, V.soi, V.image.start, V.eoi, V.bos, *QUERY, V.eos, V.soi]
TEXT = [V.bos, *QUERY]
IMAGE = {"image": photograph()}
SOUND = {"audio": (np.sin(np.arange(8000, dtype=np.float32)), 16_000)}

# prompt ids, media, processor options, options of ours, the message
BAD = [
    # wrong media for the task, or none
    (TEXT, IMAGE, {}, {}, "0 places for image input .*, but 1 came"),
    (T2S, SOUND, {}, {}, "0 places for audio input .*, but 1 came"),
    (MMU, {}, {}, {}, "at index 1, a place for image, and no image input"),
    (V2T, IMAGE, {}, {}, "0 places for image input .*, but 1 came"),
    (S2T, IMAGE, {}, {}, "0 places for image input .*, but 1 came"),
    ([V.s2t, V.soi, V.eoi, *QUERY], IMAGE, {}, {}, "s2t prompt holds image codes"),
    ([V.mmu, V.soa, V.eoa, *QUERY], SOUND, {}, {}, "mmu prompt has no image codes"),
    ([V.soi, V.eoi, *QUERY], IMAGE, {}, {}, "t2t prompt holds image codes"),
    ([V.t2v, *QUERY], {}, {}, {}, "no decoder"),
    # too many, too few, too large, broken
    (MMU, {"image": [photograph(0), photograph(1)]}, {}, {}, "1 places for image input .*, but 2"),
    (
        [V.mmu, *[V.soi, V.eoi] * 5, *QUERY],
        {"image": [photograph(i) for i in range(5)]},
        {},
        {},
        "At most 4 image",
    ),
    (MMU, IMAGE, {"resolution": 72}, {}, "multiple of 16"),
    (MMU, IMAGE, {"resolution": 16 * 1000}, {}, "makes 1000000 codes"),
    (MMU, IMAGE, {"resolution": "big"}, {}, "mm_processor_kwargs"),
    (MMU, IMAGE, {"size": 64}, {}, "mm_processor_kwargs"),
    (V2T, {"video": clip(3)[:0]}, {}, {}, "frames"),
    (S2T, {"audio": (np.zeros(10, np.float32), 16_000)}, {}, {}, "it needs"),
    (S2T, {"audio": (np.full(8000, np.nan, np.float32), 16_000)}, {}, {}, "finite"),
    # sizes and targets
    (T2I, {}, {}, {"resolution": 72}, "multiples of 16"),
    (T2I, {}, {}, {"width": 64}, "go together"),
    (T2I, {}, {}, {"resolution": 1024}, "widest canvas"),
    (T2I, {}, {}, {"resolution": 640}, "rows in a step"),
    (T2I, {}, {}, {"target_token_ids": (V.mask,) * 15}, "has 15 ids, but an image"),
    (T2I, {}, {}, {"target_token_ids": (V.mask,) * 15 + (5,)}, "known id 5 at target 15"),
    (T2I, {}, {}, {"target_token_ids": V.image_ids(range(16))}, "no target"),
    (T2S, {}, {}, {"target_token_ids": (V.mask, V.image.start)}, "known id"),
    (TEXT, {}, {}, {"target_token_ids": (V.mask, V.speech.start)}, "known id"),
    ([*T2I, V.mask], {}, {}, {}, "must end with"),
    ([V.bos, V.mask], {}, {}, {}, "the control token <|mdm_mask|>"),
    ([V.bos, 138_752], {}, {}, {}, "138752"),
    # options of another direction, or with nothing to act on
    (TEXT, {}, {}, {"resolution": 64}, "for image output"),
    (TEXT, {}, {}, {"style": "emotion-sad"}, "for speech output"),
    (T2I, {}, {}, {"max_duration": 2.0}, "for speech output"),
    (T2I, {}, {}, {"block_length": 8}, "decoded as a whole"),
    (T2S, {}, {}, {"remasking": "random"}, "for text output"),
    (T2S, {}, {}, {"text_tokens": 4}, "is for ti2ti"),
    (T2S, {}, {}, {"style": "emotion-bored"}, "emotion is one of"),
    (T2S, {}, {}, {"style": "emotion-sad"}, "not in this checkpoint"),
    (T2I, {}, {}, {"noise_schedule": "pow"}, "mask schedule 'pow' is unknown"),
    (T2I, {}, {}, {"task": "t2s"}, "task token says t2i"),
    (T2I, {}, {}, {"guidance_scale": 0.0, "uncond_prompt_token_ids": T2I}, "guidance off"),
    (TEXT, {}, {}, {"uncond_prompt_token_ids": TEXT}, "guidance off"),
    (T2I, {}, {}, {"uncond_prompt_token_ids": T2S}, "task token says t2s"),
    (SOURCE, {}, {}, {"uncond_prompt_token_ids": T2I}, "task token says t2i"),
    (I2I, {}, {}, {}, "a place for image, and no image"),
    (T2S, {}, {}, {"target_token_ids": (V.mask,), "max_duration": 1.0}, "give one of them"),
]


@pytest.mark.parametrize("number", range(len(BAD)), ids=lambda number: BAD[number][-1][:40])
def test_refused(omni, number):
    ids, media, kwargs, options, message = BAD[number]
    prompt = {"prompt_token_ids": list(ids)}
    if media:
        prompt |= {"multi_modal_data": media, "mm_processor_kwargs": kwargs}
    extra = {f"dynin_{name}": value for name, value in options.items()}
    with pytest.raises(REFUSED, match=message):
        omni.generate(
            prompt,
            DenoiseParams().to_sampling_params(max_tokens=8, temperature=0, extra_args=extra),
            use_tqdm=False,
        )
    assert not omni.llm_engine.has_unfinished_requests()


def test_frames_of_a_video_are_asked_for_beside_it(omni):
    params = DenoiseParams().to_sampling_params(extra_args={"dynin_num_frames": 4})
    with pytest.raises(REFUSED, match="send mm_processor_kwargs"):
        omni.generate({"prompt_token_ids": TEXT}, params, use_tqdm=False)


def test_media_of_a_refused_request_can_be_sent_again(omni):
    """The frontend must not believe that the engine core has them."""
    prompt = {"prompt_token_ids": MMU, "multi_modal_data": {"image": photograph(9)}}
    refused = DenoiseParams(style="emotion-sad").to_sampling_params(max_tokens=8)
    params = DenoiseParams().to_sampling_params(max_tokens=8, temperature=0)
    answers = []
    for _ in range(2):  # unknown to the engine core, and known
        with pytest.raises(REFUSED, match="for speech output"):
            omni.generate(prompt, refused, use_tqdm=False)
        (output,) = omni.generate(prompt, params, use_tqdm=False)
        answers.append(output.outputs[0].token_ids)
    assert answers[0] == answers[1]


def test_a_bad_request_leaves_the_batch_alone(omni, omni_reference):
    """Refused while others are in the middle of their denoising steps."""
    heads = Heads(omni_reference.config, 9)
    tasks = (Task.TEXT_TO_IMAGE, Task.TEXT_TO_SPEECH, Task.TEXT_TO_TEXT)
    cases = [
        case_of(
            heads.head(task),
            {"steps": 6},
            max_tokens=None if task is Task.TEXT_TO_IMAGE else 12,
            temperature=1.0,
            seed=4,
            ignore_eos=True,
        )
        for task in tasks
    ]
    engine, finished = omni.llm_engine, {}
    for number, case in enumerate(cases):
        engine.add_request(str(number), case.prompt, case.params)
    for ids, media, kwargs, options, message in BAD[:30:3]:
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
        extra = {f"dynin_{name}": value for name, value in options.items()}
        params = DenoiseParams().to_sampling_params(max_tokens=8, extra_args=extra)
        prompt = {"prompt_token_ids": list(ids)}
        if media:
            prompt |= {"multi_modal_data": media, "mm_processor_kwargs": kwargs}
        with pytest.raises(REFUSED, match=message):
            omni.generate(prompt, params, use_tqdm=False)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished[output.request_id] = list(output.outputs[0].token_ids)
    assert [finished[str(number)] for number in range(len(cases))] == [
        expected(omni_reference, case) for case in cases
    ]
