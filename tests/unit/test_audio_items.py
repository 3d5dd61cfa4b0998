"""Recordings of `multi_modal_data`: every form goes through our decoder, none through vLLM's."""

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("vllm")
from vllm.multimodal import audio as vllm_audio
from vllm.multimodal.media import audio as vllm_media_audio

from vllm_dynin.processors.codecs.audio_io import load_audio, resample
from vllm_dynin.processors.codecs.limits import MediaError
from vllm_dynin.processors.media_items import MediaParser

RATE = 16_000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
AT_22050 = resample(TONE, RATE, 22_050)


def as_wav(samples, rate):
    target = io.BytesIO()
    soundfile.write(target, samples, rate, format="WAV", subtype="FLOAT")
    return target.getvalue()


@pytest.fixture
def parse(monkeypatch):
    """The parser as the processor makes it; vLLM's own decoders and resamplers fail if called."""

    def forbidden(*args, **kwargs):
        raise AssertionError("vLLM's own audio code was called")

    for module, names in (
        (vllm_audio, ("normalize_audio", "resample_audio_pyav", "resample_audio_scipy")),
        (vllm_media_audio, ("load_audio", "load_audio_pyav", "load_audio_soundfile")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, forbidden)
    parser = MediaParser(target_sr=RATE, target_channels=1)
    return lambda data: parser.parse_mm_data({"audio": data})["audio"].get_all()


FORMS = {
    "samples": (TONE, TONE),
    "tensor": (torch.from_numpy(TONE), TONE),
    "numbers": (TONE.tolist(), TONE),
    "16 bits": ((TONE * 32767).astype(np.int16), TONE),
    "with its rate": ((TONE, RATE), TONE),
    "with no rate": ((TONE, None), TONE),
    "at another rate": ((AT_22050, 22_050), load_audio(AT_22050, 22_050, target_rate=RATE)),
    "a rate with a point": ((AT_22050, 22_050.0), load_audio(AT_22050, 22_050, target_rate=RATE)),
    "stereo": ((np.stack([TONE, TONE]), RATE), TONE),
    "stereo, channels last": ((np.stack([TONE, TONE], 1), RATE), TONE),
    "stereo out of phase": ((np.stack([TONE, -TONE]), RATE), TONE),
    "bytes": (as_wav(AT_22050, 22_050), load_audio(AT_22050, 22_050, target_rate=RATE)),
    "bytearray": (bytearray(as_wav(TONE, RATE)), TONE),
}


@pytest.mark.parametrize(("given", "heard"), FORMS.values(), ids=list(FORMS))
def test_forms(parse, given, heard):
    exact = not (isinstance(given, np.ndarray) and given.dtype == np.int16)
    for found in (*parse([given, given]), *(parse(given) if not isinstance(given, list) else ())):
        assert (found.dtype, found.shape) == (np.float32, heard.shape)
        np.testing.assert_allclose(found, heard, rtol=0, atol=0 if exact else 1e-4)


def test_a_path(parse, tmp_path):
    (tmp_path / "a.wav").write_bytes(as_wav(TONE, RATE))
    (found,) = parse(Path(tmp_path / "a.wav"))
    np.testing.assert_array_equal(found, TONE)


def test_several(parse):
    found = parse([TONE, (AT_22050, 22_050), as_wav(TONE, RATE), None])
    assert [None if one is None else len(one) for one in found] == [RATE] * 3 + [None]
    assert len(parse(np.stack([TONE, TONE]))) == 2  # two recordings, as in vLLM


REFUSED = {
    "text": (["/etc/passwd"], "a str"),
    "nothing": ([{}], "a dict"),
    "rate 0": ((TONE, 0), "below 1000 Hz"),
    "half a rate": ((TONE, 16000.5), "whole number"),
    "text for a rate": ((TONE, "16000"), "whole number"),
    "not finite": ((np.full(900, np.nan), RATE), "NaN"),
    "no samples": ((np.zeros(0), RATE), "shape"),
    "too many channels": ((np.zeros((800, 64)), RATE), "channels"),
    "no audio": (b"not audio", "not audio that can be read"),
}


@pytest.mark.parametrize(("given", "message"), REFUSED.values(), ids=list(REFUSED))
def test_refused(parse, given, message):
    with pytest.raises(ValueError, match=message) as error:
        parse(given)
    assert isinstance(error.value, MediaError) or "whole number" in message
