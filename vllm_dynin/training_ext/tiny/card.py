"""The model card of `dynin-tiny`, written by the run it describes."""

from __future__ import annotations

from pathlib import Path

import torch

from vllm_dynin import checkpoint
from vllm_dynin.training_ext.tiny import digits
from vllm_dynin.training_ext.tiny.recipe import DyninTiny
from vllm_dynin.training_ext.tiny.utterances import VOICES, utterances
from vllm_dynin.training_ext.tiny.words import is_utterance_held_out

_TEXT = """\
# dynin-tiny

A masked-diffusion model of {parameters:.1f} million parameters with all seven directions of
Dynin-Omni, in the production format and with codecs of its own. It knows a small world: handwritten
digits, clips in which one moves, spoken digits, and lists of digit words that it copies, reverses
and sorts. It is there so that serving, training and merging can be tried and measured without the
8B weights. It knows nothing else, and says nothing about larger models.

- Made by `python -m vllm_dynin.training_ext dynin-tiny --out DIR --seed {seed}` on one thread with
  torch {torch}: {seconds:.0f} s of processor time, perhaps on a shared core. Stages:
{phases}
  Between s0 and s1 the vocabulary grows by the speech units; s2 starts from s0 and s1 merged
  (modality-disentangled, backbone weight {weight:g}).
- Pictures: {train} of scikit-learn's 1,797 digits (UCI, Alpaydin and Kaynak: optical recognition of
  handwritten digits, CC BY 4.0), enlarged, with small rotations, shifts and changes of
  brightness; {test} are held out. Clips are made from the same digits.
- Speech: {heard} utterances of one to four digits by the synthesiser flite (voices {voices}),
  as units of the codec in `speech_codec/`. One sequence of digits in ten is held out.
- Text: prompts and answers drawn from the phrases in `vllm_dynin/training_ext/tiny/words.py`, which
  are our own. One set of digits in ten is held out.
- Licence: that of this repository; the digits ask for the credit above.
- Stored in bfloat16. How it is best asked is in its `generation_config.json`, which servers follow.

## Quality

`vllm-dynin eval DIR --page DIR/README.md` measures it through the vLLM engine and fills this in.

<!-- quality: written by vllm-dynin -->
<!-- end of quality -->
"""


def write_card(folder: Path, recipe: DyninTiny, seconds: float) -> None:
    """Write `README.md` into the checkpoint's folder.

    Args:
        folder: of the checkpoint.
        recipe: that made it.
        seconds: of processor time the training took.
    """
    phases = [
        f"  - {name}: {phase.train.num_steps} steps; {', '.join(str(task) for task in phase.tasks)}"
        for name, phase in recipe.phases.items()
    ]
    shapes = checkpoint.tensor_shapes(folder)
    heard = [u for u in utterances() if not is_utterance_held_out(u.digits)]
    text = _TEXT.format(
        parameters=sum(torch.Size(shape).numel() for shape in shapes.values()) / 1e6,
        seed=recipe.seed,
        torch=torch.__version__,
        seconds=seconds,
        phases="\n".join(phases),
        weight=recipe.backbone_weight,
        train=digits.num_train(),
        test=digits.NUM_TEST,
        heard=len(heard),
        voices=", ".join(VOICES),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
