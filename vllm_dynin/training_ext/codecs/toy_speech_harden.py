"""Teach a fitted classifier to hear rough speech: telephones, low bit rates, hiss, clipping.

Every utterance is shown as it is and in some rough forms (`toy_speech_rough`), each with the scores
that the classifier gave the clean one before. So units keep their meaning, and a language model
that learnt them need not learn anew.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vllm_dynin.processors.codecs.toy_speech import ToySpeech
from vllm_dynin.processors.codecs.toy_vocoder import SAMPLE_RATE
from vllm_dynin.training_ext.codecs.toy_speech_rough import roughened

_SILENCE_SECONDS = 30


class _Shown:
    """Frames of all forms of all utterances, and what is to be heard in each.

    Features are kept once; a frame's neighbours are gathered when it is shown.

    Args:
        codec: with the classifier as it is fitted on clean speech.
        waveforms: float32 [N] at 16 kHz each.
        copies: rough forms of each.
        seed: of the forms.
    """

    def __init__(
        self, codec: ToySpeech, waveforms: Sequence[Tensor], copies: int, seed: int
    ) -> None:
        self._context = codec.config.context
        rows: list[Tensor] = []
        places: list[Tensor] = []
        wanted: list[Tensor] = []
        size = 0

        def show(waveform: Tensor, scores: Tensor) -> None:
            nonlocal size
            features_KT, length = codec.features(waveform)
            ends = (self._context, self._context)
            padded = F.pad(features_KT[None, :, :length], ends, mode="replicate")[0].T
            rows.append(padded)
            places.append(torch.arange(size, size + length))
            wanted.append(scores)
            size += len(padded)

        for number, waveform in enumerate(waveforms):
            rng = random.Random(f"rough {seed} {number}")
            scores = codec.classify(codec.stacked(waveform)).exp().half()
            show(waveform, scores)
            for _ in range(copies):
                show(torch.from_numpy(roughened(waveform.numpy(), rng)), scores)
        silence = torch.zeros(_SILENCE_SECONDS * SAMPLE_RATE)
        show(silence, codec.classify(codec.stacked(silence)).exp().half())
        self._rows, self._places = torch.cat(rows), torch.cat(places)
        self._wanted = torch.cat(wanted)

    def __len__(self) -> int:
        return len(self._places)

    def frames(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """`ToySpeech.stacked` of some frames, and the probabilities wanted of their units."""
        window = torch.arange(2 * self._context + 1)
        stacked = self._rows[self._places[which, None] + window].transpose(1, 2).flatten(1)
        return stacked, self._wanted[which].float()


def harden(
    codec: ToySpeech,
    waveforms: Sequence[Tensor],
    *,
    copies: int = 4,
    epochs: int = 5,
    batch: int = 512,
    seed: int = 0,
) -> None:
    """Train the classifier on clean and rough forms, in place.

    Args:
        codec: its classifier is fitted on clean speech.
        waveforms: float32 [N] at 16 kHz each.
        copies: rough forms of each.
        epochs: passes over all frames.
        batch: frames a step.
        seed: of forms, order and noise.
    """
    generator = torch.Generator().manual_seed(seed)
    shown = _Shown(codec, waveforms, copies, seed)
    parameters = [*codec.hidden.parameters(), *codec.score.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2)
    num_batches = len(shown) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2e-3, total_steps=epochs * num_batches
    )
    for _ in range(epochs):
        order = torch.randperm(len(shown), generator=generator)
        for which in order[: num_batches * batch].view(num_batches, batch):
            stacked, wanted = shown.frames(which)
            noise = 0.2 * torch.randn(stacked.shape, generator=generator)
            loss = F.cross_entropy(codec.classify(stacked + noise), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for parameter in parameters:
        parameter.requires_grad_(False)
