"""`/v1/audio/…` over a real socket: sound and text are those of `vllm_dynin.generate`."""

import base64
import io

import httpx
import numpy as np
import openai
import pytest
import soundfile
from helpers.http_media import expected, message_of, wav_of
from helpers.omni_media import recording

from vllm_dynin import DenoiseParams, SpeechToText, TextToSpeech
from vllm_dynin.entrypoints.http.voices import VOICES

TEXT = "Good morning to you."
SHORT = {"seed": 4, "max_tokens": 48, "num_inference_steps": 16, "guidance_scale": 0}


def spoken_by_the_engine(local, voice="female", **changes):
    options = DenoiseParams(steps=16, guidance_scale=0, style=VOICES[voice].name)
    request = TextToSpeech(TEXT, options=options, max_tokens=48, seed=4, **changes)
    (result,) = expected(local, [request])
    assert result.audio.seconds > 0.1
    return result


def read_wav(data):
    return soundfile.read(io.BytesIO(data), dtype="float32")


def test_speech_equals_the_engine(api, local):
    answer = api.audio.speech.create(
        model="tiny", input=TEXT, voice="onyx", response_format="wav", extra_body=SHORT
    )
    assert answer.response.headers["content-type"] == "audio/wav"
    samples, rate = read_wav(answer.content)
    wanted = spoken_by_the_engine(local, "onyx").audio
    assert rate == wanted.sample_rate == int(answer.response.headers["x-sample-rate"])
    np.testing.assert_allclose(samples, wanted.waveform.clip(-1, 1), atol=1 / 32_000)


@pytest.mark.parametrize("sound_format", ["mp3", "opus", "aac", "flac", "pcm"])
def test_formats(api, local, sound_format):
    answer = api.audio.speech.create(
        model="tiny",
        input=TEXT,
        voice={"id": "female"},
        response_format=sound_format,
        extra_body=SHORT,
    )
    wanted = spoken_by_the_engine(local).audio.seconds
    if sound_format == "pcm":
        assert len(answer.content) / 2 / 24_000 == pytest.approx(wanted, abs=0.01)
        return
    from vllm_dynin.processors.codecs.audio_io import load_audio

    seconds = len(load_audio(answer.content, target_rate=16_000)) / 16_000
    assert seconds == pytest.approx(wanted, abs=0.12)  # encoders pad


def test_speed(api):
    lengths = {}
    for speed in (1.0, 2.0):
        answer = api.audio.speech.create(
            model="tiny",
            input=TEXT,
            voice="alloy",
            speed=speed,
            response_format="wav",
            extra_body=SHORT,
        )
        lengths[speed] = len(read_wav(answer.content)[0])
    assert lengths[2.0] == pytest.approx(lengths[1.0] / 2, rel=0.2)


def test_chunks_add_up_to_the_whole(api, local):
    create = api.audio.speech.with_streaming_response.create
    with create(
        model="tiny",
        input=TEXT,
        voice="female",
        response_format="pcm",
        stream_format="audio",
        extra_body=SHORT,
    ) as answer:
        assert answer.headers["transfer-encoding"] == "chunked"
        chunked = b"".join(answer.iter_bytes())
    whole = api.audio.speech.create(
        model="tiny", input=TEXT, voice="female", response_format="pcm", extra_body=SHORT
    ).content
    first, second = (np.frombuffer(data, "<i2").astype(int) for data in (chunked, whole))
    assert len(first) == len(second)
    assert np.abs(first - second).max() <= 1


def test_speech_events(routes, local):
    body = {"model": "tiny", "input": TEXT, "voice": "female", "stream": True} | SHORT
    sound, done = b"", None
    with httpx.Client(base_url=routes.url, timeout=60) as http:
        stream = http.stream("POST", "/v1/audio/speech", json=body | {"response_format": "wav"})
        with stream as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for data in events_of(answer.iter_lines()):
                if data["type"] == "speech.audio.delta":
                    sound += base64.b64decode(data["audio"])
                else:
                    done = data
    wanted = spoken_by_the_engine(local)
    np.testing.assert_allclose(
        read_wav(sound)[0], wanted.audio.waveform.clip(-1, 1), atol=1 / 32_000
    )
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == len(wanted.token_ids)


