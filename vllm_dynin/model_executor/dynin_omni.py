"""The model vLLM loads for MMaDA and Dynin-Omni: the same transformer, with media as input.

A modality is a range of token ids, so there is nothing to add to the transformer: media go through
the frozen codecs and come out as ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.distributed import get_tp_group
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_dynin.model_executor.masked_diffusion import MaskedDiffusionLM
from vllm_dynin.model_executor.ranks import on_first_rank
from vllm_dynin.processors import chat
from vllm_dynin.processors.media import CodecFolders, MediaCodecs
from vllm_dynin.processors.multimodal import MediaDummies, MediaInfo, MediaProcessor


@MULTIMODAL_REGISTRY.register_processor(MediaProcessor, info=MediaInfo, dummy_inputs=MediaDummies)
class OmniMaskedDiffusionLM(MaskedDiffusionLM, SupportsMultiModal):  # type: ignore[misc]
    """Bidirectional masked-diffusion model over text, image codes and speech units."""

    requires_raw_input_tokens: ClassVar[bool] = True  # media become ids, not embeddings

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        folders = CodecFolders.find(vllm_config.model_config.model, self.config)
        self.media_folders = folders
        device = torch.device(vllm_config.device_config.device or "cpu")
        self.media = MediaCodecs(folders, device, self.config.vocabulary)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        """What stands for a medium in a prompt string."""
        return chat.MEDIA_PLACEHOLDERS[modality]

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Encode media: token ids int64 [n, 1] of each item, where vLLM expects embeddings.

        The first tensor-parallel rank encodes, the others are given its ids.

        Args:
            kwargs: normalised images `image_pixels` [B, 3, H, W], frames `video_pixels`
                [B, F, 3, H, W] or waveforms `audio_waveform` [B, N], as a tensor or, where sizes
                differ, a list.
        """
        group = get_tp_group().device_group
        return on_first_rank(lambda: list(self._encoded(**kwargs)), group, self.media.device)

    def _encoded(self, **kwargs: Any) -> Iterator[Tensor]:
        for pixels in kwargs.get("image_pixels", ()):
            yield self.media.image_ids(pixels[None])
        for frames in kwargs.get("video_pixels", ()):
            yield self.media.image_ids(frames)
        for waveform in kwargs.get("audio_waveform", ()):
            yield self.media.speech_ids(waveform)
