// The log of the run that trained the model.

function drawCurves(section, curves) {
  const losses = Object.entries(curves.losses).map(([part, y]) => ({ name: part, x: curves.at, y }));
  losses.push({ name: "validation", x: curves.epochs, y: curves.val_loss, dots: true });
  const accuracies = Object.entries(curves.top1).map(([head, y]) => ({ name: head, x: curves.epochs, y, dots: true }));
  if (curves.teacher_top1 !== null)
    accuracies.push({ name: "teacher", x: curves.epochs, y: curves.epochs.map(() => curves.teacher_top1) });
  const thinned = curves.every > 1 ? ` One in ${formatCount(curves.every)} logged steps is drawn.` : "";
  section.append(
    el(
      "p",
      { className: "quiet" },
      "Run ",
      name(curves.run),
      `. The training loss is that of augmented and mixed images, so it can exceed the validation loss.${thinned}`,
    ),
    el(
      "div",
      { className: "charts" },
      chart({ title: "Loss", xName: "epoch", lines: losses }),
      chart({ title: `Validation ${curves.metric}, %`, xName: "epoch", lines: accuracies, unit: " %" }),
      chart({
        title: "Learning rate",
        xName: "epoch",
        lines: [{ name: "learning rate", x: curves.at, y: curves.lr }],
        zero: true,
      }),
    ),
  );
}
