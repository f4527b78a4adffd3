// The page: images are dropped, chosen or pasted, and classified in their order.

import { makeCard, showFailure, showResult } from "./result.js";

const MAX_PIXELS = 100_000_000; // the limit of deitctl's decoder
const MAX_IMAGES = 200; // on the page at a time: each takes a megabyte
const LOADING = "Loading the model …";
const byId = (id) => document.getElementById(id);

let about = null;
let ready = false;
let number = 0; // of the next image
let since = 0; // number of the first image since the last time that none was pending
let leftOut = 0; // images beyond MAX_IMAGES
const pending = new Map(); // images without a result: number -> { card, name, url }

// A worker from the server has no policy but its own; one from a blob has this page's, which forbids other servers.
const script = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
const worker = new Worker(URL.createObjectURL(new Blob([script], { type: "text/javascript" })), { type: "module" });
worker.onerror = () => showBroken("This browser is too old for the page, or the server does not send its scripts.");
worker.onmessage = ({ data }) => handlers[data.kind]?.(data);

const handlers = {
  progress({ received, total }) {
    const bar = byId("progress");
    if (total) [bar.max, bar.value] = [total, received];
    else bar.removeAttribute("value");
    // the status is read aloud when it changes, so the bytes are shown beside it
    bar.title = `${megabytes(received)}${total ? ` of ${megabytes(total)}` : ""}`;
    byId("amount").textContent = bar.title;
  },
  about(message) {
    about = message.about;
    const classes = about.labels.length.toLocaleString("en");
    byId("about").textContent = `${about.architecture}, ${classes} ${about.labels.length === 1 ? "class" : "classes"}`;
    byId("maps").hidden = about.tokens.length === 0;
  },
  ready({ bytes }) {
    ready = true;
    document.body.dataset.state = "ready";
    byId("about").textContent += `, ${megabytes(bytes)}`;
    byId("progress").hidden = true;
    byId("amount").hidden = true;
    setStatus(pending.size ? busy() : "Ready.");
  },
  broken: ({ reason }) => showBroken(reason),
  result(result) {
    const { card, name, url } = takePending(result.id);
    URL.revokeObjectURL(url);
    const best = showResult(card, name, result, about);
    reportDone(`${name}: ${best}`);
  },
  failed: ({ id, reason }) => fail(id, `It cannot be decoded: ${reason}`),
};

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
const busy = () => `Classifying ${pending.size} ${pending.size === 1 ? "image" : "images"} …`;

function setStatus(text) {
  byId("state").textContent = text;
  byId("results").setAttribute("aria-busy", String(pending.size > 0));
}

/** Show the result of the last image, or how many were classified. */
function reportDone(last) {
  if (pending.size) setStatus(ready ? busy() : LOADING);
  else {
    const more = leftOut ? ` ${leftOut} were left out: the limit is ${MAX_IMAGES} at a time.` : "";
    setStatus(number - since === 1 ? last : `${number - since} images are done.${more}`);
  }
}

function showBroken(reason) {
  document.body.dataset.state = "broken";
  byId("progress").hidden = true;
  byId("amount").hidden = true;
  byId("choose").disabled = true;
  for (const id of [...pending.keys()]) fail(id, "The model could not be loaded.");
  setStatus(`The model cannot be loaded. ${reason}`);
}

function takePending(id) {
  const entry = pending.get(id);
  pending.delete(id);
  return entry;
}

function fail(id, reason) {
  const { card, name, url } = takePending(id);
  URL.revokeObjectURL(url);
  showFailure(card, reason);
  reportDone(`${name}: ${reason}`);
}

/** Put a card for each file at the top, in their order, and have each classified. */
async function add(files) {
  if (document.body.dataset.state === "broken" || !files.length) return;
  const accepted = [...files].slice(0, MAX_IMAGES);
  const cards = accepted.map((file) => makeCard(file.name || "pasted image"));
  byId("results").prepend(...cards);
  for (const old of [...byId("results").children].slice(MAX_IMAGES)) if (!isPending(old)) old.remove();
  const first = number;
  if (!pending.size) since = number;
  number += accepted.length;
  accepted.forEach((file, n) => {
    pending.set(first + n, { card: cards[n], name: file.name || "pasted image", url: URL.createObjectURL(file) });
  });
  byId("clear").hidden = false;
  setStatus(ready ? busy() : LOADING);
  leftOut = files.length - accepted.length;
  for (const [n, file] of accepted.entries()) {
    const reason = pending.has(first + n) ? await findProblem(pending.get(first + n).url) : "";
    if (!pending.has(first + n)) return; // the model failed to load meanwhile, and every image with it
    if (reason) fail(first + n, reason);
    else worker.postMessage({ id: first + n, blob: file });
  }
}

const isPending = (card) => [...pending.values()].some((o) => o.card === card);

/** Return why an image cannot be decoded, from its header alone; empty if it can. */
function findProblem(url) {
  return new Promise((resolve) => {
    const image = new Image();
    image.onload = () => {
      const { naturalWidth: width, naturalHeight: height } = image;
      const large = width * height > MAX_PIXELS;
      resolve(large ? `It has ${width} × ${height} pixels, more than ${MAX_PIXELS.toLocaleString("en")}.` : "");
    };
    image.onerror = () => resolve("This is not an image that the browser can read.");
    image.src = url;
  });
}

byId("choose").onclick = () => byId("files").click();
byId("files").onchange = () => {
  add(byId("files").files);
  byId("files").value = ""; // so that the same image can be chosen again
};
byId("clear").onclick = () => {
  for (const card of [...byId("results").children]) if (!isPending(card)) card.remove();
  byId("clear").hidden = !byId("results").children.length;
  byId("choose").focus();
};
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) add(event.clipboardData.files);
  else setStatus("The clipboard has no image.");
});
let inside = 0; // a drag enters every element below the pointer
document.addEventListener("dragenter", () => document.body.classList.toggle("dragging", ++inside > 0));
document.addEventListener("dragleave", () => document.body.classList.toggle("dragging", --inside > 0));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  event.preventDefault();
  inside = 0;
  document.body.classList.remove("dragging");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else setStatus("No file was dropped: save the image first, or paste it.");
});
