"""The speed measurements: that they compare what they say. The figures come from `make bench`."""

import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))


def test_the_captions_are_as_long_as_flickr8k_s():
    import workload

    lengths = [len(caption.split()) for _, caption in workload.captions()]
    assert len(lengths) == 30_000
    assert np.mean(lengths) == pytest.approx(10.788, abs=1e-3)
    assert (min(lengths), max(lengths)) == (2, 36)


def test_lengths_against_the_real_ones(flickr8k):
    import workload

    from captioning.captions import read_captions, read_split_lists

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


def test_the_table_says_how_many_times_as_fast():
    import speed

    def trained(*seconds):
        return [{"seconds": s, "first_seconds": s + 9, "peak_mb": 1000} for s in seconds]

    captioned = {
        "ours": [
            {"greedy_1": 50, "greedy_256": 900, "beam_3": 300, "greedy_256_words": 9, "peak_mb": 1}
        ],
        "predict": [{"seconds": 0.05, "peak_mb": 1}],  # ten words: two captions a second
    }
    one = {"ours": 9.0, "bare": 10.0, "ratio": 0.9, "peak_mb": 1}
    extracted = {
        "ours": {name: one for name in speed.ENCODERS},
        "classic": {name: {"rate": 3.0, "peak_mb": 1} for name in speed.ENCODERS},
    }
    contestants = {"ours": trained(10, 20, 10), "classic": trained(200, 500, 300)}
    contestants |= {"floor": trained(7, 10, 8), "torch": trained(14, 30, 16)}
    contestants |= {"unbucketed": trained(20, 40, 30)}
    rows, figures = speed.table(contestants, captioned, extracted, (6.0, 4.0, 1.5, 500, 400))
    peaks = figures.pop("peak_mb")
    assert figures == {
        "train_vs_classic": 25,
        "train_vs_floor": 0.7,
        "train_vs_torch": 1.5,
        "train_vs_unbucketed": 2,
        "caption_vs_predict_batch256": 450,
        "caption_vs_predict_batch1": 25,
        "extract_vgg16_vs_bare": 0.9,
        "extract_vgg16_vs_classic": 3,
        "extract_lite0_vs_bare": 0.9,
        "extract_lite0_vs_classic": 3,
        "cli_vs_import": 1.5,
    }
    assert len(peaks) >= len(figures)
    assert all(len(row) == 4 for row in rows)
