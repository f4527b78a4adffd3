"""A run on images of four bands: its normalization, its resume, its files, its predictions."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from timm.models._manipulate import adapt_input_conv as timm_adapt_input_conv

import deitctl
from deitctl.data.band_image import count_channels
from deitctl.data.bands import decode_bands
from deitctl.data.batch_transforms import normalize
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import ConfigError, DataError, ExportError, TeacherError
from deitctl.evaluation.images import choose_images, find_in_chans
from deitctl.exporters.golden import read_golden
from deitctl.exporters.metadata import collect_metadata
from deitctl.exporters.network import ExportedClassifier
from deitctl.exporters.onnx import export_onnx
from deitctl.models.adapt import adapt_input_conv
from deitctl.models.checkpoint_io import load_model_config
from deitctl.models.factory import load_model
from tests.conftest import Recorder

SETTINGS = {
    "model.depth": 1,
    "model.embed_dim": 24,
    "model.num_heads": 2,
    "optim.warmup_epochs": 0.0,
}
OPTIONS = {
    "model": "deit_tiny",
    "pretrained": False,
    "img_size": 16,
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Class folders of .npy arrays of 12 bits, which band 2 or 3 tells apart."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for number, name in enumerate(("crop", "water")):
        (root / name).mkdir()
        for index in range(10):
            values = draw.integers(0, 900, (20, 24, 4)).astype(np.uint16)
            values[..., 2 + number] += 3000
            np.save(root / name / f"{index}.npy", values)
    return root


@pytest.fixture(scope="module")
def reporter():
    return Recorder()


@pytest.fixture(scope="module")
def run(data, tmp_path_factory, reporter):
    root = tmp_path_factory.mktemp("runs") / "run"
    deitctl.train(
        str(data),
        **OPTIONS,
        in_chans=4,
        epochs=3,
        output=str(root),
        **SETTINGS,
        reporter=reporter,
    )
    return root


def test_the_bands_are_normalized_as_the_training_images_measure(run, data, reporter):
    pre = load_model_config(run).preprocessing
    trained = [
        line.split(",")[0]
        for line in (run / "split.csv").read_text().splitlines()
        if ",train" in line
    ]
    pixels = np.concatenate(
        [
            np.asarray(decode_bands((data / name).read_bytes(), name, 4, pre.value_range)).reshape(
                -1, 4
            )
            for name in trained
        ]
    )
    assert pre.in_chans == 4
    assert np.allclose(pre.mean, (pixels / 255).mean(0), atol=1e-6)
    assert np.allclose(pre.std, (pixels / 255).std(0), atol=1e-6)
    assert sum("Bands are normalized" in note for note in reporter.notes) == 1


def test_color_operations_of_the_recipe_are_left_out_in_a_line(run, reporter):
    assert sum("have no colors" in note for note in reporter.notes) == 1
    text = (run / "run.toml").read_text()
    assert 'rand_augment = ""' in text
    assert "color_jitter = 0.0" in text


def test_timm_builds_the_same_network(run, data):
    config = load_model_config(run)
    path = next((data / "crop").iterdir())
    image = decode_bands(path.read_bytes(), "x", 4, config.preprocessing.value_range)
    pixels = torch.from_numpy(eval_transform(image, config.preprocessing))[None]
    network = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    with torch.no_grad():
        logits = network(normalize(pixels, config.preprocessing))
    ours = deitctl.load(run, device="cpu").logits([str(path)])
    assert np.allclose(logits.numpy(), ours, atol=1e-5)


def test_folders_arrays_and_an_export_predict_alike(run, data, tmp_path):
    loaded = load_model(str(run), reporter=Recorder())
    config, path = replace(loaded.model_config, head="cls"), tmp_path / "bands.onnx"
    network = ExportedClassifier(loaded.model, config, "cls")
    metadata = collect_metadata(network, config, "onnx")
    export_onnx(network, config, metadata, path)
    ours, theirs = (
        m.predict([str(data / "water")]) for m in (deitctl.load(run), deitctl.load(path))
    )
    assert [p.predictions[0].label for p in ours] == ["water"] * 10
    for one, other in zip(ours, theirs, strict=True):
        assert one.predictions[0].score == pytest.approx(other.predictions[0].score, abs=1e-5)
    golden = read_golden(
        metadata, 16, count_channels(json.loads(metadata["preprocessing"])["channels"])
    )
    channels = golden.pixels[0].reshape(-1, 4).T
    assert len({channel.tobytes() for channel in channels}) == 4
    pixels = golden.pixels.transpose(0, 3, 1, 2)
    assert golden.check(deitctl.load(path).backend.logits(pixels)[0]) < 1e-5


def test_arrays_of_other_bands_and_other_formats_are_refused(run, data):
    network, pixels = deitctl.load(run), np.zeros((20, 24, 4), np.uint8)
    assert network.predict(pixels).error is None
    with pytest.raises(DataError, match="images of 4 bands"):
        network.predict(pixels[..., :3])
    with pytest.raises(ExportError, match="--to timm is for images of gray or RGB"):
        deitctl.export(str(run), to="timm")


def test_a_model_says_how_the_images_that_it_is_scored_on_are_read(run):
    assert find_in_chans([str(run)]) == 4
    images = choose_images("", [str(run)], in_chans=4, reporter=Recorder())
    assert len(images.dataset.read(0).bands) == 4
    with pytest.raises(ConfigError, match="do not take the same images: .* 4-band, .* RGB"):
        find_in_chans([str(run), "deit_tiny"])


def test_a_resume_keeps_the_normalization_that_the_run_began_with(run, data, tmp_path):
    moved = tmp_path / "run"
    shutil.copytree(run, moved)
    before = load_model_config(moved).preprocessing
    reporter = Recorder()
    deitctl.train(resume=str(moved), more_epochs=1, workers=0, device="cpu", reporter=reporter)
    assert load_model_config(moved).preprocessing == before
    assert not any("Bands are normalized" in note for note in reporter.notes)


def test_a_teacher_of_rgb_is_refused(run, data, tmp_path):
    options = {k: v for k, v in OPTIONS.items() if k != "model"}
    with pytest.raises(
        TeacherError, match="takes images of RGB, and the student images of 4 bands"
    ):
        deitctl.distill(
            str(data),
            student="deit_tiny",
            teacher="regnety_002",
            **options,
            in_chans=4,
            epochs=1,
            output=str(tmp_path / "x"),
            **SETTINGS,
        )
    with pytest.raises(
        TeacherError, match="takes images of 4 bands, and the student images of RGB"
    ):
        deitctl.distill(
            "digits",
            student="deit_tiny",
            teacher=str(run),
            **options,
            epochs=1,
            output=str(tmp_path / "y"),
            **SETTINGS,
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment.color_jitter": 0.3}, "changes colors"),
        ({"augment.rand_augment": "rand-m9"}, "colors"),
    ],
)
def test_color_operations_that_are_named_are_refused(data, settings, message):
    with pytest.raises(ConfigError, match=message):
        deitctl.train(str(data), **OPTIONS, in_chans=4, **SETTINGS | settings)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_the_first_layer_is_adapted_as_timm_does(channels):
    weight = torch.randn(6, 3, 4, 4)
    assert torch.allclose(
        adapt_input_conv(weight, channels),
        timm_adapt_input_conv(channels, weight.clone()),
        atol=1e-6,
    )
