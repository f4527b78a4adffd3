// Decode a file to the pixels of deitctl's decoder: upright, as stored (no color profile), transparency over white.

/** Decode a blob: { width, height, rows(top, count), close() }, whose rows are RGBA bytes, A being 255. */
export async function decode(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(blob, options);
  const { width, height } = bitmap;
  let canvas = null;
  return {
    width,
    height,
    rows(top, count) {
      if (canvas?.height !== count) canvas = new OffscreenCanvas(width, count);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.clearRect(0, 0, width, count);
      context.drawImage(bitmap, 0, -top);
      return compositeOverWhite(context.getImageData(0, 0, width, count).data);
    },
    close: () => bitmap.close(),
  };
}

/**
 * Composite colors over white, rounded as Pillow's alpha_composite does.
 *
 * A canvas stores c a / 255, rounded, and returns it divided by a / 255, another color where a is small. Multiplied again
 * it is the stored value, and white's part is an integer, so nothing is lost.
 */
function compositeOverWhite(rgba) {
  for (let p = 0; p < rgba.length; p += 4) {
    const alpha = rgba[p + 3];
    if (alpha === 255) continue;
    for (let c = p; c < p + 3; c++) rgba[c] = Math.floor((rgba[c] * alpha) / 255 + 0.5) + 255 - alpha;
    rgba[p + 3] = 255;
  }
  return rgba;
}
