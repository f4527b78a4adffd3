"""Write weights in the layouts of other trainers, load each by deitctl, and compare logits with timm's.

    python benchmarks/foreign_checkpoints.py deit_tiny_patch16_224.fb_in1k.safetensors photos/

The first is deit_tiny's file in timm's names, the second a folder of images. Layouts that have averaged weights
or a second network get noise for the other, so that taking the wrong one shows. Figures: docs/results/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import tempfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from deitctl.data.batch_transforms import normalize
from deitctl.data.decode import read_image
from deitctl.data.eval_transform import eval_transform
from deitctl.errors import DeitctlError
from deitctl.events import SilentReporter
from deitctl.models.checkpoint_io import read_checkpoint
from deitctl.models.factory import load_model
from deitctl.models.heads import choose_head, forward_heads, fuse_heads

State = Mapping[str, Tensor]


def _noise(state: State) -> dict[str, Tensor]:
    """Other weights of the same shapes: taking them instead of the right ones shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(v.shape, generator=generator) * 0.02 for k, v in state.items()}


def _prefix(prefix: str, state: State) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def _without_head(state: State) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.startswith("head")}


def _arguments(model: str) -> argparse.Namespace:
    output = pathlib.Path("out")
    return argparse.Namespace(model=model, lr=5e-4, output_dir=output, world_size=8)


def _optimizer() -> dict[str, Any]:
    """AdamW's state of one parameter, as torch stores it."""
    moment = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}
    return {"state": {0: moment}, "param_groups": [{"lr": 5e-4, "params": [0]}]}


def deit(state: State) -> Any:
    """facebookresearch/deit, main.py: `checkpoint.pth`."""
    return {
        "model": dict(state),
        "optimizer": _optimizer(),
        "lr_scheduler": {"t_in_epochs": True},
        "epoch": 3,
        "scaler": {"scale": 65536.0},
        "args": _arguments("deit_tiny_patch16_224"),
    }


def deit_ema(state: State) -> Any:
    """The same with --model-ema."""
    return deit(_noise(state)) | {"model_ema": dict(state)}


def timm_train(state: State) -> Any:
    """timm, train.py: `model_best.pth.tar`; the metric was NumPy's."""
    return {
        "epoch": 3,
        "arch": "deit_tiny_patch16_224",
        "state_dict": OrderedDict(state),
        "optimizer": _optimizer(),
        "version": 2,
        "args": _arguments("deit_tiny_patch16_224"),
        "amp_scaler": {},
        "metric": np.float64(72.2),
    }


def timm_ema(state: State) -> Any:
    """The same with --model-ema, of a model in DistributedDataParallel and torch.compile."""
    ours = timm_train(_prefix("module._orig_mod.", _noise(state)))
    return ours | {"state_dict_ema": _prefix("module.", state)}


def lightning(state: State) -> Any:
    """Lightning's `last.ckpt` of a module whose network is `self.net`."""
    return {
        "epoch": 3,
        "global_step": 12,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": OrderedDict(_prefix("net.", state) | {"criterion.weight": torch.ones(3)}),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {"ModelCheckpoint{}": {"best_model_score": torch.tensor(0.7)}},
        "optimizer_states": [_optimizer()],
        "lr_schedulers": [{"_step_count": 1}],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 5e-4, "sizes": defaultdict(list)},
    }


def lightning_distillation(state: State) -> Any:
    """Lightning's of a module with `self.student` and a teacher of the same architecture."""
    both = _prefix("teacher.", _noise(state)) | _prefix("student.model.", state)
    return lightning({}) | {"state_dict": both}


