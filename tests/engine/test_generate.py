"""`vllm_dynin.generate` and what reads its answers, on a real engine with real codecs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.engines import DEFAULTS, environment, start_llm
from PIL import Image
from vllm import LLM
from vllm.exceptions import VLLMValidationError

import vllm_dynin as dynin
from vllm_dynin import DenoiseParams
from vllm_dynin.api import checkpoint_of
from vllm_dynin.entrypoints.stand_in import write_stand_in
from vllm_dynin.outputs import output_pieces, read_output
from vllm_dynin.planning import PlanRequest, StandardOptions, make_plan
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.reference.backbone import load_reference
from vllm_dynin.reference.driver import run_plan

ENGINE = {"max_model_len": 2048, "max_num_batched_tokens": 8192, "max_num_seqs": 16}
STEPS = DenoiseParams(steps=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stand_in(tmp_path_factory.mktemp("generate") / "stand-in")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with start_llm(folder, **ENGINE, num_gpu_blocks_override=300) as llm:
        yield llm


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    data = pytest.importorskip("skimage.data", reason="scikit-image holds the photographs")
    return Image.fromarray(data.astronaut()).crop((60, 0, 380, 320))


@pytest.fixture(scope="module")
def speech() -> tuple[np.ndarray, int]:
    """Units spoken by the speech codec: half a second."""
    return SpeechCodec.from_pretrained().decode([3, 4, 21, 22, 9, 10], seed=0)


@pytest.fixture(scope="module")
def clip(photo: Image.Image) -> np.ndarray:
    frames = [np.asarray(photo.crop((shift, 0, shift + 200, 200))) for shift in range(0, 60, 10)]
    return np.stack(frames)


def kinds(result: dynin.Result) -> list[str]:
    return [type(part).__name__ for part in result.parts]


def test_every_direction_in_one_call(llm, photo, speech, clip) -> None:
    text = {"max_tokens": 8}
    spoken = {"max_tokens": 24, "seed": 3, "options": DenoiseParams(style="gender-male")}
    painted = {"options": STEPS, "seed": 3}
    mixed = DenoiseParams(steps=4, text_tokens=6)
    cases = [
        (dynin.TextToText("hi", **text), ["str"]),
        (dynin.ImageToText(photo, "what?", **text), ["str"]),
        (dynin.ImageToText([photo, photo], "what?", resolution=32, **text), ["str"]),
        (dynin.VideoToText(clip, "what?", num_frames=3, **text), ["str"]),
        (dynin.SpeechToText(speech, **text), ["str"]),
        (dynin.TextToImage("a cat", **painted), ["Image"]),
        (dynin.EditImage(photo, "blue", **painted), ["Image"]),
        (dynin.TextToSpeech("hi", **spoken), ["Sound"]),
        (dynin.MixedAnswer(photo, "both", options=mixed, seed=3), ["Image", "str"]),
        (dynin.SpeechToSpeech(speech, [photo], **spoken), ["Sound"]),
        (dynin.VideoToSpeech(clip, "what?", **spoken), ["Sound"]),
    ]
    requests = [request for request, _ in cases]
    results = dynin.generate(llm, requests, use_tqdm=False)
    assert [result.request for result in results] == requests
    assert [kinds(result) for result in results] == [parts for _, parts in cases]
    assert all(result.image.size == (64, 64) for result in results if result.image)
    assert all(result.report.steps > 0 for result in results)
    for index in (1, 6, 9):  # each is what it is alone
        (alone,) = dynin.generate(llm, [requests[index]], use_tqdm=False)
        assert alone.token_ids == results[index].token_ids
        assert [as_array(part) for part in alone.parts] == [
            as_array(part) for part in results[index].parts
        ]


def as_array(part):
    if isinstance(part, Image.Image):
        return part.tobytes()
    return part if isinstance(part, str) else part.waveform.tobytes()


def test_worker_decodes_what_local_threads_decode(llm) -> None:
    requests = [
        dynin.TextToImage("a cat", options=STEPS, seed=1),
        dynin.TextToSpeech("hi", max_tokens=40, seed=2, options=DenoiseParams(steps=2)),
    ]
    local, worker = (
        dynin.generate(llm, requests, use_tqdm=False, codecs=place) for place in ("local", "worker")
    )
    assert local[0].image.tobytes() == worker[0].image.tobytes()
    assert local[1].audio.sample_rate == worker[1].audio.sample_rate == 16_000
    assert len(local[1].audio.waveform) > 0
    np.testing.assert_array_equal(local[1].audio.waveform, worker[1].audio.waveform)


def test_worker_encodes_what_local_threads_encode(llm, photo, speech) -> None:
    local, worker = (checkpoint_of(llm, place).codecs for place in ("local", "worker"))
    image = photo.resize((64, 32))
    assert local.encode_image(image) == worker.encode_image(image)
    assert len(local.encode_image(image)) == 128
    assert local.encode_speech(speech[0]) == worker.encode_speech(speech[0])


# --- counting and watching ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "steps", "forwards"),
    [
        (dynin.TextToText("hi", max_tokens=24, options=DenoiseParams(stop_at_eos=False)), 24, 24),
        (
            dynin.TextToText(
                "hi", max_tokens=24, options=DenoiseParams(steps=6, cfg_scale=1, stop_at_eos=False)
            ),
            6,
            12,
        ),
        (dynin.TextToImage("x", options=DenoiseParams(steps=5)), 5, 10),
        (dynin.TextToImage("x", options=DenoiseParams(steps=5, guidance_scale=0)), 5, 5),
    ],
    ids=["text", "guided text", "guided image", "image"],
)
def test_report_counts_steps_and_streams(llm, request_, steps, forwards) -> None:
    (result,) = dynin.generate(llm, [request_], use_tqdm=False)
    assert (result.report.steps, result.report.forwards) == (steps, forwards)
    assert result.tokens_per_forward == len(result.token_ids) / forwards
    assert result.report.run_seconds > 0


def test_report_comes_with_an_answer_that_a_stop_string_ends(llm) -> None:
    """The frontend ends such a request, not the scheduler."""
    options = DenoiseParams(stop_at_eos=False, block_length=8)
    plain = dynin.TextToText("hi", max_tokens=32, options=options)
    (whole,) = dynin.generate(llm, [plain], use_tqdm=False)
    stop = whole.text[2:3]
    stopped = dynin.TextToText("hi", max_tokens=32, options=options, stop=(stop,))
    (cut,) = dynin.generate(llm, [stopped], use_tqdm=False)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.report.steps in (8, 16, 24)  # whole blocks, one token a step, and not all of them


def test_nothing_is_reported_unasked(llm) -> None:
    params = DenoiseParams().to_sampling_params(max_tokens=4, temperature=0)
    (output,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], params, use_tqdm=False)
    assert output.kv_transfer_params is None


@pytest.mark.parametrize("option", ["report", "trajectory"])
def test_one_report_cannot_stand_for_several_answers(llm, option) -> None:
    params = DenoiseParams(**{option: True}).to_sampling_params(max_tokens=4, n=2)
    with pytest.raises(VLLMValidationError, match="n=2 with dynin_report or dynin_trajectory"):
        llm.generate([{"prompt_token_ids": [1, 2, 3]}], params, use_tqdm=False)


@pytest.mark.parametrize(
    "request_",
    [
        dynin.TextToImage("a cat", options=DenoiseParams(steps=6), seed=4, trajectory=True),
        dynin.TextToText(
            "hi",
            max_tokens=20,
            options=DenoiseParams(steps=9, block_length=8, stop_at_eos=False),
            trajectory=True,
        ),
    ],
    ids=["image", "text"],
)
def test_trajectory_is_the_canvas_of_the_reference_driver_at_every_step(
    llm, folder, request_
) -> None:
    (result,) = dynin.generate(llm, [request_], use_tqdm=False)
    known = checkpoint_of(llm)
    prompt = request_.prompt(known)
    temperature = request_.default_temperature
    standard = StandardOptions(
        max_tokens=request_.max_tokens, temperature=temperature, seed=request_.seed or 0
    )
    plan = make_plan(
        PlanRequest(prompt_ids=tuple(prompt.token_ids), standard=standard, options=prompt.options),
        known.config,
    )
    path, count = result.trajectory, len(result.token_ids)
    assert path.canvas(0) == [known.config.vocabulary.mask] * count
    with torch.inference_mode():
        steps = 0
        for steps, decoder in enumerate(run_plan(load_reference(folder), plan), start=1):
            assert path.canvas(steps) == decoder.ids[:count].tolist(), f"step {steps}"
    assert steps == path.num_steps == result.report.steps


def test_trajectory_can_be_fetched_once(llm) -> None:
    asked = DenoiseParams(steps=2, trajectory=True)
    params = asked.to_sampling_params(max_tokens=4, temperature=0)
    (output,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], params, use_tqdm=False)
    name = output.kv_transfer_params["dynin_report"]["trajectory"]
    codecs = checkpoint_of(llm).codecs
    assert sorted(codecs.take_trajectory(name)) == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="does not keep trajectory"):
        codecs.take_trajectory(name)


# --- infilling ------------------------------------------------------------------------------------


def test_what_is_known_stays(llm, photo, speech) -> None:
    mask = Image.new("L", photo.size, 0)
    mask.paste(255, (0, 0, photo.width // 2, photo.height))
    requests = [
        dynin.Inpaint(photo, mask, "a cat", options=STEPS, seed=1, trajectory=True),
        dynin.EditImage(photo, "blue", mask, options=STEPS, seed=1),
        dynin.FillText("say", ["Hello ", dynin.Gap(4), " world"]),
        dynin.FillSpeech(speech, "hi", 0.1, 0.3, num_units=5, seed=1),
    ]
    results = dynin.generate(llm, requests, use_tqdm=False)
    known = checkpoint_of(llm)
    masked = known.config.vocabulary.mask
    for request, result in zip(requests, results, strict=True):
        targets = request.prompt(known).options.target_token_ids
        assert len(result.token_ids) == len(targets)
        pairs = list(zip(targets, result.token_ids, strict=True))
        assert all(target in (masked, token) for target, token in pairs)
        assert all(token != masked for _, token in pairs)
    codes = known.codecs.encode_image(photo.resize((64, 64), Image.Resampling.BICUBIC))
    first = known.config.vocabulary.image.start
    kept = [slot for slot in range(256) if slot % 16 >= 8]
    assert [results[0].token_ids[slot] - first for slot in kept] == [codes[slot] for slot in kept]
    assert [results[0].trajectory.steps[slot] for slot in kept] == [0] * len(kept)
    assert results[2].text.startswith("Hello ") and results[2].text.endswith(" world")
    assert results[3].audio.seconds > 0.2


# --- reading what vLLM gives ----------------------------------------------------------------------


def test_reading_several_answers_to_one_prompt(llm) -> None:
    known = checkpoint_of(llm)
    prompt = dynin.TextToImage("a cat").prompt(known)
    params = STEPS.to_sampling_params(n=2, seed=5, detokenize=False)
    sent = {"prompt_token_ids": list(prompt.token_ids)}
    (output,) = llm.generate([sent], params, use_tqdm=False)
    arguments = (output, params, known.config, known.decode_text)
    pieces = output_pieces(*arguments)
    images = read_output(*arguments, known.codecs)
    assert [len(part) for part in images] == [1, 1]
    assert pieces[0][0].codes != pieces[1][0].codes
    assert images[0][0].size == (64, 64)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (dynin.TextToImage("x" * 500), r"request 1 \(TextToImage\): the text takes \d+ tokens"),
        (
            dynin.TextToImage("x", options=DenoiseParams(resolution=63)),
            r"request 1 .*multiples of 4",
        ),
        (dynin.TextToText("x", max_tokens=9_000), "9000"),
        (dynin.TextToText("x", options=DenoiseParams(style="happy")), r"request 1 .*dynin_style"),
        (dynin.ImageToText(b"no image", "what?"), r"request 1 \(ImageToText\): not a readable"),
        (dynin.TextToSpeech("x", options=DenoiseParams(style="emotion-glad")), "not 'glad'"),
        (
            dynin.TextToSpeech("x", options=DenoiseParams(style="emotion-sad")),
            r"request 1 .* not one of the 18 of this speech codec",
        ),
        (dynin.FillText("x", ["known"]), r"request 1 \(FillText\): the canvas has no target"),
    ],
)
def test_a_bad_request_is_named_and_the_engine_goes_on(llm, request_, message) -> None:
    good = dynin.TextToText("hi", max_tokens=4)
    with pytest.raises(ValueError, match=message):
        dynin.generate(llm, [good, request_], use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
    (result,) = dynin.generate(llm, [good], use_tqdm=False)
    assert len(result.token_ids) == 4


# --- an engine in a process of its own ------------------------------------------------------------


def test_engine_in_another_process(llm, folder, photo) -> None:
    """Codecs and trajectories cross the process border, and nothing depends on it."""
    mask = Image.new("L", photo.size, 255)
    requests = [
        dynin.Inpaint(photo, mask, "a cat", options=STEPS, seed=1, trajectory=True),
        dynin.TextToSpeech("hi", max_tokens=24, seed=2, options=DenoiseParams(steps=2)),
    ]
    here = dynin.generate(llm, requests, use_tqdm=False)
    options = DEFAULTS | ENGINE | {"num_gpu_blocks_override": 300}
    with environment(VLLM_ENABLE_V1_MULTIPROCESSING="1"):
        other = LLM(str(folder), **options)
    try:
        there = dynin.generate(other, requests, use_tqdm=False, codecs="worker")
    finally:
        other.llm_engine.engine_core.shutdown()
    for mine, theirs in itertools.zip_longest(here, there):
        assert mine.token_ids == theirs.token_ids
        assert [as_array(part) for part in mine.parts] == [as_array(part) for part in theirs.parts]
    assert here[0].trajectory == there[0].trajectory
