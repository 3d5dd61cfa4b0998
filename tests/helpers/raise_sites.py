"""The raise sites of what prepares and plans requests, and why no request meets some of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import vllm_dynin

PACKAGE = Path(vllm_dynin.__file__).parent
SOURCES = (
    "processors/**/*.py",
    "planning.py",
    "canvas.py",
    "requests/*.py",
    "model_executor/admission.py",
)


@dataclass(frozen=True)
class Site:
    """A `raise` in the sources.

    Args:
        path: of the file, from the package.
        name: qualified name of the function.
        line: number.
        text: the constant parts of its message, and its code where there are none.
    """

    path: str
    name: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}: {self.text[:90]}"


def sites() -> Iterator[Site]:
    """All raise sites of the parts that prepare and plan requests."""
    for pattern in SOURCES:
        for file in sorted(PACKAGE.glob(pattern)):
            path = str(file.relative_to(PACKAGE))
            yield from _sites_in(ast.parse(file.read_text()), path, [])


def _sites_in(node: ast.AST, path: str, names: list[str]) -> Iterator[Site]:
    for child in ast.iter_child_nodes(node):
        inner = names
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = [*names, child.name]
        # Names in capitals behind an underscore are ours, and caught where they are raised.
        is_raised = isinstance(child, ast.Raise) and child.exc is not None
        if is_raised and not re.match(r"_[A-Z]", ast.unparse(child.exc)):
            constants = [
                part.value
                for part in ast.walk(child.exc)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            text = " … ".join(constants) or ast.unparse(child.exc)
            yield Site(path, ".".join(names), child.lineno, text)
        yield from _sites_in(child, path, inner)


# Start of the path, words of the site ("" for every one), and why no request meets it.
_OPERATOR = "read where a server or a tool starts; the operator's files, not a client's"
_MADE = "raised where a request is made: tests/unit/test_requests.py"
_INNER = "checked by who calls it; for other callers of the class"
NOT_MET: list[tuple[str, str, str]] = [
    ("processors/codecs/convert.py", "", "a command line tool"),
    ("processors/media.py", " has no *.safetensors file; ", "said at start: test_codec_folders"),
    ("processors/codecs/loading.py", "", _OPERATOR),
    ("processors/codecs/emova_speech.py", "", _OPERATOR),
    ("processors/codecs/magvit.py", "", _OPERATOR),
    ("processors/codecs/patch_threshold.py", "", _OPERATOR),
    ("processors/codecs/speech_to_units.py", "", _OPERATOR),
    ("processors/codecs/spiral.py", "", _OPERATOR),
    ("processors/codecs/toy_speech.py", "", _OPERATOR),
    ("processors/codecs/units_to_speech.py", "", _OPERATOR),
    ("processors/codecs/vits_generator.py", "", _OPERATOR),
    ("processors/codecs/styles.py", "u2s_style2idx", _OPERATOR),
    ("processors/codecs/styles.py", "a style is a name such as ", "style is text by its type"),
    ("processors/codecs/styles.py", " is one of ", "said through _complaint of parse_style"),
    ("processors/codecs/image.py", "", _INNER),
    ("processors/codecs/speech_features.py", "", _INNER),
    ("processors/codecs/speech.py", "", _INNER),
    ("processors/codecs/limits.py", " must be positive", _OPERATOR),
    ("processors/codecs/audio_io.py", "audio format ", "formats are checked by the routes"),
    ("processors/codecs/audio_io.py", "one channel [N]", "of sound that the server makes"),
    ("processors/codecs/image_io.py", "the target size", _INNER),
    ("processors/codecs/image_io.py", "a batch needs RGB images", _INNER),
    ("processors/codecs/image_decode.py", "AssertionError", "never: the loop returns or raises"),
    ("processors/codecs/image_decode.py", "it has no pixels", "no reader opens such a file"),
    ("processors/codecs/animation.py", "the picture is damaged", "tests/unit/codecs/test_fuzz_…"),
    ("processors/codecs/audio_blocks.py", " values; send fewer channels", "limits before it hold"),
    ("processors/codecs/audio_worker.py", "MemoryError", "the worker's end, said by media_worker"),
    ("processors/codecs/audio_worker.py", "samples of the type ", "a codec FFmpeg does not have"),
    ("processors/codecs/video_file.py", "MemoryError", "the worker's end, said by media_worker"),
    ("processors/codecs/video_file.py", "decodes to other frames", "of damage: the fuzz tests"),
    (
        "processors/codecs/video_file.py",
        "the video's codec is unknown",
        "of damage: the fuzz tests",
    ),
    ("processors/codecs/video_file.py", "of its packets cannot be decoded", "the fuzz tests"),
    ("processors/codecs/video.py", " must be positive", "options are checked before"),
    ("processors/codecs/video.py", "; ask for fewer frames", "prompts have no room for so many"),
    ("processors/codecs/wav.py", "is joined on to a plain one", "tests/unit/codecs"),
    ("processors/codecs/media_worker.py", "", "the end of a worker: tests/unit/codecs"),
    ("processors/infill.py", " marks; give one mark a code", _INNER),
    ("processors/media.py", "this checkpoint has no ", "of a checkpoint without the codec"),
    ("processors/media.py", " codes but the vocabulary ", _OPERATOR),
    ("processors/media_items.py", "", "of LLM.generate with multi_modal_data: tests/engine/omni"),
    ("processors/multimodal.py", "mm_processor_kwargs", "tests/engine/omni/test_bad_input.py"),
    ("processors/multimodal.py", " in it; send the medium itself", "tests/engine/omni"),
    ("processors/multimodal.py", "resolution=", "tests/engine/omni/test_bad_input.py"),
    ("processors/multimodal.py", "MediaRefusedError(str(error))", "hands on what is refused here"),
    ("processors/templates/sample.py", "", "of training"),
    ("processors/templates/understanding.py", "", "of training and evaluation"),
    ("processors/templates/build.py", "text_targets=", _INNER),
    ("processors/templates/build.py", " slots to generate", "max_tokens=0 is vLLM's to refuse"),
    ("processors/templates/directions.py", "this checkpoint has no ", "of a checkpoint without it"),
    ("processors/templates/guidance.py", "hence no source image", "check_media comes first"),
    ("processors/templates/guidance.py", " short of an empty one", "of prompts in ids only"),
    ("processors/templates/guidance.py", "with parity 'reference' pad", "tests/unit/templates"),
    ("processors/templates/image.py", "editing needs a source image", "routes count them first"),
    ("processors/templates/pieces.py", " without codes; encode", _INNER),
    ("processors/text_tokenizer.py", "", _OPERATOR),
    ("processors/train_tokenizer.py", "", "of training"),
    ("processors/assemble.py", "", "of training and of Python callers that bring codes"),
    ("planning.py", "generation_config.json: dynin", _OPERATOR),
    ("planning.py", "the length of an image is its size", _OPERATOR),
    ("canvas.py", "", "laws of the class; the planner holds them, and refuses what breaks them"),
    ("requests/base.py", "NotImplementedError", "abstract"),
    ("requests/base.py", "a tuple of strings", _MADE),
    ("requests/checks.py", "", _MADE),
    ("requests/text.py", "content", _MADE),
    ("requests/text.py", "a tuple of strings and Gaps", _MADE),
    ("requests/base.py", "a checkpoint of model_type ", "of a checkpoint for text"),
    ("model_executor/admission.py", "pooling is not supported", "there is no pooling route"),
    ("model_executor/admission.py", "streaming input is not supported", "no route streams input"),
    ("model_executor/admission.py", "VLLMValidationError(str(error))", "hands on"),
    ("model_executor/admission.py", " is out of range: an answer ", "tests/engine/test_http.py"),
    ("model_executor/admission.py", "prompt and answer need ", "with a longer --max-model-len"),
]
