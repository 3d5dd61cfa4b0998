"""Fit the toy speech codec on speech made by flite, and write its checkpoint.

    apt-get install flite
    python -m vllm_dynin.training_ext.codecs.toy_speech_fit DIRECTORY

flite says for each sentence where its phones lie, which gives labels for the classifier and the
stretches over which a unit's trajectory is averaged. The classifier is fitted on the speech as it
is, then taught to hear it in rough forms (`toy_speech_harden`).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import io
import math
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import soundfile
import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_dynin.processors.codecs.loading import save_checkpoint
from vllm_dynin.processors.codecs.speech_features import mel_matrix
from vllm_dynin.processors.codecs.toy_speech import (
    HALVES,
    PAUSE,
    PAUSE_NAME,
    POINTS,
    TOY_MODEL_TYPE,
    ToySpeech,
    ToySpeechConfig,
    neighbour_of,
    phone_of,
)
from vllm_dynin.processors.codecs.toy_vocoder import HOP, SAMPLE_RATE
from vllm_dynin.training_ext.codecs.toy_speech_corpus import corpus
from vllm_dynin.training_ext.codecs.toy_speech_harden import harden

SPEAKING_VOICE = "rms"  # both judges understand it best (docs/codecs-speech.md)
LISTENING_VOICES = ("slt", "slt", "rms", "awb", "kal16")  # slt counts twice: demos speak with it
# Autocorrelation peaks of noise and of voiced speech, between which voicing goes from 0 to 1.
_NOISY, _PERIODIC, _CLEARLY_VOICED = 0.35, 0.75, 0.6
_SILENT_FRAMES = 3_000
_MIN_RUNS = 2  # a stretch that occurred once only is left to the mean of its unit
_VOICE_KEYS = ("trajectory_of", "envelope", "voicing", "frames", "pitch_hz")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One spoken text: float32 [N] at 16 kHz, and each phone with its end in seconds."""

    voice: str
    text: str
    waveform: Tensor
    segments: tuple[tuple[str, float], ...]


