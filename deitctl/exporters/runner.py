"""Run an export in a process of its own, with NumPy and its own runtime, without deitctl.

    python -I runner.py FORMAT PATH IN OUT.npy

IN is a file of images, uint8 [N,S,S,3], and OUT becomes float32 [C,N,K]: logits alone (C = 1), with
probabilities (C = 2), or of a multi-label network with its labels too, 0 or 1 (C = 3). Where IN is
a folder of N images of any size, the export preprocesses them itself:

- `onnx`, .npy files, uint8 [H,W,3]: OUT is [C,N,K], and seen.npy beside it holds what the network
  got, uint8 [N,S,S,3];
- `transformers`, image files: OUT is logits [2,N,K], preprocessed by the processor's Pillow backend
  and by its default one, and labels.json beside it holds the names of the K classes.

A loader opens an export and returns a function from images, uint8 [B,S,S,3], to float32 [C,B,K].
Each imports its own runtime alone, so that the others need not be installed.

Shapes:
    N images, B in a batch, S pixels a side, K classes, C outputs, T tokens, G patches a side
"""

# No import of deitctl, timm and so on at module level: the runner shows that an export needs
# nothing but its runtime.
import json
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

Network = Callable[[Any], Any]
BATCH_SIZE = 16
OUTPUTS = ("logits", "probabilities", "labels")
# Without the hint a CPU that has bf16 computes in it: logits then differ in the second digit.
OPENVINO_FP32 = {"INFERENCE_PRECISION_HINT": "f32"}


def open_onnx(path: str, *, threads: int = 0) -> Any:
    """Return an onnxruntime session on the CPU; 0 threads: onnxruntime's default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def load_onnx(path: str, *, threads: int = 0) -> Network:
    """Open an ONNX file, which may be a bare network."""
    session = open_onnx(path, threads=threads)
    outputs = list_outputs(session)

    def run(pixels: Any) -> Any:
        name, images = prepare_input(session, pixels)
        return stack(session.run(outputs, {name: images}))

    return run


def list_outputs(session: Any) -> list[str]:
    """Return the names of a session's outputs by class, without others such as `attention`."""
    names = {output.name for output in session.get_outputs()}
    return [name for name in OUTPUTS if name in names]


def stack(outputs: Any) -> Any:
    """Return outputs [B,K] as one array of float32, [C,B,K]."""
    return np.stack([np.asarray(output, np.float32) for output in outputs])


def prepare_input(session: Any, pixels: Any) -> tuple[str, Any]:
    """Return the name of a session's input, and images [B,S,S,3] as it takes them.

    A bare network's images are normalized here, as its metadata say.
    """
    (image,) = session.get_inputs()
    # The type of the input tells a bare network from one that normalizes by itself.
    if image.type == "tensor(uint8)":
        return image.name, pixels
    metadata = session.get_modelmeta().custom_metadata_map
    normalization = json.loads(metadata["preprocessing"])["normalization"]
    mean, std = (np.array(normalization[key], dtype=np.float32) for key in ("mean", "std"))
    images = (pixels.astype(np.float32) / 255 - mean) / std
    return image.name, images.transpose(0, 3, 1, 2)


def load_web(path: str, *, threads: int = 0) -> Network:
    """Open a page's network; where it outputs attention, that is checked too."""
    session = open_onnx(f"{path}/model.onnx", threads=threads)
    names = [output.name for output in session.get_outputs()]

    def run(pixels: Any) -> Any:
        outputs = dict(zip(names, session.run(None, {"pixels": pixels}), strict=True))
        if (attention := outputs.pop("attention", None)) is not None:
            require_attention_weights(attention)
        return stack(outputs.values())

    return run


def require_attention_weights(attention: Any) -> None:
    """Exit with a message unless attention [B,T,G,G] is non-negative and sums to 1 at most."""
    sums = attention.sum(axis=(2, 3))
    # written so that NaN fails
    if not ((attention >= 0).all() and (sums > 0).all() and (sums <= 1 + 1e-3).all()):
        sys.exit(f"attention sums to {sums.min():.3g} .. {sums.max():.3g}: these are no weights.")


def load_openvino(path: str, config: dict[str, str] = OPENVINO_FP32) -> Network:
    """Open an OpenVINO folder."""
    import openvino

    network = openvino.Core().compile_model(f"{path}/model.xml", "CPU", config)
    names = [output.any_name for output in network.outputs]

    def run(pixels: Any) -> Any:
        outputs = network(pixels)
        return stack([outputs[name] for name in names])

    return run


def load_torch(path: str) -> Network:
    """Open a `.pt2` file of torch.export."""
    import torch

    return wrap_torch(torch.export.load(path).module())


def load_aoti(path: str) -> Network:
    """Open a `.pt2` package that AOTInductor compiled."""
    from torch._inductor import aoti_load_package

    return wrap_torch(aoti_load_package(path))


def wrap_torch(network: Any) -> Network:
    """Return a function that runs a torch network on arrays."""
    import torch

    @torch.no_grad()
    def run(pixels: Any) -> Any:
        return stack(network(torch.from_numpy(pixels)))

    return run


