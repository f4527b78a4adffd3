"""Metrics are per image, whatever the batches, for each head rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deitctl import device
from deitctl.data.readers.digits import ArrayDataset
from deitctl.data.readers.folder import open_folder
from deitctl.data.subsets import select
from deitctl.device import choose_device
from deitctl.errors import DataError
from deitctl.evaluation.accumulator import EvalAccumulator
from deitctl.evaluation.eval_model import EvalModel
from deitctl.evaluation.intervals import wilson_interval
from deitctl.evaluation.validate import validate
from deitctl.models.introspect import compute_max_activation_bytes
from deitctl.models.model_config import HEADS, Preprocessing

PRE = Preprocessing(img_size=32, crop_pct=1.0)
CPU = choose_device("cpu", "fp32")


def score(model, dataset, reporter, *, rows=None, head="cls", teacher_preds=None, **changes):
    eval_model = EvalModel(
        model=model,
        preprocessing=PRE,
        rows=rows or tuple(range(len(dataset.class_names))),
        head=head,
        teacher_preds=teacher_preds,
    )
    options = {"device": CPU, "batch_size": 7, "workers": 0, "reporter": reporter}
    (result,) = validate([eval_model], dataset, **{**options, **changes})
    return result


class ByBrightness(nn.Module):
    """Knows four classes and is sure of the brightness: class 0 is black, class 3 white."""

    def __init__(self, order=(0, 1, 2, 3), sharpness: float = 8.0) -> None:
        super().__init__()
        self.order, self.sharpness = order, sharpness

    def forward(self, images):
        gray = images.mean(dim=(1, 2, 3), keepdim=True).flatten(1) * 0.226 + 0.449  # about 0..1
        return (-self.sharpness * (gray - torch.tensor([[0, 1 / 3, 2 / 3, 1]])).abs())[
            :, list(self.order)
        ]


def greys(values, labels, classes=4) -> ArrayDataset:
    images = np.stack([np.full((8, 8), v, np.uint8) for v in values])
    return ArrayDataset(images, np.array(labels), tuple(f"c{i}" for i in range(classes)), "greys")


def test_accuracies_by_hand(reporter):
    dataset = greys([0, 85, 170, 255, 0], [0, 1, 2, 3, 3])  # the last is black and labeled white
    result = score(ByBrightness(), dataset, reporter)
    assert result.num_images == 5
    assert result.top1 == pytest.approx(80.0)
    assert (result.top5, result.top5_interval) == (None, None)  # of four classes
    assert result.top1_interval == wilson_interval(4, 5).scale(100)
    assert result.correct.tolist() == [True, True, True, True, False]
    assert result.preds.tolist() == [0, 1, 2, 3, 0]
    assert result.indices.tolist() == [0, 1, 2, 3, 4]
    assert (
        result.heads,
        result.head_agreement,
        result.top1_among_classes,
        result.top5_among_classes,
    ) == (
        None,
        None,
        None,
        None,
    )
    assert result.preds_among_classes.tolist() == result.preds.tolist()
    assert result.teacher_agreement is None


def test_loss_and_calibration_by_hand(reporter):
    dataset = greys([0, 0, 0, 0], [0, 0, 0, 1])
    result = score(ByBrightness(), dataset, reporter, batch_size=3)
    confidence = result.confidences
    assert torch.equal(confidence, confidence[:1].expand(4))  # four equal images
    p0 = float(confidence[0])
    logits = ByBrightness()(torch.full((1, 3, 4, 4), -0.449 / 0.226))
    assert p0 == pytest.approx(float(logits.softmax(1).max()), abs=0.05)
    assert result.ece == pytest.approx(abs(0.75 - p0), abs=1e-6)


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
def test_the_result_does_not_depend_on_batches_or_workers(alias, deit, digit_datasets, reporter):
    model, dataset = deit(alias, classes=10), select(digit_datasets[1], range(23))
    head = "cls" if alias == "deit_tiny" else "avg-logits"
    expected = score(model, dataset, reporter, batch_size=23, head=head)
    for batch_size, workers in ((1, 0), (5, 0), (4, 2), (100, 0)):
        other = score(model, dataset, reporter, batch_size=batch_size, workers=workers, head=head)
        assert torch.equal(other.preds, expected.preds)
        assert (other.top1, other.top5, other.heads) == (
            expected.top1,
            expected.top5,
            expected.heads,
        )
        assert other.loss == pytest.approx(expected.loss, rel=1e-5)
        assert other.ece == pytest.approx(expected.ece, rel=1e-4)


def test_every_head_rule_is_scored(deit, digit_datasets, reporter):
    model, dataset = deit("deit_tiny_distilled", classes=10), select(digit_datasets[1], range(20))
    results = {
        h: score(model, dataset, reporter, head=h)
        for h in ("cls", "dist", "avg-logits", "avg-probs")
    }
    for head, result in results.items():
        assert result.heads == results["cls"].heads
        assert result.top1 == result.heads[head]
    same = (results["cls"].preds == results["dist"].preds).double().mean()
    assert results["cls"].head_agreement == pytest.approx(100 * float(same))


def test_rows_map_the_datas_classes_to_the_models(reporter):
    """The data knows black (c0) and white (c1); the model calls them 3 and 0 of four."""
    dataset = greys([0, 255, 255], [0, 1, 1], classes=2)
    result = score(ByBrightness(order=(3, 2, 1, 0)), dataset, reporter, rows=(3, 0))
    assert result.top1 == 100.0
    assert result.preds.tolist() == [3, 0, 0]  # in the model's numbering
    assert result.preds_among_classes.tolist() == [0, 1, 1]  # in the data's
    assert result.top1_among_classes == 100.0


def test_among_the_datas_classes_alone_more_is_right(reporter):
    """A mid-gray is class 1 or 2 to the model, which the data does not have."""
    dataset = greys([100, 160], [0, 1], classes=2)
    result = score(ByBrightness(), dataset, reporter, rows=(0, 3))
    assert result.top1 == 0.0
    assert result.top1_among_classes == 100.0
    assert result.preds_among_classes.tolist() == [0, 1]


class ByStep(nn.Module):
    """Knows 20 classes; the brightness, 0..1, says from where on they are likely, most likely first."""

    def forward(self, images):
        gray = images.mean(dim=(1, 2, 3), keepdim=True).flatten(1) * 0.226 + 0.449
        return -((torch.arange(20)[None] - gray * 20).round() % 20)


def test_top_five_among_the_datas_classes_by_hand(reporter):
    """The data has the model's even classes. For black the likeliest are 0 to 4, and among the even 0, 2, 4, 6, 8."""
    dataset = greys([0, 0, 0], [0, 4, 5], classes=10)  # the model calls them 0, 8 and 10
    result = score(ByStep(), dataset, reporter, rows=tuple(range(0, 20, 2)))
    assert (result.top1, result.top5) == (pytest.approx(100 / 3), pytest.approx(100 / 3))
    assert (result.top1_among_classes, result.top5_among_classes) == (
        pytest.approx(100 / 3),
        pytest.approx(200 / 3),
    )
    assert result.top5_interval == wilson_interval(1, 3).scale(100)


