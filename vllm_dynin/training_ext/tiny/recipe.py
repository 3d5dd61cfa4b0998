"""The recipe of `dynin-tiny`: a complete configuration, and the run through all stages.

    s0         backbone: text and images, from nothing (stands in for MMaDA)
    s0-speech  its vocabulary extended by the speech units
    s1         video and speech alone; no EOS is learnt
    merged     backbone and s1, disentangled
    s2         all seven directions
    s3         the same, with longer speech

Each is a checkpoint of the family, so every step goes through the tools that work on large ones.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from vllm_dynin import checkpoint
from vllm_dynin.canvas import Task
from vllm_dynin.config import LLaDAConfig, MMadaConfig
from vllm_dynin.processors.codecs.image import ImageCodec
from vllm_dynin.processors.codecs.patch_threshold import PatchThresholdConfig
from vllm_dynin.processors.codecs.speech import TOY_SPEECH_DIRECTORY, SpeechCodec
from vllm_dynin.processors.media import IMAGE_CODEC, SPEECH_CODEC
from vllm_dynin.processors.templates import DIRECTIONS, EosPolicy
from vllm_dynin.processors.train_tokenizer import train_tokenizer
from vllm_dynin.reference.backbone import LLaDA, load_reference
from vllm_dynin.tokens import Modality
from vllm_dynin.training_ext.directions import DirectionObjective, objectives
from vllm_dynin.training_ext.initialise import initialise
from vllm_dynin.training_ext.merge import STAGE1_CONTROLS, MergeOptions, merge
from vllm_dynin.training_ext.records import Record, SampleContext, SamplePolicy
from vllm_dynin.training_ext.tiny import digits, words
from vllm_dynin.training_ext.tiny.decoding import generation_config_text
from vllm_dynin.training_ext.tiny.records import CODED_FRAMES, training_records, up_to
from vllm_dynin.training_ext.trainer import (
    MemoryMixture,
    MicroBatch,
    RecordFeed,
    StepReport,
    TrainConfig,
    train,
)
from vllm_dynin.training_ext.vocab import ExtendOptions, extend_vocabulary

BACKBONE_TASKS = (Task.TEXT_TO_TEXT, Task.IMAGE_TO_TEXT, Task.TEXT_TO_IMAGE)
STAGE1_TASKS = (Task.VIDEO_TO_TEXT, Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)
TASKS = (*BACKBONE_TASKS, *STAGE1_TASKS, Task.IMAGE_TO_IMAGE)
"""The seven directions."""

OnStep = Callable[[str, StepReport], None]


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of training.

    Args:
        tasks: directions it trains.
        train: the optimisation.
        eos: which EOS carry a label.
        max_digits: of an utterance.
        rows: of directions that have another number than the recipe's.
        is_speech_dropped: drop the text of T2S at times, too. Guidance of speech hides what was
            said so far and not the text, so a model this small is better off without at the end.
    """

    tasks: tuple[Task, ...]
    train: TrainConfig
    eos: EosPolicy = "all"
    max_digits: int = 3
    rows: Mapping[Task, int] = field(default_factory=dict)
    is_speech_dropped: bool = True


@dataclass(frozen=True, kw_only=True)
class DyninTiny:
    """Everything that decides the checkpoint; equal recipes give equal weights.

    Args:
        phases: s0, s1, s2 and s3.
        seed: of initial weights, records, order and noise.
        rows: of each direction in a step.
        num_pieces: of the tokenizer: every word of the world is one.
        d_model: hidden size.
        num_heads: of each block.
        num_layers: blocks.
        mlp_hidden_size: of each block.
        rope_theta: small, as in `tiny_text`: sequences are short.
        text_block: tokens of the text block of prompts for images and speech, task token included.
        max_filler: EOS behind an answer, up to this number.
        long_filler: the same in one step of ten, so that answers in a long region are known too.
        dropout: share of conditions dropped for guidance.
        num_pictures: of each digit, see `records.training_records`.
        num_clips: of each digit.
        backbone_weight: of the merge.
    """

    phases: Mapping[str, Phase]
    seed: int = 0
    rows: Mapping[Task, int] = field(
        default_factory=lambda: {
            Task.TEXT_TO_TEXT: 32,
            Task.IMAGE_TO_TEXT: 16,
            Task.VIDEO_TO_TEXT: 12,
            Task.SPEECH_TO_TEXT: 12,
            Task.TEXT_TO_SPEECH: 16,
            Task.TEXT_TO_IMAGE: 16,
            Task.IMAGE_TO_IMAGE: 16,
        }
    )
    num_pieces: int = 576
    d_model: int = 128
    num_heads: int = 4
    num_layers: int = 5
    mlp_hidden_size: int = 320
    rope_theta: float = 50.0
    text_block: int = 33
    max_filler: int = 8
    long_filler: int = 40
    dropout: float = 0.1
    num_pictures: int = 12
    num_clips: int = 6
    backbone_weight: float = 0.6