def load_executorch(path: str) -> Network:
    """Open a `.pte` file; batches hold 16 images at most."""
    import torch

    program: Any = import_module("executorch.runtime").Runtime.get().load_program(path)
    network = program.load_method("forward")

    def run(pixels: Any) -> Any:
        outputs = network.execute((torch.from_numpy(np.ascontiguousarray(pixels)),))
        # Cloned: outputs lie in the memory that was planned at export, and the next call writes
        # there.
        return stack(output.clone() for output in outputs)

    # the method does not keep its program alive
    run.program = program  # type: ignore[attr-defined]
    return run


def load_coreml(path: str) -> Network:
    """Open a Core ML package, which takes one image at a time, probabilities by label; on macOS."""
    import coremltools
    from PIL import Image

    # The Neural Engine computes in fp16, whatever the package says.
    model = coremltools.models.MLModel(path, compute_units=coremltools.ComputeUnit.CPU_ONLY)
    labels = json.loads(model.user_defined_metadata["labels"])

    def run_one(pixels: Any) -> Any:
        outputs = model.predict({"image": Image.fromarray(pixels)})
        if "labels" in outputs:  # of a multi-label model all are arrays
            return stack(outputs[name].reshape(-1) for name in OUTPUTS)
        probabilities = [outputs["probabilities"][label] for label in labels]
        return np.stack([outputs["logits"].reshape(-1), probabilities])

    return lambda pixels: np.stack([run_one(image) for image in pixels], axis=1).astype(np.float32)


def load_timm(path: str) -> Network:
    """Open a timm folder; images are normalized as its config.json says."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    config: dict[str, Any] = dict(getattr(model, "pretrained_cfg"))  # noqa: B009
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("mean", "std"))

    @torch.no_grad()
    def run(pixels: Any) -> Any:
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
        return model((images - mean) / std)[None].numpy()

    return run


def load_transformers(path: str) -> Network:
    """Open a transformers folder; images are normalized as its image processor says."""
    import torch

    transformers, model = open_transformers(path)
    processor = transformers.AutoImageProcessor.from_pretrained(path)

    @torch.no_grad()
    def run(pixels: Any) -> Any:
        # Normalization alone: resize and crop are verified apart, on image files.
        views = processor(
            images=list(pixels), return_tensors="pt", do_resize=False, do_center_crop=False
        )
        return model(**views).logits[None].numpy()

    return run


def open_transformers(path: str) -> tuple[Any, Any]:
    """Return the transformers library and the model of a folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; everything that is needed is in the folder
    # Any: the library is typed in part, and only where it is installed
    transformers: Any = import_module("transformers")
    return transformers, transformers.AutoModelForImageClassification.from_pretrained(path).eval()


LOADERS: dict[str, Callable[..., Network]] = {
    "onnx": load_onnx,
    "torch": load_torch,
    "timm": load_timm,
    "transformers": load_transformers,
    "openvino": load_openvino,
    "web": load_web,
    "coreml": load_coreml,
    "executorch": load_executorch,
    "aoti": load_aoti,
}


def run_batches(network: Network, images: Any) -> Any:
    """Run a network on N images, the first alone and the others in batches; return float32 [C,N,K].

    The first alone shows that the batch size is free, and what the others of a batch change.
    """
    starts = range(1, len(images), BATCH_SIZE)
    batches = [images[:1], *(images[start : start + BATCH_SIZE] for start in starts)]
    return np.concatenate([network(batch) for batch in batches], axis=1)


def run_dynamic_onnx(path: str, files: list[str], output: Path) -> Any:
    """Run an ONNX file of dynamic size on arrays, one by one; return [C,N,K], write seen.npy."""
    session = open_onnx(path)
    names = [*list_outputs(session), "seen"]
    outputs = [session.run(names, {"pixels": np.load(file)[None]}) for file in files]
    *by_class, seen = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
    np.save(output.with_name("seen.npy"), seen)
    return stack(by_class)


def run_image_files(path: str, files: list[str], output: Path) -> Any:
    """Run a transformers folder on image files; return logits [2,N,K] and write labels.json."""
    import torch

    transformers, model = open_transformers(path)
    load_image = import_module("transformers.image_utils").load_image
    processors = (
        # Pillow's resize is deitctl's. The default backend is torchvision's where installed, a
        # level or two off.
        transformers.AutoImageProcessor.from_pretrained(path, backend="pil"),
        transformers.AutoImageProcessor.from_pretrained(path),
    )

    @torch.no_grad()
    def run(batch: Any) -> Any:
        images = [load_image(file) for file in batch]
        views = [processor(images=images, return_tensors="pt") for processor in processors]
        return torch.stack([model(**view).logits for view in views]).numpy()

    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    output.with_name("labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return run_batches(run, files)


WHOLE_IMAGES = {"onnx": run_dynamic_onnx, "transformers": run_image_files}


def main(name: str, path: str, inputs: str, output: str) -> None:
    """Run an export of the format `name` on images and write its outputs."""
    if Path(inputs).is_dir():
        files = sorted(str(file) for file in Path(inputs).iterdir())
        outputs = WHOLE_IMAGES[name](path, files, Path(output))
    else:
        outputs = run_batches(LOADERS[name](path), np.load(inputs))
    np.save(output, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