def test_data_of_five_classes_have_a_top_five_of_the_models_classes_alone(reporter):
    result = score(ByStep(), greys([0], [4], classes=5), reporter, rows=(0, 2, 4, 6, 8))
    assert (result.top5, result.top1_among_classes, result.top5_among_classes) == (0.0, 0.0, None)


def test_agreement_with_a_teacher_by_hand(reporter):
    """Four images, of which the teacher could not see the third; the model answers 0, 1, 2, 3."""
    dataset = greys([0, 85, 170, 255], [3, 3, 3, 3])
    for said, expected in (([0, 1, -1, 3], 100.0), ([0, 2, -1, 0], 100 / 3), ([1, 0, -1, 2], 0.0)):
        for batch_size in (1, 7):
            result = score(
                ByBrightness(),
                dataset,
                reporter,
                teacher_preds=torch.tensor(said),
                batch_size=batch_size,
            )
            assert result.teacher_agreement == {"cls": pytest.approx(expected)}
    assert result.num_images == 4  # the image that the teacher could not see is scored all the same


def test_agreement_with_a_teacher_is_in_the_datas_classes(reporter):
    """A mid-gray is class 1 or 2 to the model, which neither the data nor the teacher's answer has."""
    dataset = greys([100, 160], [0, 1], classes=2)
    result = score(
        ByBrightness(), dataset, reporter, rows=(0, 3), teacher_preds=torch.tensor([0, 1])
    )
    assert result.teacher_agreement == {"cls": 100.0}


