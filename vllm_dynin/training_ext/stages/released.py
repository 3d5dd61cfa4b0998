"""Stages 1 to 3 of the release: its configuration files, and what its code makes of them.

Where file and code differ, what runs. Not copied: accelerate's file overrides accumulation and,
under DeepSpeed, clipping (1.0); one direction is padded to the length of another; rows are drawn
and thrown away; GigaSpeech is silently replaced by LibriSpeech.

Source: AIDASLab/Dynin-Omni@d6e3ca8, `configs/` and `training/train_dynin_omni_stage*.py`.
"""

from __future__ import annotations

from dataclasses import replace

from vllm_dynin.canvas import Parity, Task
from vllm_dynin.training_ext.attention import Attention
from vllm_dynin.training_ext.directions import objectives
from vllm_dynin.training_ext.records import DROPOUT, SamplePolicy
from vllm_dynin.training_ext.released_layouts import Layout
from vllm_dynin.training_ext.stages.config import StageConfig, StageTask
from vllm_dynin.training_ext.trainer.config import TrainConfig

T2T, V2T, S2T, T2S, T2I, I2I = (
    Task.TEXT_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
)


def _task(
    task: Task,
    layout: Layout,
    rows: int,
    policy: SamplePolicy,
    coefficient: float,
    *sources: str,
    every: int = 1,
    phase: int = 0,
    resolution: int | None = None,
    num_frames: int | None = None,
) -> tuple[Task, StageTask]:
    attention: Attention = "released_bias" if task in (T2I, I2I) else "released_all"
    if layout == "stage3":
        attention = "released_eos"
    objective = objectives(reference=True, coefficients={task: coefficient})[task]
    is_speech = task in (S2T, T2S)
    units = 254 if layout == "stage1" else 510
    made = StageTask(
        objective=replace(objective, attention=attention),
        policy=replace(policy, layout=layout, overflow="cut"),
        sources=sources,
        rows=rows,
        every=every,
        phase=phase,
        resolution=resolution,
        num_frames=num_frames,
        # Videos are cut where the configuration files say so, speech at the loader's default.
        max_seconds=10.0 if task is V2T else 15.0 if is_speech else None,
        max_units=units if is_speech else None,
    )
    return task, made


def _train(
    learning_rate: float,
    num_warmup_steps: int,
    num_steps: int,
    weight_decay: float,
    *,
    num_micro_batches: int,
    max_grad_norm: float = 1.0,
) -> TrainConfig:
    """The floor of the cosine is 0: `min_lr_scale` is not passed on. Norms decay there too."""
    return TrainConfig(
        num_steps=num_steps,
        seed=10086,
        learning_rate=learning_rate,
        num_warmup_steps=num_warmup_steps,
        min_learning_rate_ratio=0.0,
        weight_decay=weight_decay,
        betas=(0.9, 0.999),
        max_grad_norm=max_grad_norm,
        num_micro_batches=num_micro_batches,
        precision="bf16",
    )


_DROPPED = SamplePolicy(dropout=DROPOUT)


def stage1() -> StageConfig:
    """Steps with S2T and with T2S take turns. EOS is supervised, against the paper."""
    libri = "LibriSpeech clean 100 + 360 h"
    tasks = [
        _task(
            *(V2T, "stage1", 1, SamplePolicy(eos="first", num_targets=128), 1.0, "WebVid-10M"),
            resolution=128,
            num_frames=8,
        ),
        _task(
            *(S2T, "stage1", 1, SamplePolicy(audio_block=257, row_length=386), 1.0),
            *("GigaSpeech xl", libri),
            every=2,
        ),
        _task(
            *(T2S, "stage1", 1, replace(_DROPPED, text_block=129, num_targets=255), 1.0),
            *("GigaSpeech xl", libri),
            every=2,
            phase=1,
        ),
    ]
    return StageConfig(
        name="stage1",
        variant="release",
        starts_from="MMaDA-8B-MixCoT, its tables extended by 4,096 speech units",
        tasks=dict(tasks),
        train=_train(1e-5, 3000, 200_000, 0.1, num_micro_batches=1),
        global_batch=16,
        num_gpus=8,
        parity=Parity.REFERENCE,
    )


def stage2() -> StageConfig:
    """T2I is paired with S2T, and I2I with T2S, in steps that take turns; I2T is off.

    Half of I2I's rows, those of UltraEdit, have 256 pixels a side. Two rows of a direction are two
    accumulated batches of one.
    """
    speech = ("GigaSpeech xl", "LibriSpeech clean 100 + 360 h")
    image = replace(_DROPPED, text_block=128)
    tasks = [
        _task(
            *(T2I, "stage2", 2, image, 0.3, "pickapic-v2", "FLUX-Reason-6M (score > 8)"),
            every=2,
            resolution=512,
        ),
        _task(
            *(I2I, "stage2", 2, replace(image, identity=DROPOUT), 0.3, "HQ-Edit", "UltraEdit_500k"),
            every=2,
            phase=1,
            resolution=336,
        ),
        _task(
            *(T2T, "stage2", 2, SamplePolicy(row_length=1024), 0.3),
            *("Open-Platypus", "OpenR1-Math-220k"),
        ),
        _task(
            *(V2T, "stage2", 2, SamplePolicy(eos="first", row_length=1698), 0.6),
            "LLaVA-Video-178K",
            resolution=224,
            num_frames=8,
        ),
        _task(
            *(S2T, "stage2", 2, SamplePolicy(audio_block=513, row_length=641), 0.4, *speech),
            every=2,
        ),
        _task(
            *(T2S, "stage2", 2, replace(_DROPPED, text_block=128, num_targets=511), 0.4, *speech),
            every=2,
            phase=1,
        ),
    ]
    return StageConfig(
        name="stage2",
        variant="release",
        starts_from="the final released model, snu-aidas/Dynin-Omni",
        tasks=dict(tasks),
        train=_train(2e-5, 1000, 1_000_000, 0.01, num_micro_batches=2),
        global_batch=64,
        num_gpus=8,
        parity=Parity.REFERENCE,
    )


def stage3() -> StageConfig:
    """Eight accumulated batches: images in the even ones, text and video in the odd; no speech."""
    tasks = [
        _task(
            *(T2I, "stage3", 4, replace(_DROPPED, text_block=128), 1.0, "FLUX-Reason-6M"),
            resolution=512,
        ),
        _task(*(T2T, "stage3", 4, SamplePolicy(row_length=1024), 2.0, "OpenR1-Math-220k")),
        _task(
            *(V2T, "stage3", 4, SamplePolicy(eos="first", row_length=1238), 0.5),
            "LLaVA-Video-178K",
            resolution=224,
            num_frames=5,
        ),
    ]
    return StageConfig(
        name="stage3",
        variant="release",
        starts_from="stage 2",
        tasks=dict(tasks),
        train=_train(2e-5, 1000, 1_000_000, 0.01, num_micro_batches=8, max_grad_norm=3.0),
        global_batch=96,
        num_gpus=8,
        parity=Parity.REFERENCE,
    )
