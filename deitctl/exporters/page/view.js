// The view of an image that the model is asked about: resized and cut as deitctl/data/eval_view.py does.

import { resample } from "./resample.js";

/**
 * Return RGB bytes [S,S,3].
 *
 * source: see `resample`; preprocessing: { imgSize, resizeTo, cropMode, interpolation } of model.json.
 */
export function evalView(source, preprocessing) {
  const { imgSize: side, resizeTo: target, interpolation } = preprocessing;
  const squash = preprocessing.cropMode === "squash";
  const size = squash ? { width: target, height: target } : resized(source.width, source.height, target);
  const across = cut(size.width, side);
  const down = cut(size.height, side);
  const window = { left: across.from, top: down.from, width: across.count, height: down.count };
  const cropped = resample(source, size, window, interpolation);
  const view = new Uint8Array(side * side * 3); // outside the image: black
  for (let y = 0; y < down.count; y++) {
    const row = cropped.subarray(y * across.count * 3, (y + 1) * across.count * 3);
    view.set(row, ((y + down.to) * side + across.to) * 3);
  }
  return view;
}

/** Width and height of an image whose short side becomes `target` pixels. */
function resized(width, height, target) {
  return width <= height
    ? { width: target, height: Math.trunc((target * height) / width) }
    : { width: Math.trunc((target * width) / height), height: target };
}

/** The middle `side` pixels of `length`: from where, to where in the view, and how many there are. */
function cut(length, side) {
  if (length >= side) return { from: halfEven(length - side), to: 0, count: side };
  return { from: 0, to: (side - length) >> 1, count: length };
}

/** Half of a whole number, rounded to the even of two that are as near, as Python's round does. */
function halfEven(n) {
  const down = Math.floor(n / 2);
  return n % 2 && down % 2 ? down + 1 : down;
}
