"""What stands beside a model's scores: a constant caption, other images' captions, people's."""

import numpy as np
from scipy.sparse import csr_matrix

from captioning.cider import CIDER_SIGMA, ORDERS, ngrams
from captioning.scoring import Measure, Scorer
from captioning.significance import LEVEL, RESAMPLES, interval

FEW_IMAGES = 100  # of which scores say little


def score_rows(
    scorer: Scorer,
    captions: dict[str, str],
    references: dict[str, list[str]],
    training: dict[str, list[str]],
    seed: int,
) -> tuple[dict, dict[str, Measure]]:
    """Scores of the model and the rows beside it, with a "protocol"; the model's own measures.

    By image id come the model's captions, their references, and the training split's human ones.
    `seed` decides whose features are given to whom, and which photos a resample draws.
    """
    image_ids = list(captions)
    measures = scorer.measure(captions, references)
    rows = {"model": with_intervals(measures, seed) | statistics(captions, training)}

    def score(said: dict[str, str], truth: dict[str, list[str]]) -> dict:
        return with_intervals(scorer.measure(said, truth), seed)

    constant = constant_caption(training)
    rows["constant"] = score(dict.fromkeys(image_ids, constant), references)
    if len(image_ids) > 1:
        # A random derangement: each image gets the caption of the next in a random circle.
        circle = np.random.default_rng(seed).permutation(image_ids).tolist()
        others = dict(zip(circle, circle[1:] + circle[:1], strict=True))
        rows["shuffled"] = score({i: captions[others[i]] for i in image_ids}, references)
    rest = {i: lines[1:] for i, lines in references.items() if len(lines) > 1}
    if rest:
        rows["human"] = score({i: references[i][0] for i in rest}, rest)
        rows["model, same references as human"] = score({i: captions[i] for i in rest}, rest)
    rows["protocol"] = {
        "images": len(image_ids),
        "references_per_image": sorted({len(lines) for lines in references.values()}),
        "tokenizer": "captions.tokenize, for candidates and references; no start, no end; "
        "characters for words in scripts without spaces",
        "intervals": f"{LEVEL:.0%}, bootstrap over images (BCa), {RESAMPLES} resamples",
        "constant_caption": constant,
        "human": "the first caption of each image against its others",
        "notes": notes(len(image_ids), len(rest), scorer.without_meteor),
        "seed": seed,
    }
    return rows, measures


def with_intervals(measures: dict[str, Measure], seed: int) -> dict:
    """Scores by name, and in "intervals" how far each may be chance, as [low, high] or None."""
    scores = {name: measure.score for name, measure in measures.items()}
    known = [name for name, score in scores.items() if np.isfinite(score)]  # METEOR may have failed
    intervals = {name: interval(measures[name], seed) for name in known}
    return {name: scores[name] for name in known} | {"intervals": intervals}


def notes(images: int, several: int, without_meteor: str) -> list[str]:
    """Where scores say little: of few images, `several` of which have more than one reference."""
    found = []
    if without_meteor:
        found.append(f"no METEOR: {without_meteor}; the other scores stand.")
    if images < FEW_IMAGES:
        found.append(f"{images} images are few: scores vary much by chance.")
    if several < images:
        found.append(
            f"{images - several} of {images} images have a single reference: scores are lower than "
            f"with several, and the human rows are of the {several} others."
        )
    return found


def statistics(captions: dict[str, str], training: dict[str, list[str]]) -> dict[str, float]:
    """What the captions are like: variety, copies of training captions, length in words."""
    known = {line for lines in training.values() for line in lines}
    said = list(captions.values())
    return {
        "distinct_captions": len(set(said)),
        "copied_from_training": sum(caption in known for caption in said) / len(said),
        "words_used": len({word for caption in said for word in caption.split()}),
        "mean_length": sum(len(caption.split()) for caption in said) / len(said),
    }


def constant_caption(training: dict[str, list[str]]) -> str:
    """The training caption that, said of every training image, has the highest CIDEr.

    CIDEr of one caption for all is its TF-IDF vector times the mean of all references' vectors, so
    that all captions are scored at once. (Repeated n-grams are not clipped as in CIDEr-D: they
    have hardly any weight.) `training` is image id -> tokenized captions.
    """
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    captions = [caption for lines in training.values() for caption in lines]  # C in all
    owner = np.repeat(np.arange(len(training)), [len(lines) for lines in training.values()])
    share = 1 / (len(training) * np.bincount(owner)[owner])  # of each reference in the mean, (C,)
    lengths = np.array([len(caption.split()) for caption in captions])
    vectorizer = CountVectorizer(analyzer=lambda caption: ngrams(caption.split()))
    counts = vectorizer.fit_transform(captions).astype(float)  # (C, n-grams), sparse
    orders = np.array([len(gram) for gram in vectorizer.get_feature_names_out()])
    of_image = csr_matrix((np.ones_like(owner), (owner, np.arange(len(owner)))))  # (images, C)
    images = of_image @ (counts > 0)  # (images, n-grams)
    weights = np.log(len(training)) - np.log((images > 0).sum(axis=0).A1)  # (n-grams,)
    scores = np.zeros(len(captions))
    for n in ORDERS:
        columns = np.flatnonzero(orders == n)
        if not len(columns):  # of captions of a word or two
            continue
        vectors = normalize(counts[:, columns].multiply(weights[columns]).tocsr())
        for length in np.unique(lengths):
            near = share * np.exp(-((lengths - length) ** 2) / (2 * CIDER_SIGMA**2))  # (C,)
            same = lengths == length
            scores[same] += vectors[same] @ (near @ vectors)
    return captions[int(scores.argmax())]
