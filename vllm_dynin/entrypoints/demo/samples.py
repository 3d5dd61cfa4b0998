"""Real input for the demonstration, read out of packages that bring it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vllm_dynin.codec_runner import Sound
from vllm_dynin.processors.codecs.audio_io import load_audio
from vllm_dynin.processors.media import AUDIO_RATE

_LIBRIVOX = Path("/usr/share/pocketsphinx/test/data/librivox")
_RECORDING = "sense_and_sensibility_01_austen_64kb-0880.wav"
_SENTENCE = "The quick brown fox jumps over the lazy dog."
_CLIP_FRAMES = 12


@dataclass(frozen=True, eq=False)
class Samples:
    """What the demonstration asks about.

    Args:
        photo: a photograph.
        digit: a handwritten digit.
        clip: uint8 [T, H, W, 3], the view moving over a photograph.
        speech: spoken English.
        speech_source: where it comes from.
    """

    photo: Image.Image
    digit: Image.Image
    clip: NDArray[np.uint8]
    speech: Sound
    speech_source: str


def load_samples() -> Samples:
    """Read them.

    Raises:
        ValueError: the packages with pictures are not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as error:
        raise ValueError(
            f"{error}: the demonstration takes its pictures from scikit-image and scikit-learn; "
            "run it with `make demo`, or pip install scikit-image scikit-learn"
        ) from error
    grey = 255 - load_digits().images[0] / 16 * 255
    digit = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    speech, source = _speech()
    return Samples(
        photo=Image.fromarray(data.astronaut()).crop((60, 0, 380, 320)),
        digit=digit.resize((256, 256), Image.Resampling.BICUBIC),
        clip=_moving_view(load_sample_images().images[1]),
        speech=speech,
        speech_source=source,
    )


def _moving_view(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A square view that moves from the left edge of a picture to the right one."""
    height, width, _ = picture.shape
    starts = np.linspace(0, width - height, _CLIP_FRAMES).astype(int)
    return np.stack([picture[:, start : start + height] for start in starts])


def _speech() -> tuple[Sound, str]:
    """A recording where there is one, else the best voice there is."""
    if (recording := _LIBRIVOX / _RECORDING).is_file():
        return _read(recording), "LibriVox recording (Debian's pocketsphinx-testdata)"
    if flite := shutil.which("flite"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sentence.wav"
            command = [flite, "-voice", "slt", "-t", _SENTENCE, "-o", str(path)]
            subprocess.run(command, check=True, capture_output=True, timeout=60)
            return _read(path), "flite's voice slt (install pocketsphinx-testdata for a recording)"
    return _toy_voice(), (
        "the small speech codec's own voice (install pocketsphinx-testdata for a recording)"
    )


def _read(path: Path) -> Sound:
    return Sound(load_audio(path, target_rate=AUDIO_RATE), AUDIO_RATE)


def _toy_voice() -> Sound:
    """The words "hello world", phone by phone."""
    from vllm_dynin.processors.codecs.speech import SpeechCodec
    from vllm_dynin.processors.codecs.toy_speech import ToySpeech, canonical_units

    codec = SpeechCodec.from_pretrained()
    assert isinstance(codec.backend, ToySpeech)
    phones = ("hh", "ax", "l", "ow", "w", "er", "l", "d")
    return Sound(*codec.decode(canonical_units(codec.backend.config, phones), seed=0))