def test_agreement_with_a_teacher_is_by_head_rule(deit, digit_datasets, reporter):
    model, dataset = deit("deit_tiny_distilled", classes=10), select(digit_datasets[1], range(20))
    answers = {h: score(model, dataset, reporter, head=h).preds for h in HEADS}
    said = answers["dist"].clone()
    said[[0, 7]] = -1
    seen = said >= 0
    result = score(model, dataset, reporter, teacher_preds=said, head="avg-logits")
    expected = {h: 100 * float((a[seen] == said[seen]).double().mean()) for h, a in answers.items()}
    assert result.teacher_agreement == {h: pytest.approx(v) for h, v in expected.items()}
    assert result.teacher_agreement["dist"] == 100.0
    assert result.teacher_agreement["cls"] < 100.0


def test_agreement_with_a_teacher_goes_by_position_in_the_source(image_folder, deit, reporter):
    """An unreadable image shifts nothing."""
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "0.png").write_text("no")
    dataset, model = open_folder(root, reporter), deit(classes=2)
    plain = score(model, dataset, reporter)
    said = torch.full((6,), -1)
    said[plain.indices] = plain.preds
    assert score(model, dataset, reporter, teacher_preds=said).teacher_agreement == {"cls": 100.0}
    assert score(model, dataset, reporter, teacher_preds=1 - said).teacher_agreement == {"cls": 0.0}


def test_unreadable_images_are_left_out_and_named(image_folder, deit, reporter):
    root = image_folder({"a": 3, "b": 3})
    (root / "a" / "0.png").write_text("no")
    result = score(deit(classes=2), open_folder(root, reporter), reporter)
    assert result.num_images == 5
    assert result.indices.tolist() == [1, 2, 3, 4, 5]
    assert result.unreadable == [str(root / "a" / "0.png")]


def test_nothing_readable_is_an_error(image_folder, deit, reporter):
    root = image_folder({"a": 1, "b": 1})
    for name in "ab":
        (root / name / "0.png").write_text("no")
    with pytest.raises(
        DataError,
        match=r"None of 2 images can be read; the first: .*0\.png is a text file, not an image",
    ):
        score(deit(classes=2), open_folder(root, reporter), reporter)


def test_evaluation_is_in_eval_mode_and_without_gradients(deit, digit_datasets, reporter):
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(3 * 32 * 32, 10)).train()
    dataset = select(digit_datasets[1], range(5))
    first, second = score(model, dataset, reporter), score(model.train(), dataset, reporter)
    assert torch.equal(first.confidences, second.confidences)
    assert not model.training
    assert not first.confidences.requires_grad


def test_one_image_is_enough(deit, digit_datasets, reporter):
    result = score(deit(classes=10), select(digit_datasets[1], [0]), reporter)
    assert result.num_images == 1
    assert result.top1 in (0.0, 100.0)


class Cramped(nn.Module):
    """A model that has no room for more than so many images at a time."""

    def __init__(self, model, room, words="DefaultCPUAllocator: not enough memory") -> None:
        super().__init__()
        self.model, self.room, self.words, self.sizes = model, room, words, []

    def forward(self, images):
        self.sizes.append(len(images))
        if len(images) > self.room:
            raise RuntimeError(self.words)
        return self.model(images)


@pytest.mark.parametrize("alias", ["deit_tiny", "deit_tiny_distilled"])
@pytest.mark.parametrize("room", [2, 5])
def test_where_memory_runs_out_batches_are_halved_and_the_result_is_the_same(
    alias, room, deit, digit_datasets, reporter
):
    model, dataset = deit(alias, classes=10), select(digit_datasets[1], range(11))
    head = "cls" if alias == "deit_tiny" else "avg-probs"
    expected = score(model, dataset, reporter, batch_size=9, head=head)
    cramped = Cramped(model, room)
    halved = score(cramped, dataset, reporter, batch_size=9, head=head)
    assert max(cramped.sizes) == 9
    assert sum(n for n in cramped.sizes if n <= room) == 11  # each image once
    assert torch.equal(halved.preds, expected.preds)
    torch.testing.assert_close(halved.confidences, expected.confidences, rtol=0, atol=1e-6)
    assert (halved.top1, halved.top5, halved.heads) == (
        expected.top1,
        expected.top5,
        expected.heads,
    )
    assert torch.equal(halved.indices, expected.indices)
    assert halved.loss == pytest.approx(expected.loss, rel=1e-5)


