"""The DeiT is timm's to rounding, and its stochastic depth is the paper's."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed

from deitctl.models import vit
from deitctl.models.attention import cpu_attention
from deitctl.models.catalog import ARCHITECTURES, find
from deitctl.models.vit import VisionTransformer, resize_pos_embed

CASES = [
    ("deit_tiny", 64),
    ("deit_tiny", 224),
    ("deit_tiny_distilled", 64),
    ("deit_tiny_distilled", 96),
    ("deit3_small", 64),
    ("deit3_small", 32),
]
# the same operations in the same order, up to the fused kernels' choice of blocks
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def build_timm_model(model: VisionTransformer) -> torch.nn.Module:
    """timm's model with the same weights."""
    timm_model = timm.create_model(
        model.arch.name, num_classes=model.num_classes, img_size=model.img_size
    )
    timm_model.load_state_dict(model.state_dict(), strict=True)
    return timm_model.eval()


@pytest.mark.parametrize(("alias", "img_size"), CASES)
def test_logits_equal_timms(alias, img_size, deit, noise):
    model = deit(alias, img_size=img_size, classes=7)
    images = noise(2, 3, img_size, img_size)
    with torch.no_grad():
        cls, dist = model(images)
        expected = build_timm_model(model)(images)
    ours = cls if dist is None else (cls + dist) / 2  # timm averages the logits in eval mode
    torch.testing.assert_close(ours, expected, **ROUNDING)
    assert ours.std() > 0.05  # the comparison is of something


def test_both_heads_equal_timms_in_distilled_training(deit, noise):
    model = deit("deit_tiny_distilled", img_size=64, classes=7)
    timm_model = build_timm_model(model)
    timm_model.set_distilled_training(True)
    timm_model.train()
    images = noise(2, 3, 64, 64)
    with torch.no_grad():
        cls, dist = model(images)
        expected_cls, expected_dist = timm_model(images)
    torch.testing.assert_close(cls, expected_cls, **ROUNDING)
    torch.testing.assert_close(dist, expected_dist, **ROUNDING)


def test_gradients_equal_timms(deit, noise):
    model = deit("deit3_small", img_size=32, classes=3)
    timm_model = build_timm_model(model)
    images = noise(2, 3, 32, 32)
    model(images).cls.square().sum().backward()
    timm_model(images).square().sum().backward()
    theirs = dict(timm_model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(
            parameter.grad, theirs[name].grad, rtol=1e-3, atol=1e-4, msg=name
        )


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=lambda a: a.alias)
def test_state_dict_has_timms_names_and_shapes(arch):
    with torch.device("meta"):
        ours = VisionTransformer(arch, num_classes=1000, img_size=arch.img_size).state_dict()
        theirs = timm.create_model(arch.name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_output_has_the_same_structure_in_training_and_evaluation(deit, noise):
    model = deit("deit_tiny_distilled")
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        trained, evaluated = model.train()(images), model.eval()(images)
    torch.testing.assert_close(trained.cls, evaluated.cls)
    torch.testing.assert_close(trained.dist, evaluated.dist)


def test_initialization_is_that_of_the_paper():
    torch.manual_seed(0)
    arch = find("deit_tiny_distilled")
    model = VisionTransformer(arch, num_classes=10, img_size=224)
    for weight in (
        model.blocks[0].attn.qkv.weight,
        model.pos_embed,
        model.cls_token,
        model.dist_token,
    ):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.2)
        assert abs(float(weight.detach().mean())) < 0.005
    assert not model.blocks[3].mlp.fc1.bias.any()
    assert not model.head_dist.bias.any()


def test_dropping_every_branch_returns_the_embedded_tokens(deit, noise):
    model = deit().train()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        cls, _ = model(images, torch.zeros(12, 2, 2))
        expected = model.head(model.norm(model.embed(images)[:, 0]))
    torch.testing.assert_close(cls, expected)


def test_drop_path_mask_of_ones_changes_nothing(deit, noise):
    model = deit().train()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images, torch.ones(12, 2, 2)).cls, model(images).cls)


