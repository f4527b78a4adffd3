from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from deitctl.cli.app import app
from deitctl.data.batch_transforms import normalize
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import ConfigError, DeitctlError, ModelError
from deitctl.events import SilentReporter
from deitctl.explanation.drawing_folder import DrawingFolder
from deitctl.explanation.explain import explain
from deitctl.inference.classifier import predict
from deitctl.models.build import build_model
from deitctl.models.checkpoint_io import load_model_config, save_model
from deitctl.models.factory import load_model
from deitctl.models.heads import forward_heads
from deitctl.models.introspect import describe_layers, pin_img_size
from deitctl.models.model_config import HEADS
from deitctl.records import to_json

NAMES = ("ant", "bee", "cow")


@pytest.fixture(scope="module")
def make_folder(
    tmp_path_factory: pytest.TempPathFactory,
    randomize: Callable[..., nn.Module],
    make_image: Callable[..., Image.Image],
) -> Callable[..., str]:
    """Write a random model of three named classes at 32 pixels, whose answers depend on the image."""

    def make(alias: str = "deit_tiny_distilled") -> str:
        built = build_model(
            alias,
            class_names=NAMES,
            img_size=32,
            drop_path_rate=0.0,
            pretrained=False,
            weights="",
            distilled=None,
            reporter=SilentReporter(),
        )
        model, pre = randomize(built.model).eval(), built.model_config.preprocessing
        pixels = np.stack([eval_transform(make_image(24, 18, seed), pre) for seed in range(6)])
        with torch.no_grad():
            for name, logits in model(normalize(torch.from_numpy(pixels), pre))._asdict().items():
                if logits is not None:  # else one class would be the first of all images
                    layer = {"cls": "head", "dist": "head_dist"}[name]
                    getattr(model, layer).bias.sub_(logits.mean(dim=0))
                    for parameter in getattr(model, layer).parameters():
                        parameter.mul_(20)
        folder = tmp_path_factory.mktemp("model")
        save_model(
            folder,
            model.state_dict(),
            pin_img_size(model, built.model_config),
            describe_layers(model),
        )
        return str(folder)

    return make


@pytest.fixture(scope="module")
def distilled(make_folder: Callable[..., str]) -> str:
    return make_folder()


@pytest.fixture(scope="module")
def plain(make_folder: Callable[..., str]) -> str:
    return make_folder("deit_tiny")


@pytest.fixture
def photos(image_folder: Callable[..., Path]) -> list[str]:
    root = image_folder({"in": 6})
    return [str(root / "in" / f"{n}.png") for n in range(6)]


@pytest.mark.parametrize("method", ["rollout", "gradient", "last-layer"])
def test_an_explanation_has_each_tokens_prediction_and_a_drawing(
    distilled: str, photos: list[str], tmp_path: Path, method: str
) -> None:
    records = list(
        explain(photos[:3], model=distilled, method=method, output=tmp_path / "out", batch_size=2)
    )
    assert [r.input for r in records] == photos[:3]
    for head in ("cls", "dist"):
        expected = [p.predictions[0] for p in predict(photos[:3], model=distilled, head=head)]
        for record, guess in zip(records, expected, strict=True):
            first = record.tokens[head]
            assert (first.index, first.label) == (guess.index, guess.label)
            assert first.score == pytest.approx(guess.score, abs=1e-5)
    for record in records:
        assert record.disagree == (record.tokens["cls"].index != record.tokens["dist"].index)
        assert record.image is not None
        with Image.open(record.image) as drawing:
            assert drawing.size[0] == 4 * 232 + 8  # image, two tokens, their difference


@pytest.mark.parametrize("alias", ["deit_tiny", "deit3_small"])
def test_a_model_with_one_token_has_one_panel_and_no_disagreement(
    make_folder: Callable[..., str], photos: list[str], tmp_path: Path, alias: str
) -> None:
    [record] = explain(photos[:1], model=make_folder(alias), output=tmp_path / "out", img_size=48)
    assert list(record.tokens) == ["cls"]
    assert record.disagree is None
    assert record.error is None


