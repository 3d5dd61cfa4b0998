"""Memory of the processes that decode sound, measured in each of them."""

import numpy as np
import pytest
from helpers import peaks
from helpers.audio_mutations import mutant, originals
from helpers.sound_files import with_ffmpeg, with_soundfile

from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.limits import MediaError, MediaLimits

RATE = 16_000
INTERPRETER = 200 * 2**20  # with NumPy, libsndfile and FFmpeg, before anything is decoded


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Peaks of the workers that were started meanwhile."""
    monkeypatch.syspath_prepend(str(peaks.FOLDER))
    monkeypatch.setenv("WORKER_PEAKS_FILE", str(tmp_path / "peaks"))
    return lambda: peaks.read(tmp_path / "peaks", "audio_worker")


def heard(data, limits=None):
    try:
        return len(load_audio(data, target_rate=RATE, limits=limits or MediaLimits()))
    except MediaError as error:
        return str(error)


def test_damaged_files_need_little(measured):
    files = {name: data for name, data in originals().items() if not name.startswith("wav")}
    for seed in range(16):
        heard(mutant(files, seed)[2])
    found = measured()
    assert found.started == found.ended == 16
    assert 20 * 2**20 < found.most < INTERPRETER


def test_ten_minutes_need_their_samples_and_little_more(measured):
    quiet = np.tile(np.int16([0, 5]), (600 * 8_000, 1))
    assert heard(with_soundfile(quiet, 8_000, "FLAC", "PCM_16")) == 600 * RATE
    samples = 4 * 600 * RATE  # bytes
    assert measured().most < INTERPRETER + 3 * samples


def test_the_cap_is_kept(measured):
    data = with_ffmpeg(np.zeros(120 * 48_000, np.float32), 48_000, "matroska", "libopus")
    assert heard(data) > 119 * RATE
    limits = MediaLimits(max_decode_bytes=12 * 2**20)
    assert "max_decode_bytes" in heard(data, limits)
    assert measured().ended == 2
