"""Units → speech: unit encoder, stochastic duration predictor, flow and waveform generator.

Each step is a method that takes its random numbers as tensors, so that a test can inject them;
`draw_*` make them from a request's own generator, on the CPU, so that a seed means the same samples
of noise on every device.

Source: EMOVA_speech_tokenizer @ ae4b1b5, `UVITS/models.py` (`SynthesizerTrn.infer`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from vllm_dynin.processors.codecs.vits_generator import Generator, GeneratorConfig
from vllm_dynin.processors.codecs.vits_layers import (
    DilatedStack,
    MeanCoupling,
    RelativeEncoder,
    SplineCoupling,
)

DURATION_NOISE = 0.8
PRIOR_NOISE = 0.667


@dataclass(frozen=True, kw_only=True)
class UnitsToSpeechConfig:
    """Sizes of the speech decoder; the defaults are the published model's.

    Args:
        num_units: codebook size.
        first_symbol: row of unit 0 in the symbol table; the rows before it (padding, punctuation,
            letters, phonetic signs) are never used.
        sample_rate: Hz of the waveform.
        channels: width of encoder, duration predictor and flow; even.
        filter_channels, heads, layers, kernel, window: of the unit encoder.
        duration_kernel, duration_layers: of the dilated stacks in the duration predictor.
        duration_flows: spline couplings, the unused one included.
        flows: couplings of the main flow.
        flow_kernel, flow_layers: of the gated stacks in it.
        style_channels, num_styles: style embedding.
        generator: waveform generator.
        max_frames_per_unit: cap on a predicted duration, which is otherwise unbounded.

    Raises:
        ValueError: channels do not divide.
    """

    num_units: int = 4096
    first_symbol: int = 178
    sample_rate: int = 22_050
    channels: int = 192
    filter_channels: int = 768
    heads: int = 2
    layers: int = 6
    kernel: int = 3
    window: int = 4
    duration_kernel: int = 3
    duration_layers: int = 3
    duration_flows: int = 4
    flows: int = 4
    flow_kernel: int = 5
    flow_layers: int = 4
    style_channels: int = 256
    num_styles: int = 126
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    max_frames_per_unit: int = 40

    def __post_init__(self) -> None:
        if self.channels % 2 or self.channels % self.heads:
            raise ValueError(
                f"channels={self.channels} must be even and divide into {self.heads} heads"
            )

    @property
    def num_symbols(self) -> int:
        """Rows of the symbol table."""
        return self.first_symbol + self.num_units

    @classmethod
    def tiny(cls, num_units: int = 32) -> UnitsToSpeechConfig:
        """A size for tests: same graph, constructed and run in milliseconds."""
        return cls(
            num_units=num_units,
            channels=16,
            filter_channels=32,
            layers=2,
            duration_layers=2,
            flow_layers=2,
            style_channels=8,
            generator=GeneratorConfig(
                initial_channels=32, upsample_rates=(2, 2), upsample_kernels=(4, 4)
            ),
        )


class UnitEncoder(nn.Module):
    """Units → prior mean and log-deviation per unit, and the hidden vectors they come from."""

    def __init__(self, config: UnitsToSpeechConfig) -> None:
        super().__init__()
        self.first_symbol = config.first_symbol
        self.emb = nn.Embedding(config.num_symbols, config.channels)
        self.encoder = RelativeEncoder(
            config.channels,
            config.filter_channels,
            config.heads,
            config.layers,
            config.kernel,
            config.window,
        )
        self.proj = nn.Conv1d(config.channels, 2 * config.channels, 1)

    def forward(self, units_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """int64 [B, T] → hidden, mean, log-deviation, each [B, C, T]."""
        x = self.emb(units_BT + self.first_symbol) * math.sqrt(self.emb.embedding_dim)
        x = self.encoder(x.transpose(1, 2))
        mean, log_std = self.proj(x).chunk(2, dim=1)
        return x, mean, log_std


class DurationAffine(nn.Module):
    """The innermost step of the duration flow: an affine map per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.m, self.logs = nn.Parameter(torch.zeros(2, 1)), nn.Parameter(torch.zeros(2, 1))

    def inverse(self, z: Tensor) -> Tensor:
        """[B, 2, T] → [B, 2, T]."""
        return (z - self.m) * torch.exp(-self.logs)


class DurationPredictor(nn.Module):
    """Noise → log-durations by a flow of splines, conditioned on hidden vectors and style."""

    def __init__(self, config: UnitsToSpeechConfig) -> None:
        super().__init__()
        channels, kernel = config.channels, config.duration_kernel
        self.pre = nn.Conv1d(channels, channels, 1)
        self.cond = nn.Conv1d(config.style_channels, channels, 1)
        self.convs = DilatedStack(channels, kernel, config.duration_layers)
        self.proj = nn.Conv1d(channels, channels, 1)
        # The checkpoint alternates couplings (odd numbers) with parameterless flips (even ones).
        # PARITY: number 1 is trained but left out at inference, as VITS does.
        self.flows = nn.ModuleDict({"0": DurationAffine()})
        for number in range(3, 2 * config.duration_flows, 2):
            self.flows[str(number)] = SplineCoupling(channels, kernel, config.duration_layers)

    def forward(self, hidden: Tensor, style: Tensor | None, noise: Tensor) -> Tensor:
        """[B, C, T], [B, S, 1] or None, noise [B, 2, T] → log-frames [B, T]."""
        h = self.pre(hidden)
        if style is not None:
            h = h + self.cond(style)
        h = self.proj(self.convs(h))
        z = noise
        for number in sorted((int(n) for n in self.flows if n != "0"), reverse=True):
            z = cast(SplineCoupling, self.flows[str(number)]).inverse(z.flip(1), h)
        return cast(DurationAffine, self.flows["0"]).inverse(z.flip(1))[:, 0]


