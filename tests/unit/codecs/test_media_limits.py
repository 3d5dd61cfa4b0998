import io
import os

import pytest

from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits, open_source


def test_exactly_at_a_limit_is_allowed_and_nan_is_not():
    limits = MediaLimits(max_seconds=2.5)
    limits.check("max_seconds", 2.5, "the duration")
    with pytest.raises(MediaError, match=r"the duration is 2\.51, over the limit max_seconds=2\.5"):
        limits.check("max_seconds", 2.51, "the duration")
    with pytest.raises(MediaError):
        limits.check("max_seconds", float("nan"), "the duration")


@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_positive(value):
    with pytest.raises(ValueError, match="max_bytes"):
        MediaLimits(max_bytes=value)


def test_every_kind_of_source_gives_the_same_bytes(tmp_path):
    data = os.urandom(100)
    path = tmp_path / "a"
    path.write_bytes(data)
    used = io.BytesIO(data)
    used.read(50)
    for source in (data, bytearray(data), memoryview(data), path, str(path), used):
        with open_source(source) as stream:
            assert stream.read() == data
    assert not used.closed


def test_size_is_checked_for_every_kind_of_source(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 11)
    limits = MediaLimits(max_bytes=10)
    for source in (b"x" * 11, tmp_path / "a", io.BytesIO(b"x" * 11)):
        with pytest.raises(MediaError, match="max_bytes=10"), open_source(source, limits):
            pass
    with open_source(b"x" * 10, limits):
        pass


def test_what_is_no_file_is_refused_without_hanging(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for source in (
        tmp_path / "fifo",
        tmp_path,
        tmp_path / "missing",
        "/dev/zero",
        "https://example.org/a.png",
        "a\0b",
        b"",
        io.BytesIO(),
    ):
        with pytest.raises(MediaError), open_source(source):
            pass


def test_pipes_and_other_objects_are_refused():
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as pipe:
        os.close(write_end)
        with pytest.raises(MediaError, match="not seekable"), open_source(pipe):
            pass
    with pytest.raises(TypeError, match="not int"), open_source(3):
        pass
