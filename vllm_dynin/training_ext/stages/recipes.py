"""Stages 1 to 3 of the paper, and a small one of all directions.

Data of Table 10, resolutions, frames and durations of §5, optimisation of Table 11, EOS of Table 2.
The paper is silent on these: coefficients (1 each) and shares of the directions (equal; the
percentages are only in a figure) are ours, and so is the room for the sets it names: rows of text
up to 2,048 and 4,096 positions, and speech up to 17, 20 and 21 s where it says about 10, 15 and 21
(utterances of LibriSpeech are 12.6 s long on average, and end near 17; those of GigaSpeech at 20).
Warm-up, the floor of the cosine (0.1 of the peak), number of steps and dropout are those of the
released configuration files; float32 masters, sharding and activation checkpointing are ours. How
many batches a step is cut into is left to the machine (`train.num_micro_batches`).

Source: arXiv 2604.00007v1, Tables 2, 10 and 11, §4.2 and §5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from vllm_dynin.canvas import Task
from vllm_dynin.defaults import UNITS_PER_SECOND
from vllm_dynin.processors.templates import EosPolicy
from vllm_dynin.training_ext.directions import TRAINED, objectives
from vllm_dynin.training_ext.records import sample_policies
from vllm_dynin.training_ext.stages import released
from vllm_dynin.training_ext.stages.config import StageConfig, StageTask, Variant
from vllm_dynin.training_ext.trainer.config import TrainConfig

T2T, I2T, V2T, S2T, T2S, T2I, I2I = (
    Task.TEXT_TO_TEXT,
    Task.IMAGE_TO_TEXT,
    Task.VIDEO_TO_TEXT,
    Task.SPEECH_TO_TEXT,
    Task.TEXT_TO_SPEECH,
    Task.TEXT_TO_IMAGE,
    Task.IMAGE_TO_IMAGE,
)
_PATCH = 16  # pixels per code and side
_ANSWER_BLOCK = 128  # of the release, and what serving gives a transcript
_MAX_FILLER = 1024  # EOS behind a text answer: serving's own region is of 1,024
_SPEECH = ("GigaSpeech 10Kh", "LibriSpeech 360h", "CommonVoice 3Kh")


def image_tokens(pixels: int, patch: int = _PATCH) -> int:
    """Codes of a square image with sides of `pixels`.

    Raises:
        ValueError: the side is not a multiple of the patch.
    """
    if pixels % patch:
        raise ValueError(f"{pixels} pixels are not a multiple of {patch}; use a multiple")
    return (pixels // patch) ** 2


def _paper_tasks(
    sources: dict[Task, tuple[float | None, tuple[str, ...]]],
    *,
    eos: EosPolicy,
    seconds: int,
    frames: int,
    resolutions: dict[Task, int],
    answer_block: int = _ANSWER_BLOCK,
    longest: int | None = None,
) -> dict[Task, StageTask]:
    """The directions of a stage.

    Args:
        sources: million pairs and names of the sets of each direction.
        eos: which EOS carry a label.
        seconds: of speech at most.
        frames: of a video.
        resolutions: pixels a side.
        answer_block: slots of a transcript, and of a caption where `longest` is None. Its own, as
            the released one is: what a medium leaves of a row would tell its length in EOS.
        longest: positions of a row with a text answer. The answer has as many as it needs, and up
            to `_MAX_FILLER` EOS behind it; their number is drawn, so that it tells nothing.
    """
    units = seconds * UNITS_PER_SECOND
    policies, losses = sample_policies(eos), objectives()
    side = resolutions.get
    for task in (T2T, I2T, V2T):
        policies[task] = replace(
            policies[task],
            num_targets=answer_block if longest is None else None,
            max_filler=0 if longest is None else _MAX_FILLER,
            max_length=longest,
        )
    policies[S2T] = replace(
        policies[S2T],
        num_targets=answer_block,
        max_length=3 + units + 2 * answer_block,  # the instruction is as long at most
    )
    policies[T2S] = replace(policies[T2S], num_targets=units + 1)
    return {
        task: StageTask(
            objective=losses[task],
            policy=policies[task],
            sources=sources[task][1],
            million_pairs=sources[task][0],
            share=1.0,
            resolution=side(task),
            num_frames=frames if task is V2T else None,
            max_seconds=float(seconds) if task in (S2T, T2S) else None,
            max_units=units if task in (S2T, T2S) else None,
        )
        for task in TRAINED
        if task in sources
    }


def _paper_train(learning_rate: float, num_warmup_steps: int, num_steps: int) -> TrainConfig:
    return TrainConfig(
        num_steps=num_steps,
        learning_rate=learning_rate,
        num_warmup_steps=num_warmup_steps,
        min_learning_rate_ratio=0.1,
        weight_decay=0.1,
        betas=(0.9, 0.999),
        max_grad_norm=1.0,
        weigh_by_rows=True,  # one objective over a mixed batch, and the norm is of its mean
        precision="bf16",
        sharding="fsdp2",
        is_activation_checkpointed=True,
        is_packed=True,  # ranks draw different directions, and shards need the same passes
    )


def stage1(variant: Variant = "paper") -> StageConfig:
    """Modality adaptation: video captions and speech, with EOS not predicted (paper).

    The paper gives neither coefficients nor shares nor the number of steps.
    """
    if variant == "release":
        return released.stage1()
    tasks = _paper_tasks(
        {V2T: (10.7, ("WebVid-10M",)), S2T: (10.0, _SPEECH), T2S: (10.0, _SPEECH)},
        eos="none",
        seconds=17,
        frames=8,
        resolutions={V2T: 128},
    )
    return StageConfig(
        name="stage1",
        variant=variant,
        starts_from="MMaDA-8B-MixCoT, its tables extended by 4,096 speech units",
        tasks=tasks,
        train=_paper_train(1e-5, 3000, 200_000),
        global_batch=128,
        num_gpus=32,
        gpu_hours=5_200,
    )


def stage2(variant: Variant = "paper") -> StageConfig:
    """All directions, from a merge of backbone and stage 1; EOS is predicted from here on.

    Answers of maths data are the concise final answer only. The paper gives neither coefficients
    nor shares nor the number of steps.
    """
    if variant == "release":
        return released.stage2()
    tasks = _paper_tasks(
        {
            T2T: (
                1.6,
                (
                    "Evol-Instruct",
                    "Magpie-Pro",
                    "Open-Platypus",
                    "OpenR1-Math",
                    "OpenHermes-2.5",
                ),
            ),
            I2T: (8.0, ("Mantis-Instruct", "Cambrian10M")),
            T2I: (10.0, ("JourneyDB", "FLUX-Reason-6M", "PickaPic")),
            I2I: (1.1, ("UltraEdit", "HQEdit", "Pico-Banana-400K")),
            V2T: (3.2, ("LLaVA-Video-178K", "OpenVid1M", "synthetic")),
            S2T: (10.0, _SPEECH),
            T2S: (10.0, _SPEECH),
        },
        eos="all",
        longest=2048,
        seconds=20,
        frames=5,
        resolutions={I2T: 256, T2I: 336, I2I: 256, V2T: 224},
    )
    return StageConfig(
        name="stage2",
        variant=variant,
        starts_from="backbone and stage 1, merged modality by modality at 0.6 backbone",
        tasks=tasks,
        train=_paper_train(2e-5, 1000, 1_000_000),
        global_batch=128,
        num_gpus=32,
        gpu_hours=34_560,
    )


def stage3(variant: Variant = "paper") -> StageConfig:
    """Continual training at higher resolutions, with full reasoning traces and longer speech.

    The paper gives neither coefficients nor shares nor the number of steps, and its batch of 128
    does not divide over its 40 GPUs.
    """
    if variant == "release":
        return released.stage3()
    speech = ("LibriSpeech", "Kokoro utterances")
    tasks = _paper_tasks(
        {
            T2T: (
                0.5,
                (
                    "Llama-Nemotron PT",
                    "OpenR1-Math-220K",
                    "Mixture-of-Thoughts",
                    "OpenMathReasoning",
                    "synthetic",
                ),
            ),
            I2T: (0.4, ("Cambrian10M", "synthetic")),
            T2I: (0.5, ("FLUX-Reason-6M", "synthetic")),
            I2I: (0.5, ("Pico-Banana-400K", "synthetic")),
            V2T: (0.8, ("LLaVA-Video-178K", "ShareGPT4Video", "synthetic QA")),
            S2T: (0.2, speech),
            T2S: (0.2, speech),
        },
        eos="all",
        longest=4096,
        seconds=21,
        frames=5,
        resolutions={I2T: 480, T2I: 512, I2I: 336, V2T: 224},
    )
    return StageConfig(
        name="stage3",
        variant=variant,
        starts_from="stage 2",
        tasks=tasks,
        train=_paper_train(2e-5, 1000, 1_000_000),
        global_batch=128,
        num_gpus=40,
        gpu_hours=23_665,
    )


def debug(variant: Variant = "paper") -> StageConfig:
    """All seven directions at sizes that run in seconds on a small model; nobody's recipe.

    Raises:
        ValueError: the release is asked for.
    """
    if variant != "paper":
        raise ValueError(f"variant={variant!r}: the debug stage is ours; the release has none")
    tasks = _paper_tasks(
        dict.fromkeys((T2T, I2T, T2I, I2I, V2T, S2T, T2S), (None, ("debug",))),
        eos="all",
        answer_block=64,
        seconds=2,
        frames=2,
        resolutions={I2T: 64, T2I: 64, I2I: 64, V2T: 32},
    )
    return StageConfig(
        name="debug",
        variant=variant,
        starts_from="any checkpoint with images and speech",
        tasks=tasks,
        train=TrainConfig(num_steps=20, learning_rate=1e-3, num_warmup_steps=2, weight_decay=0.01),
        global_batch=14,
        num_gpus=1,
    )


STAGES: dict[str, Callable[[Variant], StageConfig]] = {
    "stage1": stage1,
    "stage2": stage2,
    "stage3": stage3,
    "debug": debug,
}
"""Every stage by its name."""