class PriorFlow(nn.Module):
    """Prior samples → generator latents: couplings with flips between, backwards."""

    def __init__(self, config: UnitsToSpeechConfig) -> None:
        super().__init__()
        self.flows = nn.ModuleDict(
            {
                str(2 * i): MeanCoupling(
                    config.channels,
                    config.channels,
                    config.flow_kernel,
                    config.flow_layers,
                    config.style_channels,
                )
                for i in range(config.flows)
            }
        )

    def inverse(self, z: Tensor, style: Tensor | None) -> Tensor:
        """[B, C, T] → [B, C, T]."""
        for coupling in reversed(list(self.flows.values())):
            z = cast(MeanCoupling, coupling).inverse(z.flip(1), style)
        return z


class UnitsToSpeech(nn.Module):
    """The decoder of one request. Parameters are float32 whatever torch's default dtype is."""

    def __init__(self, config: UnitsToSpeechConfig | None = None) -> None:
        super().__init__()
        self.config = config or UnitsToSpeechConfig()
        self.enc_p = UnitEncoder(self.config)
        self.dp = DurationPredictor(self.config)
        self.flow = PriorFlow(self.config)
        self.dec = Generator(
            self.config.generator, self.config.channels, self.config.style_channels
        )
        self.style_embedding = nn.Embedding(self.config.num_styles, self.config.style_channels)
        self.float().eval().requires_grad_(False)

    def style_vector(self, row: int) -> Tensor:
        """[1, S, 1]: the conditioning of a style, by its row in the table."""
        return self.style_embedding.weight[row][None, :, None]

    def durations(self, log_frames: Tensor, speed: float = 1.0) -> Tensor:
        """Frames per unit from predicted log-frames: at least 1, at most `max_frames_per_unit`.

        Args:
            log_frames: float [T], unbounded.
            speed: > 0; 2 halves the durations before they are rounded up.

        Returns:
            int64 [T].
        """
        frames = torch.ceil(torch.exp(log_frames) / speed)
        return frames.clamp(1, self.config.max_frames_per_unit).long()

    def draw_duration_noise(self, num_units: int, generator: torch.Generator | None) -> Tensor:
        """Standard normal [1, 2, T], the first draw of a request."""
        weight = self.dp.pre.weight
        noise = torch.randn(1, 2, num_units, generator=generator, dtype=weight.dtype)
        return noise.to(weight.device)

    def draw_prior_noise(self, num_frames: int, generator: torch.Generator | None) -> Tensor:
        """Standard normal [1, C, T], the second draw of a request."""
        weight = self.dp.pre.weight
        # PARITY: the source draws into a tensor that is frame-major in memory, and the numbers of
        # a seed follow the memory.
        noise = torch.empty(1, num_frames, self.config.channels, dtype=weight.dtype)
        return noise.transpose(1, 2).normal_(generator=generator).to(weight.device)

    @torch.inference_mode()
    def latents(
        self,
        units: Tensor,
        style: Tensor | None = None,
        *,
        speed: float = 1.0,
        generator: torch.Generator | None = None,
        duration_noise: Tensor | None = None,
        prior_noise: Tensor | None = None,
        duration_noise_scale: float = DURATION_NOISE,
        prior_noise_scale: float = PRIOR_NOISE,
        max_frames: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Everything before the generator.

        Args:
            units: int64 [T], T ≥ 1, each in 0 .. num_units - 1 (checked by `SpeechCodec`).
            style: [1, S, 1], or None for no conditioning.
            speed: > 0, divides the durations.
            generator: CPU generator, owned and advanced by the caller; used for noise not given.
            duration_noise: standard normal [1, 2, T].
            prior_noise: standard normal [1, C, total frames].
            duration_noise_scale: factor on the first noise; 0 makes the durations repeatable.
            prior_noise_scale: factor on the second noise.
            max_frames: refuse more frames than this, before anything of their size is made.

        Returns:
            Latents [1, C, F] and the frames per unit, int64 [T] with sum F.

        Raises:
            ValueError: more than max_frames.
        """
        hidden, mean, log_std = self.enc_p(units[None])
        if duration_noise is None:
            duration_noise = self.draw_duration_noise(len(units), generator)
        log_frames = self.dp(hidden, style, duration_noise * duration_noise_scale)[0]
        frames = self.durations(log_frames, speed)
        total = int(frames.sum())
        if max_frames is not None and total > max_frames:
            rate = self.config.sample_rate / self.config.generator.hop
            raise ValueError(
                f"{len(units)} units would last {total / rate:.1f} s; at most "
                f"{max_frames / rate:.1f} s are made at once: send fewer units or a higher speed"
            )
        mean = mean.repeat_interleave(frames, dim=2, output_size=total)
        log_std = log_std.repeat_interleave(frames, dim=2, output_size=total)
        if prior_noise is None:
            prior_noise = self.draw_prior_noise(total, generator)
        prior = mean + prior_noise * torch.exp(log_std) * prior_noise_scale
        return self.flow.inverse(prior, style), frames

    @torch.inference_mode()
    def forward(self, units: Tensor, style: Tensor | None = None, **options: Any) -> Tensor:
        """Waveform [samples] of units, generated in one piece. Options as `latents` takes them."""
        z, _ = self.latents(units, style, **options)
        return self.dec(z, style)[0, 0]

    @torch.inference_mode()
    def stream(
        self, units: Tensor, style: Tensor | None, chunk_frames: int, **options: Any
    ) -> Iterator[Tensor]:
        """The samples of `forward`, piece by piece: [chunk_frames · hop] each, the last shorter."""
        z, _ = self.latents(units, style, **options)
        for piece in self.dec.stream(z, style, chunk_frames):
            yield piece[0, 0]
