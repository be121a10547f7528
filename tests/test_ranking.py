"""Captions for photos and photos for captions, by probabilities that are the network's own."""

import dataclasses
import json

import numpy as np
import pytest
from helpers import CONFIG, CONFIGS, EACH, random_features, run_here, token_losses, untrained

from captioning.captions import END, START
from captioning.ranking import Tree, log_probabilities, ranks, recalls
from ensemble import ensemble


def random_captions(count: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Ids of captions of few words, many of which begin alike, some of which are the same."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, longest + 1, count)
    return [[START, *random.choice([4, 5, 6], length), END] for length in lengths]


def by_the_network(decoder, features, captions) -> np.ndarray:
    """Log-probabilities by whole captions, one by one: (N, C)."""
    columns = []
    for ids in captions:
        repeated = np.repeat([ids], len(features), axis=0)  # (N, T + 1)
        columns.append(-token_losses(decoder.network, features, repeated).sum(axis=1))
    return np.stack(columns, axis=1)


@pytest.mark.long
@EACH
def test_log_probabilities_are_those_of_whole_captions(config, monkeypatch):
    """Whatever the blocks and the photos at once; equal captions have equal ones."""
    decoder, captions = untrained(config).decoder, random_captions(40, 5)
    features, done = random_features(7, config), []
    found = log_probabilities(decoder, features, captions, done.append)
    np.testing.assert_allclose(found, by_the_network(decoder, features, captions), rtol=1e-4)
    assert sum(done) == found.size == 7 * 40
    monkeypatch.setattr("captioning.ranking.BLOCK", 11)
    monkeypatch.setattr("captioning.ranking.ROWS", 20)
    parts = log_probabilities(decoder, features, captions)
    np.testing.assert_allclose(parts, found, rtol=1e-4)


def test_an_ensemble_is_ranked_as_well():
    members = [untrained(CONFIG, seed) for seed in (0, 1)]
    decoder, captions = ensemble(members).decoder, random_captions(10, 4)
    features = random_features(3)
    found = log_probabilities(decoder, features, captions)
    np.testing.assert_allclose(found, by_the_network(decoder, features, captions), rtol=1e-4)


@pytest.mark.parametrize("config", [CONFIG, CONFIGS["updown"]], ids=["merge", "updown"])
def test_of_captions_longer_than_the_longest_the_first_words_count(config):
    """As in decoding, which ends them there; the longest itself keeps its end."""
    decoder = untrained(dataclasses.replace(config, max_length=5)).decoder
    words = [4, 5, 6, 7, 8]
    features, long = random_features(3, config), [START, *words, 9, 9, END]
    found = log_probabilities(decoder, features, [long, [START, *words, END]])
    cut = [[START, *words], [START, *words, END]]
    np.testing.assert_allclose(found, by_the_network(decoder, features, cut), rtol=1e-4)


def test_what_begins_alike_is_computed_once():
    captions = [[START, 4, 5, END], [START, 4, 5, 6, END], [START, 4, 5, END], [START, 7, END]]
    tree = Tree.of(captions)
    assert [level.tokens.tolist() for level in tree.levels] == [[4, 7], [5, END], [END, 6], [END]]
    assert [level.parents.tolist() for level in tree.levels] == [[0, 0], [0, 1], [0, 0], [0]]
    assert tree.ends == [(2, 0), (3, 0), (2, 0), (1, 1)]


def test_ranks_by_hand():
    """The second caption is likely of every photo: less its mean, it fits the second one best."""
    log_probs = np.log([[0.3, 0.5, 0.2], [0.1, 0.8, 0.2], [0.19, 0.8, 0.2]])
    # p / mean: [1.53, .71, 1], [.51, 1.14, 1], [.97, 1.14, 1]
    found = ranks(log_probs)
    np.testing.assert_array_equal(found["captions"], [1, 1, 2])
    np.testing.assert_array_equal(found["photos"], [1, 1.5, 2])
    scores = {name: measure.score for name, measure in recalls(np.array([1, 1.5, 5, 11])).items()}
    assert scores == {"R@1": 0.25, "R@5": 0.75, "R@10": 0.75}


def test_a_network_that_ignores_the_photo_ranks_in_the_middle():
    alike = np.log(np.tile(np.random.default_rng(0).uniform(size=50), (50, 1)))
    for found in ranks(alike).values():
        np.testing.assert_array_equal(found, 25.5)


def test_evaluate_ranks(demo, tmp_path, no_java):
    model = ("--model_path", demo / "models" / "caption_model.h5", "--data_dir", demo / "data")
    done = run_here("evaluate.py", *model, "--output_dir", tmp_path, "--ranking", 40)
    ranking = json.loads((tmp_path / "scores.json").read_text())["ranking"]
    assert ranking["images"] == 40
    for wanted, other in (("captions", "photos"), ("photos", "captions")):
        row = ranking[wanted]
        assert row["R@1"] < row["R@5"] <= row["R@10"] and row["median_rank"] < 10
        assert row["R@10"] > 0.5  # by chance .25
        low, high = row["intervals"]["R@1"]
        assert low < row["R@1"] < high
        assert f"{wanted} for {other}: R@1 {row['R@1']:.1%}" in done.stdout
