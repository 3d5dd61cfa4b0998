"""Training data: any common format → records with media as codes → the mixture of every step."""

from vllm_dynin.training_ext.data.adapters import ADAPTERS
from vllm_dynin.training_ext.data.bad import BadKind, BadLog, BadSample, TooManyBad
from vllm_dynin.training_ext.data.config import (
    MixtureConfig,
    TaskMix,
    open_mixture,
)
from vllm_dynin.training_ext.data.encode import EncodeOptions, Encoder
from vllm_dynin.training_ext.data.mixture import Mixture, Schedule
from vllm_dynin.training_ext.data.sources import SourceSpec
from vllm_dynin.training_ext.data.stage import sample_length, stage_options
from vllm_dynin.training_ext.data.tables import open_table
from vllm_dynin.training_ext.data.token_files import TokenTable

__all__ = [
    "ADAPTERS",
    "BadKind",
    "BadLog",
    "BadSample",
    "EncodeOptions",
    "Encoder",
    "Mixture",
    "MixtureConfig",
    "Schedule",
    "SourceSpec",
    "TaskMix",
    "TokenTable",
    "TooManyBad",
    "open_mixture",
    "open_table",
    "sample_length",
    "stage_options",
]
