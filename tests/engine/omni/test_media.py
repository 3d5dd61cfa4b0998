"""Media through vLLM's own inputs are answered as the same prompts with the codes written out."""

import base64
import io

import pytest
import soundfile
from helpers.engines import preempting
from helpers.omni_media import MediaRequests, clip, photograph, recording, run_media
from helpers.omni_mix import TEXT_BLOCK, case_of, expected, run, tokens_of
from helpers.starts import runner_of

from vllm_dynin.model_executor.peak_memory import use_most_memory
from vllm_dynin.processors.assemble import PromptAssembler
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.sampling.params import DenoiseParams


@pytest.fixture(scope="module")
def requests(omni_folder, omni_reference):
    return MediaRequests(omni_folder, omni_reference.config)


def params(max_tokens=12, temperature=0.0, **options):
    options.setdefault("steps", 4)
    return DenoiseParams(**options).to_sampling_params(
        max_tokens=max_tokens, temperature=temperature, seed=5, ignore_eos=True
    )


@pytest.fixture(scope="module")
def cases(requests):
    """Every direction that takes media, guided where that is the default or asked for."""
    v = requests.vocabulary
    image, video, audio = [v.soi, v.eoi], [v.sov, v.eov], [v.soa, v.eoa]
    query = [72, 101, 108, 108, 111]
    block = [*[v.pad] * (TEXT_BLOCK - len(query) - 2), v.bos, *query, v.eos]
    photo, other, sound = photograph(0), photograph(1), recording()
    edited = {"side": requests.config.edit_resolution}
    return [
        requests.case([v.mmu, *image, v.bos, *query], params(), images=[photo]),
        requests.case(
            [v.mmu, *image, *image, v.bos, *query], params(cfg_scale=1.5), images=[photo, other]
        ),
        requests.case(
            [v.mmu, *image, v.bos, *query],
            params(),
            images=[photo],
            side=96,
            kwargs={"resolution": 96},
        ),
        requests.case([v.v2t, *video, v.bos, *query], params(), videos=[clip()]),
        requests.case(
            [v.v2t, *video, v.bos, *query],
            params(temperature=1.0),
            videos=[clip()],
            side=48,
            num_frames=5,
            kwargs={"resolution": 48, "num_frames": 5},
        ),
        requests.case([v.s2t, *audio, *query], params(temperature=1.0), audios=[sound]),
        requests.case([v.s2t, *audio, *query], params(cfg_scale=2.0), audios=[sound]),
        requests.case(
            [v.mmu, *image, *audio, v.bos, *query], params(), images=[other], audios=[sound]
        ),
        requests.case([v.i2i, *image, *block, v.soi], params(None), images=[photo], **edited),
        requests.case(
            [v.i2i, *image, *block, v.soi],
            params(None, 1.0, parity="reference", guidance_scale=2.0),
            images=[other],
            side=64,
            kwargs={"resolution": 64},
        ),
        requests.case(
            [v.ti2ti, *image, *block, v.soi],
            params(None, text_tokens=9),
            images=[photo],
            **edited,
        ),
        requests.case(
            [v.s2s, *query, *image, *audio, *query, v.soa],
            params(guidance_scale=1.5),
            images=[photo],
            audios=[sound],
        ),
        requests.case([v.s2s, *query, *audio, *query, v.soa], params(20, 1.0), audios=[sound]),
        requests.case([v.v2s, *video, *block, v.soa], params(), videos=[clip()]),
    ]


@pytest.fixture(scope="module")
def answers(omni_reference, cases):
    return [expected(omni_reference, case.written) for case in cases]


def test_every_medium(omni, cases, answers):
    found = run_media(omni, cases)
    assert tokens_of(found) == answers
    written = run(omni, [case.written for case in cases])
    assert tokens_of(written) == answers


def test_recorded_speech_has_fewer_units_than_were_planned_for(omni, requests, cases):
    """So the spare rows behind the canvas are put to the test, in one stream and in two."""
    sound = recording()
    units = requests.units(*sound)
    assert 5 < len(units) < requests.unit_bound(*sound) - 5
    (output,) = run_media(omni, [cases[5]])
    planned = len(output.prompt_token_ids) - len(cases[5].written.prompt_ids)
    assert planned == requests.unit_bound(*sound) - len(units)


