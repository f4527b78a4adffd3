"""Every model of the catalog, and a teacher, is one graph of torch.compile, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch

from deitctl.models.catalog import ARCHITECTURES, Architecture
from deitctl.models.features import forward_heads_and_features
from deitctl.models.fuse import fuse_conv_bn
from deitctl.models.heads import forward_heads
from deitctl.models.vit import VisionTransformer

BATCH = 4
FAMILIES = ("deit_tiny", "deit_tiny_distilled", "deit3_small")
SIZES = {"embed_dim": 48, "num_heads": 2, "depth": 2, "patch_size": 4, "img_size": 8}
"""Numbers that tensors have, and code does not branch on."""
NAMES = dict.fromkeys(("alias", "name", "tag", "url"), "") | {"crop_pct": 1.0, "top1": 0.0}


def list_structures() -> list[Architecture]:
    """Return an architecture of each structure in the catalog: those of one differ in sizes and weights alone."""
    own = {replace(arch, **SIZES, **NAMES): arch for arch in reversed(ARCHITECTURES)}
    return [*own.values()]


@pytest.fixture(autouse=True)
def fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def build(arch: Architecture) -> VisionTransformer:
    """Return a narrow network of an architecture with two blocks and 2 x 2 patches, in training mode."""
    size = 2 * arch.patch_size
    arch = replace(arch, img_size=size, depth=2, embed_dim=4 * arch.num_heads)
    return VisionTransformer(arch, num_classes=3, img_size=size, drop_path_rate=0.1).train()


def find(alias: str) -> Architecture:
    return next(arch for arch in ARCHITECTURES if arch.alias == alias)


def make_inputs(model: VisionTransformer, patches: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and a mask that drops a branch of one image."""
    torch.manual_seed(0)
    side = patches * model.arch.patch_size
    mask = torch.ones(2, 2, BATCH)
    mask[1, 0, 1] = 0
    return torch.randn(BATCH, 3, side, side), mask


def add_up(outputs) -> torch.Tensor:
    """Return one number of all outputs, which a backward pass can begin with."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float().square().sum()
    return sum(add_up(part) for part in outputs if part is not None)


def run(function, model: torch.nn.Module, *inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the sum of a function's outputs and the gradients of a model."""
    model.zero_grad(set_to_none=True)
    total = add_up(function(*inputs))
    total.backward()
    return total.detach(), [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(function, model, *inputs, backend: str = "eager", **tolerance) -> None:
    """Compare a function with its one graph: `fullgraph` raises where there would be two."""
    compiled = torch.compile(function, fullgraph=True, dynamic=False, backend=backend)
    total, grads = run(compiled, model, *inputs)
    expected, expected_grads = run(function, model, *inputs)
    tolerance = tolerance or {
        "rtol": 1e-3,
        "atol": 1e-4,
    }  # dropped images are added in another order
    torch.testing.assert_close(total, expected, **tolerance)
    torch.testing.assert_close(grads, expected_grads, **tolerance)


def test_the_catalog_has_few_structures():
    assert {arch.alias for arch in list_structures()} >= {"deit_tiny", "deit_tiny_distilled"}
    assert len(list_structures()) < 8 < len(ARCHITECTURES)


@pytest.mark.parametrize("arch", list_structures(), ids=lambda arch: arch.alias)
def test_every_structure_of_the_catalog_is_one_graph(arch):
    model = build(arch)
    assert_same(lambda x, mask: forward_heads(model, x, mask), model, *make_inputs(model))


@pytest.mark.parametrize("alias", FAMILIES)
@pytest.mark.parametrize("pool", ["cls", "avg"])
def test_heads_and_features_are_one_graph(alias, pool):
    model = build(find(alias))
    assert_same(
        lambda x, mask: forward_heads_and_features(model, x, mask, pool=pool),
        model,
        *make_inputs(model),
    )


def test_images_of_another_size_with_recomputed_blocks_are_one_graph():
    model = build(find("deit3_small"))
    model.set_grad_checkpointing()
    inputs = make_inputs(model, patches=3)
    assert_same(lambda x, mask: forward_heads(model, x, mask), model, *inputs, backend="aot_eager")


def test_attention_of_bf16_on_a_cpu_is_in_the_graph_with_its_own_backward_pass():
    model = build(find("deit_tiny_distilled"))

    def forward(x, mask):
        with torch.autocast("cpu", torch.bfloat16):
            return forward_heads(model, x, mask)

    # Both round to bf16 at other places: eight bits of a number.
    assert_same(forward, model, *make_inputs(model), backend="aot_eager", rtol=2**-6, atol=2**-8)


def test_a_convnet_teacher_of_fused_norms_is_one_graph():
    torch.manual_seed(0)
    teacher = timm.create_model("regnety_002", num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    assert fuse_conv_bn(teacher, images) > 0
    compiled = torch.compile(
        lambda x: forward_heads(teacher, x).cls, fullgraph=True, dynamic=False, backend="eager"
    )
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), forward_heads(teacher, images).cls)
