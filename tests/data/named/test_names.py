"""Names of data sets: spellings, near misses, and parts that add up to what was published."""

import pytest

from deitctl.data.named.names import NAMED, find_named, is_named, list_names, spell, suggest_names


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("cifar10", "cifar10"),
        ("CIFAR-10", "cifar10"),
        ("fashion_mnist", "fashion-mnist"),
        ("FashionMNIST", "fashion-mnist"),
        ("oxford-iiit-pet", "oxford-pets"),
        ("torchvision:DTD", "dtd"),
        ("torchvision:ImageNet", "imagenet-1k"),
        ("Flowers102-trainval", "flowers102-trainval"),
        ("torchvision:USPS", "torchvision:USPS"),
    ],
)
def test_a_name_is_spelled_in_one_way(ref: str, name: str) -> None:
    assert is_named(ref)
    assert spell(ref) == name


@pytest.mark.parametrize("ref", ["photos", "imagenet", "flowers", "cifar10-trainval", "./cifar10"])
def test_what_may_be_a_folder_is_no_name(ref: str) -> None:
    assert not is_named(ref)


def test_a_folder_goes_before_the_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    assert not is_named("mnist")
    assert is_named("MNIST-")
    assert find_named("mnist") is not None


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("pets", "Did you mean 'oxford-pets'?"),
        ("cifra10", "Did you mean 'cifar10' or 'cifar100'?"),
        ("imagenet", "Did you mean 'imagenet-1k'"),
        ("my-photos", ""),
    ],
)
def test_near_misses_are_suggested(ref: str, hint: str) -> None:
    assert suggest_names(ref).startswith(hint)
    assert bool(suggest_names(ref)) == bool(hint)


def test_no_two_data_sets_share_a_spelling() -> None:
    spellings = [name for data in NAMED for name in (data.name, *data.aliases)]
    assert len({name.replace("-", "") for name in spellings}) == len(spellings)
    assert all(spell(name) == name for name in list_names())


def test_parts_are_called_as_everywhere() -> None:
    for data in NAMED:
        assert set(data.splits) in (
            {""},
            {"train", "val"},
            {"train", "test"},
            {"train", "val", "test"},
        )
        assert all(split.count >= data.num_classes for split in data.splits.values())
