"""The bookkeeping kernels of vLLM's model runner, in NumPy, for machines without a GPU.

vLLM's V2 model runner keeps its per-request state with small Triton kernels. Without a GPU they
run in Triton's interpreter, where the eight that a denoising step needs cost 32 of the step's 35 ms
at four requests. The functions here do the same to the same memory in tens of microseconds.

Each function takes its kernel's arguments in the kernel's order and under the kernel's names,
because vLLM passes launches on unchanged; the launch grid is not passed on, so the number of
requests is read from the shape of the index mapping. All tensors are on the CPU and are written in
place through NumPy views: they hold few numbers, and at that size a torch operation costs several
NumPy ones.

Symbols: R requests in the batch, S request slots of the runner, T tokens of the batch, G KV-cache
groups. Source: vllm/v1/worker/gpu/{input_batch,block_table,buffer_utils}.py of vLLM 0.32.0; the
parity test runs both on random states.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[Any]


def _table_at(address: int, num_rows: int, stride: int) -> Array:
    """The int32 [num_rows, stride] table at a raw address, as a view.

    Kernels that serve several KV-cache groups get the addresses of their tables, not the tables.
    """
    data = (ctypes.c_int32 * (num_rows * stride)).from_address(address)
    return np.frombuffer(memoryview(data), np.int32).reshape(num_rows, stride)


def apply_write(
    output_ptr: Tensor,
    output_stride: Tensor | int,
    write_indices_ptr: Tensor,
    write_starts_ptr: Tensor,
    write_contents_ptr: Tensor,
    write_cu_lens_ptr: Tensor,
    write_group_ids_ptr: Tensor | None,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> None:
    """Copy staged contents into rows of a table.

    Args:
        output_ptr: the table [S] or [S, width]; with MULTI_GROUP uint64 [G], tables' addresses.
        output_stride: elements per row; with MULTI_GROUP int64 [G].
        write_indices_ptr: int32 [W], the row of each write.
        write_starts_ptr: int32 [W], the first column of each write.
        write_contents_ptr: the contents of all writes, one after the other.
        write_cu_lens_ptr: int32 [W], where each write's contents end.
        write_group_ids_ptr: int32 [W] with MULTI_GROUP, else None.
        BLOCK_SIZE: not used.
        MULTI_GROUP: whether each write names the group whose table it goes to.
    """
    rows, starts = write_indices_ptr.tolist(), write_starts_ptr.tolist()
    ends, contents = write_cu_lens_ptr.tolist(), write_contents_ptr.numpy()
    begin = 0
    if MULTI_GROUP:
        assert write_group_ids_ptr is not None and isinstance(output_stride, Tensor)
        addresses, strides = output_ptr.tolist(), output_stride.tolist()
        for group, row, start, end in zip(
            write_group_ids_ptr.tolist(), rows, starts, ends, strict=True
        ):
            table = _table_at(addresses[group], row + 1, strides[group])
            table[row, start : start + end - begin] = contents[begin:end]
            begin = end
        return
    flat = output_ptr.view(-1).numpy()
    for row, start, end in zip(rows, starts, ends, strict=True):
        first = row * output_stride + start
        flat[first : first + end - begin] = contents[begin:end]
        begin = end


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
    """Append what was sampled to each request and move its count of computed tokens.

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