def test_codes_survive_preemption_and_eviction(tight, omni_reference, requests, cases):
    """A KV cache of one or two requests, and an encoder cache smaller than all the images."""
    v = requests.vocabulary
    many = [
        requests.case(
            [v.mmu, v.soi, v.eoi, v.bos, 65 + number],
            params(20, 1.0, block_length=4, steps=20),
            images=[photograph(2 + number)],
        )
        for number in range(16)
    ]
    with preempting(tight) as preempted:
        found = tokens_of(run_media(tight, [*many, *cases, *many]))
    assert len(preempted) >= 3
    answers = [expected(omni_reference, case.written) for case in [*many, *cases]]
    assert len({tuple(answer) for answer in answers}) == len(answers)
    assert found == answers + answers[: len(many)]


def test_chat_with_interleaved_media(omni, omni_reference, requests):
    """OpenAI content parts: media in front by default, in their turn where that is asked."""
    photo, other, sound = photograph(3), photograph(4), recording(2.0)
    wav = io.BytesIO()
    soundfile.write(wav, *sound, format="WAV", subtype="FLOAT")
    encoded = base64.b64encode(wav.getvalue()).decode()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Compare "},
                {"type": "image_pil", "image_pil": photo},
                {"type": "text", "text": " with "},
                {"type": "image_pil", "image_pil": other},
            ],
        },
        {"role": "assistant", "content": "Both show a place."},
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
                {"type": "text", "text": "And this?"},
            ],
        },
    ]
    tokenizer = omni.get_tokenizer()
    assembler = PromptAssembler(
        vocabulary=requests.vocabulary,
        num_rows=omni_reference.config.vocab_size,
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
    )
    kinds = {"image_pil": "image", "input_audio": "audio", "text": "text"}
    plain = [
        message
        if isinstance(message["content"], str)
        else message
        | {"content": [part | {"type": kinds[part["type"]]} for part in message["content"]]}
        for message in messages
    ]
    side = omni_reference.config.image_resolution
    for interleave in (False, True):
        (output,) = omni.chat(
            messages,
            params(),
            use_tqdm=False,
            chat_template_kwargs={"interleave_media": interleave},
        )
        head = assembler.chat(
            plain,
            images=[requests.image_codes(image, side) for image in (photo, other)],
            speech=[requests.units(*sound)],
            interleave_media=interleave,
        )
        case = case_of(head, {"steps": 4}, max_tokens=12, temperature=0, ignore_eos=True)
        assert tokens_of([output]) == [expected(omni_reference, case)]


def test_an_image_is_encoded_once(omni, requests, monkeypatch):
    """Content decides: the same picture in other requests, later and at once, is a cache hit."""
    encoded = []
    encode = ImageCodec.encode_pixels

    def counting(self, pixels):
        encoded.append(len(pixels))
        return encode(self, pixels)

    monkeypatch.setattr(ImageCodec, "encode_pixels", counting)
    v = requests.vocabulary
    photo = photograph(11)

    def case(text, **options):
        ids = [v.mmu, v.soi, v.eoi, v.bos, *text]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": photo.copy()}}

    omni.generate([case([65]), case([66])], params(), use_tqdm=False)
    omni.generate([case([67])], params(), use_tqdm=False)
    assert encoded == [1]
    omni.generate(
        [case([68]) | {"mm_processor_kwargs": {"resolution": 32}}], params(), use_tqdm=False
    )
    assert encoded == [1, 1]  # another size is another medium


def test_profiling_runs_every_half_of_every_codec(omni, monkeypatch):
    """At the largest size that fits a canvas; on a GPU the memory for it is then set aside."""
    model = runner_of(omni).model
    image, speech = model.media.image, model.media.speech
    calls = []
    for codec, name, size in (
        (image, "encode_pixels", lambda pixels: tuple(pixels.shape)),
        (image, "decode_pixels", lambda codes, height, width: (height, width)),
        (speech.backend, "raw_units", lambda waveform: len(waveform)),
        (speech.backend, "stream", lambda units, *rest, **kwargs: len(units)),
    ):
        original = getattr(codec, name)

        def spy(*args, original=original, name=name, size=size, **kwargs):
            calls.append((name, size(*args, **kwargs)))
            return original(*args, **kwargs)

        monkeypatch.setattr(codec, name, spy)
    use_most_memory(model, max_rows=512, max_slots=300, with_codecs=True)
    side = 17 * image.patch
    seconds, rate = speech.backend.max_chunk_seconds, speech.backend.input_rate
    assert calls == [
        ("encode_pixels", (1, 3, side, side)),
        ("decode_pixels", (side, side)),
        ("raw_units", seconds * rate),
        ("stream", 300),
    ]
    calls.clear()
    use_most_memory(model, max_rows=512, max_slots=300, with_codecs=False)
    assert not calls