def speak(text: str, voice: str) -> Utterance:
    """Let flite say a text.

    Raises:
        RuntimeError: flite is not installed, or fails.
    """
    if shutil.which("flite") is None:
        raise RuntimeError("flite is not installed; on Debian: apt-get install flite")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "speech.wav"
        command = ["flite", "-voice", voice, "-psdur", "-t", text, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
        samples, rate = soundfile.read(io.BytesIO(path.read_bytes()), dtype="float32")
    assert rate == SAMPLE_RATE
    segments = tuple(
        (name, float(end)) for name, end in (s.rsplit(":", 1) for s in done.stdout.split())
    )
    return Utterance(voice=voice, text=text, waveform=torch.from_numpy(samples), segments=segments)


def phones_of(utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """The phones that occur, without the pause."""
    return tuple(sorted({p for u in utterances for p, _ in u.segments} - {PAUSE_NAME}))


def frame_labels(config: ToySpeechConfig, utterance: Utterance) -> Tensor:
    """The unit of each 10 ms frame by flite's own segmentation, int64 [ceil(N / 160)]."""
    labels = torch.full((-(-len(utterance.waveform) // HOP),), PAUSE)
    start = 0
    for phone, end in utterance.segments:
        stop = min(round(end * SAMPLE_RATE / HOP), len(labels))
        if phone != PAUSE_NAME:
            first = 1 + HALVES * config.phones.index(phone)
            middle = (start + stop + 1) // 2
            labels[start:middle], labels[middle:stop] = first, first + 1
        start = stop
    return labels


def fit_classifier(
    codec: ToySpeech,
    utterances: Sequence[Utterance],
    labels: Sequence[Tensor],
    *,
    epochs: int = 8,
    batch: int = 512,
    seed: int = 0,
) -> None:
    """Train the frame classifier by cross-entropy, in place."""
    generator = torch.Generator().manual_seed(seed)
    heard = [codec.stacked(u.waveform) for u in utterances]
    # Digital silence, whose normalised features are all zero, is a pause too.
    silence = torch.zeros(_SILENT_FRAMES, heard[0].shape[1])
    inputs = torch.cat([*heard, silence])
    targets = torch.cat([*labels, torch.full((_SILENT_FRAMES,), PAUSE)])
    parameters = [*codec.hidden.parameters(), *codec.score.parameters()]
    for parameter in parameters:
        torch.nn.init.uniform_(parameter, -0.05, 0.05, generator=generator).requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2)
    num_batches = len(inputs) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=4e-3, total_steps=epochs * num_batches
    )
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for rows in order[: num_batches * batch].view(num_batches, batch):
            noise = 0.2 * torch.randn(batch, inputs.shape[1], generator=generator)
            loss = F.cross_entropy(
                codec.classify(inputs[rows] + noise), targets[rows], label_smoothing=0.05
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)


def fit_states(codec: ToySpeech, labels: Sequence[Tensor]) -> None:
    """Count priors, stays and phone-to-phone transitions, in place."""
    config = codec.config
    frames = torch.bincount(torch.cat(list(labels)), minlength=config.num_units).float() + 1
    runs = torch.ones(config.num_units)
    # A fifth of a count for pairs never seen, so that every phone can follow every phone.
    pairs = torch.full((len(config.phones) + 1, len(config.phones) + 1), 0.2)
    for row in labels:
        units = torch.unique_consecutive(row)
        runs += torch.bincount(units, minlength=config.num_units)
        phones = phone_of(units[(units == PAUSE) | (units % HALVES == 1)])
        pairs.index_put_((phones[:-1], phones[1:]), torch.ones(len(phones) - 1), accumulate=True)
    codec.log_prior.copy_((frames / frames.sum()).log())
    length = (frames / runs).clamp_min(1.5)
    codec.log_stay.copy_((1 - 1 / length).log())
    codec.log_leave.copy_((1 / length).log())
    codec.log_next.copy_((pairs / pairs.sum(1, keepdim=True)).log())


def band_power(waveform: Tensor, num_mels: int, num_frames: int) -> Tensor:
    """Natural log of each band's mean power per bin (1 for white noise of variance 1), [T, K]."""
    window = torch.hann_window(400)
    matrix = mel_matrix(
        sample_rate=SAMPLE_RATE, n_fft=512, num_mels=num_mels, max_hz=SAMPLE_RATE / 2
    ).float()
    spectrum = torch.stft(waveform, 512, HOP, 400, window, return_complex=True)
    power = spectrum.abs().square() / window.square().sum()
    return torch.log(matrix / matrix.sum(1, keepdim=True) @ power + 1e-9).T[:num_frames]


def periodicity(waveform: Tensor, num_frames: int) -> tuple[Tensor, Tensor]:
    """Peak of the normalised autocorrelation (0 .. 1) and its pitch in Hz, per frame."""
    size = 4 * HOP
    frames = F.pad(waveform, (size // 2, size)).unfold(0, size, HOP)[:num_frames]
    window = torch.hann_window(size)
    power = torch.fft.rfft((frames - frames.mean(1, keepdim=True)) * window, 2048).abs().square()
    power[:, 128:] *= 0.1  # above 1 kHz the formants would pull the peak about
    correlation = torch.fft.irfft(power)
    of_window = torch.fft.irfft(torch.fft.rfft(window, 2048).abs().square())
    correlation = correlation / (correlation[:, :1] + 1e-6 * size)
    correlation = correlation / (of_window / of_window[0]).clamp_min(0.1)
    strength, lag = correlation[:, 40:230].max(1)  # 70 to 400 Hz
    return strength.clamp(0, 1), SAMPLE_RATE / (lag + 40.0)


class _Averages:
    """Sums over the stretches of each (unit, neighbour), and the means they give."""

    def __init__(self, num_units: int, num_phones: int, num_mels: int) -> None:
        self.num_phones = num_phones
        keys = num_units * num_phones
        self.band = torch.zeros(keys * POINTS, num_mels)
        self.voicing, self.count = torch.zeros(keys * POINTS), torch.zeros(keys * POINTS)
        self.length, self.runs = torch.zeros(keys), torch.zeros(keys)
        self.log_pitch, self.num_pitched = 0.0, 0

    def add(self, utterance: Utterance, row: Tensor) -> None:
        units, frames = torch.unique_consecutive(row, return_counts=True)
        key = units * self.num_phones + neighbour_of(units)
        within = torch.cat([(torch.arange(n) + 0.5) / n for n in frames.tolist()])
        point = torch.repeat_interleave(key, frames) * POINTS + (within * POINTS).long()
        strength, hz = periodicity(utterance.waveform, len(row))
        self.band.index_add_(0, point, band_power(utterance.waveform, self.band.shape[1], len(row)))
        self.voicing.index_add_(0, point, strength)
        self.count.index_add_(0, point, torch.ones(len(row)))
        # The pauses around an utterance are flite's, not speech: only inner ones count.
        inner = slice(1, -1)
        self.length.index_add_(0, key[inner], frames[inner].float())
        self.runs.index_add_(0, key[inner], torch.ones(len(key[inner])))
        clear = strength > _CLEARLY_VOICED
        self.log_pitch += float(hz[clear].log().sum())
        self.num_pitched += int(clear.sum())


def fit_voice(
    utterances: Sequence[Utterance], labels: Sequence[Tensor], codec: ToySpeech
) -> ToySpeech:
    """Average the trajectories of one voice.

    Args:
        utterances: of the voice.
        labels: their `frame_labels`.
        codec: its classifier and state model are kept; not modified.

    Returns:
        A codec with the trajectories: one per unit, then one per (unit, neighbour) that occurred.
    """
    units, phones, mels = (
        codec.config.num_units,
        len(codec.config.phones) + 1,
        codec.config.num_mels,
    )
    sums = _Averages(units, phones, mels)
    for utterance, row in zip(utterances, labels, strict=True):
        sums.add(utterance, row)
    band = sums.band.view(units, phones, POINTS, mels)
    voicing, count = (t.view(units, phones, POINTS) for t in (sums.voicing, sums.count))
    length, runs = sums.length.view(units, phones), sums.runs.view(units, phones)
    occurred = (count.min(-1).values >= 1) & (runs >= _MIN_RUNS)

    def with_means(total: Tensor, number: Tensor) -> Tensor:
        number = number.clamp_min(1e-6)
        return torch.cat([total.sum(1) / number.sum(1), total[occurred] / number[occurred]])

    fitted = ToySpeech(
        dataclasses.replace(codec.config, num_trajectories=units + int(occurred.sum()))
    )
    kept = {k: v for k, v in codec.state_dict().items() if k not in _VOICE_KEYS}
    fitted.load_state_dict(kept, strict=False)
    fitted.trajectory_of.copy_(torch.arange(units)[:, None].expand(-1, phones))
    fitted.trajectory_of[occurred] = torch.arange(units, fitted.config.num_trajectories)
    fitted.envelope.copy_(with_means(band, count[..., None]))
    share = ((with_means(voicing, count) - _NOISY) / (_PERIODIC - _NOISY)).clamp(0, 1)
    is_pause = torch.cat([torch.arange(units) == PAUSE, occurred.nonzero()[:, 0] == PAUSE])
    fitted.voicing.copy_(torch.where(is_pause[:, None], 0.0, share))
    fitted.frames.copy_(with_means(length, runs))
    fitted.pitch_hz.fill_(math.exp(sums.log_pitch / sums.num_pitched))
    return fitted


def fit(*, num_jobs: int = 1, epochs: int = 10) -> tuple[ToySpeech, list[Utterance]]:
    """Make the speech, fit everything.

    Args:
        num_jobs: flite processes at a time.
        epochs: passes of the classifier over the frames.

    Returns:
        The codec, and the speech it was fitted on.

    Raises:
        RuntimeError: flite is not installed.
    """
    texts = corpus()
    voices = sorted({*LISTENING_VOICES, SPEAKING_VOICE})
    with ThreadPoolExecutor(num_jobs) as pool:
        spoken = list(pool.map(lambda job: speak(*job), [(t, v) for v in voices for t in texts]))
    phones = phones_of(spoken)
    codec = ToySpeech(ToySpeechConfig(phones=phones, num_trajectories=1 + HALVES * len(phones)))
    labels = {id(u): frame_labels(codec.config, u) for u in spoken}
    heard = [u for voice in LISTENING_VOICES for u in spoken if u.voice == voice]
    fit_classifier(codec, heard, [labels[id(u)] for u in heard], epochs=epochs)
    harden(codec, [u.waveform for u in heard])
    fit_states(codec, [labels[id(u)] for u in heard])
    own = [u for u in spoken if u.voice == SPEAKING_VOICE]
    return fit_voice(own, [labels[id(u)] for u in own], codec), spoken


def main(arguments: list[str] | None = None) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(
        prog="toy_speech_fit", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("directory", type=Path, help="where config.json and weights are written")
    parser.add_argument("--jobs", type=int, default=1, help="flite processes at a time")
    options = parser.parse_args(arguments)
    codec, spoken = fit(num_jobs=options.jobs)
    config = {"model_type": TOY_MODEL_TYPE, **dataclasses.asdict(codec.config)}
    # Half precision on disk: the numbers are means and a classifier fitted with noise.
    save_checkpoint(options.directory, config, copy.deepcopy(codec).half().state_dict())
    seconds = sum(len(u.waveform) for u in spoken) / SAMPLE_RATE
    print(f"fitted on {seconds:.0f} s of speech; wrote {options.directory}")


if __name__ == "__main__":
    main()
