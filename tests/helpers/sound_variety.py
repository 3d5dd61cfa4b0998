"""Some three hundred recordings of the same words, each in another form: name → how it is made.

The names say what is special; `WORDS` is what is said in each. `COARSE` are forms that keep less of
the sound (eight bits, the bandwidth of a telephone); the words are told from them all the same.
`BROKEN` are files in which nothing is said, with what their refusal says.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from helpers.sound_files import at, can_encode, spoken, with_ffmpeg, with_soundfile

Maker = Callable[[], bytes]
SAID = ("seven", "three")
WORDS = " ".join(SAID)


def words() -> np.ndarray:
    """float32 [N] at 16 kHz."""
    return spoken(*SAID)


def stereo(rate: int, left: float = 1.0, right: float = 1.0) -> np.ndarray:
    """float32 [N, 2]: the words, with a factor for each channel."""
    return np.outer(at(rate, words()), [left, right]).astype(np.float32)


def wav(rate: int = 16_000, subtype: str = "PCM_16", channels: int = 1, kind: str = "WAV") -> bytes:
    """A WAV file by libsndfile; the words are in every channel."""
    return with_soundfile(np.tile(at(rate, words())[:, None], channels), rate, kind, subtype)


def film(rate: int, container: str, codec: str, **changes: object) -> bytes:
    """A file by FFmpeg."""
    return with_ffmpeg(at(rate, words()), rate, container, codec, **changes)  # type: ignore[arg-type]


def rates() -> Iterator[tuple[str, Maker]]:
    """Every rate of the trade and some of no trade."""
    odd = (11_127, 15_999, 17_000, 37_800)
    for rate in (8_000, 11_025, 12_000, 22_050, 24_000, 32_000, 44_100, 48_000, 88_200, 96_000,
                 176_400, 192_000, 384_000, *odd):  # fmt: skip
        yield f"wav {rate} Hz", lambda rate=rate: wav(rate)
    for rate in (8_000, 22_050, 44_100, 48_000, 96_000):
        yield f"flac {rate} Hz", lambda rate=rate: wav(rate, "PCM_16", kind="FLAC")
    for rate in (8_000, 12_000, 24_000, 48_000):
        yield f"opus {rate} Hz", lambda rate=rate: film(rate, "ogg", "libopus")
    for rate in (8_000, 11_025, 22_050, 32_000, 44_100, 48_000):
        yield f"mp3 {rate} Hz", lambda rate=rate: film(rate, "mp3", "libmp3lame")
    for rate in (16_000, 22_050, 44_100, 96_000):
        yield f"m4a {rate} Hz", lambda rate=rate: film(rate, "ipod", "aac")
    for rate in (8_000, 22_050, 48_000):
        yield f"vorbis {rate} Hz", lambda rate=rate: wav(rate, "VORBIS", kind="OGG")


def sample_types() -> Iterator[tuple[str, Maker]]:
    """Depths and codings of samples in WAV and its relatives."""
    for subtype in ("PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM",
                    "MS_ADPCM", "GSM610"):  # fmt: skip
        rate = 8_000 if subtype == "GSM610" else 16_000
        yield f"wav {subtype}", lambda s=subtype, r=rate: wav(r, s)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        yield f"wav {subtype} stereo 44100", lambda s=subtype: wav(44_100, s, 2)
    for rate in (12_000, 22_050, 44_100, 48_000, 96_000):
        for subtype in ("PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
            yield f"wav {subtype} {rate} Hz", lambda r=rate, s=subtype: wav(r, s)
    for kind, subtype in (("WAVEX", "PCM_16"), ("WAVEX", "PCM_24"), ("WAVEX", "FLOAT"),
                          ("RF64", "PCM_16"), ("RF64", "FLOAT"), ("W64", "PCM_16"),
                          ("AIFF", "PCM_S8"), ("AIFF", "PCM_16"), ("AIFF", "PCM_24"),
                          ("AIFF", "FLOAT"), ("AU", "PCM_16"), ("AU", "ULAW"), ("AU", "FLOAT"),
                          ("CAF", "PCM_16"), ("CAF", "ALAC_16"), ("CAF", "FLOAT"),
                          ("FLAC", "PCM_S8"), ("FLAC", "PCM_24"), ("NIST", "PCM_16"),
                          ("VOC", "PCM_16"), ("IRCAM", "PCM_16"), ("SVX", "PCM_16"),
                          ("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")):  # fmt: skip
        yield f"{kind} {subtype}", lambda k=kind, s=subtype: wav(16_000, s, kind=k)
    yield "big-endian wav", lambda: with_soundfile(words(), 16_000, "WAV", "PCM_16", "BIG")
    yield (
        "big-endian wav of 24 bits",
        lambda: with_soundfile(stereo(48_000), 48_000, "WAV", "PCM_24", "BIG"),
    )
    yield (
        "little-endian aiff",
        lambda: with_soundfile(words(), 16_000, "AIFF", "PCM_16", "LITTLE"),
    )
    for codec in ("pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s32le", "pcm_f32le", "pcm_mulaw",
                  "pcm_alaw", "pcm_u8", "adpcm_ima_qt", "alac"):  # fmt: skip
        yield f"mov {codec}", lambda c=codec: film(48_000, "mov", c, layout="stereo")
    for codec in ("pcm_s16le", "pcm_s24le", "pcm_f32le", "pcm_u8", "pcm_f64le", "tta", "wavpack"):
        yield f"mkv {codec}", lambda c=codec: film(44_100, "matroska", c, layout="stereo")
    for codec in ("pcm_s16le", "pcm_s24le", "pcm_u8", "pcm_mulaw", "libmp3lame", "ac3", "aac"):
        yield f"avi {codec}", lambda c=codec: film(44_100, "avi", c, layout="stereo")


def containers() -> Iterator[tuple[str, Maker]]:
    """Codecs in the containers that phones, browsers, cameras and telephones write."""
    for container, codec, rate in (
        ("adts", "aac", 44_100), ("latm", "aac", 44_100), ("mp4", "aac", 48_000),
        ("mov", "aac", 44_100), ("3gp", "aac", 16_000), ("3gp", "libopencore_amrnb", 8_000),
        ("amr", "libopencore_amrnb", 8_000), ("matroska", "aac", 44_100),
        ("matroska", "libmp3lame", 44_100), ("matroska", "ac3", 48_000),
        ("webm", "libopus", 48_000), ("mpegts", "aac", 48_000), ("mpegts", "mp2", 48_000),
        ("mpegts", "ac3", 48_000), ("flv", "aac", 44_100), ("flv", "libmp3lame", 22_050),
        ("mp2", "mp2", 44_100), ("ac3", "ac3", 48_000), ("eac3", "eac3", 48_000),
        ("mpeg", "mp2", 44_100), ("vob", "ac3", 48_000), ("wv", "wavpack", 44_100),
        ("tta", "tta", 44_100), ("wav", "libmp3lame", 44_100), ("wav", "ac3", 44_100),
        ("w64", "pcm_s16le", 44_100), ("voc", "pcm_u8", 16_000), ("mp4", "libopus", 48_000),
        ("mp4", "libmp3lame", 44_100), ("caf", "pcm_s16be", 44_100),
        ("ismv", "aac", 44_100), ("ipod", "alac", 44_100), ("rm", "real_144", 8_000),
    ):  # fmt: skip
        yield f"{container} {codec}", lambda a=container, b=codec, r=rate: film(r, a, b)
    for codec in ("wmav1", "wmav2"):
        yield (
            f"asf {codec}",
            lambda c=codec: film(44_100, "asf", c, layout="stereo", bit_rate=128_000),
        )
    for container, codec, picture in (
        ("mp4", "aac", "libx264"), ("mov", "pcm_s16le", "mjpeg"), ("webm", "libopus", "libvpx"),
        ("avi", "pcm_s16le", "mjpeg"), ("matroska", "libopus", "libx264"),
        ("mpegts", "aac", "libx264"), ("flv", "aac", "libx264"),
    ):  # fmt: skip
        yield (
            f"film {container} {codec}",
            lambda a=container, b=codec, p=picture: film(48_000, a, b, picture=p),
        )
    yield "two tracks mkv", lambda: film(48_000, "matroska", "libopus", tracks=2)
    for name in ("webm", "matroska"):
        yield f"{name} of a recorder", lambda n=name: live(n)
    yield (
        "fragmented mp4 of a recorder",
        lambda: film(
            48_000, "mp4", "aac", is_piped=True,
            options={"movflags": "empty_moov+frag_keyframe+default_base_moof"},
        ),
    )  # fmt: skip
    for container, codec in (("ogg", "libopus"), ("flac", "flac"), ("mp3", "libmp3lame"),
                             ("wav", "pcm_s16le"), ("caf", "pcm_s16be"), ("au", "pcm_s16be"),
                             ("aiff", "pcm_s16be"), ("avi", "pcm_s16le"),
                             ("matroska", "pcm_s16le"), ("flv", "libmp3lame"),
                             ("voc", "pcm_s16le"), ("wav", "adpcm_ima_wav"), ("wav", "pcm_mulaw"),
                             ("wv", "wavpack"), ("tta", "tta")):  # fmt: skip
        yield (
            f"piped {container} {codec}",
            lambda a=container, b=codec: film(
                48_000 if b == "libopus" else 44_100, a, b, is_piped=True
            ),
        )


def live(container: str) -> bytes:
    """As MediaRecorder writes it: Opus, no duration, no cues."""
    options = {"live": "1"}
    return film(48_000, container, "libopus", is_piped=True, options=options)


def channels() -> Iterator[tuple[str, Maker]]:
    """One to eight channels, and what they have to do with each other."""
    for count in (2, 3, 4, 6, 8):
        yield f"wav of {count} channels", lambda n=count: wav(48_000, "PCM_16", n)
    for layout in ("stereo", "2.1", "quad", "5.1"):
        yield f"mov {layout}", lambda x=layout: film(48_000, "mov", "pcm_s16le", layout=x)
    for layout in ("stereo", "5.1"):
        yield f"opus {layout}", lambda x=layout: film(48_000, "ogg", "libopus", layout=x)
        yield f"m4a {layout}", lambda x=layout: film(48_000, "ipod", "aac", layout=x)
        yield f"ac3 {layout}", lambda x=layout: film(48_000, "ac3", "ac3", layout=x)
    yield "left only", lambda: with_soundfile(stereo(44_100, 1, 0), 44_100, "WAV", "PCM_16")
    for name, right in (("out of phase", -1.0), ("nearly out of phase", -0.85)):
        for rate, kind, subtype in ((16_000, "WAV", "PCM_16"), (44_100, "FLAC", "PCM_24"),
                                    (48_000, "OGG", "VORBIS")):  # fmt: skip
            yield (
                f"{name} {kind}",
                lambda r=rate, k=kind, s=subtype, f=right: with_soundfile(stereo(r, 1, f), r, k, s),
            )
        for container, codec in (("mp3", "libmp3lame"), ("webm", "libopus"), ("ipod", "aac"),
                                 ("mov", "pcm_s16le")):  # fmt: skip
            yield (
                f"{name} {container}",
                lambda a=container, c=codec, f=right: with_ffmpeg(
                    stereo(48_000, 1, f), 48_000, a, c, layout="stereo"
                ),
            )
    yield "four channels that cancel", lambda: cancelling(4)
    yield "out of phase with hum and offset", humming


def cancelling(count: int) -> bytes:
    """Channels of which every second one is upside down."""
    signs = np.array([1, -1] * (count // 2))
    return with_soundfile(np.outer(at(48_000, words()), signs), 48_000, "WAV", "PCM_16")


def humming() -> bytes:
    """Both wires of a balanced line, with the hum and the offset that both have."""
    samples = stereo(48_000, 0.8, -0.8)
    hum = 0.1 * np.sin(2 * np.pi * 50 * np.arange(len(samples)) / 48_000) + 0.02
    return with_soundfile(samples + hum[:, None], 48_000, "WAV", "FLOAT")


def wav_heads() -> Iterator[tuple[str, Maker]]:
    """Headers that do not say what is in the file."""
    for name, size in (("0", 0), ("too small", 4_096), ("the largest", 2**32 - 1),
                       ("half of the largest", 2**31 - 1), ("odd", 4_097), ("1", 1)):  # fmt: skip
        for subtype in ("PCM_16", "FLOAT", "ULAW", "IMA_ADPCM"):
            yield f"wav {subtype} size {name}", lambda s=subtype, n=size: sized(wav(16_000, s), n)
    yield "wav RIFF size 0", lambda: put(wav(), 4, b"\0\0\0\0")
    yield "wav 44100 stereo size 0", lambda: sized(wav(44_100, "PCM_24", 2), 0)
    yield "wav in front of a tag", lambda: wav() + b"TAG" + bytes(125)
    yield "wav in front of a chunk", lambda: wav() + chunk(b"LIST", b"INFOISFT" + bytes(24))
    yield "wav in front of zeros", lambda: wav() + bytes(5_000)
    yield "wav size 0 in front of a chunk", lambda: sized(wav() + chunk(b"LIST", bytes(32)), 0)
    yield "wav behind chunks", lambda: chunk_in_front(b"bext", bytes(602))
    yield "wav behind an odd chunk", lambda: chunk_in_front(b"note", b"abc")
    yield "wav behind an odd chunk without its byte", lambda: chunk_in_front(b"note", b"abc", 0)
    yield "wav behind junk", lambda: chunk_in_front(b"JUNK", bytes(4_000))
    yield "aiff without lengths", lambda: aiff_without_lengths()
    yield "au without a length", lambda: put(wav(16_000, kind="AU"), 8, b"\xff" * 4)
    yield "au with length 0", lambda: put(wav(16_000, kind="AU"), 8, bytes(4))
    yield "flac of open length", lambda: open_flac(wav(44_100, kind="FLAC"))
    yield "flac of 24 bits and open length", lambda: open_flac(wav(48_000, "PCM_24", kind="FLAC"))
    yield "flac that says too little", lambda: open_flac(wav(44_100, kind="FLAC"), 1_000)
    yield "flac that says too much", lambda: open_flac(wav(44_100, kind="FLAC"), 2**34)
    yield "flac without a checksum", lambda: put(wav(44_100, kind="FLAC"), 26, bytes(16))
    yield "flac behind an ID3 tag", lambda: id3() + wav(44_100, kind="FLAC")
    yield "mp3 behind an ID3 tag", lambda: id3() + film(44_100, "mp3", "libmp3lame")
    yield "mp3 behind a large ID3 tag", lambda: id3(200_000) + film(44_100, "mp3", "libmp3lame")
    yield "aac behind an ID3 tag", lambda: id3() + film(44_100, "adts", "aac")


def put(data: bytes, position: int, what: bytes) -> bytes:
    """Bytes replaced."""
    return data[:position] + what + data[position + len(what) :]


def sized(data: bytes, size: int) -> bytes:
    """A WAV file that gives another size for its samples."""
    return put(data, data.index(b"data") + 4, struct.pack("<I", size))


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a WAV file."""
    return name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)