def events_of(lines):
    import json

    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def test_voices(routes, api):
    with routes.client() as http:
        found = http.get("/v1/audio/voices").json()
    assert found["voices"] == list(VOICES)
    assert len(found["styles"]) == 18
    assert api.audio.speech.create(
        model="tiny", input=TEXT, voice=found["styles"][-1], extra_body=SHORT
    ).content


BAD_SPEECH = {
    "voice": ({"voice": "bob"}, ("bob", "alloy")),
    "style the codec lacks": ({"voice": "emotion-sad"}, ("sad", "not in this checkpoint")),
    "format": ({"response_format": "midi"}, ("midi", "opus")),
    "speed": ({"speed": 9}, ("9", "4")),
    "empty": ({"input": ""}, ("1 character",)),
    "long": ({"input": "word " * 200}, ("1059", "257", "shorten")),
    "tokens": ({"extra_body": {"max_tokens": 100_000}}, ("100000", "ask for less")),
    "voice twice": (
        {"extra_body": {"vllm_xargs": {"dynin_style": "gender-male"}}},
        ("gender-male", "say it once"),
    ),
    "stream format": ({"stream_format": "video"}, ("video", "sse")),
    "reference voice": ({"extra_body": {"ref_audio": "file:///etc/passwd"}}, ("ref_audio",)),
}


@pytest.mark.parametrize(("body", "words"), BAD_SPEECH.values(), ids=list(BAD_SPEECH))
def test_bad_speech(api, body, words):
    with pytest.raises(openai.BadRequestError) as error:
        api.audio.speech.create(**({"model": "tiny", "input": TEXT, "voice": "female"} | body))
    for word in words:
        assert word in message_of(error), message_of(error)


# --- transcriptions -------------------------------------------------------------------------------

SPOKEN = recording(seconds=1.5)


def transcribe(api, audio=SPOKEN, **changes):
    return api.audio.transcriptions.create(
        **({"model": "tiny", "file": wav_of(*audio)} | changes),
    )


def written_by_the_engine(local, audio=SPOKEN, **changes):
    # What arrives has gone through 16 bits.
    (result,) = expected(local, [SpeechToText(wav_of(*audio).getvalue(), **changes)])
    return result


def test_transcription_with_everything_left_out(api, local):
    answer = transcribe(api)
    wanted = written_by_the_engine(local)
    assert answer.text == wanted.text.strip() != ""
    assert answer.usage.seconds == 2


def test_verbose_transcription(api, local):
    options = {"temperature": 0.7, "language": "en"}
    answer = transcribe(
        api,
        response_format="verbose_json",
        timestamp_granularities=["segment"],
        extra_body={"seed": 5, "max_completion_tokens": 32, "vllm_xargs": '{"dynin_steps": 8}'},
        **options,
    )
    wanted = written_by_the_engine(
        local, temperature=0.7, seed=5, max_tokens=32, options=DenoiseParams(steps=8)
    )
    assert answer.text == wanted.text.strip()
    assert (answer.duration, answer.language) == (pytest.approx(1.5, abs=0.01), "en")
    (segment,) = answer.segments
    assert segment.tokens == list(wanted.token_ids)
    assert (segment.start, segment.end, segment.temperature) == (0, answer.duration, 0.7)
    assert segment.avg_logprob < 0


