"""What `--vary` takes: values, tuples in brackets, ranges; and what it refuses."""

from __future__ import annotations

import pytest

from deitctl.errors import ConfigError
from deitctl.sweeps.variation import Range, Variation, parse_variations


@pytest.mark.parametrize(
    ("text", "variation"),
    [
        ("optim.lr=1e-4, 3e-4", Variation("recipe.optim.lr", (1e-4, 3e-4))),
        ("lr=1e-4", Variation("recipe.optim.lr", (1e-4,))),
        ("epochs=3,3,5", Variation("recipe.epochs", (3, 5))),
        ("distill.mode=none,hard", Variation("distill.mode", ("none", "hard"))),
        ("model=deit_tiny,deit_small", Variation("model", ("deit_tiny", "deit_small"))),
        ("student=deit_tiny", Variation("model", ("deit_tiny",))),
        ("recipe=digits,finetune", Variation("recipe", ("digits", "finetune"))),
        ("pretrained=true,no", Variation("recipe.pretrained", (True, False))),
        (
            "augment.crop_scale=(0.5,1),(1,1)",
            Variation("recipe.augment.crop_scale", ((0.5, 1.0), (1.0, 1.0))),
        ),
        (
            "optim.lr=1e-5..1e-3:log",
            Variation("recipe.optim.lr", range=Range(1e-5, 1e-3, True, False)),
        ),
        ("smoothing=0.0..0.2", Variation("recipe.smoothing", range=Range(0.0, 0.2, False, False))),
        ("epochs=2..9", Variation("recipe.epochs", range=Range(2, 9, False, True))),
    ],
)
def test_values_and_ranges_have_the_type_of_their_setting(text: str, variation: Variation) -> None:
    assert parse_variations([text]) == [variation]


def test_values_of_python_need_no_text() -> None:
    by_name = parse_variations({"optim.lr": [1e-4, 3e-4], "epochs": "2..9"})
    assert by_name == parse_variations(["optim.lr=1e-4,3e-4", "epochs=2..9"])


def test_the_last_of_two_of_a_name_counts() -> None:
    assert [v.values for v in parse_variations(["epochs=1", "recipe.epochs=2"])] == [(2,)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("optim.lr", "is not key=values"),
        ("optim.lr=", "is not key=values"),
        ("optim.lrr=1", "Did you mean 'optim.lr'"),
        ("optim.lr=fast", "optim.lr = 'fast' does not fit"),
        ("optim.lr=-1,1", "out of range"),
        ("optim.lr=0..1:log", "out of range"),
        ("smoothing=0..0.1:log", "has no logarithm at 0"),
        ("epochs=9..2", "is empty. The smaller number comes first"),
        ("distill.mode=harder", "expected one of none, hard, soft, features"),
        ("seed=1,2", "Use --seeds N"),
        ("data=a,b", "A sweep has one data set"),
        ("workers=1,2", "does not change what a run learns"),
    ],
)
def test_what_cannot_be_varied_is_one_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_variations([text])


def test_a_range_is_even_in_its_scale_and_keeps_its_ends() -> None:
    log = Range(1e-5, 1e-3, True, False)
    assert [log.at(0), log.at(0.5), log.at(1)] == [1e-5, 1e-4, 1e-3]
    whole = Range(2, 9, False, True)
    assert {type(whole.at(n / 10)) for n in range(11)} == {int}
    assert log.at(1 / 3) == float(f"{log.at(1 / 3):.4g}")