def test_disagreement_is_reported_for_a_single_token_too(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    both = list(explain(photos, model=distilled, output=tmp_path / "out"))
    alone = list(explain(photos, model=distilled, output=tmp_path / "out", token="dist"))
    assert [list(r.tokens) for r in alone] == [["dist"]] * 6
    assert [r.disagree for r in alone] == [r.disagree for r in both]


def test_only_disagreements_leaves_out_agreements_alone(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone.png")
    everything = list(explain([*photos, gone], model=distilled, output=tmp_path / "all"))
    assert {r.disagree for r in everything} == {True, False, None}  # or this test shows nothing
    some = list(
        explain([*photos, gone], model=distilled, output=tmp_path / "some", only_disagreements=True)
    )
    assert [r.input for r in some] == [r.input for r in everything if r.disagree is not False]
    assert len(list((tmp_path / "some").iterdir())) == len(some) - 1


def test_a_named_class_is_scored_and_drawn(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    drawings = []
    for name in ("cow", "COW", "2"):
        [record] = explain(photos[:1], model=distilled, output=tmp_path / "out", class_name=name)
        [prediction] = predict(photos[:1], model=distilled, head="dist")
        wanted = next(g.score for g in prediction.predictions if g.label == "cow")
        assert record.class_name == "cow"
        assert record.tokens["dist"].class_score == pytest.approx(wanted, abs=1e-5)
        drawings.append(record.image.read_bytes())
    assert drawings[0] == drawings[1] == drawings[2]
    [other] = explain(photos[:1], model=distilled, output=tmp_path / "out", class_name="ant")
    assert other.image.read_bytes() != drawings[0]


def test_scores_have_the_temperature_of_their_head(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    model_config = replace(load_model_config(Path(distilled)), temperatures={"dist": 2.0})
    loaded = load_model(distilled, reporter=SilentReporter())
    save_model(
        tmp_path / "soft", loaded.model.state_dict(), model_config, describe_layers(loaded.model)
    )
    [hard] = explain(photos[:1], model=distilled, output=tmp_path / "out")
    [soft] = explain(photos[:1], model=str(tmp_path / "soft"), output=tmp_path / "out")
    assert soft.tokens["cls"].score == pytest.approx(hard.tokens["cls"].score)
    assert soft.tokens["dist"].score < hard.tokens["dist"].score


def test_images_of_one_name_get_drawings_of_their_own_and_no_file_is_replaced(
    distilled: str, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = image_folder({"a": 1, "b": 1}), tmp_path / "out"
    out.mkdir()
    (out / "0.gradient-2.png").write_text("mine")
    records = list(explain([str(root)], model=distilled, output=out))
    again = list(explain([str(root)], model=distilled, output=out))
    drawn = [r.image.name for r in records + again]
    assert drawn == ["0.gradient.png", "0.gradient-3.png", "0.gradient-4.png", "0.gradient-5.png"]
    assert (out / "0.gradient-2.png").read_text() == "mine"


def test_an_input_in_the_output_folder_survives(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    there = tmp_path / "out" / "0.gradient.png"
    there.parent.mkdir()
    there.write_bytes(Path(photos[0]).read_bytes())
    records = list(explain([photos[0], str(there)], model=distilled, output=there.parent))
    assert [r.error for r in records] == [None, None]
    assert there.read_bytes() == Path(photos[0]).read_bytes()


def test_a_folder_that_is_walked_does_not_give_earlier_drawings(
    distilled: str, image_folder: Callable[..., Path]
) -> None:
    root = image_folder({"in": 2})
    for _ in range(2):
        records = list(
            explain([str(root)], model=distilled, output=root / "explained", batch_size=1)
        )
        assert [Path(r.input).parent.name for r in records] == ["in", "in"]
    assert (
        len(list(explain([str(root / "explained")], model=distilled, output=root / "explained")))
        == 4
    )


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("sp ace é.png", "sp_ace_é"),
        ("-.png", "image"),
        ("..x.png", "x"),
        ("n" * 200 + ".png", "n" * 80),
    ],
)
def test_any_name_makes_a_file_name(
    distilled: str, photos: list[str], tmp_path: Path, name: str, stem: str
) -> None:
    image = tmp_path / name
    image.write_bytes(Path(photos[0]).read_bytes())
    [record] = explain([str(image)], model=distilled, output=tmp_path / "out")
    assert record.image == tmp_path / "out" / f"{stem}.gradient.png"


def test_what_is_passed_over_in_a_folder_is_reported(
    distilled: str, photos: list[str], tmp_path: Path, reporter
) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "a.png").write_bytes(Path(photos[0]).read_bytes())
    (folder / "b.psd").write_bytes(b"x")
    [_] = explain([str(folder)], model=distilled, output=tmp_path / "out", reporter=reporter)
    assert "1 file is not read: 1 .psd (export it as PNG or JPEG)." in reporter.warnings


def test_an_unreadable_image_is_an_error_in_its_place(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    Path(photos[1]).write_bytes(b"no image")
    records = list(
        explain([*photos[:3], "gone.png"], model=distilled, output=tmp_path / "out", batch_size=2)
    )
    assert [r.error is None for r in records] == [True, False, True, False]
    assert "is a text file, not an image" in str(records[1].error)
    assert to_json(records[1]) == {
        "input": photos[1],
        "image": None,
        "method": "gradient",
        "class_name": None,
        "tokens": {},
        "disagree": None,
        "error": records[1].error,
    }


def test_an_image_is_explained_the_same_alone_and_in_a_batch(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    together = list(explain(photos, model=distilled, output=tmp_path / "together", batch_size=6))
    alone = list(explain(photos, model=distilled, output=tmp_path / "alone", batch_size=1))
    for one, other in zip(together, alone, strict=True):
        with Image.open(one.image) as a, Image.open(other.image) as b:
            gap = torch.frombuffer(bytearray(a.tobytes()), dtype=torch.uint8).int()
            gap = gap - torch.frombuffer(bytearray(b.tobytes()), dtype=torch.uint8).int()
            assert gap.abs().max() <= 2


def test_a_caller_in_inference_mode_gets_the_same(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    [outside] = explain(photos[:1], model=distilled, output=tmp_path / "a")
    with torch.inference_mode():
        [inside] = explain(photos[:1], model=distilled, output=tmp_path / "b")
    assert Path(str(inside.image)).read_bytes() == Path(str(outside.image)).read_bytes()


def test_scores_that_are_nan_are_an_error(plain: str, photos: list[str], tmp_path: Path) -> None:
    loaded = load_model(plain, reporter=SilentReporter())
    model_config = load_model_config(Path(plain))
    save_model(
        tmp_path / "m", loaded.model.state_dict(), model_config, describe_layers(loaded.model)
    )
    state = load_file(tmp_path / "m" / "model.safetensors")
    state["norm.weight"] = torch.full_like(state["norm.weight"], 3e38)
    save_file(state, tmp_path / "m" / "model.safetensors")
    with torch.inference_mode():
        broken = load_model(str(tmp_path / "m"), reporter=SilentReporter())
        assert not forward_heads(broken.model, torch.ones(1, 3, 32, 32)).cls.isfinite().all()
    [record] = explain(photos[:1], model=str(tmp_path / "m"), output=tmp_path / "out")
    assert "not numbers" in str(record.error)


def test_bad_options_are_refused_before_the_first_explanation(
    distilled: str, plain: str, photos: list[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no distillation token"):
        explain(photos, model=plain, token="dist")
    with pytest.raises(ConfigError, match="no distillation token"):
        explain(photos, model=plain, only_disagreements=True)
    with pytest.raises(ConfigError, match="--method gradient"):
        explain(photos, model=distilled, method="rollout", class_name="ant")
    with pytest.raises(ConfigError, match=r"no class 'anta'. Did you mean 'ant'"):
        explain(photos, model=distilled, class_name="anta")
    with pytest.raises(ConfigError, match="There are: rollout, gradient, last-layer"):
        explain(photos, model=distilled, method="lime")
    with pytest.raises(ModelError, match="Did you mean 'deit_tiny'"):
        explain(photos, model="deit_tinny")


def test_an_output_that_cannot_be_written_is_one_line(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeitctlError, match="Cannot write"):
        list(explain(photos, model=distilled, output=tmp_path / "file"))


def test_the_command_prints_records_and_ends_with_3_where_some_could_not_be_read(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    command = [
        "explain",
        photos[0],
        "gone.png",
        "--model",
        distilled,
        "--output",
        str(tmp_path / "out"),
        "--quiet",
    ]
    result = CliRunner().invoke(app, [*command, "--class", "bee"])
    assert result.exit_code == 3
    good, bad = map(json.loads, result.stdout.splitlines())
    fields = ["input", "image", "method", "class_name", "tokens", "disagree", "error"]
    assert list(good) == ["schema_version", *fields]
    assert list(good["tokens"]["dist"]) == ["index", "label", "score", "class_score"]
    assert (good["class_name"], good["error"]) == ("bee", None)
    assert Path(good["image"]).is_file()
    assert bad["image"] is None
    assert "No such file" in bad["error"]
    table = CliRunner().invoke(app, [*command, "--class", "bee", "--format", "table"])
    assert table.exit_code == 3
    assert "dist" in table.stdout
    assert "bee:" in table.stdout


def test_an_interrupted_write_leaves_no_file(tmp_path: Path) -> None:
    drawings = DrawingFolder(tmp_path / "out")
    with pytest.raises(TypeError):
        drawings._write_new("cat.gradient", "no bytes")  # whatever ends it in the middle
    assert list((tmp_path / "out").iterdir()) == []
    assert drawings._write_new("cat.gradient", memoryview(b"whole")).read_bytes() == b"whole"


def test_of_several_labels_each_is_explained_and_of_an_image_without_the_likeliest_class(
    distilled: str, photos: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "several"
    shutil.copytree(distilled, folder)
    config = json.loads((folder / "config.json").read_text())
    options = {"model": folder, "output": tmp_path / "drawn"}
    for thresholds, labels in (([0.0, 1.0, 0.0], {"ant", "cow"}), ([1.0] * 3, None)):
        config["deitctl"] |= {"task": "multilabel", "thresholds": dict.fromkeys(HEADS, thresholds)}
        (folder / "config.json").write_text(json.dumps(config))
        records = list(explain(photos[:2], **options))
        [prediction] = predict(photos[:1], model=folder, topk=3)
        first = [record for record in records if record.input == photos[0]]
        if labels is None:
            assert [r.class_name for r in first] == [prediction.predictions[0].label]
            assert first[0].disagree is False
        else:
            assert [r.class_name for r in first] == [c.label for c in prediction.labels]
            assert {c.label for c in prediction.labels} == labels
            assert len(records) == 4
            assert len({r.image for r in records}) == 4
            assert f".{first[0].class_name}.gradient" in str(first[0].image)
            both = [[t.class_score for t in r.tokens.values()] for r in first]
            assert all(0 < score < 1 for pair in both for score in pair)
    [named] = explain(photos[:1], class_name="bee", **options)
    assert named.class_name == "bee"
    assert len(list(explain(photos[:1], method="rollout", **options))) == 1
