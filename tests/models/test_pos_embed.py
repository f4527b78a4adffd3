"""Position embeddings are resized as timm resizes them."""

from __future__ import annotations

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from deitctl.models.pos_embed import resize_pos_embed


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (14, 4), (4, 14), (7, 8)])
def test_resizing_equals_timms(prefix, old, new, noise):
    table = noise(1, prefix + old * old, 16)
    expected = resample_abs_pos_embed(table, [new, new], [old, old], num_prefix_tokens=prefix)
    torch.testing.assert_close(resize_pos_embed(table, new, num_prefix_tokens=prefix), expected)


def test_same_grid_returns_the_table_itself(noise):
    table = noise(1, 17, 8)
    assert resize_pos_embed(table, 4, num_prefix_tokens=1) is table


def test_prefix_is_left_as_it_is(noise):
    table = noise(1, 2 + 16, 8)
    assert torch.equal(resize_pos_embed(table, 7, num_prefix_tokens=2)[:, :2], table[:, :2])


def test_constant_tables_stay_constant():
    table = torch.full((1, 1 + 49, 4), 0.25)
    torch.testing.assert_close(
        resize_pos_embed(table, 12, num_prefix_tokens=1), torch.full((1, 145, 4), 0.25)
    )


def test_half_precision_keeps_its_type(noise):
    resized = resize_pos_embed(noise(1, 16, 8).half(), 6, num_prefix_tokens=0)
    assert resized.dtype is torch.float16
    assert resized.shape == (1, 36, 8)