def dino(state: State) -> Any:
    """DINO, main_dino.py: student and teacher, each a backbone and a projection head; no classes."""
    projection = {"head.mlp.0.weight": torch.ones(8, 4), "head.last_layer.weight_g": torch.ones(8)}
    backbone = _without_head(state)
    return {
        "student": _prefix("module.", _prefix("backbone.", _noise(backbone)) | projection),
        "teacher": _prefix("backbone.", backbone) | projection,
        "optimizer": _optimizer(),
        "epoch": 4,
        "args": _arguments("vit_tiny"),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def mae(state: State) -> Any:
    """MAE, main_pretrain.py: an encoder and a decoder; no classes."""
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_embed.weight": torch.ones(8, 4),
        "decoder_pos_embed": torch.zeros(1, 5, 8),
        "decoder_blocks.0.norm1.weight": torch.ones(8),
        "decoder_norm.weight": torch.ones(8),
        "decoder_pred.weight": torch.ones(12, 8),
    }
    return {"model": _without_head(state) | decoder, "args": _arguments("mae_vit"), "epoch": 4}


def moco(state: State) -> Any:
    """MoCo v3: base and momentum encoder, each with a projection; no classes."""
    backbone = _without_head(state)
    encoders = _prefix("base_encoder.", backbone | {"head.0.weight": torch.ones(8, 4)})
    encoders |= _prefix("momentum_encoder.", _noise(backbone)) | {
        "predictor.0.weight": torch.ones(3)
    }
    return {"arch": "vit_tiny", "state_dict": _prefix("module.", encoders)}


def dinov2(state: State) -> Any:
    """DINOv2's training code: `teacher_checkpoint.pth`; a mask token in the backbone; no classes."""
    backbone = _without_head(state) | {"mask_token": torch.zeros(1, 4)}
    heads = {"dino_head.mlp.0.weight": torch.ones(8, 4), "ibot_head.mlp.0.weight": torch.ones(8, 4)}
    return {"teacher": _prefix("backbone.", backbone) | heads}


TOP = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
BLOCK = {
    # On disk, and in memory since transformers 5.
    "norm1": ("layernorm_before", "layernorm_before"),
    "attn.proj": ("attention.output.dense", "attention.o_proj"),
    "norm2": ("layernorm_after", "layernorm_after"),
    "mlp.fc1": ("intermediate.dense", "mlp.fc1"),
    "mlp.fc2": ("output.dense", "mlp.fc2"),
}


def to_transformers(state: State, *, on_disk: bool = True) -> dict[str, Tensor]:
    """Return transformers' names of a ViT or, with a distillation token, a DeiT."""
    body = "deit." if "dist_token" in state else "vit."
    heads = {"head": "classifier"}
    if "dist_token" in state:
        heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        layer, dot, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            layer, dot, kind = name, "", ""
        if layer in heads:
            renamed[heads[layer] + dot + kind] = value
        elif layer in TOP:
            renamed[body + TOP[layer] + dot + kind] = value
        else:
            number, inner = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer).groups()
            block = body + (f"encoder.layer.{number}." if on_disk else f"layers.{number}.")
            if inner != "attn.qkv":
                renamed[f"{block}{BLOCK[inner][not on_disk]}.{kind}"] = value
                continue
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                own = f"attention.attention.{part}" if on_disk else f"attention.{part[0]}_proj"
                renamed[f"{block}{own}.{kind}"] = third.contiguous()
    return renamed


def lightning_transformers(state: State) -> Any:
    """Lightning's of a module whose `self.model` is transformers' (5) ViTForImageClassification."""
    return lightning({}) | {"state_dict": _prefix("model.", to_transformers(state, on_disk=False))}


LAYOUTS: dict[str, tuple[str, Callable[[State], Any]]] = {
    "deit": ("checkpoint.pth", deit),
    "deit, --model-ema": ("checkpoint.pth", deit_ema),
    "timm": ("model_best.pth.tar", timm_train),
    "timm, --model-ema": ("last.pth.tar", timm_ema),
    "Lightning": ("last.ckpt", lightning),
    "Lightning, student and teacher": ("last.ckpt", lightning_distillation),
    "Lightning, transformers' network": ("last.ckpt", lightning_transformers),
    "DINO": ("checkpoint0099.pth", dino),
    "DINOv2": ("teacher_checkpoint.pth", dinov2),
    "MAE": ("checkpoint-799.pth", mae),
    "MoCo v3": ("checkpoint_0299.pth.tar", moco),
}
"""File name and contents, by whose they are."""


