"""Captions in other scripts: learnt as well as English ones, and drawn where there is a font."""

import csv
import re
import shutil
from collections import Counter

import joblib
import numpy as np
import pytest
from helpers import EXAMPLES, run_here
from matplotlib import font_manager

from captioning.captions import as_written, tokenize
from captioning.plots import draw_captions, draw_description
from model import Captioner

COLOURS = ("red", "green", "blue", "yellow", "purple", "black")
SHAPES = ("circle", "square", "triangle", "star")
CHINESE = {
    **{
        "there is": "有",
        "there are": "有",
        "in the picture": "在图片里",
        "the picture shows": "图片显示",
    },
    **{"on the left": "在左边", "on the right": "在右边", "at the top": "在上面"},
    **{"at the bottom": "在下面", "in the middle": "在中间", "side by side": "并排"},
    **{
        "in a triangle": "成堆",
        "a": "一个",
        "two": "两个",
        "three": "三个",
        "is": "是",
        "are": "是",
    },
    **dict(zip(COLOURS, ("红色", "绿色", "蓝色", "黄色", "紫色", "黑色"), strict=True)),
    **dict(zip(SHAPES, ("圆圈", "方块", "三角形", "星星"), strict=True)),
}
ARABIC = {
    **{"there is": "يوجد", "there are": "توجد", "in the picture": "في الصورة"},
    **{"the picture shows": "تظهر الصورة", "on the left": "على اليسار"},
    **{"on the right": "على اليمين", "at the top": "في الأعلى", "at the bottom": "في الأسفل"},
    **{"in the middle": "في الوسط", "side by side": "جنبا إلى جنب", "in a triangle": "معا"},
    **{"a": "واحد", "two": "اثنان", "three": "ثلاثة", "is": "يكون", "are": "تكون"},
    **dict(zip(COLOURS, ("أحمر", "أخضر", "أزرق", "أصفر", "بنفسجي", "أسود"), strict=True)),
    **dict(zip(SHAPES, ("دائرة", "مربع", "مثلث", "نجمة"), strict=True)),
}
ENGLISH = {word: word for word in (*COLOURS, *SHAPES)}


def translate(caption: str, words: dict[str, str], space: str) -> str:
    """Phrase by phrase; plurals are not told apart."""
    phrases = "|".join(sorted(words, key=len, reverse=True))
    found = re.findall(rf"\b({phrases})s?\b", caption.lower())
    return space.join(words[phrase] for phrase in found)


def share_of_right_scenes(folder, data, words: dict[str, str], model) -> float:
    """Of dev and test scenes, those whose caption names their colour and shape, and no other."""
    features, text = (joblib.load(data / f"{name}.pkl") for name in ("features", "captions"))
    scenes = text["splits"]["dev"] + text["splits"]["test"]
    rows = [features["image_ids"].index(scene) for scene in scenes]
    captions = Captioner.load(model).caption_features(features["features"][rows])

    def named(caption: str) -> set[str]:
        sentence = as_written(caption)
        return {name for name in (*COLOURS, *SHAPES) if words[name] in sentence}

    truths = [named(text["captions"][scene][0]) for scene in scenes]
    assert {len(truth) for truth in truths} == {2}
    said = map(named, captions)
    return float(np.mean([a == b for a, b in zip(said, truths, strict=True)]))


@pytest.mark.long
def test_chinese_and_arabic_are_learnt_as_english_is(demo, tmp_path):
    with (demo / "dataset" / "captions.txt").open() as file:
        rows = list(csv.DictReader(file))
    shares = {}
    for name, words, space in (("zh", CHINESE, ""), ("ar", ARABIC, " "), ("en", None, "")):
        data, model = demo / "data", demo / "models" / "caption_model.h5"
        if words:
            dataset, data, model = (tmp_path / f"{name}_{x}" for x in ("set", "data", "m.h5"))
            shutil.copytree(demo / "data", data)  # with the features of the same pictures
            dataset.mkdir()
            (dataset / "Images").symlink_to(demo / "dataset" / "Images")
            for path in (demo / "dataset").glob("Flickr_8k.*"):
                shutil.copy(path, dataset)
            with (dataset / "captions.txt").open("w", newline="", encoding="utf-8") as file:
                lines = [(r["image"], translate(r["caption"], words, space)) for r in rows]
                csv.writer(file).writerows([("image", "caption"), *lines])
            source = ("--dataset_dir", dataset, "--output_dir", data)
            run_here("preprocess.py", *source, "--encoder", "efficientnet_lite0")
            steps = ("--units", 128, "--epochs", 12, "--learning_rate", 2e-3)
            run_here("train.py", "--data_dir", data, "--model_path", model, *steps)
        shares[name] = share_of_right_scenes(demo, data, words or ENGLISH, model)
    print(shares)
    assert min(shares["zh"], shares["ar"]) >= shares["en"] - 0.05
    photo = next((demo / "dataset" / "Images").glob("*.jpg"))
    command = ("generate_caption.py", "--image_path", photo, "--model_path", tmp_path / "zh_m.h5")
    caption = run_here(*command).stdout.rstrip("\n").split("\t")[1]
    assert " " not in caption
    assert len(tokenize(caption)) == len(caption) > 3


def test_a_picture_says_once_what_no_font_shows(demo_photo, tmp_path, capsys, monkeypatch, caplog):
    own = ("DejaVu", "STIX", "cm", "Last Resort")  # matplotlib's, whatever is installed
    fonts = [f for f in font_manager.fontManager.ttflist if f.name.startswith(own)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    draw_captions([(demo_photo, ["一只黑狗", "a dog كلب"])] * 2, tmp_path / "x.png")
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("the picture lacks 4 characters (一只狗黑): no installed font")
    draw_captions([(demo_photo, ["a dog كلب größe"])], tmp_path / "x.png")
    assert capsys.readouterr().err == caplog.text == ""


def test_words_on_an_axis_are_looked_at_as_well(tmp_path, capsys, monkeypatch):
    own = [f for f in font_manager.fontManager.ttflist if f.name.startswith("DejaVu")]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)
    lengths = {"train": [3, 4], "dev": [], "test": []}
    draw_description(lengths, Counter({"犬": 2, "dog": 1}), 2, [], tmp_path / "x.png")
    assert "the picture lacks 1 characters (犬)" in capsys.readouterr().err


def test_another_font_is_taken_for_what_the_first_one_lacks(demo_photo, tmp_path, capsys, caplog):
    """STIX has letters of mathematics, and comes with matplotlib as well."""
    sign = "\u20e4"
    path = font_manager.findfont("DejaVu Sans")
    assert ord(sign) not in font_manager.get_font(path).get_charmap()
    draw_captions([(demo_photo, [f"a {sign}"])], tmp_path / "with.png")
    assert capsys.readouterr().err == ""
    draw_captions([(demo_photo, ["a  "])], tmp_path / "without.png")
    pictures = [(tmp_path / f"{name}.png").read_bytes() for name in ("with", "without")]
    assert pictures[0] != pictures[1]
    assert caplog.text == ""


@pytest.fixture
def demo_photo():
    return EXAMPLES / "donna.jpg"