def gather_block_tables(
    batch_idx_to_req_idx: Tensor,
    src_block_table_ptrs: Tensor,
    dst_block_table_ptrs: Tensor,
    block_table_strides: Tensor,
    num_blocks_ptr: Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    """Copy the block tables of the batch's requests into consecutive rows.

    NOTE: the kernel also zeroes the rows that pad a batch for CUDA graphs; only the launch grid
    says how many. A CPU has no CUDA graphs and no padded batches: nothing is zeroed here.

    Args:
        batch_idx_to_req_idx: int32 [R].
        src_block_table_ptrs: uint64 [G], addresses of int32 [S, stride].
        dst_block_table_ptrs: uint64 [G], addresses of int32 [>= R, stride], written up to each
            request's number of blocks; what a row holds behind that is left.
        block_table_strides: int64 [G], the width of each group's tables.
        num_blocks_ptr: int32 [G, S].
        num_blocks_stride: not used.
        num_reqs: R.
        BLOCK_SIZE: not used.
    """
    slots = batch_idx_to_req_idx.tolist()[:num_reqs]
    if not slots:
        return
    num_blocks = num_blocks_ptr.numpy()
    for group, (source, target, stride) in enumerate(
        zip(
            src_block_table_ptrs.tolist(),
            dst_block_table_ptrs.tolist(),
            block_table_strides.tolist(),
            strict=True,
        )
    ):
        table = _table_at(source, max(slots) + 1, stride)
        gathered = _table_at(target, num_reqs, stride)
        for r, slot in enumerate(slots):
            count = num_blocks[group, slot]
            gathered[r, :count] = table[slot, :count]


def compute_slot_mappings(
    max_num_tokens: int,
    idx_mapping: Tensor,
    query_start_loc: Tensor,
    pos: Tensor,
    block_table_ptrs: Tensor,
    block_table_strides: Tensor,
    block_sizes: Tensor,
    slot_mapping_enabled: Tensor,
    dcp_sharded: Tensor,
    slot_mappings_ptr: Tensor,
    slot_mappings_stride: int,
    cp_rank: int,
    CP_SIZE: int,
    CP_INTERLEAVE: int,
    PAD_ID: int,
    TRITON_BLOCK_SIZE: int,
) -> None:
    """Write where in the KV cache each token of the batch goes.

    Args:
        max_num_tokens: width of slot_mappings_ptr.
        idx_mapping: int32 [R]; the tokens of a negative entry go nowhere.
        query_start_loc: int32 [>= R + 1].
        pos: int64 [>= T].
        block_table_ptrs: uint64 [G], addresses of int32 [S, stride].
        block_table_strides: int64 [G].
        block_sizes: int32 [G], tokens per KV block.
        slot_mapping_enabled: bool [G]; the tokens of a group without it go nowhere.
        dcp_sharded: not used.
        slot_mappings_ptr: int64 [G, max_num_tokens], written; PAD_ID behind the batch's tokens.
        slot_mappings_stride: not used.
        cp_rank: not used.
        CP_SIZE: ranks of context parallelism.
        CP_INTERLEAVE: not used.
        PAD_ID: the number for "nowhere".
        TRITON_BLOCK_SIZE: not used.

    Raises:
        ValueError: for CP_SIZE above 1, which vLLM does not offer on a CPU.
    """
    if CP_SIZE != 1:
        raise ValueError(
            f"context parallelism over {CP_SIZE} ranks is not supported on a CPU; use 1"
        )
    slots, mappings = idx_mapping.numpy(), slot_mappings_ptr.numpy()
    bounds = query_start_loc.numpy()[: len(slots) + 1]
    begin, end = int(bounds[0]), int(bounds[-1])
    positions = pos.numpy()[begin:end]
    row_of_token = np.repeat(slots, bounds[1:] - bounds[:-1])
    num_rows = int(slots.max(initial=-1)) + 1
    enabled, sizes = slot_mapping_enabled.tolist(), block_sizes.tolist()
    addresses, strides = block_table_ptrs.tolist(), block_table_strides.tolist()
    for group, mapping in enumerate(mappings):
        mapping[end:max_num_tokens] = PAD_ID
        if not enabled[group] or num_rows == 0:
            mapping[begin:end] = PAD_ID
            continue
        table, size = _table_at(addresses[group], num_rows, strides[group]), sizes[group]
        blocks = table[row_of_token, positions // size].astype(np.int64)
        mapping[begin:end] = np.where(row_of_token >= 0, blocks * size + positions % size, PAD_ID)


_RUNNER = "vllm.v1.worker.gpu"
# vLLM's kernel → what replaces it; vllm_dynin.compat hands these to vLLM.
OVERRIDES: dict[str, Callable[..., None]] = {
    f"{_RUNNER}.buffer_utils._apply_write_kernel": apply_write,
    f"{_RUNNER}.input_batch._prepare_prefill_inputs_kernel": prepare_prefill_inputs,
    f"{_RUNNER}.input_batch._prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
    f"{_RUNNER}.input_batch._combine_sampled_and_draft_tokens_kernel": (
        combine_sampled_and_draft_tokens
    ),
    f"{_RUNNER}.input_batch._expand_idx_mapping_kernel": expand_idx_mapping,
    f"{_RUNNER}.input_batch._post_update_kernel": post_update,
    f"{_RUNNER}.block_table._gather_block_tables_kernel": gather_block_tables,
    f"{_RUNNER}.block_table._compute_slot_mappings_kernel": compute_slot_mappings,
}
