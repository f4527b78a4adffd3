"""What optimizers other than AdamW are given in place of a recipe's rates, and constants of schedules."""

from __future__ import annotations

from typing import NamedTuple


class OptimizerDefaults(NamedTuple):
    """What an optimizer is given in place of a recipe's values, which are AdamW's."""

    lr_factor: float
    """Of the recipe's learning rate."""
    decay_factor: float
    """Of the recipe's weight decay."""
    source: str


SAME_AS_ADAMW = OptimizerDefaults(1, 1, "")
LAMB_DEFAULTS = OptimizerDefaults(
    1.5, 1, "DeiT III has 3e-3 for 2,048 images where DeiT's AdamW has 2e-3"
)
LION_DEFAULTS = OptimizerDefaults(
    0.2, 5, "its paper, arXiv 2302.06675: a rate 3 to 10 times smaller, a decay as much larger"
)
SGD_DEFAULTS = OptimizerDefaults(
    50, 0.002, "decay 1e-4 as in arXiv 1706.02677; it is multiplied by the rate"
)
OPTIMIZER_DEFAULTS = {
    # Updates of the size of Adam's, and a decay apart from the gradient as AdamW's.
    **dict.fromkeys(("adamw", "adamwlegacy", "adamc", "cadamw", "cadamc"), SAME_AS_ADAMW),
    **dict.fromkeys(("nadamw", "nadamc", "cnadamw", "cnadamc", "radamw"), SAME_AS_ADAMW),
    **dict.fromkeys(("adoptw", "adoptc", "cadoptw", "cadoptc", "adamp", "cadamp"), SAME_AS_ADAMW),
    # timm's scales their updates to AdamW's ("match_rms_adamw"; Moonlight, arXiv 2502.16982 §2.2).
    **dict.fromkeys(("muon", "nmuon", "adamuon", "nadamuon"), SAME_AS_ADAMW),
    **dict.fromkeys(
        ("lamb", "lambw", "lambc", "lambcw", "lambcd", "clamb", "clambw"), LAMB_DEFAULTS
    ),
    **dict.fromkeys(("lion", "lionc", "clion", "clionc"), LION_DEFAULTS),
    **dict.fromkeys(("sgd", "momentum", "nesterov"), SGD_DEFAULTS),
}
"""By timm's name of the optimizer. Others are given a rate by the user."""

ONECYCLE_START, ONECYCLE_END = 25.0, 1e4
"""torch's `div_factor` and `final_div_factor`: the peak over the first rate, and the first over the last."""
RESTART_LR = 1.0
"""Peak of the learning rate after `--more-epochs`, relative to the recipe's (SGDR, arXiv 1608.03983, section 3)."""
