"""Two ranks, each with half of the heads and half of the 138,752 columns."""

import pytest
from helpers.engines import start_llm
from helpers.omni_mix import expected, mixed_directions, run, tokens_of


@pytest.mark.slow  # two worker processes that start from nothing
def test_every_direction_on_two_ranks(omni_folder, omni_reference):
    """Half of the text columns and both media ranges lie on either side of the cut at 69,376."""
    cases = mixed_directions(omni_reference.config, 20, seed=7)
    with start_llm(
        omni_folder,
        in_process=False,
        tensor_parallel_size=2,
        max_model_len=288,
        max_num_seqs=32,
        max_num_batched_tokens=2560,
        num_gpu_blocks_override=256,
    ) as llm:
        found = tokens_of(run(llm, cases))
    assert found == [expected(omni_reference, case) for case in cases]