@pytest.mark.parametrize(
    ("room", "words"), [(0, "out of memory"), (4, "shapes cannot be multiplied")]
)
def test_what_halving_cannot_help_is_not_hidden(room, words, deit, digit_datasets, reporter):
    cramped = Cramped(deit(classes=10), room, words)
    with pytest.raises(RuntimeError, match=words):
        score(cramped, select(digit_datasets[1], range(7)), reporter)
    assert cramped.sizes == ([7, 3, 1] if room == 0 else [7])


class Gathered:
    """Two processes that have answered every other image, as the first sees them."""

    size, rank = 2, 0

    def __init__(self, others):
        self.others = others

    def all_gather_object(self, mine):
        return self.others


@pytest.mark.parametrize("room", [10 * 2 * 23, 10 * 2 * 9])
def test_what_several_processes_collect_is_put_in_order_logits_too(room, deit, digit_datasets):
    model, dataset = deit("deit_tiny_distilled", classes=10), select(digit_datasets[1], range(23))
    eval_model = EvalModel(model=model, preprocessing=PRE, rows=tuple(range(10)), head="avg-logits")
    draw = torch.Generator().manual_seed(0)
    cls, dist = torch.randn(2, 23, 10, generator=draw)
    labels = torch.from_numpy(dataset.labels)

    def accumulate(places):
        made = EvalAccumulator(eval_model, 23, max_logits=room)
        for part in places.split(4):
            made.append(made.score(cls[part], dist[part], labels[part], part))
        return made

    expected = accumulate(torch.arange(23)).compute(1.0)
    parts = [accumulate(torch.arange(rank, 23, 2)) for rank in (0, 1)]
    joined = parts[0]
    joined.gather(Gathered([(p.columns, p.read_errors, p.num_heads, p.num_logits) for p in parts]))
    result = joined.compute(1.0)
    assert len(expected.logit_rows) == min(23, room // 20)
    assert torch.equal(expected.logits.cls, cls[expected.logit_rows])
    for name in ("logit_rows", "indices", "topk_preds", "losses", "heads_differ"):
        assert torch.equal(getattr(result, name), getattr(expected, name)), name
    assert torch.equal(result.logits.cls, expected.logits.cls)
    assert torch.equal(result.logits.dist, expected.logits.dist)


def test_of_equal_scores_the_first_class_is_predicted_everywhere():
    tied = torch.zeros(6, 40)
    tied[:, 7:] = 1.0  # 33 classes alike: 7 is the first
    eval_model = EvalModel(
        model=nn.Identity(), preprocessing=PRE, rows=tuple(range(40)), head="cls"
    )
    accumulator = EvalAccumulator(eval_model, 6)
    labels = torch.tensor([7, 7, 7, 8, 9, 39])
    accumulator.append(accumulator.score(tied, tied.clone(), labels, torch.arange(6)))
    result = accumulator.compute(1.0)
    assert (
        result.preds.tolist()
        == result.data_preds.tolist()
        == result.preds_among_classes.tolist()
        == [7] * 6
    )
    assert result.correct.tolist() == [True] * 3 + [False] * 3
    assert result.topk_preds[0].tolist() == [7, 8, 9, 10, 11]
    assert result.head_agreement == 100.0


def test_on_a_cpu_images_are_processed_in_the_block_that_the_allocator_keeps(
    deit, digit_datasets, reporter, monkeypatch
):
    dataset, model, sizes = select(digit_datasets[1], range(20)), deit("deit_tiny", classes=10), []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    expected = score(model, dataset, reporter, batch_size=16)
    monkeypatch.setattr(
        device, "MAX_HEAP_BLOCK", 4 * compute_max_activation_bytes(model, torch.float32)
    )
    parts = score(model, dataset, reporter, batch_size=16)
    assert sizes == [16, 4] + [4] * 5
    assert parts.loss == pytest.approx(expected.loss, rel=1e-6)
