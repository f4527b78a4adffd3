"""What a training ends with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deitctl.distillation.preflight import Preflight
from deitctl.evaluation.result import Evaluation


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a training ends with; accuracies in percent, of the saved weights, in fp32."""

    run: Path
    epochs: int
    images_seen: int
    best_epoch: int
    best_weights: str
    """`raw`, or the moving `average` where that validated at least as well."""
    shipped: Evaluation
    last: dict[str, Any]
    """The last epoch's record."""
    teacher: Preflight | None
    seconds: float
    bad_images: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the record that `--format json` prints."""
        best = {"epoch": self.best_epoch, "weights": self.best_weights}
        return {
            "run": str(self.run),
            "epochs": self.epochs,
            "images_seen": self.images_seen,
            "best": {**best, "top1": self.shipped.top1, "top5": self.shipped.top5},
            "final": {
                k: self.last[k] for k in ("epoch", "top1", "top5", "val_loss") if k in self.last
            },
            "heads": self.shipped.heads,
            "agreement": self.shipped.agreement,
            "teacher_agreement": self.shipped.teacher_agreement,
            "teacher": None if self.teacher is None else self.teacher.to_dict(),
            "unreadable": sorted(self.bad_images),
            "seconds": round(self.seconds, 2),
        }