def chunk_in_front(name: bytes, content: bytes, padding: int = 1) -> bytes:
    """A WAV file with a chunk in front of its samples."""
    data, extra = wav(), chunk(name, content)
    extra = extra if padding else extra[: 8 + len(content)]
    position = data.index(b"data")
    data = data[:position] + extra + data[position:]
    return put(data, 4, struct.pack("<I", len(data) - 8))


def aiff_without_lengths() -> bytes:
    """As a recorder leaves it that was cut off: 0 frames, 0 bytes."""
    data = wav(16_000, kind="AIFF")
    data = put(data, data.index(b"COMM") + 10, bytes(4))
    return put(data, data.index(b"SSND") + 4, bytes(4))


def open_flac(data: bytes, frames: int = 0) -> bytes:
    """A FLAC file that gives another number of samples; 0 leaves it open."""
    rest = int.from_bytes(data[18:26], "big") >> 36 << 36
    return put(data, 18, (rest | frames).to_bytes(8, "big"))


def id3(size: int = 2_000) -> bytes:
    """An ID3v2 tag."""
    parts = [(size >> shift) & 0x7F for shift in (21, 14, 7, 0)]
    return b"ID3\x04\x00\x00" + bytes(parts) + bytes(size)


def cut_off() -> Iterator[tuple[str, Maker]]:
    """Files that lack their last bytes; the words are whole."""
    tail = quiet()
    for container, codec, rate in (
        ("wav", "pcm_s16le", 16_000), ("mp3", "libmp3lame", 44_100), ("adts", "aac", 44_100),
        ("ogg", "libopus", 48_000), ("flac", "flac", 44_100), ("webm", "libopus", 48_000),
        ("matroska", "aac", 44_100), ("mpegts", "aac", 48_000), ("flv", "aac", 44_100),
        ("avi", "pcm_s16le", 44_100), ("aiff", "pcm_s16be", 44_100), ("au", "pcm_s16be", 44_100),
        ("caf", "pcm_s16be", 44_100), ("amr", "libopencore_amrnb", 8_000), ("ac3", "ac3", 48_000),
        ("w64", "pcm_s16le", 44_100), ("wv", "wavpack", 44_100), ("tta", "tta", 44_100),
    ):  # fmt: skip
        yield (
            f"cut {container} {codec}",
            lambda a=container, b=codec, r=rate: cut(
                with_ffmpeg(at(r, np.concatenate([words(), tail])), r, a, b)
            ),
        )
    yield "cut vorbis", lambda: cut(with_tail("OGG", "VORBIS"))
    yield "cut wav of 24 bits", lambda: with_tail("WAV", "PCM_24")[:-1]
    yield "cut ADPCM", lambda: cut(with_tail("WAV", "MS_ADPCM"))
    yield (
        "cut mp4 with its head in front",
        lambda: cut(
            with_ffmpeg(
                at(48_000, np.concatenate([words(), tail])), 48_000, "mp4", "aac",
                options={"moov_size": "9000"},
            )
        ),
    )  # fmt: skip
    yield (
        "cut fragmented mp4",
        lambda: cut(
            with_ffmpeg(
                at(48_000, np.concatenate([words(), tail])), 48_000, "mp4", "aac", is_piped=True,
                options={"movflags": "empty_moov+default_base_moof", "frag_duration": "200000"},
            )
        ),
    )  # fmt: skip


