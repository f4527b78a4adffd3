"""Small valid inputs for the fuzzer to start from, one folder a target: `python fuzz/corpus.py FOLDER`."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import targets_records
import torch
from PIL import Image
from safetensors.torch import save
from targets import CODECS, IMAGES, SEPARATOR, STAMP

from deitctl.config import DistillConfig, TrainConfig
from deitctl.models.model_config import ModelConfig, to_timm_config
from deitctl.recipes import DIGITS
from deitctl.settings import write_toml

KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")


def make_images() -> list[bytes]:
    """Every supported format in several modes, EXIF orientations, animations and TIFF compressions."""
    gray = Image.linear_gradient("L").resize((20, 14))
    exif = Image.Exif()
    exif[0x0112] = 6
    cases = []
    for kind in KINDS:
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "F", "CMYK", "LA"):
            for options in ({}, {"exif": exif}):
                buffer = io.BytesIO()
                try:
                    (gray if mode != "I;16" else gray.convert("I")).convert(mode).save(
                        buffer, kind, **options
                    )
                except (OSError, ValueError, KeyError, TypeError):
                    continue
                cases.append(buffer.getvalue())
    for compression in ("tiff_lzw", "jpeg", "packbits", "tiff_deflate", "group4"):
        buffer = io.BytesIO()
        gray.convert("1" if compression == "group4" else "RGB").save(
            buffer, "TIFF", compression=compression
        )
        cases.append(buffer.getvalue())
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        gray.convert("RGB").save(
            buffer, kind, save_all=True, append_images=[gray.convert("RGB").rotate(90)]
        )
        cases.append(buffer.getvalue())
    return list(dict.fromkeys(cases))


def make_configs() -> list[bytes]:
    """The configurations of a training and a distillation, and lines of --set."""
    plain = TrainConfig(model="deit_tiny", data="digits", recipe=DIGITS)
    distill = DistillConfig(
        teacher="regnety_160",
        mode="soft",
        alpha=0.5,
        tau=3.0,
        reduction="batchmean",
        dist_token=True,
        teacher_input="unmixed",
        views=2,
        logits_topk=4,
    )
    lines = b"epochs=3\noptim.lr=1e-3\naugment.crop_scale=(0.5, 1)\ndistill.tau=2\npretrained=no\ntrainable=head"
    return [
        write_toml(plain).encode() + SEPARATOR + lines,
        write_toml(replace(plain, distill=distill)).encode(),
    ]


def make_checkpoints() -> list[bytes]:
    """Small state dicts as safetensors and as pickles of both formats; config.json with and without class names."""
    state = {
        "patch_embed.proj.weight": torch.ones(192, 1, 16, 1),
        "blocks.11.x": torch.ones(1, dtype=torch.bfloat16),
        "pos_embed": torch.ones(1, 5, 192),
        "cls_token": torch.ones(1, 1, 192),
        "head.weight": torch.ones(2, 192),
    }
    small = {"a.weight": torch.ones(2, 3), "b": torch.arange(4), "c": torch.ones(2).half()}
    cases = [b"s" + save(state), b"s" + save(small)]
    for value, new in (
        (small, True),
        (small, False),
        ({"model": small, "epoch": 1}, True),
        ({"q": torch.ones(2).to_sparse()}, True),
    ):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=new)
        cases.append(b"p" + buffer.getvalue())
    model_config = ModelConfig(
        architecture="deit_tiny_patch16_224",
        num_classes=2,
        class_names=("a", "b"),
        descriptions=("c", "d"),
    )
    layers = {"classifier": ("head",), "first_conv": "patch_embed.proj", "fixed_input_size": True}
    model_configs = (
        model_config,
        replace(model_config, class_names=None, descriptions=None, model_args={"depth": 3}),
    )
    return cases + [b"c" + json.dumps(to_timm_config(c, **layers)).encode() for c in model_configs]


def make_caches() -> list[bytes]:
    """A complete cache of each codec, and a truncated one."""
    cases = []
    for number, codec in enumerate(CODECS):
        records = codec.encode(torch.rand(IMAGES, codec.num_classes).softmax(dim=1)).tobytes()
        head = b"x" * number + b"\n" + json.dumps(STAMP).encode() + SEPARATOR
        cases += [head + records, head + records[:-3]]
    return cases


def make_datasets() -> list[bytes]:
    """Tars in three dialects, with and without splits, and tables."""
    buffer = io.BytesIO()
    Image.new("L", (2, 2)).save(buffer, "PPM")
    cases = []
    for dialect in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for names in (
            ("a/0.ppm", "b/1.ppm"),
            ("train/a/0.ppm", "val/ä/1.ppm", "x" * 120 + "/y/2.ppm"),
        ):
            data = io.BytesIO()
            with tarfile.open(fileobj=data, mode="w", format=dialect) as archive:
                for name in names:
                    member = tarfile.TarInfo(name)
                    member.size = len(buffer.getvalue())
                    archive.addfile(member, io.BytesIO(buffer.getvalue()))
            cases.append(b"t" + data.getvalue()[: data.tell()].rstrip(b"\0") + b"\0" * 1024)
    return [
        *cases,
        b"cpath,label\na.png,x\nb.png,y\n",
        b'cpath,label,split\n"a\n.png",x,train\n../b.png,y,val\n',
    ]


MAKERS = {
    "image": make_images,
    "config": make_configs,
    "checkpoint": make_checkpoints,
    "target_cache": make_caches,
    "data": make_datasets,
    **targets_records.MAKERS,
}


def main(root: Path) -> None:
    """Write one folder of files a target."""
    for name, make in MAKERS.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(make()):
            (root / name / f"{number:03d}").write_bytes(case)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
