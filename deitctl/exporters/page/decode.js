// From a file to the pixels that deitctl's decoder gives: upright, as stored (no colour profile), transparency over white.

const MAX_SIDE = 65_535;
const HOLDS_ALPHA = ["image/png", "image/webp", "image/gif", "image/avif"];

/** Decode a blob: { width, height, rows(top, count), close() }, whose rows are RGBA bytes, A being 255. */
export async function decode(blob) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(blob, options);
  const { width, height } = bitmap;
  if (Math.max(width, height) > MAX_SIDE) throw new Error("too large");
  const exact = await unpremultiplied(blob, width, height);
  let canvas = null;
  return {
    width,
    height,
    rows(top, count) {
      if (canvas?.height !== count) canvas = new OffscreenCanvas(width, count);
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.clearRect(0, 0, width, count);
      context.drawImage(bitmap, 0, -top);
      const shown = context.getImageData(0, 0, width, count).data;
      const stored = exact?.subarray(top * width * 4, (top + count) * width * 4);
      return overWhite(stored && alike(stored, shown) ? stored : shown);
    },
    close: () => bitmap.close(),
  };
}

/**
 * The picture's RGBA bytes as stored, or null. A canvas multiplies colours by alpha and rounds, after which they are a
 * level beside; where a browser has WebCodecs, which it gives to https and localhost alone, they can be had exactly.
 */
async function unpremultiplied(blob, width, height) {
  if (!("ImageDecoder" in self) || !HOLDS_ALPHA.includes(blob.type)) return null;
  let decoder = null;
  try {
    const options = { data: await blob.arrayBuffer(), type: blob.type };
    decoder = new ImageDecoder({ ...options, colorSpaceConversion: "none", premultiplyAlpha: "none" });
    const { image } = await decoder.decode();
    try {
      if (!/^(RGBA|BGRA)$/.test(image.format) || image.codedWidth !== width || image.codedHeight !== height) return null;
      const bytes = new Uint8ClampedArray(width * height * 4);
      await image.copyTo(bytes, { format: "RGBA" });
      return bytes;
    } finally {
      image.close();
    }
  } catch {
    return null; // the canvas has the picture, to a level
  } finally {
    decoder?.close();
  }
}

/** Whether stored bytes are the picture that is shown: the decoder of WebCodecs does not turn it upright. */
function alike(stored, shown) {
  for (let p = 0; p < shown.length; p += 4) {
    const alpha = shown[p + 3];
    if (stored[p + 3] !== alpha) return false;
    for (let c = p; c < p + 3; c++) if (Math.abs(stored[c] - shown[c]) * alpha > 3 * 255) return false;
  }
  return true;
}

/** Lay colours over white, rounded as Pillow's alpha_composite does. */
function overWhite(rgba) {
  for (let p = 0; p < rgba.length; p += 4) {
    const alpha = rgba[p + 3];
    if (alpha === 255) continue;
    for (let c = p; c < p + 3; c++) rgba[c] = Math.floor((rgba[c] * alpha + 255 * (255 - alpha)) / 255 + 0.5);
    rgba[p + 3] = 255;
  }
  return rgba;
}
