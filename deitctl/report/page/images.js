// Galleries, and the lists of images behind a cell of the confusion matrix.

const OUTSIDE = -1; // a predicted class that the data does not have

/** The images that are listed by name, each with its example if a gallery shows it. */
function listedImages(model, data) {
  const { index, label, pred, outside, confidence } = model.listed;
  const examples = new Map(
    Object.values(model.galleries)
      .flat()
      .map((example) => [example.index, example]),
  );
  return index.map((at, n) => ({
    name: data.names[at],
    label: label[n],
    pred: pred[n],
    confidence: confidence[n],
    predTitle: pred[n] === OUTSIDE ? (model.outside[outside[n]] ?? "another class") : data.classes[pred[n]],
    outside: outside[n],
    example: examples.get(at),
  }));
}

function imageList(model, data, images, total) {
  const nodes = [];
  if (images.length < total) {
    const listed = model.listed.mistakes_only ? "only the most confident mistakes" : "only these";
    nodes.push(
      el(
        "p",
        { className: "quiet" },
        `${formatCount(images.length)} of ${countImages(total)} are listed: the report holds the names of ${listed}.`,
      ),
    );
  }
  const hasThumbnails = images.some((image) => image.example);
  nodes.push(
    ...shortenedList(
      "ul",
      images,
      24,
      (image) =>
        el(
          "li",
          {},
          image.example
            ? el("img", { src: report.images[image.example.image], alt: "", width: 56, height: 56 })
            : hasThumbnails
              ? el("span", { className: "nothumb" })
              : null,
          el(
            "span",
            {},
            el("code", {}, name(image.name)),
            el("br"),
            quiet(
              data.classes[image.label],
              ...(image.label === image.pred
                ? [", predicted correctly, "]
                : [" predicted as ", name(image.predTitle), ", "]),
              percent(image.confidence),
            ),
          ),
        ),
      "images",
    ),
  );
  return nodes;
}

const GALLERIES = {
  mistakes: [
    "Wrong predictions of the highest confidence: check them for wrong labels and for images that show several classes.",
    "No mistakes.",
  ],
  unsure: ["Correct predictions of the lowest confidence.", "No correct predictions."],
  disagreements: [
    "Images for which the class head and the distillation head predict different classes.",
    "No disagreements: the model has one head, or both agree on every image.",
  ],
};

function drawGallery(section, model, data, kind) {
  const examples = model.galleries[kind];
  const [about, empty] = GALLERIES[kind];
  if (!examples.length) {
    section.append(el("p", { className: "empty" }, empty));
    return;
  }
  section.append(el("p", { className: "quiet" }, about));
  const maps = [...new Set(examples.flatMap((example) => Object.keys(example.maps)))];
  const cards = new Set();
  const render = (example) => {
    const card = imageCard(example, model, data, maps);
    card.show(map);
    cards.add(card);
    return card.node;
  };
  let map = "";
  if (maps.length) {
    const choices = { "": "image", ...Object.fromEntries(maps.map((token) => [token, `attention of the ${token}`])) };
    section.append(
      choice("Show", choices, "", (token) => {
        map = token;
        for (const card of cards) card.show(map);
      }),
    );
    section.append(el("p", { className: "quiet" }, "Click an image to switch its map."));
  }
  section.append(...shortenedList("div", examples, 12, render, "gallery"));
}

/** One image with its predictions; `show(map)` lays an attention map over it, "" none. */
function imageCard(example, model, data, maps) {
  const label = data.classes[example.label];
  const image = el("img", { src: report.images[example.image], alt: `${data.names[example.index]}, labeled ${label}` });
  const overlay = el("img", { alt: "", className: "map", hidden: true });
  const caption = el("span", { className: "mapname", hidden: true });
  const button = el(
    "button",
    { type: "button", className: "image", disabled: !maps.length },
    image,
    overlay,
    caption,
  );
  let shown = "";
  const show = (map) => {
    shown = Object.hasOwn(example.maps, map) ? map : "";
    if (shown) {
      overlay.src = report.images[example.maps[shown]];
      overlay.alt = `attention of the ${shown}`;
      caption.textContent = shown;
    }
    overlay.hidden = caption.hidden = !shown;
    button.setAttribute("aria-pressed", String(Boolean(shown)));
  };
  button.addEventListener("click", () => show(["", ...maps][(maps.indexOf(shown) + 2) % (maps.length + 1)]));
  const bars = (guesses, head) =>
    guesses.map(([guess, score]) => {
      const isCorrect = guess === label;
      const bar = el("span", { className: "score" });
      bar.style.width = `${100 * score}%`;
      return el(
        "li",
        { className: isCorrect ? "correct" : "wrong" },
        el("span", { className: "guess" }, head ? quiet(head) : "", isCorrect ? "✓ " : "", name(guess)),
        el("span", { className: "number" }, percent(score)),
        bar,
      );
    });
  const heads = Object.entries(example.heads).flatMap(([head, guess]) => bars([guess], head));
  const node = el(
    "figure",
    { className: "example" },
    button,
    el(
      "figcaption",
      {},
      el("p", { className: "truth" }, quiet("labeled "), name(label)),
      el("ol", { className: "guesses" }, heads.length ? heads : bars(example.guesses)),
      el("p", { className: "file", title: data.names[example.index] }, name(data.names[example.index])),
    ),
  );
  return { node, show };
}
