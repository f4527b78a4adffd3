// The confusion matrix as numbers: its cells, the orders of its classes, what a choice in it means.

const WINDOW = 20; // classes in sight at a time
const OTHERS = -2; // the column of the classes that are out of sight

/** The matrix as maps, and the orders its classes can stand in. */
function matrixOf(model, data) {
  const [labels, answers, counts] = model.cells;
  const rows = data.classes.map(() => new Map());
  const columns = data.classes.map(() => new Map());
  labels.forEach((label, n) => {
    rows[label].set(answers[n], counts[n]);
    if (answers[n] !== OUTSIDE) columns[answers[n]].set(label, counts[n]);
  });
  const [images, right, said] = model.perClass;
  const numbers = data.classes.map((_, n) => n);
  const accuracy = (n) => (images[n] ? right[n] / images[n] : 2);
  const orders = {
    data: () => numbers,
    confused: () => pairsFirst(labels, answers, counts, numbers),
    accuracy: () => numbers.toSorted((a, b) => accuracy(a) - accuracy(b)),
    name: () => numbers.toSorted((a, b) => data.classes[a].localeCompare(data.classes[b], "en", { numeric: true })),
  };
  return { rows, columns, images, right, said, orders, outside: answers.includes(OUTSIDE), size: numbers.length };
}

/** Classes in the order of the pairs most often taken for each other, so that these stand side by side. */
function pairsFirst(labels, answers, counts, numbers) {
  const pairs = new Map();
  labels.forEach((label, n) => {
    if (answers[n] === OUTSIDE || answers[n] === label) return;
    const pair = Math.min(label, answers[n]) * numbers.length + Math.max(label, answers[n]);
    pairs.set(pair, (pairs.get(pair) ?? 0) + counts[n]);
  });
  const order = new Set();
  for (const [pair] of [...pairs].sort((a, b) => b[1] - a[1])) {
    order.add(Math.floor(pair / numbers.length)).add(pair % numbers.length);
  }
  return [...order, ...numbers.filter((n) => !order.has(n))];
}

/** The classes to show around some: first they, then those most often taken for them or they for. */
function around(matrix, classes) {
  const near = new Map();
  for (const n of classes) {
    for (const [other, count] of [...matrix.rows[n], ...matrix.columns[n]]) {
      if (other !== OUTSIDE && !classes.includes(other)) near.set(other, (near.get(other) ?? 0) + count);
    }
  }
  return [...classes, ...[...near].sort((a, b) => b[1] - a[1]).map(([other]) => other)].slice(0, WINDOW);
}

const keyOf = ({ label, answer }) => `${label ?? ""}/${answer ?? ""}`;

/** What a choice means: its heading, how many images it has, and which of the listed images belong to it. */
function describe({ label, answer, foreign }, matrix, data, model, visible) {
  const hidden = (a) => a !== OUTSIDE && !visible.includes(a);
  const row = label === undefined ? null : matrix.rows[label];
  const title = (count, ...words) => [`${countImages(count)}: `, ...words];
  if (row === null) {
    const count = matrix.said[answer] - matrix.right[answer];
    return {
      title: title(count, "wrongly taken for ", name(data.classes[answer])),
      count,
      has: (p) => p.answer === answer && p.label !== answer,
    };
  }
  const what = name(data.classes[label]);
  if (answer === undefined) {
    const count = matrix.images[label] - matrix.right[label];
    return {
      title: title(count, what, " taken for something else"),
      count,
      has: (p) => p.label === label && p.answer !== label,
    };
  }
  if (answer === OTHERS) {
    const count = sum([...row].filter(([a]) => hidden(a)).map(([, c]) => c));
    return {
      title: title(count, what, " taken for a class that is not in sight"),
      count,
      has: (p) => p.label === label && hidden(p.answer),
    };
  }
  if (answer === OUTSIDE && (foreign ?? null) !== null) {
    const pair = model.confused.find(([l, a, o]) => l === label && a === OUTSIDE && o === model.outside[foreign]);
    return {
      title: title(pair[3], what, " taken for ", name(model.outside[foreign])),
      count: pair[3],
      has: (p) => p.label === label && p.foreign === foreign,
    };
  }
  const count = row.get(answer) ?? 0;
  const words =
    answer === label
      ? [what, " answered right"]
      : [what, " taken for ", answer === OUTSIDE ? "a class that is not in the data" : name(data.classes[answer])];
  return { title: title(count, ...words), count, has: (p) => p.label === label && p.answer === answer };
}
