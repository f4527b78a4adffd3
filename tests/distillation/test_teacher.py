"""A teacher only answers: frozen, in its own normalization and size, in the data's classes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deitctl.data.batch_transforms import normalize
from deitctl.distillation.teacher import Teacher
from deitctl.models.model_config import ModelConfig, Preprocessing

OWN = Preprocessing(img_size=4, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
SEEN = Preprocessing(img_size=4)


class Echo(nn.Module):
    """Answers with the mean of each channel and remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.norm = nn.BatchNorm2d(3, affine=False, momentum=1.0)
        self.seen: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.norm(images).mean(dim=(2, 3)) * self.scale


def echo(rows=(0, 1, 2), own=OWN, head="cls") -> Teacher:
    model_config = ModelConfig(architecture="x", num_classes=3, preprocessing=own, head=head)
    return Teacher(Echo(), model_config, tuple(rows), SEEN)


def test_images_arrive_in_the_teachers_normalization():
    """White is (1 - 0.5) / 0.5 = 1 for the teacher, black -1, whatever they were for the student."""
    for value, expected in ((255, 1.0), (0, -1.0)):
        teacher = echo()
        teacher(normalize(torch.full((1, 3, 4, 4), value, dtype=torch.uint8), SEEN))
        torch.testing.assert_close(
            teacher.model.seen, torch.full((1, 3, 4, 4), expected), rtol=1e-5, atol=1e-5
        )


def test_same_normalization_and_size_pass_through(noise):
    teacher, images = echo(own=SEEN), noise(1, 3, 4, 4)
    teacher(images)
    assert teacher.model.seen is images


def test_images_arrive_in_the_teachers_size(noise):
    teacher = echo(own=Preprocessing(img_size=10))
    images = noise(2, 3, 4, 4)
    teacher(images)
    assert teacher.model.seen.shape == (2, 3, 10, 10)
    flat = torch.full((1, 3, 4, 4), 0.7)
    teacher(flat)
    torch.testing.assert_close(teacher.model.seen, torch.full((1, 3, 10, 10), 0.7))


@pytest.mark.parametrize("rows", [(0, 1, 2), (2, 0)])
def test_looking_at_pixels_equals_seeing_them_normalized(rows, noise):
    pixels = (noise(2, 3, 4, 4) * 60 + 128).clamp(0, 255).to(torch.uint8)
    teacher = echo(rows=rows)
    torch.testing.assert_close(teacher.look(pixels), teacher(normalize(pixels, SEEN)))
    teacher.look(pixels)
    assert torch.equal(teacher.model.seen, normalize(pixels, OWN))


def test_looking_resizes_nothing():
    """A view comes in the teacher's own size, drawn at it from the image."""
    teacher = echo(own=Preprocessing(img_size=10, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)))
    pixels = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    teacher.look(pixels)
    torch.testing.assert_close(teacher.model.seen, torch.ones(1, 3, 10, 10))


def test_rows_choose_and_order_the_answers(noise):
    images = noise(2, 3, 4, 4)
    whole = echo()(images)
    assert torch.equal(echo(rows=(2, 0))(images), whole[:, [2, 0]])
    assert torch.equal(echo(rows=(1, 2, 0))(images), whole[:, [1, 2, 0]])
    assert echo().rows is None


def test_no_gradient_reaches_the_teacher_or_passes_through_it(noise):
    images = noise(1, 3, 4, 4).requires_grad_()
    teacher = echo()
    assert not teacher(images).requires_grad
    assert not teacher.look(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).requires_grad
    assert all(not p.requires_grad for p in teacher.parameters())


def test_teacher_stays_in_eval_mode_inside_a_training_module(noise):
    teacher = echo()
    whole = nn.ModuleDict({"teacher": teacher, "student": nn.Linear(2, 2)}).train()
    assert whole["student"].training
    assert not any(m.training for m in teacher.modules())
    before = teacher.model.norm.running_mean.clone()
    teacher.train()(noise(4, 3, 4, 4) + 5)
    assert torch.equal(teacher.model.norm.running_mean, before)


@pytest.mark.parametrize(
    ("head", "how"), [("auto", "avg"), ("avg-logits", "avg"), ("dist", "dist"), ("cls", "cls")]
)
def test_a_teacher_with_two_heads_uses_its_configs_head_rule(head, how, deit, noise):
    model = deit("deit_tiny_distilled")
    pre = Preprocessing(img_size=32)
    model_config = ModelConfig(
        architecture="deit_tiny_distilled_patch16_224", num_classes=5, preprocessing=pre, head=head
    )
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        cls, dist = model(images)
    expected = {"avg": (cls + dist) / 2, "dist": dist, "cls": cls}[how]
    teacher = Teacher(model, model_config, tuple(range(5)), pre)
    assert torch.equal(teacher(images), expected)
    pixels = (noise(2, 3, 32, 32, seed=1) * 60 + 128).clamp(0, 255).to(torch.uint8)
    torch.testing.assert_close(teacher.look(pixels), teacher(normalize(pixels, pre)))


def test_a_teacher_with_one_head_ignores_its_configs_head_rule(deit, noise):
    pre = Preprocessing(img_size=32)
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224", num_classes=5, preprocessing=pre, head="auto"
    )
    assert Teacher(deit(), model_config, tuple(range(5)), pre)(noise(1, 3, 32, 32)).shape == (1, 5)


def test_rows_travel_with_the_module_but_not_with_its_weights():
    teacher = echo(rows=(2, 0))
    assert "rows" in dict(teacher.named_buffers())
    assert "rows" not in teacher.state_dict()
