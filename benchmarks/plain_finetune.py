"""A plain fine-tuning loop of timm, torch and torchvision, to compare `deitctl train` with; see finetune.py.

    python benchmarks/plain_finetune.py WEIGHTS.safetensors DATA (--val DIR | --split CSV)
        [--epochs 3] [--seed 0] [--img-size 224]

DATA and DIR have class folders; CSV (`path,split`, as a run's split.csv) says which images of DATA are held out.
Prints an epoch's number, top-1 in percent and the seconds since the start.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision import datasets, transforms

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, BATCH_SIZE, WEIGHT_DECAY, SMOOTHING = 1e-4, 16, 0.05, 0.1


def open_data(
    data: Path, val: Path | None, split: Path | None, img_size: int
) -> tuple[Dataset, Dataset, int]:
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(img_size, (0.35, 1)),
            transforms.RandomHorizontalFlip(),
            *normalize,
        ]
    )
    plain = transforms.Compose(
        [
            transforms.Resize(int(img_size / 0.9), transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(img_size),
            *normalize,
        ]
    )
    train = datasets.ImageFolder(str(data), augment)
    held_out = datasets.ImageFolder(str(val or data), plain)
    if split is None:
        return train, held_out, len(train.classes)
    with split.open(newline="") as file:
        split_of = {row["path"]: row["split"] for row in csv.DictReader(file)}
    splits = [split_of[Path(path).relative_to(data).as_posix()] for path, _ in train.samples]
    parts = [
        Subset(dataset, [i for i, name in enumerate(splits) if name == part])
        for dataset, part in ((train, "train"), (held_out, "val"))
    ]
    return parts[0], parts[1], len(train.classes)


@torch.no_grad()
def score(model: torch.nn.Module, loader: DataLoader) -> float:
    model.eval()
    right = count = 0
    for images, labels in loader:
        right += int((model(images).argmax(1) == labels).sum())
        count += len(labels)
    return 100 * right / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("weights")
    parser.add_argument("data", type=Path)
    held_out = parser.add_mutually_exclusive_group(required=True)
    held_out.add_argument("--val", type=Path)
    held_out.add_argument("--split", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--img-size", type=int, default=224)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    train, val, num_classes = open_data(args.data, args.val, args.split, args.img_size)
    model = timm.create_model("deit_tiny_patch16_224")
    model.load_state_dict(load_file(args.weights))
    model.reset_classifier(num_classes)
    if args.img_size != 224:
        model.set_input_size(img_size=args.img_size)
    loader, val_loader = DataLoader(train, BATCH_SIZE, shuffle=True), DataLoader(val, 64)
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, args.epochs * len(loader), pct_start=0.1
    )
    start = time.monotonic()
    for epoch in range(args.epochs):
        model.train()
        for images, labels in loader:
            with torch.autocast("cpu", torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(
                    model(images), labels, label_smoothing=SMOOTHING
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        top1 = score(model, val_loader)
        print(epoch + 1, f"{top1:.2f}", f"{time.monotonic() - start:.0f}", flush=True)


if __name__ == "__main__":
    main()
