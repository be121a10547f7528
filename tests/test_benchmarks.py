"""The speed measurements compare what they say; `make bench` gives the figures."""

import sys

import numpy as np
from helpers import ROOT

from captioning.captions import read_captions, read_split_lists

sys.path.insert(0, str(ROOT / "benchmarks"))


def test_lengths_against_the_real_ones(flickr8k):
    import workload

    captions, _ = read_captions(flickr8k / "captions.txt")
    train = read_split_lists(flickr8k)["train"]
    lengths = [len(caption.split()) for i in train for caption in captions[i]]
    found = np.bincount(lengths)[workload.FIRST_LENGTH :]
    np.testing.assert_array_equal(found, workload.LENGTHS)


def test_the_floor_does_every_product_of_a_step():
    """Six operations a weight and token; four in the image branch, whose input has no gradient."""
    from floor import B, F, U, V, products

    width = 7
    found = sum(2 * m * k * n for m, k, n in products(width))
    passed_by_tokens = 256 * 4 * U + U * 4 * U + U * U + U * V
    assert found == 6 * B * width * passed_by_tokens + 4 * B * F * U
