"""Codecs beside the engine and on its worker give the same; here the worker is called directly."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from vllm_dynin.codec_runner import CodecRunner, Sound
from vllm_dynin.entrypoints.stand_in import TINY_IMAGE_DIRECTORY
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY
from vllm_dynin.processors.media import CodecFolders, MediaCodecs
from vllm_dynin.tokens import Vocabulary

pytest.importorskip("vllm", reason="the worker extension is part of the engine")
from vllm_dynin.model_executor.worker_extension import (
    MAX_OPEN_STREAMS,
    MediaWorkerExtension,
)

FOLDERS = CodecFolders(image=str(TINY_IMAGE_DIRECTORY), speech=str(TOY_SPEECH_DIRECTORY))
VOCABULARY = Vocabulary(num_image_codes=8_192, num_speech_units=81)
UNITS = [3, 4, 21, 22, 9, 10] * 20


def worker(rank: int = 0) -> MediaWorkerExtension:
    extension = MediaWorkerExtension()
    media = MediaCodecs(FOLDERS, torch.device("cpu"), VOCABULARY)
    extension.rank = rank
    extension.model_runner = SimpleNamespace(model=SimpleNamespace(media=media))
    return extension


def runner_of(*ranks: MediaWorkerExtension, calls: list[str] | None = None) -> CodecRunner:
    """A runner that reaches these workers as `collective_rpc` would."""

    def call(method, arguments, turn):
        if calls is not None:
            calls.append(method)
        return [getattr(rank, method)(*arguments) for rank in ranks][:1]

    return CodecRunner(FOLDERS, VOCABULARY, place="worker", call=call)


@pytest.fixture(scope="module")
def local() -> CodecRunner:
    return CodecRunner(FOLDERS, VOCABULARY)


def test_only_rank_0_works(local) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8))
    ranks = [worker(0), worker(1)]
    remote = runner_of(*ranks)
    codes = local.encode_image(image)
    assert remote.encode_image(image) == codes and len(codes) == 6
    decoded = remote.decode_image(codes, 8, 12).result()
    assert decoded.tobytes() == local.decode_image(codes, 8, 12).result().tobytes()
    assert "image" not in vars(ranks[1].model_runner.model.media)  # not even loaded there


def test_speech_comes_in_pieces(local) -> None:
    calls: list[str] = []
    remote = runner_of(worker(), calls=calls)
    said = remote.decode_speech(UNITS, style="gender-male", seed=4).result()
    whole = local.decode_speech(UNITS, style="gender-male", seed=4).result()
    np.testing.assert_array_equal(said.waveform, whole.waveform)
    assert whole.seconds > 3
    assert calls.count("dynin_next_speech") > 3  # about a second a call, one more to see the end


def test_nothing_to_say(local) -> None:
    for codecs in (local, runner_of(worker())):
        silence = codecs.decode_speech([]).result()
        assert (len(silence.waveform), silence.sample_rate) == (0, 16_000)
        with pytest.raises(ValueError, match="N ≥ 1"):
            silence.to_bytes()


def test_abandoned_streams_are_dropped() -> None:
    extension = worker()
    for name in range(MAX_OPEN_STREAMS + 3):
        extension.dynin_open_speech(str(name), UNITS, None, 0)
    assert len(extension.model_runner.dynin_streams) == MAX_OPEN_STREAMS
    assert extension.dynin_next_speech("0") == b""
    assert extension.dynin_next_speech(str(MAX_OPEN_STREAMS))
    assert extension.dynin_next_speech("never opened") == b""


def test_codes_out_of_range_are_an_error_and_not_bent(local) -> None:
    for codecs in (local, runner_of(worker())):
        with pytest.raises(ValueError, match="codes span"):
            codecs.decode_image([0, 9_000], 4, 8).result()
        with pytest.raises(ValueError, match="unit 81"):
            codecs.decode_speech([81]).result()


def test_styles(local) -> None:
    for codecs in (local, runner_of(worker())):
        codecs.check_style("gender-male")
        with pytest.raises(ValueError, match="not one of the 18"):
            codecs.check_style("emotion-sad")


def test_a_text_only_model_has_no_codecs() -> None:
    extension = MediaWorkerExtension()
    extension.rank = 0
    extension.model_runner = SimpleNamespace(model=object())
    with pytest.raises(ValueError, match="text-only"):
        extension.dynin_decode_image([1], 4, 4)


def test_no_way_to_the_worker(local) -> None:
    with pytest.raises(ValueError, match="place='worker' needs"):
        CodecRunner(FOLDERS, VOCABULARY, place="worker")
    with pytest.raises(ValueError, match="worker extension"):
        local.take_trajectory("x")


def test_sound_as_a_file() -> None:
    sound = Sound(np.zeros(8_000, np.float32), 16_000)
    assert sound.seconds == 0.5
    assert sound.to_bytes("flac")[:4] == b"fLaC"


def test_files_that_have_gone_are_nobodys_bad_request(tmp_path) -> None:
    """A `ValueError` would be a 400: the client's fault."""
    folders = CodecFolders(image=str(tmp_path / "image"), speech=str(tmp_path / "speech"))
    gone = CodecRunner(folders, VOCABULARY)
    with pytest.raises(RuntimeError, match="the image codec cannot be loaded"):
        gone.decode_image([1], 1, 1).result()
    with pytest.raises(RuntimeError, match="the image codec cannot be loaded"):
        gone.encode_image(Image.new("RGB", (8, 8)))
    with pytest.raises(RuntimeError, match="the speech codec cannot be loaded"):
        gone.decode_speech(UNITS).result()
    with pytest.raises(RuntimeError, match="the speech codec cannot be loaded"):
        gone.speech_rate()
    none = CodecRunner(CodecFolders(), VOCABULARY)
    with pytest.raises(ValueError, match="this checkpoint has no image codec"):
        none.encode_image(Image.new("RGB", (8, 8)))
