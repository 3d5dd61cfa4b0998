"""Media → codes: those of a request, within limits, and never cut away from a transcript."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from helpers.training_data import codec_checkpoint, photograph
from PIL import Image

from vllm_dynin.canvas import Task
from vllm_dynin.checkpoint import load_config
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.image_io import open_image, resize_and_crop, to_pixels
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.processors.media import AUDIO_RATE, CodecFolders, MediaCodecs
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.encode import EncodeOptions, Encoder, codec_digest
from vllm_dynin.training_ext.data.raw import RawRecord

MMU, V2T, S2T = Task.IMAGE_TO_TEXT, Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT
T2I, I2I = Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE


@pytest.fixture(scope="module")
def codecs(codecs_folder: Path) -> MediaCodecs:
    config = load_config(codecs_folder)
    folders = CodecFolders.find(str(codecs_folder), config)
    return MediaCodecs(folders, torch.device("cpu"), config.vocabulary)


@pytest.fixture(scope="module")
def encoder(codecs: MediaCodecs, codecs_folder: Path) -> Encoder:
    return Encoder(codecs, EncodeOptions.of_config(load_config(codecs_folder)))


def limited(encoder: Encoder, codecs: MediaCodecs, **options: float) -> Encoder:
    return Encoder(codecs, replace(encoder.options, **options))


def speech(path: Path, span: tuple[float, float] | None = None) -> RawRecord:
    return RawRecord(task=S2T, key="k", answer="seven", speech=path, span=span)


def served(codecs: MediaCodecs, image: Image.Image, side: int) -> tuple[int, ...]:
    """Codes of an image as the engine makes them for a request."""
    pixels = to_pixels([resize_and_crop(image, side, side)])
    start = codecs._vocabulary.image.start
    return tuple((codecs.image_ids(pixels)[0] - start).tolist())


def test_images_have_the_codes_and_the_sizes_of_a_request(
    encoder: Encoder, codecs: MediaCodecs, media: Path
) -> None:
    photo, other = media / "photo0.jpg", media / "photo1.jpg"
    asked = encoder(RawRecord(task=MMU, key="k", answer="a", images=(photo, other)), "set")
    assert asked.images == tuple(served(codecs, open_image(p), 64) for p in (photo, other))
    assert (asked.source, asked.key, len(asked.images[0])) == ("set", "k", 16)
    drawn = encoder(RawRecord(task=T2I, key="k", text="p", target_image=photo))
    assert drawn.target_image == served(codecs, open_image(photo), 64)
    edited = encoder(
        RawRecord(task=I2I, key="k", text="p", images=(photo,), target_image=other.read_bytes())
    )
    assert edited.images == (served(codecs, open_image(photo), 48),)
    assert edited.target_image == served(codecs, open_image(other), 48)
    assert len(edited.target_image or ()) == 9


def test_frames_are_those_of_a_request(encoder: Encoder, codecs: MediaCodecs, media: Path) -> None:
    made = encoder(RawRecord(task=V2T, key="k", answer="a", video=media / "clip.mp4"))
    frames = load_frames(media / "clip.mp4", 3, 32)
    assert made.images == tuple(served(codecs, frame, 32) for frame in frames)
    assert len({*made.images}) > 1  # it moves


def test_a_folder_of_frames_is_a_video(encoder: Encoder, codecs: MediaCodecs, media: Path) -> None:
    """Four photographs, of which first, second and last are taken: linspace(0, 3, 3) cut off."""
    expected = tuple(served(codecs, photograph(index), 32) for index in (0, 1, 3))
    folder = media / "frames"
    files = tuple(sorted(folder.iterdir()))
    for video in (folder, files):
        made = encoder(RawRecord(task=V2T, key="k", answer="a", video=video))
        assert made.images == expected


def test_units_are_those_of_a_request(encoder: Encoder, codecs: MediaCodecs, media: Path) -> None:
    samples = load_audio(media / "seven.flac", target_rate=AUDIO_RATE)
    expected = codecs.speech_ids(torch.from_numpy(samples)) - codecs._vocabulary.speech.start
    made = encoder(speech(media / "seven.flac"))
    assert made.units == tuple(expected.tolist())
    assert len(made.units or ()) > 3


def test_a_part_of_a_recording(encoder: Encoder, media: Path, tmp_path: Path) -> None:
    """`begin_time` and `end_time` of a set with long recordings: those samples and no others."""
    samples, rate = soundfile.read(media / "seven.flac")
    soundfile.write(tmp_path / "part.flac", samples[rate // 10 : rate * 4 // 10], rate)
    cut = encoder(speech(media / "seven.flac", (0.1, 0.4)))
    assert cut.units == encoder(speech(tmp_path / "part.flac")).units
    assert cut.units != encoder(speech(media / "seven.flac")).units
    with pytest.raises(BadSample, match=r"0.1 to 9 s of a recording of 0\.\d+ s") as error:
        encoder(speech(media / "seven.flac", (0.1, 9.0)))
    assert error.value.kind is BadKind.MEDIA


def test_speech_over_the_cap_is_left_out_not_cut(
    encoder: Encoder, codecs: MediaCodecs, media: Path
) -> None:
    """Defect 3 of the original: the recording is cut at a cap, its transcript is not."""
    seconds = len(load_audio(media / "seven.flac", target_rate=AUDIO_RATE)) / AUDIO_RATE
    units = encoder(speech(media / "seven.flac")).units or ()
    for options in ({"max_speech_seconds": seconds - 0.01}, {"max_units": len(units) - 1}):
        with pytest.raises(BadSample, match=r"cut .* with its transcript") as error:
            limited(encoder, codecs, **options)(speech(media / "seven.flac"))
        assert error.value.kind is BadKind.TOO_LONG
    exactly = limited(encoder, codecs, max_speech_seconds=seconds, max_units=len(units))
    assert exactly(speech(media / "seven.flac")).units == units
    # Only the part that is meant counts.
    assert limited(encoder, codecs, max_speech_seconds=0.3)(
        speech(media / "seven.flac", (0.1, 0.4))
    )


def test_a_clip_over_the_cap_is_left_out(
    encoder: Encoder, codecs: MediaCodecs, media: Path
) -> None:
    raw = RawRecord(task=V2T, key="k", answer="a", video=media / "clip.mp4")  # two seconds
    assert limited(encoder, codecs, max_video_seconds=2.0)(raw).images
    with pytest.raises(BadSample, match=r"max_seconds=1\.5"):
        limited(encoder, codecs, max_video_seconds=1.5)(raw)


def test_codes_need_no_codecs() -> None:
    codes = tuple(range(9))
    raw = RawRecord(task=I2I, key="k", text="p", images=(codes,), target_image=codes)
    made = Encoder()(raw)
    assert (made.images, made.target_image) == ((codes,), codes)
    frames = ((1, 2, 3, 4), (5, 6, 7, 8))
    assert Encoder()(RawRecord(task=V2T, key="k", answer="a", video=frames)).images == frames
    assert Encoder()(RawRecord(task=S2T, key="k", answer="a", speech=(4, 2))).units == (4, 2)
    with pytest.raises(BadSample, match="3 speech units, over max_units=2"):
        too_many = RawRecord(task=S2T, key="k", answer="a", speech=(4, 2, 1))
        Encoder(None, EncodeOptions(max_units=2))(too_many)
    with pytest.raises(BadSample, match="frames are all codes or all images"):
        Encoder()(RawRecord(task=V2T, key="k", answer="a", video=((1, 2), b"png")))


def test_media_without_codecs_are_no_bad_samples(media: Path) -> None:
    with pytest.raises(ValueError, match="to train, run vllm-dynin tokenize") as error:
        Encoder()(speech(media / "seven.flac"))
    assert not isinstance(error.value, BadSample)


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        (RawRecord(task=T2I, key="k", text="p", target_image=b"no image"), "media", "not a readab"),
        (RawRecord(task=T2I, key="k", text="p", target_image=Path("/n.png")), "media", "cannot op"),
        (RawRecord(task=S2T, key="k", answer="a", speech=b"no sound"), "media", "inside the row"),
        (RawRecord(task=V2T, key="k", answer="a", video=b"no film"), "media", "inside the row"),
        (RawRecord(task=V2T, key="k", answer="a", video=Path("/usr")), "media", "has no frames"),
        (RawRecord(task=S2T, key="k", answer="a"), "fields", "needs units"),
        (RawRecord(task=T2I, key="k", text="p", answer="a"), "fields", "target_image"),
        (
            RawRecord(task=S2T, key="k", answer="a", speech=(1,), images=((1,),)),
            "fields",
            "nothing",
        ),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(
    raw: RawRecord, kind: str, message: str, encoder: Encoder
) -> None:
    with pytest.raises(BadSample, match=message) as error:
        encoder(raw)
    assert error.value.kind.value == kind


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="video_frames=0 must be positive"):
        EncodeOptions(video_frames=0)


def test_codecs_are_told_apart_by_their_files(codecs_folder: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return codec_digest(CodecFolders.find(str(folder), load_config(folder)))

    other = codec_checkpoint(tmp_path / "other")
    assert digest(other) == digest(codecs_folder)
    weights = next(other.rglob("image_codec/model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert digest(other) != digest(codecs_folder)
