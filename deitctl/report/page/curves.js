// The log of the run that made the model.

function drawCurves(section, curves) {
  const losses = Object.entries(curves.losses).map(([part, y]) => ({ name: part, x: curves.at, y }));
  losses.push({ name: "validation", x: curves.epochs, y: curves.validation, dots: true });
  const accuracies = Object.entries(curves.top1).map(([head, y]) => ({ name: head, x: curves.epochs, y, dots: true }));
  if (curves.teacher !== null)
    accuracies.push({ name: "teacher", x: curves.epochs, y: curves.epochs.map(() => curves.teacher) });
  const thinned = curves.every > 1 ? ` Every ${whole(curves.every)}th logged step is drawn.` : "";
  section.append(
    el(
      "p",
      { className: "quiet" },
      "The run ",
      name(curves.run),
      `. The training loss is of mixed and augmented images, so it may stay above that of validation.${thinned}`,
    ),
    el(
      "div",
      { className: "charts" },
      chart({ title: "Loss", xName: "epoch", lines: losses }),
      chart({ title: "Validation top-1, %", xName: "epoch", lines: accuracies, unit: " %" }),
      chart({
        title: "Learning rate",
        xName: "epoch",
        lines: [{ name: "learning rate", x: curves.at, y: curves.rate }],
        zero: true,
      }),
    ),
  );
}
