"""The speech codec as the rest of the package uses it: both tokenizers behind one class."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from vllm_dynin.processors.codecs import speech as speech_module
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.emova_speech import EmovaSpeech
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.speech import SpeechCodec, collapse
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnitsConfig
from vllm_dynin.processors.codecs.styles import STYLES, Style
from vllm_dynin.processors.codecs.toy_speech import (
    PAUSE,
)
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeechConfig

SPEECH = Path(__file__).parents[2] / "data" / "speech"  # made by flite; see its README


@pytest.fixture(scope="module")
def toy():
    return SpeechCodec.from_pretrained()


@pytest.fixture(scope="module")
def emova():
    """The published graph at test size, with random weights."""
    torch.manual_seed(0)
    s2u = SpeechToUnitsConfig.tiny()
    backend = EmovaSpeech(s2u, UnitsToSpeechConfig.tiny(s2u.num_units), chunk_frames=7)
    for parameter in backend.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3)
    backend.u2s.dp.flows["0"].m -= 1.5  # units of a few frames
    return SpeechCodec(backend)


@pytest.fixture(params=["toy", "emova"])
def codec(request):
    return request.getfixturevalue(request.param)


def noise(seconds, seed=0):
    return np.random.default_rng(seed).standard_normal(round(16_000 * seconds)).astype("f4")


# What encode promises.


def test_units(codec):
    raw = codec.encode(noise(1.01), 16_000, collapse_repeats=False)
    assert len(raw) == -(-16160 // codec.backend.samples_per_unit)
    assert all(type(unit) is int and 0 <= unit < codec.num_units for unit in raw)
    assert codec.encode(noise(1.01), 16_000) == collapse(raw)


def test_encode_is_deterministic(codec):
    assert codec.encode(noise(1), 16_000) == codec.encode(noise(1), 16_000)


def test_any_rate_and_channel_count(toy):
    samples = load_audio(SPEECH / "slt_seven.flac", target_rate=48_000)
    expected = toy.encode(SPEECH / "slt_seven.flac")
    assert toy.encode(samples, 48_000) == expected
    assert toy.encode(np.stack([samples] * 6), 48_000) == expected
    assert toy.encode((samples * 0.01, 48_000)) == expected
    assert toy.encode((samples * 32767).astype("i2"), 48_000) == expected


@pytest.mark.parametrize("num_samples", [1, 160, 399])
def test_too_short(codec, num_samples):
    with pytest.raises(MediaError, match=r"at least 25\.0 ms are needed"):
        codec.encode(noise(1)[:num_samples], 16_000)


@pytest.mark.parametrize("num_samples", [400, 401, 640, 641])
def test_shortest(codec, num_samples):
    raw = codec.encode(noise(1)[:num_samples], 16_000, False)
    assert len(raw) == -(-num_samples // codec.backend.samples_per_unit)


def test_silence_is_a_result(codec):
    units = codec.encode(np.zeros(16_000), 16_000)
    assert units
    assert codec.encode(np.full(16_000, 0.25), 16_000)  # constant voltage


def test_silence_is_a_pause(toy):
    speech = load_audio(SPEECH / "slt_one.flac", target_rate=16_000)
    units = toy.encode(np.pad(speech, 8_000), 16_000)
    assert units[0] == units[-1] == PAUSE


def test_nan_is_refused(codec):
    samples = noise(1)
    samples[77] = np.nan
    with pytest.raises(MediaError, match="sample 77 is NaN"):
        codec.encode(samples, 16_000)


def test_limits_are_applied(toy):
    strict = SpeechCodec(toy.backend, MediaLimits(max_seconds=1.0))
    with pytest.raises(MediaError, match="max_seconds=1"):
        strict.encode(noise(1.1), 16_000)
    with pytest.raises(ValueError, match=r"at most 1\.0 s are made at once"):
        strict.decode([3, 4] * 20)


# Long audio.


@pytest.mark.parametrize(
    "num_samples, num_chunks",
    [(960_000, 1), (960_001, 2), (1_920_000, 2), (1_920_001, 3), (2_500_007, 3)],
)
def test_split(codec, num_samples, num_chunks):
    chunks = codec.split(torch.arange(num_samples))
    assert len(chunks) == num_chunks
    assert torch.equal(torch.cat(chunks), torch.arange(num_samples))
    step = codec.backend.samples_per_unit
    assert max(map(len, chunks)) <= 960_000
    assert all(len(chunk) % step == 0 for chunk in chunks[:-1])
    assert len(chunks[0]) - len(chunks[-1]) <= num_chunks * step
    assert sum(-(-len(chunk) // step) for chunk in chunks) == -(-num_samples // step)


def test_long_speech_is_its_chunks(emova):
    """60.04 s: only valid units, where the original emits up to four more per chunk."""
    samples = noise(60.04)
    raw = emova.encode(samples, 16_000, False)
    assert len(raw) == 1501
    parts = [
        emova.encode(chunk.numpy(), 16_000, False) for chunk in emova.split(torch.tensor(samples))
    ]
    assert [len(part) for part in parts] == [751, 750]
    assert raw == parts[0] + parts[1]


def test_collapse_goes_across_joins(toy):
    """A minute and a second of silence is one pause, although it is encoded in two chunks."""
    silence = np.zeros(16_000 * 61)
    assert toy.encode(silence, 16_000, False) == [PAUSE] * 6100
    assert toy.encode(silence, 16_000) == [PAUSE]
    assert len(toy.split(torch.from_numpy(silence))) == 2


MEMORY_SCRIPT = """
import ctypes, re
import numpy as np, torch
torch.set_num_threads(1)
from vllm_dynin.processors.codecs.emova_speech import EmovaSpeech
from vllm_dynin.processors.codecs.speech import SpeechCodec
from vllm_dynin.processors.codecs.speech_to_units import SpeechToUnitsConfig
from vllm_dynin.processors.codecs.spiral import SpiralConfig
from vllm_dynin.processors.codecs.speech_features import LogMelConfig
from vllm_dynin.processors.codecs.units_to_speech import UnitsToSpeechConfig
from vllm_dynin.processors.codecs.vits_generator import GeneratorConfig
def peak():  # of this process alone; ru_maxrss would start with the parent's
    return 1024 * int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
