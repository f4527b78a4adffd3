"""What of a model is trained in an epoch, and which of its modules are in train mode."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from deitctl.config import Recipe
from deitctl.errors import ConfigError
from deitctl.models.introspect import describe_layers, freeze_backbone, get_layer_ids
from deitctl.training.optim import add_trained
from deitctl.training.optimizer_state import count_state_bytes
from deitctl.training.state import TrainState


def check_freezing(recipe: Recipe) -> None:
    """Refuse settings that freeze nothing, all, or twice; raise `ConfigError`."""
    part, num_blocks, epoch = recipe.freeze, recipe.freeze_blocks, recipe.thaw_epoch
    if part != "none" and num_blocks:
        raise ConfigError(
            f"freeze={part} freezes all blocks: freeze_blocks = {num_blocks} does not go with it.",
            "Leave one of them out.",
        )
    if epoch and part == "none" and not num_blocks:
        raise ConfigError(
            f"thaw_epoch = {epoch} thaws nothing.", "Freeze blocks with it: --freeze-blocks 6"
        )
    if epoch == 1 or epoch > recipe.epochs:
        raise ConfigError(
            f"thaw_epoch = {epoch} does not fit {recipe.epochs} epochs.",
            "It is the first epoch, counted from 1, in which all is trained: 2 or more.",
        )


def freeze(model: nn.Module, recipe: Recipe) -> tuple[str, ...]:
    """Freeze what the recipe does not train in its first epoch; return the names of its parameters.

    Raises:
        ConfigError: `freeze_blocks` leaves no block to train, or nobody knows the model's blocks.
    """
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    part, num_blocks = recipe.frozen_part(0)
    if part == "backbone":
        freeze_backbone(model)
    elif num_blocks:
        freeze_blocks(model, num_blocks)
    parameters = dict(model.named_parameters())
    return tuple(name for name in trained if not parameters[name].requires_grad)


def freeze_blocks(model: nn.Module, num_blocks: int) -> None:
    """Freeze the embeddings and the first blocks: of a DeiT its blocks, of others the layers by which
    timm groups their parameters."""
    layers = get_layer_ids(model)
    last = max(layers.values())  # norm and heads
    if num_blocks >= last:
        raise ConfigError(
            f"freeze_blocks = {num_blocks} is too many: the model has {last - 1} blocks.",
            "To train the classifier alone: --set freeze=backbone",
        )
    for name, parameter in model.named_parameters():
        if layers[name] <= num_blocks:
            parameter.requires_grad_(False)


def count_trained(state: TrainState, recipe: Recipe) -> tuple[int, int]:
    """Return the bytes of all parameters that the run trains, sooner or later, and of the optimizer's state."""
    parameters = dict(state.named_parameters())
    later = [parameters[name] for name in state.frozen] if recipe.thaw_epoch else []
    trained = [*(p for p in parameters.values() if p.requires_grad), *later]
    weights = sum(p.numel() * p.element_size() for p in trained)
    return weights, count_state_bytes(state, state.optimizer, later)


def begin_epoch(state: TrainState, recipe: Recipe, epoch: int) -> bool:
    """Thaw what is trained from an epoch on, counted from 0, and put what is trained into train mode.

    Returns:
        Whether anything was thawed.
    """
    was_frozen = bool(state.frozen)
    thaw_if_due(state, recipe, epoch)
    set_train_mode(state.model, recipe.frozen_part(epoch)[0], recipe.freeze_bn_stats)
    return was_frozen and not state.frozen


def thaw_if_due(state: TrainState, recipe: Recipe, epoch: int) -> None:
    """Let the optimizer have what was frozen, from `thaw_epoch` on: without a state, as at its first step."""
    if not state.frozen or recipe.frozen_part(epoch) == recipe.frozen_part(0):
        return
    parameters = dict(state.model.named_parameters())
    for name in state.frozen:
        parameters[name].requires_grad_(True)
    state.frozen = ()
    add_trained(state.optimizer, state.model, recipe.optim, get_layers(state.model, recipe))


def get_layers(model: nn.Module, recipe: Recipe) -> Mapping[str, int] | None:
    """Return the layers that the learning rate falls over; None if it does not."""
    return get_layer_ids(model) if recipe.optim.layer_decay != 1 else None


def set_train_mode(model: nn.Module, freeze: str, freeze_bn_stats: bool = False) -> None:
    """Put what is trained into train mode; the rest keeps its statistics and drops nothing."""
    model.train(freeze == "none")
    if freeze == "backbone":
        for name in describe_layers(model)["classifier"]:
            model.get_submodule(name).train()
    else:
        for module in model.modules():
            parameters = list(module.parameters())
            if parameters and not any(p.requires_grad for p in parameters):
                module.eval()
    if freeze_bn_stats:
        for module in model.modules():
            if is_batch_norm(module):
                module.eval()


def is_batch_norm(module: nn.Module) -> bool:
    """Return whether a module keeps running statistics of its batches."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