def write_transformers_folder(folder: Path, state: State, heads: int, classes: int) -> None:
    """Write a folder as `save_pretrained` does, with the preprocessing of `facebook/deit-*`."""
    folder.mkdir(parents=True)
    distilled = "dist_token" in state
    save_file(to_transformers(state), folder / "model.safetensors", metadata={"format": "pt"})
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    grid = round((state["pos_embed"].shape[1] - 1 - distilled) ** 0.5)
    config = {
        "architectures": [
            "DeiTForImageClassificationWithTeacher" if distilled else "ViTForImageClassification"
        ],
        "model_type": "deit" if distilled else "vit",
        "hidden_size": dim,
        "num_hidden_layers": 1 + max(int(k.split(".")[1]) for k in state if k[:7] == "blocks."),
        "num_attention_heads": heads,
        "intermediate_size": 4 * dim,
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": 1e-12,
        "image_size": grid * patch,
        "patch_size": patch,
        "num_channels": 3,
        "id2label": {str(i): f"kind {i}" for i in range(classes)},
        "label2id": {f"kind {i}": i for i in range(classes)},
    }
    size = grid * patch
    processor = {
        "image_processor_type": "DeiTImageProcessor",
        "do_resize": True,
        "size": {"height": size * 8 // 7, "width": size * 8 // 7},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


class Notes(SilentReporter):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        self.messages.append(message)

    warn = note


@torch.inference_mode()
def main() -> None:
    """Print a row for each layout: the difference of the logits, and what was reported."""
    parser = argparse.ArgumentParser()
    parser.add_argument("weights", type=Path)
    parser.add_argument("images", type=Path)
    options = parser.parse_args()
    state = load_file(options.weights)
    theirs = timm.create_model("deit_tiny_patch16_224").eval()
    theirs.load_state_dict(state)
    files = sorted(p for p in options.images.iterdir() if p.is_file())[:8]
    print(f"{len(files)} images\n\n| layout | file | logits | reported |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (file, make)) in enumerate(LAYOUTS.items()):
            path = Path(folder, str(number), file)
            path.parent.mkdir()
            torch.save(make(state), path)
            row = _compare(path, theirs, files)
            print(f"| {name} | `{file}` | {row} |", flush=True)
        path = Path(folder, "transformers")
        write_transformers_folder(path, state, heads=3, classes=1000)
        print(f"| transformers | folder | {_compare(path, theirs, files)} |")


def _compare(path: Path, theirs: torch.nn.Module, files: list[Path]) -> str:
    notes = Notes()
    try:
        loaded = load_model(str(path), reporter=notes)
    except DeitctlError as error:
        backbone, taken = _without_head(theirs.state_dict()), read_checkpoint(path).state
        is_equal = backbone.keys() == taken.keys() and all(
            torch.equal(backbone[name], value) for name, value in taken.items()
        )
        text = str(error).replace(str(path), path.name)
        return f"{'no head; the backbone is equal' if is_equal else 'refused'} | {text}"
    pre = loaded.model_config.preprocessing
    pixels = torch.from_numpy(np.stack([eval_transform(read_image(f), pre) for f in files]))
    images = normalize(pixels, pre)
    rule = choose_head("auto", loaded.model_config.head, loaded.model)
    ours = fuse_heads(forward_heads(loaded.model, images), rule)
    worst = float((ours - theirs(images)).abs().max())
    text = " ".join(notes.messages).replace(str(path), path.name)
    return f"{'equal' if worst == 0 else f'{worst:.2g}'} | {text}"


if __name__ == "__main__":
    main()