# The published rates, lengths and strides with fewer layers and channels.
s2u = SpeechToUnitsConfig(encoder=SpiralConfig(
    low_filters=(48, 64, 64), high_filters=(96, 64), low_layers=1, high_layers=1,
    low_heads=2, high_heads=2, pos_kernel=16))
u2s = UnitsToSpeechConfig(channels=16, filter_channels=32, layers=1, flow_layers=1,
    duration_layers=1, generator=GeneratorConfig(initial_channels=32))
codec = SpeechCodec(EmovaSpeech(s2u, u2s))
innermost = codec.backend.u2s.dp.flows["0"]  # 17 frames for every unit, whatever the noise
innermost.logs += 10
innermost.m -= 2.8 * innermost.logs.exp()
rng = np.random.default_rng(0)
samples = rng.standard_normal(120 * 16000).astype("f4")
codec.encode(samples[:16000], 16000)
codec.decode(rng.integers(0, 4096, 40), seed=0)
def rise(work):
    ctypes.CDLL(None).malloc_trim(0)  # what the process only keeps in store does not count
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from what is in use
    before = peak()
    result = work()
    return result, peak() - before
units, encode_rise = rise(lambda: codec.encode(samples, 16000, False))
spoken = rng.integers(0, 4096, 608)
total, decode_rise = rise(lambda: sum(len(p) for p in codec.decode_stream(spoken, seed=0)))
codec.backend.chunk_frames = 10**9
_, whole_rise = rise(lambda: codec.decode(spoken[:152], seed=0))  # a quarter, in one piece
print(len(units), total / 22050, encode_rise, decode_rise, whole_rise)
"""


def test_two_minutes_in_bounded_memory():
    """In a process of its own: how far the peak rises above that of one second of speech."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT], capture_output=True, text=True, check=True
    )
    num_units, seconds, *rises = map(float, done.stdout.split())
    encode, decode, whole = (value / 2**20 for value in rises)
    print(f"rise in MiB: encode {encode:.0f}, decode {decode:.0f}, a quarter at once {whole:.0f}")
    assert num_units == 3000
    assert seconds == pytest.approx(120, abs=0.1)
    assert encode < 200
    assert decode < 40  # neither the samples nor the generator's insides exist at once
    assert whole > 2 * decode


# What decode promises.


def test_seeds(codec):
    units = codec.encode(noise(1), 16_000)[:12]
    one, rate = codec.decode(units, seed=1)
    again, _ = codec.decode(units, seed=1)
    other, _ = codec.decode(units, seed=2)
    assert rate == codec.output_rate
    assert one.dtype == np.float32
    assert np.abs(one).max() <= 1
    assert np.array_equal(one, again)
    assert len(one) != len(other) or not np.array_equal(one, other)
    free, _ = codec.decode(units)
    more, _ = codec.decode(units)
    assert len(free) != len(more) or not np.array_equal(free, more)


