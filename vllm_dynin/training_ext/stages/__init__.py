"""The stages of the recipe as functions that return a complete configuration.

`stage1()`, `stage2()` and `stage3()` are the paper's; `variant="release"` gives the released
configuration files and what the released code makes of them. `debug()` is all directions, small.
`training_ext.settings` prints them, tells them apart and changes single settings.
"""

from vllm_dynin.training_ext.stages.config import StageConfig, StageTask, Variant
from vllm_dynin.training_ext.stages.recipes import STAGES, debug, stage1, stage2, stage3

__all__ = [
    "STAGES",
    "StageConfig",
    "StageTask",
    "Variant",
    "debug",
    "stage1",
    "stage2",
    "stage3",
]
