"""Captions in the forms in which people have them, read alike or refused with the fix."""

import json

import pytest

from captioning.caption_files import Columns
from captioning.dataset import find_dataset, read_captions
from captioning.files import InputError

KARPATHY = {
    "images": [
        {"filename": "a.jpg", "split": "train", "sentences": [{"raw": "A dog."}, {"raw": "Dogs"}]},
        {"filename": "b.jpg", "split": "restval", "sentences": [{"raw": "A man, old."}]},
        {"filename": "c.jpg", "filepath": "val2014", "split": "val", "sentences": [{"raw": "C"}]},
    ]
}
EXPECTED = {"a.jpg": ["a dog", "dogs"], "b.jpg": ["a man old"]}
TWICE = [{"file_name": "a.jpg", "text": "A dog ."}, {"file_name": "a.jpg", "text": "Dogs"}]
OBJECTS = [*TWICE, {"file_name": "b.jpg", "text": "A man , old"}]
COCO = {
    "info": {"year": 2014},
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
    "annotations": [
        {"image_id": 7, "id": 1, "caption": "A dog ."},
        {"image_id": 7, "id": 2, "caption": "Dogs"},
        {"image_id": 9, "id": 3, "caption": "A man , old"},
    ],
}
FORMS = {  # of the same captions
    "kaggle": 'image,caption\na.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"\n',
    "kaggle-bom-crlf-blank": (
        '\ufeffimage,caption\r\na.jpg,A dog .\r\n\r\na.jpg,Dogs\r\nb.jpg,"A man , old"\r\n'
    ),
    "two-columns": 'a.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"',  # without a header
    "token.txt-bom-crlf-blank": (
        "\ufeffa.jpg#0\tA dog .\r\na.jpg#1\tDogs\r\n\r\nb.jpg#0\tA man , old\r\n"
    ),
    "semicolons": "image;caption\na.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "semicolons-two-columns": "a.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "tabs": "filename\ttext\na.jpg\tA dog .\na.jpg\tDogs\nb.jpg\tA man , old\n",
    "flickr30k": (
        "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| Dogs\n"
        "b.jpg| 0| A man , old\n"
    ),
    "flickr30k-without-one-delimiter": (  # as a line of its results.csv is
        "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1   Dogs\n"
        "b.jpg| 0| A man , old\n"
    ),
    "names-with-captions": json.dumps({"a.jpg": ["A dog .", "Dogs"], "b.jpg": "A man , old"}),
    "one-name-known": "image;satz\na.jpg;A dog .\na.jpg;Dogs\nb.jpg;A man , old\n",
    "quotes-in-tabs": 'image\ttext\na.jpg\t"A dog .\na.jpg\tDogs\nb.jpg\t"A man" , old\n',
    "more-columns": (
        'id,image,caption,author\n1,a.jpg,A dog .,x\n2,a.jpg,Dogs,y\n3,b.jpg,"A man , old",x\n'
    ),
    "swapped": 'caption,image\nA dog .,a.jpg\nDogs,a.jpg\n"A man , old",b.jpg\n',
    "metadata.csv": 'file_name,text\na.jpg,A dog .\na.jpg,Dogs\nb.jpg,"A man , old"\n',
    "metadata.jsonl": "\n".join(map(json.dumps, OBJECTS)),
    "list": json.dumps(OBJECTS),
    "list-of-captions": json.dumps(
        [
            {"image": "a.jpg", "captions": ["A dog .", "Dogs"]},
            {"image": "b.jpg", "captions": "A man , old"},
        ]
    ),
    "coco": json.dumps(COCO),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_readers_agree(tmp_path, form, encoding):
    path = tmp_path / "captions.txt"
    path.write_bytes(FORMS[form].removeprefix("\ufeff").encode(encoding))
    assert read_captions(path) == (EXPECTED, None)


def test_text_files_beside_the_photos_are_captions(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.jpg", "sub/b.png", "c.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a.txt").write_text("A dog .\n\nDogs\n")
    (tmp_path / "sub" / "b.txt").write_bytes("Größe".encode("utf-16"))
    (tmp_path / "readme.txt").write_text("of no photo")
    found = {"a.jpg": ["a dog", "dogs"], "sub/b.png": ["größe"]}
    assert read_captions(tmp_path) == (found, None)
    assert find_dataset(tmp_path) == (tmp_path, [tmp_path])


@pytest.mark.parametrize(
    "text",
    [
        "number\tfoto\tsatz\n1\ta.jpg\tA dog\n",
        "satz;foto;image;caption\nA dog;a.jpg;x.jpg;wrong\n",
        json.dumps([{"foto": "a.jpg", "satz": "A dog", "image": "x.jpg"}]),
    ],
    ids=["tabs", "semicolons", "list"],
)
def test_columns_are_called_what_the_user_says(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_text(text)
    assert read_captions(path, columns=Columns("foto", "satz")) == ({"a.jpg": ["a dog"]}, None)
    with pytest.raises(InputError, match=r"does not name the columns|no image and caption in it"):
        read_captions(path, columns=Columns("photo!", "satz"))


def test_karpathy_json_brings_its_splits(tmp_path):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(KARPATHY))
    captions, splits = read_captions(path)
    assert captions == EXPECTED | {"val2014/c.jpg": ["c"]}
    assert splits == {"train": ["a.jpg", "b.jpg"], "dev": ["val2014/c.jpg"], "test": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image;text\na.jpg;b\n\nx;y;z\n", r"captions.txt:4: 3 columns where .* two"),
        ("number,image,words\n1,a.jpg,b\n", r"first line, 'number,image,words', .* --image_column"),
        ("image,caption\na.jpg\n", r"captions.txt:2: 1 columns .* Separate them by ','"),
        ("image\tcaption\na.jpg\ta\tb\n", r"captions.txt:2: 3 columns .* out of captions"),
        ('{"file_name": "/etc/a.jpg", "text": "a"}', "'/etc/a.jpg' is not a file name inside"),
        ('[{"image": "a.jpg", "caption": []}]', "entry 1: it has no caption"),
        (
            json.dumps({f"n{i}": "x" for i in range(10**5)}),
            "no image and caption in it, but n0, n1",
        ),
        ('[{"image": "a.jpg"}]', "entry 1: no image and caption in it, but image"),
        ('[{"image": 7, "caption": "a"}]', "entry 1: its image or caption is no text"),
        ('["a.jpg"]', "entry 1: no image and caption in it, but no object"),
        ('{"image": "a", "caption": "b"}\n{"image": "a"\n', "captions.txt:2: .*Mend the JSON"),
        ('{"image": "a",,}', "captions.txt:1: .*Mend the JSON"),
        ('{"images": [{"id": 1}], "annotations": []}', "no file of COCO captions .*file_name"),
        ('{"images": [], "annotations": [{"image_id": 1}]}', "no file of COCO captions"),
        ('{"annotations": 7}', "no file of COCO captions"),
        (
            '{"images": [{"filename": null, "split": "train", "sentences": [{"raw": "a"}]}]}',
            "no file of Karpathy split .*null in place of a text",
        ),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_told_with_its_place_and_fix(tmp_path, text, message):
    path = tmp_path / "captions.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_captions(path)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_columns_of_a_form_that_has_none_are_refused(tmp_path):
    path = tmp_path / "captions.txt"
    for form in ("token.txt-bom-crlf-blank", "coco"):
        path.write_text(FORMS[form].removeprefix("\ufeff"))
        with pytest.raises(InputError, match="has no columns: leave out"):
            read_captions(path, columns=Columns("image", None))


@pytest.mark.parametrize(
    ("first", "rest"),
    [("image.file,caption", 0), ("Image,Text", 0), ("photo1,a dog", 1), ("image.jpg,a caption", 1)],
)
def test_a_header_is_known_by_its_names(tmp_path, first, rest):
    path = tmp_path / "captions.csv"
    path.write_text(f"{first}\nphoto2,a cat\n")
    assert len(read_captions(path)[0]) == 1 + rest
