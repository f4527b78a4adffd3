// The confusion matrix as numbers: its cells, the orders of its classes, the images behind a selection.

const WINDOW = 20; // classes shown at a time
const OTHERS = -2; // the column of the classes that are not shown

/** The matrix as maps, and the orders of its classes. */
function buildMatrix(model, data) {
  const [labels, preds, counts] = model.cells;
  const rows = data.classes.map(() => new Map());
  const columns = data.classes.map(() => new Map());
  labels.forEach((label, n) => {
    rows[label].set(preds[n], counts[n]);
    if (preds[n] !== OUTSIDE) columns[preds[n]].set(label, counts[n]);
  });
  const [images, correct, predicted] = model.per_class;
  const numbers = data.classes.map((_, n) => n);
  const accuracy = (n) => (images[n] ? correct[n] / images[n] : 2);
  const orders = {
    data: () => numbers,
    confused: () => sortByConfusion(labels, preds, counts, numbers),
    accuracy: () => numbers.toSorted((a, b) => accuracy(a) - accuracy(b)),
    name: () => numbers.toSorted((a, b) => data.classes[a].localeCompare(data.classes[b], "en", { numeric: true })),
  };
  return { rows, columns, images, correct, predicted, orders, outside: preds.includes(OUTSIDE), size: numbers.length };
}

/** Classes in the order of the most confused pairs, so that these stand side by side. */
function sortByConfusion(labels, preds, counts, numbers) {
  const pairs = new Map();
  labels.forEach((label, n) => {
    if (preds[n] === OUTSIDE || preds[n] === label) return;
    const pair = Math.min(label, preds[n]) * numbers.length + Math.max(label, preds[n]);
    pairs.set(pair, (pairs.get(pair) ?? 0) + counts[n]);
  });
  const order = new Set();
  for (const [pair] of [...pairs].sort((a, b) => b[1] - a[1])) {
    order.add(Math.floor(pair / numbers.length)).add(pair % numbers.length);
  }
  return [...order, ...numbers.filter((n) => !order.has(n))];
}

/** Some classes, and after them the classes most often confused with them. */
function findNeighbors(matrix, classes) {
  const near = new Map();
  for (const n of classes) {
    for (const [other, count] of [...matrix.rows[n], ...matrix.columns[n]]) {
      if (other !== OUTSIDE && !classes.includes(other)) near.set(other, (near.get(other) ?? 0) + count);
    }
  }
  return [...classes, ...[...near].sort((a, b) => b[1] - a[1]).map(([other]) => other)].slice(0, WINDOW);
}

const keyOf = ({ label, pred }) => `${label ?? ""}/${pred ?? ""}`;

/** A selection: its heading, how many images it has, and which of the listed images belong to it. */
function describeSelection({ label, pred, outside }, matrix, data, model, visible) {
  const hidden = (a) => a !== OUTSIDE && !visible.includes(a);
  const row = label === undefined ? null : matrix.rows[label];
  const title = (count, ...parts) => [`${countImages(count)}: `, ...parts];
  if (row === null) {
    const count = matrix.predicted[pred] - matrix.correct[pred];
    return {
      title: title(count, "wrongly predicted as ", name(data.classes[pred])),
      count,
      has: (image) => image.pred === pred && image.label !== pred,
    };
  }
  const what = name(data.classes[label]);
  if (pred === undefined) {
    const count = matrix.images[label] - matrix.correct[label];
    return {
      title: title(count, what, " predicted as another class"),
      count,
      has: (image) => image.label === label && image.pred !== label,
    };
  }
  if (pred === OTHERS) {
    const count = sum([...row].filter(([a]) => hidden(a)).map(([, c]) => c));
    return {
      title: title(count, what, " predicted as a class that is not shown"),
      count,
      has: (image) => image.label === label && hidden(image.pred),
    };
  }
  if (pred === OUTSIDE && (outside ?? null) !== null) {
    const pair = model.confusions.find(([l, p, o]) => l === label && p === OUTSIDE && o === model.outside[outside]);
    return {
      title: title(pair[3], what, " predicted as ", name(model.outside[outside])),
      count: pair[3],
      has: (image) => image.label === label && image.outside === outside,
    };
  }
  const count = row.get(pred) ?? 0;
  const parts =
    pred === label
      ? [what, " predicted correctly"]
      : [what, " predicted as ", pred === OUTSIDE ? "a class that is not in the data" : name(data.classes[pred])];
  return { title: title(count, ...parts), count, has: (image) => image.label === label && image.pred === pred };
}
