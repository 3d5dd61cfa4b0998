"""The model vLLM loads for MMaDA and Dynin-Omni: the same transformer, with media as input.

A modality is a range of token ids, so there is nothing to add to the transformer: media go through
the frozen codecs and come out as ids.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_dynin.model_executor.masked_diffusion import MaskedDiffusionLM
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
        device = torch.device(vllm_config.device_config.device or "cpu")
        self.media = MediaCodecs(folders, device, self.config.vocabulary)

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str:
        """What stands for a medium in a prompt string."""
        return chat.MEDIA_PLACEHOLDERS[modality]

    def embed_multimodal(self, **kwargs: Any) -> list[Tensor]:
        """Encode media: token ids int64 [n, 1] of each item, where vLLM expects embeddings.

        Args:
            kwargs: normalised images `image_pixels` [B, 3, H, W], frames `video_pixels`
                [B, F, 3, H, W] or waveforms `audio_waveform` [B, N], as a tensor or, where sizes
                differ, a list.
        """
        outputs: list[Tensor] = []
        for pixels in kwargs.get("image_pixels", ()):
            outputs.append(self.media.image_ids(pixels[None]).reshape(-1, 1))
        for frames in kwargs.get("video_pixels", ()):
            outputs.append(self.media.image_ids(frames).reshape(-1, 1))
        for waveform in kwargs.get("audio_waveform", ()):
            outputs.append(self.media.speech_ids(waveform).reshape(-1, 1))
        return outputs
