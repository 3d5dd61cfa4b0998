"""What clients of vllm-omni 0.28 send, in our terms; what names a file or code is refused."""

import pytest

pytest.importorskip("vllm", reason="the routes are part of the server")

from vllm_dynin.canvas import Task
from vllm_dynin.entrypoints.http.migration import Information, read_information, triggered
from vllm_dynin.entrypoints.stand_in import stand_in_config

CONFIG = stand_in_config()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Information()),
        ({"timesteps": [20]}, Information(options={"steps": 20})),
        ({"task": "t2s_mmu_like", "detok_id": 1}, Information(task=Task.TEXT_TO_SPEECH)),
        ({"task": ["mmu"], "max_new_tokens": 8}, Information(task=Task.TEXT_TO_TEXT, max_tokens=8)),
        ({"schedule": "cosine"}, Information(options={"noise_schedule": "cosine"})),
        (
            {"t2s_condition": "gender-male_emotion-happy", "t2s_token_length": 12},
            Information(options={"style": "gender-male_emotion-happy"}, max_tokens=12),
        ),
        (
            {"mask_id": CONFIG.vocabulary.mask, "codebook_size": CONFIG.image_codebook_size},
            Information(),
        ),
        ({"temperature": 1, "seed": None}, Information(temperature=1.0)),
    ],
)
def test_scalars(given, expected):
    assert read_information(given, CONFIG) == expected


# Every key of 0.28 that named a checkpoint, a file, or code to load.
FILES = [
    "dynin_config_path",
    "dynin_model_path",
    "tokenizer_path",
    "vq_model_image_path",
    "vq_model_path_image",
    "vq_model_audio_path",
    "vq_model_path_audio",
    "local_files_only",
    "model_local_files_only",
    "local_files_only_model",
    "vq_model_image_local_files_only",
    "local_files_only_vq_image",
    "output_wav_file",
    "uni_prompting",
    "prompting_config",
]


@pytest.mark.parametrize("name", FILES)
def test_what_names_a_file_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' names a file, a checkpoint or code"):
        read_information({name: "x"}, CONFIG)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"timesteps": 4, "steps": 5}, "steps=5 and timesteps=4"),
        ({"generated_token_ids": [1, 2]}, "not supported"),
        ({"steps": {"a": 1}}, "steps' is a dict"),
        ({"condition": "a/b"}, "looks like a path"),
        ({"task": "sing"}, "task='sing' is not one of"),
        ({"detok_id": 7}, "0 is text"),
        ({"audio_codebook_size": 1}, "leave it out"),
        ({"max_new_tokens": 1.5}, "max_tokens"),
    ],
)
def test_bad_information(given, words):
    with pytest.raises(ValueError, match=words):
        read_information(given, CONFIG)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", (None, "a cat")),
        ("<|t2i|>  a\n cat", (Task.TEXT_TO_IMAGE, "a cat")),
        ("<|i2i|><|soi|><|image|><|eoi|> night", (Task.IMAGE_TO_IMAGE, "night")),
        ("<|t2i|> <|i2i|> x", (Task.IMAGE_TO_IMAGE, "<|t2i|> x")),  # as it was looked for
        ("say <|t2s|>hello", (Task.TEXT_TO_SPEECH, "say hello")),
        ("<|mmu|> what", (None, "<|mmu|> what")),
    ],
)
def test_triggers(text, expected):
    assert triggered(text) == expected