def test_requests_do_not_share_their_noise(codec):
    """Not through torch's global generator, and not with a decode in between or beside it."""
    units = codec.encode(noise(1), 16_000)[:12]
    expected, _ = codec.decode(units, seed=5)
    torch.manual_seed(99)
    stream = codec.decode_stream(units, seed=5)
    pieces = [next(stream)]
    threads = [threading.Thread(target=codec.decode, args=(units,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    state = torch.get_rng_state()
    pieces += list(stream)
    for thread in threads:
        thread.join()
    assert np.array_equal(np.concatenate(pieces), expected)
    assert torch.equal(torch.get_rng_state(), state)


def test_stream_pieces(codec):
    units = [position % codec.num_units for position in range(60)]
    pieces = list(codec.decode_stream(units, seed=3))
    assert len(pieces) > 1
    assert np.array_equal(np.concatenate(pieces), codec.decode(units, seed=3)[0])


def test_stream_equals_one_piece(emova):
    units = torch.tensor([1, 5, 9, 30, 2])
    vector = emova.backend.u2s.style_vector(41)
    whole = emova.backend.u2s(units, vector, generator=torch.Generator().manual_seed(3))
    streamed, _ = emova.decode(units, seed=3)
    np.testing.assert_allclose(streamed, whole.numpy(), rtol=0, atol=1e-6)


def test_styles_change_the_speech(codec):
    units = codec.encode(noise(1), 16_000)[:12]
    plain, _ = codec.decode(units, seed=1)
    for style in ("gender-male", Style(pitch="low"), "speed-slow"):
        other, _ = codec.decode(units, style=style, seed=1)
        assert len(other) != len(plain) or not np.array_equal(other, plain)


def test_all_styles_of_the_published_tokenizer(emova):
    assert emova.styles == [style.name for style in STYLES]
    lengths = [len(emova.decode([1, 2], style=name, seed=0)[0]) for name in emova.styles]
    assert min(lengths) > 0


def test_speed(toy):
    units = toy.encode(SPEECH / "sentence.flac")
    normal, fast, slow = (len(toy.decode(units, seed=0, speed=s)[0]) for s in (1, 2, 0.5))
    assert normal / fast == pytest.approx(2, rel=0.1)
    assert slow / normal == pytest.approx(2, rel=0.1)
    styled = len(toy.decode(units, seed=0, style="speed-fast")[0])
    assert normal / styled == pytest.approx(1.25, rel=0.05)


@pytest.mark.parametrize(
    "units, options, message",
    [
        ([], {}, "0 units were given"),
        ([1] * 5000, {}, "5000 units were given; 1 to 4096"),
        ([1, -1], {}, "unit -1 at position 1 is outside 0.."),
        ([1, 2, 4096], {}, "unit 4096 at position 2 is outside"),
        ([1.5], {}, "whole numbers"),
        (["12"], {}, "whole numbers"),
        (5, {}, "whole numbers"),
        ([[1, 2]], {}, "whole numbers"),
        ([1], {"style": "emotion-hapy"}, "did you mean 'happy'"),
        ([1], {"style": None}, "not a NoneType"),
        ([1], {"speed": 0}, "speed=0 is outside 0.25..4.0"),
        ([1], {"speed": float("nan")}, "speed=nan is outside"),
        ([1], {"speed": True}, "speed=True"),
        ([1], {"seed": 1.5}, "seed=1.5 must be a whole number"),
        ([1], {"seed": True}, "seed=True"),
        ([1], {"seed": 2**64}, "does not fit into 64 bits"),
    ],
)
def test_wrong_arguments(codec, units, options, message):
    with pytest.raises(ValueError, match=message):
        codec.decode_stream(units, **options)  # at once, not at the first piece


def test_seed_and_unit_types(codec):
    expected, _ = codec.decode([1, 2, 3], seed=4)
    for units in (np.array([1, 2, 3]), torch.tensor([1, 2, 3]), (1, 2, 3), iter([1, 2, 3])):
        assert np.array_equal(codec.decode(units, seed=np.int64(4))[0], expected)
    assert len(codec.decode([1, 2, 3], seed=-1)[0])
    assert len(codec.decode([1, 2, 3], seed=2**64 - 1)[0])


def test_durations_are_bounded(emova):
    """exp of an unbounded log-duration: at most 40 frames a unit, and no more than the limit."""
    flow = emova.backend.u2s.dp.flows["0"]
    before = flow.m.clone()
    try:
        flow.m -= 1e4
        assert len(emova.decode([1, 2], seed=0)[0]) == 2 * 40 * 4
        strict = SpeechCodec(emova.backend, MediaLimits(max_seconds=0.01))
        with pytest.raises(ValueError, match=r"2 units would last 0\.0 s; at most 0\.0 s"):
            strict.decode([1, 2], seed=0)
    finally:
        flow.m.copy_(before)


def test_toy_has_only_neutral_styles(toy):
    assert len(toy.styles) == 18
    with pytest.raises(ValueError, match="not in this checkpoint, which has 18 styles"):
        toy.decode([1], style="emotion-angry")


@pytest.mark.parametrize(
    "config, message",
    [
        ("{}", "model_type=None"),
        ('{"model_type": "dynin_toy_speech_tokenizer"}', "does not describe a toy speech codec"),
        (
            '{"model_type": "dynin_toy_speech_tokenizer", "phones": ["a"], "num_trajectories": 1}',
            "one trajectory per unit",
        ),
    ],
)
def test_wrong_checkpoints(tmp_path, config, message):
    (tmp_path / "config.json").write_text(config)
    weights = speech_module.TOY_SPEECH_DIRECTORY / "model.safetensors"
    (tmp_path / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(ValueError, match=message):
        SpeechCodec.from_pretrained(tmp_path)