def test_long_recordings_are_cut_and_timed(api, local):
    samples, rate = SPOKEN
    pause = np.zeros(int(0.3 * rate), np.float32)
    long = np.concatenate([samples, pause] * 20)  # more units than a prompt holds
    body = {"max_completion_tokens": 64, "seed": 2}
    answer = transcribe(
        api, (long, rate), response_format="verbose_json", temperature=1.0, extra_body=body
    )
    assert len(answer.segments) == 2
    first, second = answer.segments
    assert first.tokens and second.tokens
    assert first.end == second.start and 16 < first.end < 20
    silent = np.flatnonzero(np.convolve(long == 0, np.ones(1600), "valid") == 1600) / rate
    assert np.abs(silent - first.end).min() < 0.2  # cut in a pause
    assert second.end == pytest.approx(len(long) / rate, abs=0.01)
    assert answer.text == f"{first.text} {second.text}".strip()
    cuts = {}
    for name in ("srt", "vtt", "text"):
        cuts[name] = transcribe(
            api, (long, rate), response_format=name, temperature=1.0, extra_body=body
        )
    assert cuts["text"].strip() == answer.text
    assert cuts["vtt"].startswith("WEBVTT\n\n")
    times = "00:00:00,000 --> 00:00:1", "--> 00:00:36,000"
    assert [time in cuts["srt"] for time in times] == [bool(first.text), bool(second.text)]
    assert all(first.text in cuts[name] and second.text in cuts[name] for name in ("srt", "vtt"))
    events = list(transcribe(api, (long, rate), stream=True, temperature=1.0, extra_body=body))
    assert "".join(event.delta for event in events[:-1]) == events[-1].text == answer.text
    assert events[-1].type == "transcript.text.done"


def test_streamed_transcription_comes_in_pieces(api, local):
    body, sound = {"max_completion_tokens": 64}, recording(seconds=2.0)
    events = list(transcribe(api, sound, stream=True, extra_body=body))
    wanted = written_by_the_engine(local, sound, max_tokens=64)
    assert "".join(event.delta for event in events[:-1]) == wanted.text.strip()
    assert len(events) > 2 or len(wanted.token_ids) <= 16


@pytest.mark.parametrize("sound_format", ["FLAC", "OGG", "MP3"])
def test_formats_of_recordings(api, sound_format):
    target = io.BytesIO()
    soundfile.write(target, *SPOKEN, format=sound_format)
    target.seek(0)
    target.name = f"speech.{sound_format.lower()}"
    answer = api.audio.transcriptions.create(
        model="tiny", file=target, extra_body={"vllm_xargs": '{"dynin_steps": 8}'}
    )
    assert answer.usage.seconds == 2


def test_silence_is_no_text(api):
    silence = (np.zeros(16_000, np.float32), 16_000)
    answer = transcribe(api, silence, response_format="verbose_json")
    assert answer.text == "" and answer.segments[0].no_speech_prob == 1.0
    assert transcribe(api, silence, response_format="vtt") == "WEBVTT\n\n"


BAD_TRANSCRIPTIONS = {
    "language": ({"language": "ko"}, ("ko", "English")),
    "format": ({"response_format": "diarized_json"}, ("diarized_json", "vtt")),
    "words": (
        {"response_format": "verbose_json", "timestamp_granularities": ["word"]},
        ("word", "segment"),
    ),
    "granularity": ({"timestamp_granularities": ["segment"]}, ("json", "verbose_json")),
    "include": ({"include": ["logprobs"]}, ("include", "leave it out")),
    "stream of subtitles": ({"stream": True, "response_format": "srt"}, ("srt", "json")),
    "temperature": ({"temperature": -1}, ("-1", "0")),
    "not audio": ({"file": ("a.wav", b"RIFF not audio at all")}, ("audio",)),
    "empty": ({"file": ("a.wav", b"")}, ("empty",)),
    "short": ({"file": wav_of(np.ones(8), 16_000)}, ("ms",)),
}


@pytest.mark.parametrize(
    ("body", "words"), BAD_TRANSCRIPTIONS.values(), ids=list(BAD_TRANSCRIPTIONS)
)
def test_bad_transcriptions(api, body, words):
    with pytest.raises(openai.BadRequestError) as error:
        transcribe(api, **body)
    for word in words:
        assert word in message_of(error), message_of(error)
