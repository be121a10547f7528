"""Real photos through the real scripts: a tenth of Flickr8k, a few epochs."""

import json

import joblib
import pytest
from helpers import run_script

pytestmark = pytest.mark.long


def test_a_tenth_of_flickr8k(flickr8k, tmp_path):
    """Its twin on the sample set is the `demo` fixture with the tests in test_scripts.py."""
    data, model_path = tmp_path / "data", tmp_path / "m.h5"
    photos = flickr8k / "Images"
    run_script(
        *("preprocess.py", "--dataset_dir", flickr8k, "--output_dir", data, "--limit", 600),
        *("--encoder", "efficientnet_lite0"),
    )
    text = joblib.load(data / "captions.pkl")
    assert [len(text["splits"][split]) for split in ("train", "dev")] == [600, 600]
    run_script("train.py", "--data_dir", data, "--model_path", model_path, "--epochs", 12)
    run_script(
        *("evaluate.py", "--model_path", model_path, "--data_dir", data, "--split", "dev"),
        *("--output_dir", tmp_path / "results", "--images_dir", photos, "--beam_size", 3),
    )
    scores = json.loads((tmp_path / "results" / "scores.json").read_text())
    assert scores["model"]["loss_per_token"] < 3.7  # the unigram entropy is 5.3
    assert scores["model"]["CIDEr"] > 2 * scores["shuffled"]["CIDEr"]  # it looks at the picture
    assert scores["human"]["CIDEr"] > scores["model, same references as human"]["CIDEr"]
    photo = photos / text["splits"]["dev"][0]
    done = run_script("generate_caption.py", "--model_path", model_path, "--image_path", photo)
    path, caption = done.stdout.strip().split("\t")
    assert path == str(photo)
    assert len(caption.split()) > 3
