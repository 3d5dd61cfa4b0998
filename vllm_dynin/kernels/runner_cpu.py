"""The bookkeeping kernels of vLLM's model runner, in NumPy, for machines without a GPU.

vLLM's V2 model runner keeps its per-request state with small Triton kernels. Without a GPU they
run in Triton's interpreter, where the eight that a denoising step needs cost 32 of the step's 35 ms
at four requests. The functions here do the same to the same memory in tens of microseconds.

Each function takes its kernel's arguments in the kernel's order and under the kernel's names,
because vLLM passes launches on unchanged; where 0.33 changed a kernel there is a function for each
version. The launch grid is not passed on, so the number of requests is read from the shape of the
index mapping. All tensors are on the CPU and are written in place through NumPy views: they hold
few numbers, and at that size a torch operation costs several NumPy ones.

Symbols: R requests in the batch, S request slots of the runner, T tokens of the batch, G KV-cache
groups. Source: vllm/v1/worker/gpu/input_batch.py of vLLM 0.32.0 and 0.33.0; the parity test runs
both on random states. Kernels about tables are in `runner_tables_cpu`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from vllm_dynin.kernels.runner_tables_cpu import (
    apply_write,
    compute_slot_mappings,
    gather_block_tables,
    gather_block_tables_in_reach,
)


def prepare_prefill_inputs(
    input_ids_ptr: Tensor,
    next_prefill_tokens_ptr: Tensor,
    next_prefill_tokens_stride: int,
    num_lookahead: int,
    idx_mapping_ptr: Tensor,
    query_start_loc_ptr: Tensor,
    all_token_ids_ptr: Tensor,
    all_token_ids_stride: int,
    prefill_lens_ptr: Tensor,
    num_computed_tokens_ptr: Tensor,
    BLOCK_SIZE: int,
    LOOKAHEAD_BLOCK: int,
) -> None:
    """Copy each prefilling request's tokens into the batch, and note the ones that follow.

    Args:
        input_ids_ptr: int32 [T], written.
        next_prefill_tokens_ptr: int32 [num_lookahead, S], written; 0 behind the end of the prefill.
        next_prefill_tokens_stride: not used.
        num_lookahead: tokens to note per request.
        idx_mapping_ptr: int32 [R], the slot of each request.
        query_start_loc_ptr: int32 [>= R + 1], where each request's tokens start in the batch.
        all_token_ids_ptr: int32 [S, max_model_len].
        all_token_ids_stride: elements per row of it.
        prefill_lens_ptr: int32 [S]; a request with as many computed tokens is not prefilling.
        num_computed_tokens_ptr: int32 [S].
        BLOCK_SIZE: not used.
        LOOKAHEAD_BLOCK: not used.
    """
    slots = idx_mapping_ptr.numpy()
    input_ids, following = input_ids_ptr.numpy(), next_prefill_tokens_ptr.numpy()
    # A denoising query reaches beyond the tokens known so far; those ids are overwritten later.
    # Reading through a flat view allows that at the end of a row, as the kernel does.
    flat = all_token_ids_ptr.view(-1).numpy()
    starts = query_start_loc_ptr.tolist()
    prefill_lens = prefill_lens_ptr.numpy()[slots].tolist()
    computed = num_computed_tokens_ptr.numpy()[slots].tolist()
    for r, slot in enumerate(slots.tolist()):
        if computed[r] >= prefill_lens[r]:
            continue
        begin, end = starts[r], starts[r + 1]
        row = slot * all_token_ids_stride
        first = row + computed[r]
        input_ids[begin:end] = flat[first : first + end - begin]
        done = computed[r] + end - begin
        for ahead in range(num_lookahead):
            known = done + ahead < prefill_lens[r]
            following[ahead, slot] = flat[row + done + ahead] if known else 0


def prepare_pos_seq_lens(
    pos_ptr: Tensor,
    seq_lens_ptr: Tensor,
    idx_mapping_ptr: Tensor,
    query_start_loc_ptr: Tensor,
    num_computed_tokens_ptr: Tensor,
    max_num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    """Write the position of every token of the batch and the length of every sequence.

    Args:
        pos_ptr: int64 [>= T], written up to T.
        seq_lens_ptr: int32 [max_num_reqs], written; 0 behind the batch's requests.
        idx_mapping_ptr: int32 [R].
        query_start_loc_ptr: int32 [>= R + 1].
        num_computed_tokens_ptr: int32 [S].
        max_num_reqs: length of seq_lens_ptr.
        BLOCK_SIZE: not used.
    """
    slots = idx_mapping_ptr.numpy()
    num_reqs = len(slots)
    bounds = query_start_loc_ptr.numpy()[: num_reqs + 1]
    lens = bounds[1:] - bounds[:-1]
    computed = num_computed_tokens_ptr.numpy()[slots]
    seq_lens = seq_lens_ptr.numpy()
    seq_lens[:num_reqs] = computed + lens
    seq_lens[num_reqs:max_num_reqs] = 0
    begin, end = int(bounds[0]), int(bounds[-1])
    pos_ptr.numpy()[begin:end] = np.arange(begin, end) + np.repeat(computed - bounds[:-1], lens)


def combine_sampled_and_draft_tokens(
    input_ids_ptr: Tensor,
    idx_mapping_ptr: Tensor,
    last_sampled_tokens_ptr: Tensor,
    query_start_loc_ptr: Tensor,
    seq_lens_ptr: Tensor,
    prefill_len_ptr: Tensor,
    draft_tokens_ptr: Tensor,
    draft_tokens_stride: int,
    cu_num_logits_ptr: Tensor,
    logits_indices_ptr: Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
) -> None:
    """Put the last sampled and the draft tokens (our canvas) into the batch; list the logit rows.

    Args:
        input_ids_ptr: int32 [T], written at the end of each request's tokens.
        idx_mapping_ptr: int32 [R].
        last_sampled_tokens_ptr: int64 [S, 1].
        query_start_loc_ptr: int32 [>= R + 1].
        seq_lens_ptr: int32 [>= R]; a sequence no longer than its prefill has nothing to put in.
        prefill_len_ptr: int32 [S].
        draft_tokens_ptr: int64 [S, num_speculative_steps].
        draft_tokens_stride: not used.
        cu_num_logits_ptr: int32 [R + 1], where each request's logit rows start.
        logits_indices_ptr: int64 [cu_num_logits[R]], written: the batch's token of each logit row.
        BLOCK_SIZE: not used.
        NUM_NEW_SAMPLED_TOKENS: 1 if the first logit row is a sampled token's, 0 for diffusion.
    """
    slots = idx_mapping_ptr.numpy()
    num_reqs = len(slots)
    input_ids, indices = input_ids_ptr.numpy(), logits_indices_ptr.numpy()
    drafts, last_sampled = draft_tokens_ptr.numpy(), last_sampled_tokens_ptr.numpy()
    ends = query_start_loc_ptr[1 : num_reqs + 1].tolist()
    rows, seq_lens = cu_num_logits_ptr.tolist(), seq_lens_ptr[:num_reqs].tolist()
    prefill_lens = prefill_len_ptr.numpy()[slots].tolist()
    for r, slot in enumerate(slots.tolist()):
        num_logits, end = rows[r + 1] - rows[r], ends[r]
        indices[rows[r] : rows[r + 1]] = np.arange(end - num_logits, end)
        if seq_lens[r] <= prefill_lens[r]:
            continue
        if NUM_NEW_SAMPLED_TOKENS > 0 and seq_lens[r] - num_logits >= prefill_lens[r]:
            input_ids[end - num_logits] = last_sampled.flat[slot]
        num_drafts = num_logits - NUM_NEW_SAMPLED_TOKENS
        if num_drafts > 0:
            input_ids[end - num_drafts : end] = drafts[slot, :num_drafts]


def expand_idx_mapping(
    idx_mapping_ptr: Tensor,
    expanded_idx_mapping_ptr: Tensor,
    expanded_local_pos_ptr: Tensor,
    cu_num_logits_ptr: Tensor,
    BLOCK_SIZE: int,
) -> None:
    """Write, for every logit row, the slot it belongs to and its place within the request.

    Args:
        idx_mapping_ptr: int32 [R].
        expanded_idx_mapping_ptr: int32 [L], written.
        expanded_local_pos_ptr: int32 [L], written.
        cu_num_logits_ptr: int32 [R + 1], from 0 to L.
        BLOCK_SIZE: not used.
    """
    slots = idx_mapping_ptr.numpy()
    bounds = cu_num_logits_ptr.numpy()[: len(slots) + 1]
    lens = bounds[1:] - bounds[:-1]
    begin, end = int(bounds[0]), int(bounds[-1])
    expanded_idx_mapping_ptr.numpy()[begin:end] = np.repeat(slots, lens)
    local = np.arange(begin, end) - np.repeat(bounds[:-1], lens)
    expanded_local_pos_ptr.numpy()[begin:end] = local


def post_update(
    idx_mapping_ptr: Tensor,
    num_computed_tokens_ptr: Tensor,
    last_sampled_tokens_ptr: Tensor,
    output_bin_counts_ptr: Tensor | None,
    output_bin_counts_stride: int,
    sampled_tokens_ptr: Tensor,
    sampled_tokens_stride: int,
    num_sampled_ptr: Tensor,
    num_rejected_ptr: Tensor,
    query_start_loc_ptr: Tensor | None,
    all_token_ids_ptr: Tensor,
    all_token_ids_stride: int,
    total_len_ptr: Tensor,
    num_warps: int = 1,
) -> None:
    """Append what was sampled to each request and move its count of computed tokens, as in 0.32.

    Remove when vLLM 0.32 is no longer supported.

    Args:
        idx_mapping_ptr: int32 [R]; a negative entry is skipped.
        num_computed_tokens_ptr: int32 [S], changed by query length less rejected tokens.
        last_sampled_tokens_ptr: int64 [S, 1], written where something was sampled.
        output_bin_counts_ptr: int32 [S, V], counted up, or None.
        output_bin_counts_stride: not used.
        sampled_tokens_ptr: int [R, width]; the first num_sampled of a row count.
        sampled_tokens_stride: not used.
        num_sampled_ptr: int32 [R].
        num_rejected_ptr: int32 [R].
        query_start_loc_ptr: int32 [>= R + 1], or None for queries of length 0.
        all_token_ids_ptr: int32 [S, max_model_len], appended to.
        all_token_ids_stride: not used.
        total_len_ptr: int32 [S], counted up.
        num_warps: not used; a launch option that vLLM passes.
    """
    all_token_ids, sampled = all_token_ids_ptr.numpy(), sampled_tokens_ptr.numpy()
    computed, total_lens = num_computed_tokens_ptr.numpy(), total_len_ptr.numpy()
    last_sampled = last_sampled_tokens_ptr.numpy()
    num_sampled, num_rejected = num_sampled_ptr.tolist(), num_rejected_ptr.tolist()
    bounds = None if query_start_loc_ptr is None else query_start_loc_ptr.tolist()
    for r, slot in enumerate(idx_mapping_ptr.tolist()):
        if slot < 0:
            continue
        count = num_sampled[r]
        if count > 0:
            ids, total = sampled[r, :count], int(total_lens[slot])
            last_sampled.flat[slot] = ids[-1]
            all_token_ids[slot, total : total + count] = ids
            total_lens[slot] = total + count
            if output_bin_counts_ptr is not None:
                np.add.at(output_bin_counts_ptr[slot].numpy(), ids, 1)
        query_len = 0 if bounds is None else bounds[r + 1] - bounds[r]
        computed[slot] += query_len - num_rejected[r]


def post_update_with_drafts(
    idx_mapping_ptr: Tensor,
    num_computed_tokens_ptr: Tensor,
    last_sampled_tokens_ptr: Tensor,
    output_bin_counts_ptr: Tensor | None,
    output_bin_counts_stride: int,
    sampled_tokens_ptr: Tensor,
    sampled_tokens_stride: int,
    num_sampled_ptr: Tensor,
    num_rejected_ptr: Tensor,
    query_start_loc_ptr: Tensor | None,
    all_token_ids_ptr: Tensor,
    all_token_ids_stride: int,
    total_len_ptr: Tensor,
    draft_tokens_ptr: Tensor | None,
    draft_tokens_out_ptr: Tensor | None,
    num_draft_tokens: int,
    num_warps: int = 1,
) -> None:
    """`post_update` as in vLLM 0.33: it also files the drafts of the next step.

    Args:
        idx_mapping_ptr: int32 [R]; a negative entry is skipped.
        num_computed_tokens_ptr: int32 [S], changed by query length less rejected tokens.
        last_sampled_tokens_ptr: int64 [S, 1], written where something was sampled.
        output_bin_counts_ptr: int32 [S, V], counted up, or None.
        output_bin_counts_stride: not used.
        sampled_tokens_ptr: int [R, width]; the first num_sampled of a row count.
        sampled_tokens_stride: not used.
        num_sampled_ptr: int32 [R].
        num_rejected_ptr: int32 [R].
        query_start_loc_ptr: int32 [>= R + 1], or None for queries of length 0.
        all_token_ids_ptr: int32 [S, max_model_len], appended to.
        all_token_ids_stride: not used.
        total_len_ptr: int32 [S], counted up.
        draft_tokens_ptr: int [R, num_draft_tokens], or None for no drafts.
        draft_tokens_out_ptr: int64 [S, num_draft_tokens], written, or None with it.
        num_draft_tokens: drafts of each request.
        num_warps: not used; a launch option that vLLM passes.
    """
    post_update(
        idx_mapping_ptr,
        num_computed_tokens_ptr,
        last_sampled_tokens_ptr,
        output_bin_counts_ptr,
        output_bin_counts_stride,
        sampled_tokens_ptr,
        sampled_tokens_stride,
        num_sampled_ptr,
        num_rejected_ptr,
        query_start_loc_ptr,
        all_token_ids_ptr,
        all_token_ids_stride,
        total_len_ptr,
    )
    if draft_tokens_ptr is None or draft_tokens_out_ptr is None:
        return
    slots = idx_mapping_ptr.numpy()
    used = slots >= 0
    drafts = draft_tokens_ptr.numpy()[: len(slots), :num_draft_tokens]
    draft_tokens_out_ptr.numpy()[slots[used], :num_draft_tokens] = drafts[used]


_RUNNER = "vllm.v1.worker.gpu"
# vLLM's kernel → what replaces it, one function for each signature that a supported version gives
# it; vllm_dynin.compat hands the one that fits to vLLM.
OVERRIDES: dict[str, tuple[Callable[..., None], ...]] = {
    f"{_RUNNER}.buffer_utils._apply_write_kernel": (apply_write,),
    f"{_RUNNER}.input_batch._prepare_prefill_inputs_kernel": (prepare_prefill_inputs,),
    f"{_RUNNER}.input_batch._prepare_pos_seq_lens_kernel": (prepare_pos_seq_lens,),
    f"{_RUNNER}.input_batch._combine_sampled_and_draft_tokens_kernel": (
        combine_sampled_and_draft_tokens,
    ),
    f"{_RUNNER}.input_batch._expand_idx_mapping_kernel": (expand_idx_mapping,),
    f"{_RUNNER}.input_batch._post_update_kernel": (post_update, post_update_with_drafts),
    f"{_RUNNER}.block_table._gather_block_tables_kernel": (
        gather_block_tables,
        gather_block_tables_in_reach,
    ),
    f"{_RUNNER}.block_table._compute_slot_mappings_kernel": (compute_slot_mappings,),
}
# Launch options are passed like arguments and are none of the kernel's.
LAUNCH_OPTIONS = ("num_warps",)