def dynin_tiny(*, seed: int = 0, length: float = 1.0, stage1_eos: EosPolicy = "none") -> DyninTiny:
    """The recipe of the shipped checkpoint.

    Args:
        seed: of everything.
        length: factor on the steps of every phase; 0.01 is a smoke test.
        stage1_eos: which EOS s1 learns; `all` is what the paper compares with.

    Raises:
        ValueError: the length is not positive.
    """
    if not length > 0:
        raise ValueError(f"length={length} must be above 0; 1 is the recipe as it is")

    def phase(num_steps: int, tasks: tuple[Task, ...], peak: float, **options: Any) -> Phase:
        num_steps = max(1, round(num_steps * length))
        config = TrainConfig(
            num_steps=num_steps,
            seed=seed,
            learning_rate=peak,
            min_learning_rate_ratio=0.05,
            num_warmup_steps=min(50, num_steps // 4),
            weight_decay=0.01,
            betas=(0.9, 0.98),
            is_stratified=True,
        )
        return Phase(tasks=tasks, train=config, **options)

    return DyninTiny(
        seed=seed,
        phases={
            "s0": phase(400, BACKBONE_TASKS, 2e-3),
            "s1": phase(250, STAGE1_TASKS, 1e-3, eos=stage1_eos),
            "s2": phase(900, TASKS, 2e-3),
            "s3": phase(
                400,
                TASKS,
                1e-3,
                max_digits=4,
                rows={Task.SPEECH_TO_TEXT: 16, Task.TEXT_TO_SPEECH: 40},
                is_speech_dropped=False,
            ),
        },
    )


def tiny_objectives() -> dict[Task, DirectionObjective]:
    """The package's objectives with the normalisation `mean`, which small batches need."""
    return {
        task: objective
        if DIRECTIONS[task].output is Modality.IMAGE
        else replace(objective, normalisation="mean", is_one_forced=True)
        for task, objective in objectives().items()
    }


def policies(recipe: DyninTiny, phase: Phase, max_filler: int) -> dict[Task, SamplePolicy]:
    """How records of each direction are laid out in a phase."""
    eos = phase.eos
    found = {task: SamplePolicy(eos=eos, max_filler=max_filler) for task in TASKS}
    questions = {
        Task.IMAGE_TO_TEXT: words.IMAGE_QUESTIONS,
        Task.VIDEO_TO_TEXT: words.VIDEO_QUESTIONS,
    }
    for task, phrases in questions.items():
        found[task] = replace(found[task], instructions=phrases)
    dropped = [Task.TEXT_TO_IMAGE]
    if phase.is_speech_dropped:
        dropped.append(Task.TEXT_TO_SPEECH)
    for task in dropped:
        found[task] = replace(found[task], dropout=recipe.dropout)
    halved = recipe.dropout / 2
    found[Task.IMAGE_TO_IMAGE] = SamplePolicy(eos=eos, dropout=halved, identity=halved)
    return found


class TinyFeed(RecordFeed):
    """`RecordFeed` whose answer regions are long in one step of ten.

    Args:
        mixture: the records.
        contexts: for the usual step and for the tenth.
        config: the run.
    """

    def __init__(
        self,
        mixture: MemoryMixture,
        contexts: tuple[SampleContext, SampleContext],
        config: TrainConfig,
    ) -> None:
        super().__init__(mixture, contexts[0], config)
        self._contexts = contexts

    def next_step(self) -> list[MicroBatch]:
        """As `RecordFeed.next_step`."""
        self.context = self._contexts[self._step % 10 == 9]
        return super().next_step()


class CachedTokenizer:
    """A tokenizer that remembers what it encoded; a step asks for the same prompts again."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._encode = cache(lambda text: tokenizer.encode(text, add_special_tokens=False))

    def __len__(self) -> int:
        return len(self._tokenizer)

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """As the tokenizer's."""
        return self._tokenizer.convert_tokens_to_ids(tokens)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """As the tokenizer's; `add_special_tokens` adds nothing in this family."""
        return list(self._encode(text))

    def decode(self, token_ids: Any, *, skip_special_tokens: bool) -> str:
        """As the tokenizer's."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))


def image_codec() -> ImageCodec:
    """The codec of the checkpoint: a code is two by two cells, dark or bright."""
    return ImageCodec.from_config(PatchThresholdConfig(), images_per_pass=256)


def backbone_config(recipe: DyninTiny, codec: ImageCodec, num_text: int) -> MMadaConfig:
    """Sizes of the backbone: text and image rows, as MMaDA has them."""
    return MMadaConfig(
        d_model=recipe.d_model,
        n_heads=recipe.num_heads,
        n_layers=recipe.num_layers,
        mlp_hidden_size=recipe.mlp_hidden_size,
        rope_theta=recipe.rope_theta,
        max_sequence_length=1024,
        text_vocab_size=num_text,
        image_codebook_size=codec.num_codes,
        codebook_size=codec.num_codes,
        image_patch=codec.patch,
        image_resolution=digits.IMAGE_SIDE,
        video_resolution=digits.CLIP_SIDE,
        video_num_frames=CODED_FRAMES,
        generation_resolution=digits.IMAGE_SIDE,
        edit_resolution=digits.IMAGE_SIDE,
        image_text_block=recipe.text_block,
        speech_text_block=recipe.text_block,
        video_text_block=recipe.text_block,
    )


def run(
    recipe: DyninTiny,
    out: Path,
    phases: Path | None = None,
    on_step: OnStep = lambda phase, report: None,
) -> float:
    """Train from nothing, on one thread, and write the checkpoint.

    Args:
        recipe: everything that decides the result.
        out: folder to create.
        phases: folder to create for the checkpoints of the phases; None keeps none.
        on_step: called after every optimiser step with the phase's name.

    Returns:
        Processor time in seconds.

    Raises:
        ValueError: a folder exists.
    """
    for folder in (out, phases):
        if folder is not None and folder.exists():
            raise ValueError(f"{folder} exists; choose another folder or remove it")
    torch.set_num_threads(1)  # more are slower at this size, and one makes runs repeat
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="dynin-tiny-") as temporary:
        last = _Run(recipe, phases or Path(temporary), on_step).all_phases()
        write(out, last)
    return time.process_time() - started


class _Run:
    def __init__(self, recipe: DyninTiny, folder: Path, on_step: OnStep) -> None:
        self._recipe, self._folder, self._on_step = recipe, folder, on_step
        self._codec = image_codec()
        self._tokenizer = train_tokenizer(words.tokenizer_texts(), recipe.num_pieces)
        self._records = training_records(
            self._codec,
            num_pictures=recipe.num_pictures,
            num_clips=recipe.num_clips,
            seed=recipe.seed,
        )

    def all_phases(self) -> Path:
        """Run them all; the folder of the last one."""
        recipe, folder = self._recipe, self._folder
        config = backbone_config(recipe, self._codec, len(self._tokenizer))
        model = LLaDA(config)
        initialise(model, recipe.seed)
        backbone = self._train("s0", model)
        extended = folder / "s0-speech"
        options = ExtendOptions(
            num_speech_units=SpeechCodec.from_pretrained().num_units,
            noise_scale=1.0,  # rows of a small model differ by as much as they are large
            seed=recipe.seed,
        )
        extend_vocabulary(backbone, extended, options)
        adapted = self._train("s1", _load(extended))
        merged = folder / "merged"
        merge(extended, adapted, merged, merge_options(recipe, config))
        general = self._train("s2", _load(merged))
        return self._train("s3", _load(general))

    def _train(self, name: str, model: LLaDA) -> Path:
        recipe, phase = self._recipe, self._recipe.phases[name]
        feed = TinyFeed(
            MemoryMixture(
                records=self._records_of(phase),
                rows={task: phase.rows.get(task, recipe.rows[task]) for task in phase.tasks},
                seed=recipe.seed,
            ),
            (
                self._context(model.config, phase, recipe.max_filler),
                self._context(model.config, phase, recipe.long_filler),
            ),
            phase.train,
        )
        for report in train(model, feed, tiny_objectives(), phase.train):
            self._on_step(name, report)
        target = self._folder / name
        checkpoint.save_checkpoint(target, model.config, model.state_dict(), self._tokenizer)
        return target

    def _records_of(self, phase: Phase) -> dict[Task, list[Record]]:
        speech = (Task.SPEECH_TO_TEXT, Task.TEXT_TO_SPEECH)
        return {
            task: up_to(self._records[task], phase.max_digits)
            if task in speech
            else self._records[task]
            for task in phase.tasks
        }

    def _context(self, config: LLaDAConfig, phase: Phase, max_filler: int) -> SampleContext:
        return SampleContext(
            config=config,
            tokenizer=CachedTokenizer(self._tokenizer),
            policies=policies(self._recipe, phase, max_filler),
        )


def _load(folder: Path) -> LLaDA:
    return load_reference(folder, torch.float32)


def merge_options(recipe: DyninTiny, config: LLaDAConfig) -> MergeOptions:
    """Disentangled; the control tokens that stage 1 is the first to use come from it."""
    return MergeOptions(
        backbone_weight=recipe.backbone_weight,
        extra_rows_from_stage1=tuple(getattr(config.vocabulary, n) for n in STAGE1_CONTROLS),
    )


def write(out: Path, trained: Path) -> None:
    """Write a trained phase as it is shipped: bfloat16, with tokenizer and codecs.

    Args:
        out: folder to create.
        trained: folder of the phase.

    Raises:
        ValueError: `out` exists.
    """
    model = _load(trained)
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(trained)
    checkpoint.save_checkpoint(out, model.config, tensors, tokenizer)
    image_codec().save_pretrained(out / IMAGE_CODEC)
    shutil.copytree(TOY_SPEECH_DIRECTORY, out / SPEECH_CODEC)
    (out / "generation_config.json").write_text(generation_config_text(), encoding="utf-8")
