"""The model card says what is known, and of the rest that it is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deitctl.exporters.compare import Verification
from deitctl.exporters.formats import FORMATS
from deitctl.exporters.model_card import UNKNOWN, History, is_unedited, make_model_card
from deitctl.models.catalog import find
from deitctl.models.model_config import ModelConfig, Preprocessing

MODEL_CONFIG = ModelConfig(
    architecture="deit_tiny_patch16_224", num_classes=2, class_names=("cat", "dog")
)
RUN = {
    "model": "deit_tiny",
    "data": "pets",
    "seed": 3,
    "output_dir": "/home/me/runs/x",
    "recipe": {"epochs": 8, "mean": [0.5, 1.0]},
    "distill": {
        "teacher": "/home/me/runs/teacher",
        "mode": "hard",
        "teacher_cache": "/home/me/cache",
    },
}
RESULT = {
    "epochs": 8,
    "images_seen": 11520,
    "num_val_images": 70,
    "best": {
        "epoch": 7,
        "top1": 96.338,
        "top1_interval": {"lower": 93.46, "upper": 97.98},
        "top5": 99.7,
    },
    "heads": {"cls": 95.0, "avg-logits": 96.338},
    "teacher": {"name": "/home/me/runs/teacher", "top1": 98.59},
}


def read_model_config(history: History, model_config: ModelConfig = MODEL_CONFIG) -> str:
    return make_model_card(
        model_config,
        history,
        title="pets",
        library="timm",
        usage="import timm\n",
        head="avg-logits",
        verification=Verification(
            num_verified=50,
            data="/home/me/pets",
            split="val",
            num_train_images=0,
            max_abs_diff=1.2e-6,
            top1_agreement=100.0,
        ),
    )


def section(text: str, name: str) -> str:
    return text.split(f"## {name}\n\n")[1].split("\n\n## ")[0]


def test_a_run_of_five_classes_or_fewer_states_no_top_5():
    result = {"best": {"epoch": 1, "top1": 60.0, "top5": None}, "epochs": 1}
    accuracy = section(read_model_config(History(run=RUN, result=result)), "Accuracy")
    assert "|  | top-1 |\n| --- | --- |\n| epoch 1 of 1 | 60.00 % |" in accuracy


def test_a_run_states_its_data_recipe_and_figures():
    text = read_model_config(History(run=RUN, result=RESULT))
    assert (
        section(text, "Training data") == "Trained on `pets`, 11,520 training images seen in total."
    )
    assert "epochs = 8\nmean = [0.5, 1.0]" in section(text, "Training recipe")
    assert "| `avg-logits` (this folder) | 96.34 % |" in section(text, "Accuracy")
    accuracy = section(text, "Accuracy")
    assert "|  | top-1 | 95 % interval | top-5 |\n| --- | --- | --- | --- |\n" in accuracy
    assert "| epoch 7 of 8 | 96.34 % | 93.5 to 98.0 % | 99.70 % |" in accuracy
    assert "The teacher, `teacher`, has 98.59 % top-1 on them." in section(text, "Accuracy")
    assert (
        "On 50 images of `pets` (val, held out of training) logits differ by up to 1.2e-06"
    ) in section(text, "Export")
    assert "On the run's 70 validation images, held out of training, in fp32:" in accuracy


def test_a_map_that_is_not_defined_is_unknown_and_no_top1():
    best = {"epoch": 7, "top1": None, "map": None, "macro_f1": 0.0, "micro_f1": 0.0}
    text = read_model_config(History(run=RUN, result={**RESULT, "best": best}))
    accuracy = section(text, "Accuracy")
    assert "| epoch 7 of 8 | unknown | 0.00 % |" in accuracy
    assert "top-1" not in accuracy


def test_nobodys_folders_are_published():
    assert "/home/me" not in read_model_config(
        History(run={**RUN, "data": "/home/me/pets"}, result=RESULT)
    )


def test_what_is_unknown_is_called_so():
    text = read_model_config(History())
    assert [section(text, name) for name in ("Training data", "Training recipe", "Accuracy")] == [
        UNKNOWN
    ] * 3


def test_a_run_that_has_not_ended_has_no_figures():
    assert (
        section(read_model_config(History(run=RUN)), "Accuracy")
        == "None yet: the run has not finished."
    )


def test_published_weights_are_named_with_their_published_figure():
    text = read_model_config(History(published=find("deit_tiny")))
    assert "`timm/deit_tiny_patch16_224.fb_in1k`" in section(text, "Training data")
    assert (
        section(text, "Accuracy")
        == "Published top-1 on ImageNet: 72.19 %; not measured for this export."
    )


def test_the_preprocessing_is_that_of_the_model_config():
    assert "the short side to 248, crop the center 224 x 224" in read_model_config(History())
    squash = replace(
        MODEL_CONFIG, preprocessing=Preprocessing(img_size=32, crop_pct=1.0, crop_mode="squash")
    )
    assert "Resize (bicubic) to 32 x 32" in read_model_config(History(), squash)


def test_many_classes_are_counted_and_names_are_no_markup():
    text = read_model_config(
        History(),
        replace(
            MODEL_CONFIG, num_classes=30, class_names=("<b>`x`\n# y</b>", *map(str, range(29)))
        ),
    )
    assert section(text, "Classes").startswith("`<b>'x' # y</b>`, `0`")
    assert section(text, "Classes").endswith("and 10 more; config.json lists them all.")


@pytest.mark.parametrize(
    "result", [{"best": 3, "heads": [1]}, {"best": {"top1": "high"}, "teacher": {"name": None}}]
)
def test_a_result_file_of_somebody_else_is_no_traceback(result):
    assert "## Accuracy" in read_model_config(History(run=RUN, result=result))


def test_an_edited_text_is_distinguished_from_an_untouched_one():
    text = read_model_config(History(run=RUN, result=RESULT))
    assert is_unedited(text)
    assert not is_unedited(text.replace("pets", "cats"))
    assert not is_unedited(text + "More.\n")
    assert not is_unedited("# My model\n")
    assert not is_unedited("")


@pytest.mark.parametrize("name", [n for n, f in FORMATS.items() if f.usage])
def test_the_code_that_loads_the_folder_is_code(name):
    compile(FORMATS[name].usage, name, "exec")
    assert '"PATH"' in FORMATS[name].usage or ":PATH" in FORMATS[name].usage
