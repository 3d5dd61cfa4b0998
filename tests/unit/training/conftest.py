"""What the tests of the tiny world share."""

import pytest

from vllm_dynin.training_ext.tiny.recipe import image_codec
from vllm_dynin.training_ext.tiny.records import training_records


@pytest.fixture(scope="session")
def tiny_codec():
    return image_codec()


@pytest.fixture(scope="session")
def tiny_records(tiny_codec):
    """All records, with each digit once."""
    return training_records(tiny_codec, num_pictures=1, num_clips=1)
