"""The kernels of vLLM's model runner that read and write tables, in NumPy: see `runner_cpu`.

Symbols: R requests in the batch, S request slots of the runner, T tokens of the batch, G KV-cache
groups. Source: vllm/v1/worker/gpu/{block_table,buffer_utils}.py of vLLM 0.32.0 and 0.33.0.
"""

from __future__ import annotations

import ctypes
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
    """Copy the block tables of the batch's requests into consecutive rows, as in vLLM 0.32.

    NOTE: the kernel also zeroes the rows that pad a batch for CUDA graphs; only the launch grid
    says how many. A CPU has no CUDA graphs and no padded batches: nothing is zeroed here.

    Remove when vLLM 0.32 is no longer supported.

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


def gather_block_tables_in_reach(
    batch_idx_to_req_idx: Tensor,
    src_block_table_ptrs: Tensor,
    dst_block_table_ptrs: Tensor,
    block_table_strides: Tensor,
    num_blocks_ptr: Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    num_computed_tokens_ptr: Tensor,
    sliding_window_reach_ptr: Tensor,
    block_sizes_ptr: Tensor,
    MASK_SLIDING_WINDOW: bool,
    BLOCK_SIZE: int,
) -> None:
    """`gather_block_tables` as in vLLM 0.33: blocks below a sliding window become block 0.

    Args:
        batch_idx_to_req_idx: int32 [R].
        src_block_table_ptrs: uint64 [G], addresses of int32 [S, stride].
        dst_block_table_ptrs: uint64 [G], addresses of int32 [>= R, stride], written.
        block_table_strides: int64 [G].
        num_blocks_ptr: int32 [G, S].
        num_blocks_stride: not used.
        num_reqs: R.
        num_computed_tokens_ptr: int32 [S]; read where MASK_SLIDING_WINDOW.
        sliding_window_reach_ptr: int32 [G], tokens before a request's first scheduled one that are
            still attended to; 0 for groups without a window. Read where MASK_SLIDING_WINDOW.
        block_sizes_ptr: int32 [G], tokens per KV block; read where MASK_SLIDING_WINDOW.
        MASK_SLIDING_WINDOW: whether any group has a window.
        BLOCK_SIZE: not used.
    """
    gather_block_tables(
        batch_idx_to_req_idx,
        src_block_table_ptrs,
        dst_block_table_ptrs,
        block_table_strides,
        num_blocks_ptr,
        num_blocks_stride,
        num_reqs,
        BLOCK_SIZE,
    )
    if not MASK_SLIDING_WINDOW or num_reqs == 0:
        return
    slots = batch_idx_to_req_idx.numpy()[:num_reqs]
    computed, num_blocks = num_computed_tokens_ptr.numpy()[slots], num_blocks_ptr.numpy()
    reaches, sizes = sliding_window_reach_ptr.tolist(), block_sizes_ptr.tolist()
    for group, (target, stride) in enumerate(
        zip(dst_block_table_ptrs.tolist(), block_table_strides.tolist(), strict=True)
    ):
        if reaches[group] <= 0:
            continue
        gathered = _table_at(target, num_reqs, stride)
        below = np.maximum(computed - reaches[group], 0) // sizes[group]
        for r, slot in enumerate(slots.tolist()):
            gathered[r, : min(below[r], num_blocks[group, slot])] = 0


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
