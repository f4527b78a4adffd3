// A worker, so that the page stays responsive: loads the model and classifies images one after the other.

import * as ort from "./onnxruntime.js";
import { decode } from "./decode.js";
import { evalView } from "./view.js";

const MOST_THREADS = 4;
let about = null;
let session = null;

/** Fetch files of this folder, reporting the bytes received; the total is null if a response is compressed. */
async function fetchAll(names, report) {
  const responses = await Promise.all(names.map(async (name) => {
    const response = await fetch(new URL(name, import.meta.url));
    if (!response.ok) throw new Error(`The server has no ${name} (${response.status}).`);
    return response;
  }));
  const sizes = responses.map((a) => (a.headers.get("Content-Encoding") ? NaN : Number(a.headers.get("Content-Length") ?? NaN)));
  const total = sizes.reduce((a, b) => a + b, 0) || null;
  let received = 0;
  return Promise.all(responses.map(async (response) => {
    const parts = [];
    const reader = response.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      received += part.value.length;
      report(received, total);
    }
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }));
}

async function load() {
  const [text] = await fetchAll(["model.json"], () => {});
  about = JSON.parse(new TextDecoder().decode(text));
  postMessage({ kind: "about", about });
  const [model, wasm] = await fetchAll(["model.onnx", "onnxruntime.wasm"], (received, total) => postMessage({ kind: "progress", received, total }));
  const start = performance.now();
  ort.env.wasm.wasmBinary = wasm.buffer;
  // threads share memory, which browsers allow where the server sends COOP and COEP headers
  const threads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.numThreads = threads;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const side = about.preprocessing.img_size;
  await run(new Uint8Array(side * side * 3)); // the first run allocates
  postMessage({ kind: "ready", bytes: model.length, threads, milliseconds: performance.now() - start });
}

/** Run the network on a view, RGB bytes [S,S,3]. */
function run(view) {
  const side = about.preprocessing.img_size;
  return session.run({ pixels: new ort.Tensor("uint8", view, [1, side, side, 3]) });
}

async function classify(blob) {
  const start = performance.now();
  const image = await decode(blob);
  let view;
  try {
    view = evalView(image, about.preprocessing);
  } finally {
    image.close();
  }
  const decoded = performance.now();
  const { probabilities, labels, attention } = await run(view.slice()); // its own copy: the page gets this one
  const maps = attention ? { data: attention.data, grid: attention.dims[2] } : null;
  const milliseconds = { view: decoded - start, network: performance.now() - decoded };
  return { view, probabilities: probabilities.data, labels: labels?.data ?? null, attention: maps, milliseconds, width: image.width, height: image.height };
}

const loaded = load();
loaded.catch((error) => postMessage({ kind: "broken", reason: error.message || String(error) }));

let queue = loaded;
onmessage = ({ data: { id, blob } }) => {
  queue = queue.then(() => classify(blob)).then(
    (result) => postMessage({ kind: "result", id, ...result }, [result.view.buffer]),
    (error) => session && postMessage({ kind: "failed", id, reason: error.message || String(error) }),
  );
};
