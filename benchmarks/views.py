"""How few views of an image lose nothing? Accuracy against the number of views, with and without `student_affine`.

    python benchmarks/views.py OUT.jsonl [DATA] [--teacher T] [--epochs N] [--img-size N] [--seeds 3] [--grid GRID]
    python benchmarks/views.py OUT.jsonl --table

One run a line of OUT.jsonl; runs that are there are not done again. Two processes with one thread each share the work
on two cores. `live` is the paper's way: a teacher that looks at the mixed images of every step. Last figures:
docs/results/distillation.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
from pathlib import Path

MIXES = {"none": (0.0, 0.0), "mixup": (0.8, 0.0), "cutmix": (0.0, 1.0)}
VIEWS = (1, 2, 4, 8, 16, 0)


def grid(which: str) -> list[tuple[str, int, bool]]:
    """List (mix, views, student affine): views 0 are new ones every epoch, -1 the live teacher on mixed images."""
    rows: list[tuple[str, int, bool]] = []
    if which == "short":  # the recipe's own mixing, and no more views than a short run has epochs
        return [("recipe", v, v > 0) for v in (1, 2, 4, 8, 0)] + [
            ("recipe", 4, False),
            ("recipe", -1, False),
        ]
    for mix in MIXES:
        mixed = mix != "none"
        rows += [(mix, views, views > 0) for views in ((4, 0) if mixed else VIEWS)]
        rows += [(mix, views, False) for views in (() if mixed else (1, 4, 16))]
        rows += [(mix, -1, False)] if mix != "none" else []
    return rows


def run(job: tuple[argparse.Namespace, tuple[str, int, bool], int]) -> dict[str, object]:
    """Train one student and return its line."""
    import torch

    import deitctl

    torch.set_num_threads(1)
    options, (mix, views, student_affine), seed = job
    live = views < 0
    overrides = {"augment.student_affine": options.student_affine if student_affine else "0,0,0"}
    if mix in MIXES:
        mixup, cutmix = MIXES[mix]
        overrides |= {
            "augment.mixup": mixup,
            "augment.cutmix": cutmix,
            "augment.mixup_prob": 1,
        }
    with tempfile.TemporaryDirectory() as folder:
        result = deitctl.distill(
            options.data,
            teacher=options.teacher,
            student=options.student,
            recipe=options.recipe,
            pretrained=False,
            teacher_img_size=options.teacher_img_size,
            teacher_input="mixed" if live else "unmixed",
            views=0 if live else views,
            seed=seed,
            epochs=options.epochs,
            img_size=options.img_size,
            workers=0,
            output=f"{folder}/run",
            **overrides,
        )
    return {
        "mix": mix,
        "views": "live" if live else views or "all",
        "student_affine": student_affine,
        "seed": seed,
        "epochs": options.epochs,
        "top1": result.evaluation.top1,
        "last_top1": result.final.top1,
        "val_loss": result.final.val_loss,
        "heads": result.evaluation.heads,
        "teacher": result.teacher.top1 if result.teacher else None,
        "seconds": round(result.seconds, 1),
    }


def table(path: Path) -> None:
    """Print mean and deviation over the seeds."""
    rows: dict[tuple[str, str, bool], list[dict[str, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        rows.setdefault((record["mix"], str(record["views"]), record["student_affine"]), []).append(
            record
        )
    print(
        "| mixing | views | student affine | best top-1, % | last epoch's loss | runs |\n|---|---|---|---|---|---|"
    )
    for (mix, views, student_affine), records in rows.items():
        top1, loss = [r["top1"] for r in records], [r["val_loss"] for r in records]
        spread = f" ± {statistics.stdev(top1):.2f}" if len(top1) > 1 else ""
        print(
            f"| {mix} | {views} | {'yes' if student_affine else 'no'} | {statistics.fmean(top1):.2f}{spread} "
            f"| {statistics.fmean(loss):.3f} | {len(records)} |"
        )


def main() -> None:
    """Do what is not in the file yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="?", default="")
    parser.add_argument("--teacher", default="")
    parser.add_argument("--teacher-img-size", type=int)
    parser.add_argument("--student", default="deit_tiny")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--img-size", type=int)
    parser.add_argument(
        "--student-affine",
        default="6,0.06,0.05",
        help="augment.student_affine of the rows that have it; photos: 5,0.1,0.05",
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", choices=("full", "short"), default="full")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        lines = options.out.read_text().splitlines() if options.out.exists() else []
        done = {
            (r["mix"], str(r["views"]), r["student_affine"], r["seed"])
            for r in map(json.loads, lines)
        }
        names = {-1: "live", 0: "all"}
        jobs = [
            (options, row, seed)
            for seed in range(options.seeds)
            for row in grid(options.grid)
            if (row[0], names.get(row[1], str(row[1])), row[2], seed) not in done
        ]
        with (
            multiprocessing.get_context("spawn").Pool(options.processes) as pool,
            options.out.open("a") as file,
        ):
            for record in pool.imap_unordered(run, jobs):
                file.write(json.dumps(record) + "\n")
                file.flush()
    table(options.out)


if __name__ == "__main__":
    main()
