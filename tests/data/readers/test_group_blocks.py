from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from deitctl.data.readers import group_blocks
from deitctl.data.stores.block_cache import BlockCache

pa = pytest.importorskip("pyarrow")


def open_blocks(folder):
    """Return the blocks of row groups of one image of 1,000 bytes each."""
    group = SimpleNamespace(file=0, num_rows=1, num_bytes=1000)
    numbered = [SimpleNamespace(**vars(group), number=number) for number in range(9)]
    groups = SimpleNamespace(
        groups=numbered,
        column="image",
        decode=lambda number: [pa.array([bytes([number]) * 1000], pa.large_binary())],
    )
    cache = BlockCache(str(folder))
    return group_blocks.GroupBlocks(groups, cache, ["content"])


def test_open_blocks_are_bounded_by_number_and_bytes(tmp_path, monkeypatch):
    blocks = open_blocks(tmp_path)
    monkeypatch.setattr(group_blocks, "MAX_OPEN_BYTES", 3500)
    for number in range(6):
        assert blocks.find(number, writes=True).read(0) == bytes([number]) * 1000
    assert list(blocks._open) == [3, 4, 5]
    monkeypatch.setattr(group_blocks, "MAX_OPEN", 2)
    blocks.find(0, writes=False)
    assert list(blocks._open) == [5, 0]


def test_a_block_that_made_room_for_another_is_closed(tmp_path):
    blocks = open_blocks(tmp_path)
    first = blocks.find(0, writes=True)
    os.unlink(first.file.path)
    assert blocks.find(0, writes=False).read(0) == bytes(1000)  # who has it open reads on
    blocks.find(1, writes=True)
    assert list(blocks._open) == [1]
