"""Which codecs a checkpoint has: found, off with one line, or damaged, which ends the start."""

import logging

import pytest

from vllm_dynin.entrypoints.stand_in import write_stand_in
from vllm_dynin.processors.media import CodecFolders


@pytest.fixture
def folder(tmp_path):
    return write_stand_in(tmp_path / "dynin")


def find(folder):
    from vllm_dynin.checkpoint import load_config

    return CodecFolders.find(str(folder), load_config(folder))


def test_both_are_found(folder):
    assert find(folder) == CodecFolders(str(folder / "image_codec"), str(folder / "speech_codec"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "s2u.ckpt"])
def test_pickles_alone_switch_it_off_with_the_way_out(folder, caplog, name):
    weights = folder / "speech_codec" / "model.safetensors"
    weights.rename(weights.with_name(name))
    with caplog.at_level(logging.WARNING):
        assert find(folder) == CodecFolders(str(folder / "image_codec"), None)
    (line,) = (r.getMessage() for r in caplog.records if "speech" in r.getMessage())
    assert line.startswith("speech input and output is off: ")
    assert "vllm-dynin fetch MODEL DIRECTORY" in line
    assert "vllm-dynin convert-codec FILE DIRECTORY" in line


def test_one_without_any_weights_is_left_for_the_start_to_refuse(folder):
    (folder / "speech_codec" / "model.safetensors").unlink()
    assert find(folder).speech == str(folder / "speech_codec")