def quiet() -> np.ndarray:
    """Half a second of hiss, which no codec reduces to nothing."""
    return 0.003 * np.random.default_rng(0).standard_normal(8_000).astype(np.float32)


def with_tail(kind: str, subtype: str) -> bytes:
    """The words and half a second of hiss, by libsndfile."""
    samples = np.concatenate([words(), quiet()])
    return with_soundfile(at(16_000, samples), 16_000, kind, subtype)


def cut(data: bytes) -> bytes:
    """Without its last twentieth, at an odd byte."""
    return data[: len(data) - len(data) // 20 | 1]


def joined() -> Iterator[tuple[str, Maker]]:
    """Two files, one behind the other: both are heard."""

    def two(container: str, codec: str, rate: int, second_rate: int | None = None) -> bytes:
        first, second = spoken(SAID[0]), spoken(SAID[1])
        other = second_rate or rate
        return with_ffmpeg(at(rate, first), rate, container, codec) + with_ffmpeg(
            at(other, second), other, container, codec
        )

    for container, codec, rate in (
        ("mp3", "libmp3lame", 44_100), ("mp3", "libmp3lame", 16_000), ("adts", "aac", 44_100),
        ("ogg", "libopus", 48_000), ("ac3", "ac3", 48_000), ("mp2", "mp2", 44_100),
        ("mpegts", "aac", 48_000), ("wav", "pcm_s16le", 44_100), ("flac", "flac", 44_100),
        ("webm", "libopus", 48_000),
    ):  # fmt: skip
        yield f"joined {container}", lambda a=container, b=codec, r=rate: two(a, b, r)
    yield (
        "joined vorbis",
        lambda: b"".join(with_soundfile(spoken(word), 16_000, "OGG", "VORBIS") for word in SAID),
    )
    yield "joined mp3 of two rates", lambda: two("mp3", "libmp3lame", 44_100, 48_000)
    yield "joined wav of two rates", lambda: two("wav", "pcm_s16le", 16_000, 44_100)
    yield "joined mp3 with a damaged middle", damaged_middle
    yield "mp3 that begins in a frame", lambda: film(44_100, "mp3", "libmp3lame")[700:]
    yield "aac that begins in a frame", lambda: film(44_100, "adts", "aac")[150:]
    yield "mp3 behind rubbish", lambda: bytes(range(200)) * 3 + film(44_100, "mp3", "libmp3lame")


def damaged_middle() -> bytes:
    """The second file's header is overwritten."""
    first, second = (
        with_ffmpeg(at(44_100, spoken(word)), 44_100, "mp3", "libmp3lame") for word in SAID
    )
    return first + b"\0" * 40 + second[40:]


GOOD: dict[str, Maker] = {
    name: make
    for group in (rates, sample_types, containers, channels, wav_heads, cut_off, joined)
    for name, make in group()
    if "libopencore_amrnb" not in name or can_encode("libopencore_amrnb")
}
"""Files in which the words are said."""

_COARSE_PARTS = (" 8000 Hz", " 11025 Hz", "PCM_U8", "PCM_S8", "pcm_u8", "GSM610", "amrnb", "real_")
COARSE = frozenset(name for name in GOOD if any(part in f" {name} " for part in _COARSE_PARTS))

_NOTHING = with_soundfile(np.zeros(0, np.float32), 16_000, "WAV", "PCM_16")
BROKEN: dict[str, tuple[Maker, str]] = {
    "nothing": (lambda: b"", "empty"),
    "text": (lambda: b"this is not a recording, it is text " * 9, "not audio that can be read"),
    "html": (lambda: b"<!DOCTYPE html><html><body>404</body></html>" * 9, "not audio"),
    "a picture": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(900), "not audio"),
    "a playlist": (lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "not audio"),
    "a script of FFmpeg": (lambda: b"ffconcat version 1.0\nfile /etc/passwd\n", "not audio"),
    "zeros": (lambda: bytes(4_000), "not audio"),
    "wav head of 36 bytes": (lambda: wav()[:36], "ends before its samples begin; send a whole"),
    "wav head of 44 bytes": (lambda: wav()[:44], "no samples; it is empty or cut off"),
    "wav head of 20 bytes": (lambda: wav()[:20], "ends before its samples begin; send a whole"),
    "wav head of 3 bytes": (lambda: wav()[:3], "not audio"),
    "wav without samples": (lambda: _NOTHING, "no samples"),
    "wav rate 0": (lambda: put(wav(), 24, bytes(4)), "sample_rate=0 Hz is below 1000 Hz"),
    "wav rate 7": (lambda: put(wav(), 24, b"\7\0\0\0"), "sample_rate=7 Hz is below"),
    "wav rate of 4 GHz": (lambda: put(wav(), 24, b"\xff" * 4), "max_sample_rate"),
    "wav no channels": (lambda: put(wav(), 22, bytes(2)), "not audio"),
    "wav 900 channels": (lambda: put(wav(), 22, struct.pack("<H", 900)), ""),
    "wav of an unknown coding": (lambda: put(wav(), 20, b"\x99\x99"), "not audio"),
    "wav of NaN": (
        lambda: with_soundfile(words() * np.float32("nan"), 16_000, "WAV", "FLOAT"),
        "NaN",
    ),
    "wav of 8 samples": (lambda: with_soundfile(words()[:8], 16_000, "WAV", "PCM_16"), ""),
    "flac head": (lambda: wav(kind="FLAC")[:42], "send a whole file"),
    "flac head of zeros": (lambda: b"fLaC\x80\0\0\x22" + bytes(34), "send a whole file"),
    "flac magic": (lambda: b"fLaC", "send a whole file"),
    "ogg head": (lambda: film(48_000, "ogg", "libopus")[:47], "send a whole file"),
    "ogg magic": (lambda: b"OggS", "send a whole file"),
    "mp3 tag alone": (lambda: id3(), "send a whole file"),
    "mp3 sync alone": (lambda: b"\xff\xfb\x90\x00", "send a whole file"),
    "mp4 without its table": (lambda: film(48_000, "mp4", "aac")[:9_000], "send a whole file"),
    "webm head": (lambda: live("webm")[:200], "send a whole file"),
    "aiff head": (lambda: wav(kind="AIFF")[:20], "send a whole file"),
    "film without sound": (lambda: silent_film(), "no audio track"),
}


def silent_film() -> bytes:
    """A video and nothing else."""
    from helpers.fuzz_media import video_seeds

    return video_seeds()[0]
