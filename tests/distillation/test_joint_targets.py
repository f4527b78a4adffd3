"""Features in float16 with a checksum, and labels and features that are read and written together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from deitctl.distillation.features import FeatureCodec
from deitctl.distillation.joint_targets import JointCache, JointCodec, join_caches
from deitctl.distillation.target_cache import open_cache
from deitctl.distillation.targets import TargetCodec, TeacherTargets
from deitctl.errors import TeacherError

LABELS, FEATURES = TargetCodec("soft", 4, 4), FeatureCodec(6)
BOTH = JointCodec(LABELS, FEATURES)
KEYS = [(0, 1), (1, 2)]


def make_targets(seed: int = 0) -> TeacherTargets:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randn(2, 4, generator=draw).softmax(1)
    return TeacherTargets(labels, (100 * torch.randn(2, 6, generator=draw),))


def open_both(folder: Path) -> JointCache:
    labels = open_cache(folder, {"of": "labels"}, LABELS, 3)
    features = open_cache(folder / "features", {"of": "features"}, FEATURES, 3)
    cache = join_caches(labels, features)
    assert isinstance(cache, JointCache)
    return cache


def test_features_are_stored_in_two_bytes_each_and_a_checksum() -> None:
    (features,) = make_targets().features
    records = FEATURES.encode(features)
    assert records.nbytes == len(features) * 2 * (1 + 6)
    assert FEATURES.is_valid(records).all()
    assert torch.equal(FEATURES.decode(records), features.half().float())
    zeros = torch.zeros(1, 6)
    assert FEATURES.is_valid(FEATURES.encode(zeros)).all()
    assert not FEATURES.is_valid(np.zeros((1, 7), np.uint16)).any()


def test_a_flipped_bit_and_numbers_that_are_not_finite_are_no_features() -> None:
    records = FEATURES.encode(make_targets().features[0])
    for number in range(7):
        for bit in range(16):
            damaged = records.copy()
            damaged[:, number] ^= np.uint16(1 << bit)
            assert not FEATURES.is_valid(damaged).any()
    for value in (np.inf, np.nan, 7e4):
        features = make_targets().features[0]
        features[1, 2] = value
        with pytest.raises(TeacherError, match="not finite, or larger"):
            FEATURES.encode(features)
    crafted = np.full((1, 6), 0x7C00, np.uint16)
    checksum = FEATURES.encode(torch.zeros(1, 6))[:, :1]
    for number in range(65536):
        checksum[:] = number
        assert not FEATURES.is_valid(np.concatenate([checksum, crafted], axis=1)).any()
        if number > 300:
            break


def test_labels_and_features_are_read_as_they_were_written(tmp_path: Path) -> None:
    cache, targets = open_both(tmp_path / "w"), make_targets()
    records = BOTH.encode(targets)
    assert records.shape == (2, BOTH.width)
    cache.write(KEYS, records)
    read, valid = open_both(tmp_path / "w").read(KEYS)
    assert valid.all()
    assert np.array_equal(read, records)
    decoded = BOTH.decode(read)
    assert torch.equal(decoded.labels, LABELS.decode(LABELS.encode(targets.labels)))
    assert torch.equal(decoded.features[0], targets.features[0].half().float())
    assert cache.record_bytes == 2 * BOTH.width
    assert cache.cached_indices(0).tolist() == [1]
    assert cache.missing_indices(1).tolist() == [0, 1]
    assert cache.count_missing(2) == 4


def test_labels_that_are_there_stay_when_features_are_computed(tmp_path: Path) -> None:
    cache, targets = open_both(tmp_path / "w"), make_targets()
    cache.labels.write(KEYS, LABELS.encode(targets.labels))
    assert not cache.has_target(*KEYS[0])
    records, valid = cache.read(KEYS)
    assert not valid.any()
    completed = BOTH.complete(records, BOTH.encode(make_targets(seed=1)))
    decoded, other = BOTH.decode(completed), make_targets(seed=1)
    assert torch.equal(decoded.labels, LABELS.decode(LABELS.encode(targets.labels)))
    assert torch.equal(decoded.features[0], other.features[0].half().float())
    cache.write(KEYS, completed)
    assert cache.has_target(*KEYS[0])
    cache.mark_damaged([(0, 0), KEYS[0]])
    assert cache.damaged_indices(1) == {0}
    assert cache.missing_indices(0).tolist() == [2]


def test_one_kind_alone_has_a_cache_of_its_own(tmp_path: Path) -> None:
    features = open_cache(tmp_path / "w", {"of": "features"}, FEATURES, 3)
    assert join_caches(None, features) is features
    assert join_caches(None, None) is None
    codec = JointCodec(None, FEATURES)
    assert codec.decode(codec.encode(make_targets())).labels is None