@pytest.mark.parametrize("dropped", [0, 1, 3, 4])
def test_a_dropped_branch_is_not_computed_and_gradients_are_equal(
    deit, noise, dropped, monkeypatch
):
    """Of no, some and all of four images: the answers and the gradients are those of multiplying by zero."""
    images, drop_path_mask, computed = noise(4, 3, 32, 32), torch.full((12, 2, 4), 1.25), []
    drop_path_mask[3, 1, :dropped] = 0
    results = {}
    for path, fraction in (("gathered", 1 / 8), ("multiplied", 2.0)):
        monkeypatch.setattr(vit, "MIN_DROP_FRACTION", fraction)
        model = deit("deit_tiny_distilled").train()
        model.blocks[3].mlp.fc1.register_forward_hook(lambda _, x, y: computed.append(len(y)))
        answer = model(images, drop_path_mask)
        (answer.cls.square().sum() + answer.dist.sum()).backward()
        results[path] = [answer.cls, answer.dist, *(p.grad for p in model.parameters())]
    assert computed == [4 - dropped if dropped < 4 else 4, 4]
    for a, b in zip(*results.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_drop_path_mask_is_per_image(deit, noise):
    model = deit().train()
    images = noise(2, 3, 32, 32)
    drop_path_mask = torch.ones(12, 2, 2)
    drop_path_mask[5, 0, 1] = 0
    with torch.no_grad():
        dropped, full = model(images, drop_path_mask).cls, model(images).cls
    torch.testing.assert_close(dropped[0], full[0])
    assert not torch.allclose(dropped[1], full[1])


def test_stochastic_depth_grows_linearly_and_keeps_the_expectation(deit):
    model = deit(drop_path_rate=0.5)
    drop_path_mask = model.sample_drop_path(20_000, torch.Generator().manual_seed(0))
    assert drop_path_mask.shape == (12, 2, 20_000)
    dropped = (drop_path_mask == 0).float().mean(dim=(1, 2))
    expected = torch.tensor([0.5 * i / 11 for i in range(12)])
    # 5 deviations of 40,000 draws: 0.0125
    torch.testing.assert_close(dropped, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(drop_path_mask.mean(dim=(1, 2)), torch.ones(12), atol=0.03, rtol=0)
    assert drop_path_mask[11].max() == 2.0  # 1 / survival


def test_sample_drop_path_without_stochastic_depth_is_none(deit):
    assert deit().sample_drop_path(4, torch.Generator()) is None


def test_mlps_of_large_models_are_four_times_as_wide():
    with torch.device("meta"):
        model = VisionTransformer(find("deit3_huge"), num_classes=2, img_size=224)
    assert model.blocks[0].mlp.fc1.weight.shape == (5120, 1280)
    assert len(model.blocks) == 32


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled", "deit3_small"])
def test_the_last_block_skips_only_tokens_that_no_head_reads(alias, deit, noise):
    """Answers and gradients are those of blocks that compute every token, stochastic depth included."""
    model = deit(alias, img_size=32, classes=3).train()
    images = noise(4, 3, 32, 32)
    model.drop_path_rate = 0.5
    drop_path_mask = model.sample_drop_path(4, torch.Generator().manual_seed(1))
    read = []
    model.blocks[-1].register_forward_hook(lambda *args: read.append(args[-1].shape[1]))

    def forward_all_tokens():
        x = model.embed(images)
        for block, mask in zip(model.blocks, drop_path_mask, strict=True):
            x = block(x, mask)
        return model.forward_head(x[:, : model.num_prefix_tokens])

    answers, gradients = [], []
    for answer in (lambda: model(images, drop_path_mask), forward_all_tokens):
        model.zero_grad()
        heads = [logits for logits in answer() if logits is not None]
        sum(logits.square().sum() for logits in heads).backward()
        answers.append(heads)
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert read[0] == model.num_prefix_tokens < read[1]
    torch.testing.assert_close(answers[0], answers[1], **ROUNDING)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["deit_tiny_distilled", "deit3_small"])
def test_smaller_images_use_resized_positions_and_train_all_of_them(deit, noise, name):
    """What a model built for the small size gives, whose position embeddings were resized beforehand."""
    model, images = deit(name, img_size=64), noise(2, 3, 32, 32)
    small, state = deit(name, img_size=32), model.state_dict()
    prefix = 0 if name == "deit3_small" else 2
    state["pos_embed"] = resize_pos_embed(state["pos_embed"], 2, num_prefix_tokens=prefix)
    small.load_state_dict(state)
    torch.testing.assert_close(model(images).cls, small(images).cls)
    model(images).cls.sum().backward()
    assert model.pos_embed.grad.abs().sum(-1).all()


@pytest.mark.parametrize(
    ("training", "bf16", "own"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_cpu_attention_is_used_for_training_in_bf16_alone(
    training, bf16, own, deit, noise, monkeypatch
):
    called = []
    monkeypatch.setattr(vit, "cpu_attention", lambda *qkv: called.append(1) or cpu_attention(*qkv))
    model, images = deit("deit_tiny_distilled").train(training), noise(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        answer = model(images)
    assert bool(called) is own
    torch.testing.assert_close(answer.cls.float(), model.eval()(images).cls, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("old", "new"), [(14, 24), (14, 7), (14, 4), (4, 14), (7, 8)])
def test_resized_positions_equal_timms(prefix, old, new, noise):
    pos_embed = noise(1, prefix + old * old, 16)
    expected = resample_abs_pos_embed(pos_embed, [new, new], [old, old], num_prefix_tokens=prefix)
    torch.testing.assert_close(resize_pos_embed(pos_embed, new, num_prefix_tokens=prefix), expected)


def _cubic(distance, a):
    """Return the weight of a pixel under the cubic kernel with coefficient `a` (Keys 1981, Eq. 4)."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def test_enlarged_positions_take_another_cubic_than_the_released_code():
    """With antialiasing torch's cubic has the coefficient -0.5, without it -0.75, when it enlarges too."""
    old, new, column = 14, 24, 7
    square = torch.zeros(1, 1, old, old)
    square[..., column] = 1  # so that the result is the kernel along a row
    pos_embed = square.reshape(1, 1, -1).transpose(1, 2)
    ours = resize_pos_embed(pos_embed, new, num_prefix_tokens=0).reshape(new, new)[0]
    released = F.interpolate(square, (new, new), mode="bicubic", align_corners=False)[0, 0, 0]
    for index in range(new):
        distance = (index + 0.5) * old / new - 0.5 - column
        assert ours[index].item() == pytest.approx(_cubic(distance, -0.5), abs=1e-6)
        assert released[index].item() == pytest.approx(_cubic(distance, -0.75), abs=1e-6)


@pytest.mark.parametrize(
    ("old", "new"), [((14, 14), (24, 24)), ((14, 14), (7, 7)), ((4, 9), (6, 5)), ((2, 2), (2, 7))]
)
def test_two_products_resize_as_the_operator_does_forward_and_backward(old, new, noise):
    plane = noise(1, 16, *old)
    planes = [plane.clone().requires_grad_() for _ in range(2)]
    outputs = vit.interpolate(planes[0], new), vit.multiply(planes[1], new)
    torch.testing.assert_close(outputs[1], outputs[0])
    gradient = noise(1, 16, *new)
    for output in outputs:
        output.backward(gradient)
    torch.testing.assert_close(planes[1].grad, planes[0].grad)
    assert planes[0].grad.std() > 0.05


def test_two_products_are_of_fp32_within_autocast(noise):
    plane = noise(1, 8, 14, 14)
    with torch.autocast("cpu", torch.bfloat16):
        resized = vit.multiply(plane, (7, 7))
    assert torch.equal(resized, vit.multiply(plane, (7, 7)))


def test_positions_for_the_same_grid_are_returned_unchanged(noise):
    pos_embed = noise(1, 17, 8)
    assert resize_pos_embed(pos_embed, 4, num_prefix_tokens=1) is pos_embed


def test_positions_of_prefix_tokens_are_not_resized(noise):
    pos_embed = noise(1, 2 + 16, 8)
    assert torch.equal(resize_pos_embed(pos_embed, 7, num_prefix_tokens=2)[:, :2], pos_embed[:, :2])


def test_constant_positions_stay_constant():
    pos_embed = torch.full((1, 1 + 49, 4), 0.25)
    torch.testing.assert_close(
        resize_pos_embed(pos_embed, 12, num_prefix_tokens=1), torch.full((1, 145, 4), 0.25)
    )


def test_resized_positions_keep_half_precision(noise):
    resized = resize_pos_embed(noise(1, 16, 8).half(), 6, num_prefix_tokens=0)
    assert resized.dtype is torch.float16
    assert resized.shape == (1, 36, 8)


def test_constant_stochastic_depth_drops_in_every_block_alike(deit):
    """deit/models_v2.py: `dpr = [drop_path_rate for i in range(depth)]`."""
    model = deit(drop_path_rate=0.25)
    model.dpr_constant = True
    mask = model.sample_drop_path(4_000, torch.Generator().manual_seed(0))
    survived = (mask > 0).float().mean(dim=(1, 2))
    assert torch.allclose(survived, torch.full((12,), 0.75), atol=0.02)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.75])


def test_layer_scale_begins_at_the_released_codes_value(tiny_arch):
    model = VisionTransformer(tiny_arch("deit3_small"), num_classes=2, img_size=32)
    assert torch.equal(model.blocks[0].ls1.gamma, torch.full((384,), 1e-4))
