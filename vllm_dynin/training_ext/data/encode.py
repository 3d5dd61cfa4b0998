"""Media → codes, as serving makes them: `RawRecord` → `records.Record`.

Images, frames and recordings are opened, sized and encoded by the same functions that the engine
uses for a request, so a code in a training record is the code of the request.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.codecs.image_decode import FORMATS
from vllm_dynin.processors.codecs.image_io import open_image
from vllm_dynin.processors.codecs.limits import DEFAULT_LIMITS, MediaError
from vllm_dynin.processors.codecs.video import load_frames
from vllm_dynin.processors.media import AUDIO_RATE, CodecFolders, MediaCodecs
from vllm_dynin.training_ext.data.bad import BadKind, BadSample
from vllm_dynin.training_ext.data.raw import RawRecord, Video
from vllm_dynin.training_ext.data.rows import Medium
from vllm_dynin.training_ext.data.thoughts import check_switch
from vllm_dynin.training_ext.records import Codes, Record

_EDITS = (Task.IMAGE_TO_IMAGE, Task.TEXT_IMAGE_TO_TEXT_IMAGE)


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """How large media are when they are encoded. Defaults are those of serving.

    Args:
        image_resolution: pixels a side of an image that is asked about.
        generation_resolution: of an image to be generated.
        edit_resolution: of an image to be edited, and of its target.
        video_resolution: of a frame.
        video_frames: frames taken of a clip, evenly spaced, first and last included.
        max_video_seconds: a longer clip is a bad sample.
        max_speech_seconds: a longer recording, or part of one, is a bad sample: cut off it would
            say less than its transcript.
        max_units: the same for the number of units; None is no limit.

    Raises:
        ValueError: a number is not positive.
    """

    image_resolution: int = 480
    generation_resolution: int = 512
    edit_resolution: int = 336
    video_resolution: int = 224
    video_frames: int = 5
    max_video_seconds: float = DEFAULT_LIMITS.max_seconds
    max_speech_seconds: float = 21.0
    max_units: int | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value} must be positive")

    @classmethod
    def of_config(cls, config: LLaDAConfig) -> EncodeOptions:
        """The sizes a checkpoint serves with."""
        if not isinstance(config, MMadaConfig):
            return cls()
        return cls(
            image_resolution=config.image_resolution,
            generation_resolution=config.generation_resolution,
            edit_resolution=config.edit_resolution,
            video_resolution=config.video_resolution,
            video_frames=config.video_num_frames,
        )


class Encoder:
    """Encodes the media of records.

    Args:
        codecs: of the checkpoint; None where every medium is given as codes.
        options: sizes and limits.
    """

    def __init__(
        self, codecs: MediaCodecs | None = None, options: EncodeOptions | None = None
    ) -> None:
        self._codecs = codecs
        self.options = EncodeOptions() if options is None else options

    def __call__(self, raw: RawRecord, source: str = "") -> Record:
        """Encode one record.

        Args:
            raw: as an adapter made it.
            source: name of the data set, for the record.

        Raises:
            BadSample: a medium cannot be used, the direction lacks a part, or an answer does not do
                what its switch asks for.
            ValueError: it has a medium, and there are no codecs.
        """
        check_switch(raw.thinking, raw.answer)
        options = self.options
        is_edit = raw.task in _EDITS
        side = options.edit_resolution if is_edit else options.image_resolution
        images = tuple(self._image(image, side) for image in raw.images)
        if raw.video is not None:
            images += self._frames(raw.video)
        target_side = options.edit_resolution if is_edit else options.generation_resolution
        target = raw.target_image
        speech, reply = raw.speech, raw.reply_speech
        parts = {
            "images": images,
            "target_image": None if target is None else self._image(target, target_side),
            "units": None if speech is None else self._units(speech, raw.span),
            "reply_units": None if reply is None else self._units(reply, None),
        }
        try:
            return Record(
                task=raw.task,
                text=raw.text,
                answer=raw.answer,
                turns=raw.turns,
                thinking=raw.thinking,
                source=source,
                key=raw.key,
                **parts,  # type: ignore[arg-type]
            )
        except ValueError as error:
            raise BadSample(BadKind.FIELDS, str(error)) from error

    @property
    def _required(self) -> MediaCodecs:
        if self._codecs is None:
            raise ValueError(
                "these data have media that are not encoded; give the checkpoint whose codecs are "
                "to be used (to train, run vllm-dynin tokenize first)"
            )
        return self._codecs

    def _image(self, medium: Medium, side: int) -> Codes:
        if isinstance(medium, tuple):
            return medium
        codec = self._required.image
        try:
            return tuple(codec.encode([open_image(medium)], resolution=side)[0].tolist())
        except MediaError as error:
            raise _bad(medium, error) from error

    def _frames(self, video: Video) -> tuple[Codes, ...]:
        options = self.options
        limits = replace(DEFAULT_LIMITS, max_seconds=options.max_video_seconds)
        count, side = options.video_frames, options.video_resolution
        try:
            if isinstance(video, Path) and video.is_dir():
                video = tuple(_folder_of_frames(video))
            if isinstance(video, tuple):
                codes = tuple(frame for frame in video if isinstance(frame, tuple))
                files = [frame for frame in video if not isinstance(frame, tuple)]
                if not files:
                    return codes
                if codes:
                    raise BadSample(BadKind.FIELDS, "frames are all codes or all images")
                taken = load_frames(files, count, side, limits)
            else:
                taken = load_frames(video, count, side, limits)
        except MediaError as error:
            raise _bad(video, error) from error
        codec = self._required.image
        return tuple(tuple(codec.encode([frame])[0].tolist()) for frame in taken)

    def _units(self, medium: Medium, span: tuple[float, float] | None) -> Codes:
        if isinstance(medium, tuple):
            return self._checked_units(medium)
        codec = self._required.speech
        try:
            samples = load_audio(medium, target_rate=AUDIO_RATE)
        except MediaError as error:
            raise _bad(medium, error) from error
        if span is not None:
            start, stop = (round(seconds * AUDIO_RATE) for seconds in span)
            if stop > len(samples) + AUDIO_RATE // 10:  # transcripts round to tenths of seconds
                raise BadSample(
                    BadKind.MEDIA,
                    f"{_name(medium)}: {span[0]:g} to {span[1]:g} s of a recording of "
                    f"{len(samples) / AUDIO_RATE:.2f} s",
                )
            samples = samples[start:stop]
        seconds = len(samples) / AUDIO_RATE
        if seconds > self.options.max_speech_seconds:
            raise BadSample(
                BadKind.TOO_LONG,
                f"{_name(medium)}: {seconds:.2f} s of speech, over max_speech_seconds="
                f"{self.options.max_speech_seconds:g}; cut it together with its transcript",
            )
        try:
            units = codec.encode(samples, AUDIO_RATE)
        except MediaError as error:
            raise _bad(medium, error) from error
        return self._checked_units(tuple(units))

    def _checked_units(self, units: Codes) -> Codes:
        most = self.options.max_units
        if most is not None and len(units) > most:
            raise BadSample(
                BadKind.TOO_LONG,
                f"{len(units)} speech units, over max_units={most}; cut the recording together "
                "with its transcript",
            )
        return units


def codec_digest(folders: CodecFolders) -> str:
    """Identifies the codecs of a checkpoint by what is in their files."""
    digest = hashlib.sha256()
    for folder in (folders.image, folders.speech):
        files = [] if folder is None else sorted(Path(folder).glob("*"))
        for file in files:
            if file.suffix in (".json", ".safetensors"):
                with open(file, "rb") as stream:
                    content = hashlib.file_digest(stream, "sha256").hexdigest()
                digest.update(json.dumps([file.name, content]).encode())
        digest.update(b"|")
    return digest.hexdigest()[:16]


def _folder_of_frames(folder: Path) -> list[Path]:
    endings = {f".{name.lower()}" for name in FORMATS} | {".jpg"}
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in endings)
    if not files:
        raise MediaError(f"{folder} has no frames; a video is a file or a folder of images")
    return files


def _bad(medium: object, error: Exception) -> BadSample:
    return BadSample(BadKind.MEDIA, f"{_name(medium)}: {error}")


def _name(medium: object) -> str:
    return medium.name if isinstance(medium, Path) else "a medium inside the row"
