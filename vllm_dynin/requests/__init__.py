"""What can be asked of the model from Python: one dataclass a direction.

Each turns itself into what vLLM takes. Media are given as PIL images, paths, file bytes or arrays;
they are opened here and encoded once, where the model runs.
"""

from vllm_dynin.requests.base import Checkpoint, Prompt, Request, TextRequest
from vllm_dynin.requests.image import EditImage, Inpaint, MixedAnswer, TextToImage
from vllm_dynin.requests.speech import FillSpeech, SpeechToSpeech, TextToSpeech, VideoToSpeech
from vllm_dynin.requests.text import (
    Chat,
    FillText,
    Gap,
    ImageToText,
    SpeechToText,
    TextToText,
    VideoToText,
)

__all__ = [
    "Chat",
    "Checkpoint",
    "EditImage",
    "FillSpeech",
    "FillText",
    "Gap",
    "ImageToText",
    "Inpaint",
    "MixedAnswer",
    "Prompt",
    "Request",
    "SpeechToSpeech",
    "SpeechToText",
    "TextRequest",
    "TextToImage",
    "TextToSpeech",
    "TextToText",
    "VideoToSpeech",
    "VideoToText",
]
