"""transformers itself loads what we write; only where it is installed."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from deitctl.data.batch_transforms import normalize
from deitctl.data.dataset import FileDataset
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import ExportError
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.hub_folders import (
    PROCESSOR,
    TRANSFORMERS_USAGE,
    export_timm,
    export_transformers,
    get_unique_labels,
)
from deitctl.exporters.verification_images import compute_reference, read_images
from deitctl.exporters.verify_whole_images import is_cropped_alike, verify_image_files
from deitctl.models.heads import forward_heads, fuse_heads
from deitctl.models.model_config import Preprocessing

pytest.importorskip("transformers")

CENTRE = Preprocessing(img_size=32, crop_pct=0.8)
SQUASH = Preprocessing(img_size=32, crop_pct=1.0, crop_mode="squash", mean=(0.5, 0.4, 0.3))
TOLERANCE = FORMATS["transformers"].tolerance


@pytest.fixture(scope="module")
def made(shallow, network, tmp_path_factory):
    """Export a model of one block with a preprocessing, once each."""
    done = {}

    def make(alias, pre=CENTRE):
        if (alias, pre) not in done:
            loaded = shallow(alias)
            loaded = replace(loaded, model_config=replace(loaded.model_config, preprocessing=pre))
            folder = tmp_path_factory.mktemp("transformers")
            export_transformers(network(loaded, "avg-logits"), loaded.model_config, {}, folder)
            done[alias, pre] = loaded, folder
        return done[alias, pre]

    return make


@pytest.fixture
def dataset(tmp_path, make_image):
    """Images of several shapes, three of which both cut alike."""
    files = []
    for number, size in enumerate(((96, 72), (72, 99), (60, 60), (101, 72))):
        files.append(str(tmp_path / f"{number}.png"))
        make_image(*size, seed=number).save(files[-1])
    return FileDataset(files, np.zeros(len(files), dtype=np.int64), ("",))


def load(kind, folder, **options):
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(transformers, kind).from_pretrained(folder, **options)


@pytest.mark.parametrize(
    ("alias", "kind"),
    [
        ("deit_tiny", "ViTForImageClassification"),
        ("deit_tiny_distilled", "DeiTForImageClassificationWithTeacher"),
    ],
)
def test_the_auto_class_finds_the_class_and_gives_our_logits(alias, kind, made, noise):
    loaded, folder = made(alias)
    theirs, report = load("AutoModelForImageClassification", folder, output_loading_info=True)
    assert type(theirs).__name__ == kind
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = noise(3, 3, 32, 32)
    with torch.no_grad():
        wanted = fuse_heads(forward_heads(loaded.model, images), "avg-logits")
        torch.testing.assert_close(theirs.eval()(images).logits, wanted, atol=1e-6, rtol=0)
    assert [theirs.config.id2label[i] for i in range(10)] == get_unique_labels(loaded.model_config)
    assert theirs.config.label2id["3"] == 3


@pytest.mark.parametrize("pre", [CENTRE, SQUASH])
def test_the_image_processor_gives_our_view_with_pillow_and_nearly_with_torchvision(
    pre, made, make_image
):
    _, folder = made("deit_tiny", pre)
    for size in ((96, 72), (40, 98), (60, 60), (25, 20)):
        assert is_cropped_alike(*size, pre)
        wanted = normalize(torch.from_numpy(eval_transform(make_image(*size), pre))[None], pre)
        exact = load("AutoImageProcessor", folder, backend="pil")(
            images=make_image(*size), return_tensors="pt"
        )
        torch.testing.assert_close(exact["pixel_values"], wanted, atol=1e-5, rtol=0)
        near = load("AutoImageProcessor", folder)(images=make_image(*size), return_tensors="pt")
        assert (near["pixel_values"] - wanted).abs().max() < 5 / 255 / min(pre.std)


def test_transformers_cuts_one_pixel_beside_where_we_say_so(made, make_image):
    pre = Preprocessing(img_size=32, crop_pct=1.0)
    _, folder = made("deit_tiny", pre)
    processor = load("AutoImageProcessor", folder, backend="pil")
    for width in range(32, 44):
        seen = processor(images=make_image(width, 32), return_tensors="pt")["pixel_values"]
        ours = normalize(torch.from_numpy(eval_transform(make_image(width, 32), pre))[None], pre)
        assert torch.allclose(seen, ours, atol=1e-5) == is_cropped_alike(width, 32, pre), width


@pytest.mark.parametrize(("alias", "pre"), [("deit_tiny", SQUASH), ("deit_tiny_distilled", CENTRE)])
def test_network_and_preprocessing_are_verified_in_a_fresh_process(
    alias, pre, made, dataset, verify_fp32
):
    loaded, folder = made(alias, pre)
    sample = read_images(dataset, pre, 4)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-logits", sample.pixels)
    verification = verify_fp32("transformers", folder, wanted[:1], sample)
    from_files = verify_image_files(
        folder,
        wanted,
        dataset,
        sample,
        pre,
        get_unique_labels(loaded.model_config),
        tolerance=TOLERANCE,
    )
    assert verification.max_abs_diff < TOLERANCE
    assert from_files.num_verified == 4
    assert 'with backend="pil" logits differ by up to' in from_files.remark


@pytest.mark.parametrize(
    ("file", "key", "value", "reason"),
    [
        (PROCESSOR, "image_mean", [0.5, 0.5, 0.5], "disagrees"),
        (PROCESSOR, "size", {"height": 40, "width": 40}, "disagrees"),
        (
            "config.json",
            "id2label",
            {str(i): str(9 - i) for i in range(10)},
            "calls the class '0' '9'",
        ),
    ],
)
def test_a_broken_folder_is_caught(file, key, value, reason, made, dataset, tmp_path):
    import shutil

    loaded, good = made("deit_tiny")
    folder = shutil.copytree(good, tmp_path / "broken")
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**config, key: value}))
    sample = read_images(dataset, CENTRE, 4)
    wanted = compute_reference(loaded.model, loaded.model_config, "avg-logits", sample.pixels)
    with pytest.raises(ExportError, match=reason):
        verify_image_files(
            folder,
            wanted,
            dataset,
            sample,
            CENTRE,
            get_unique_labels(loaded.model_config),
            tolerance=TOLERANCE,
        )


def test_the_code_of_the_readme_runs(made, tmp_path, make_image, monkeypatch, capsys):
    _, folder = made("deit_tiny")
    make_image().save(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    exec(TRANSFORMERS_USAGE.replace("PATH", str(folder)), {})
    assert capsys.readouterr().out.strip() in set("0123456789")


def test_transformers_opens_a_timm_folder_of_what_it_has_no_class_for(
    classifier, network, noise, tmp_path
):
    loaded = classifier("deit3_small")
    export_timm(network(loaded, "cls"), loaded.model_config, {}, tmp_path / "m")
    theirs = load("AutoModelForImageClassification", tmp_path / "m").eval()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(images).logits, forward_heads(loaded.model, images).cls, atol=1e-5, rtol=0
        )
