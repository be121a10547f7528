"""Images to pixels."""

import struct
import zlib
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from captioning import images
from captioning.files import InputError
from captioning.images import IMAGE_SIZE, array_to_pixels, image_to_pixels, load_image

FLIPS = Image.Transpose
AGAINST = {2: FLIPS.FLIP_LEFT_RIGHT, 3: FLIPS.ROTATE_180, 4: FLIPS.FLIP_TOP_BOTTOM}
AGAINST |= {5: FLIPS.TRANSPOSE, 6: FLIPS.ROTATE_90, 7: FLIPS.TRANSVERSE, 8: FLIPS.ROTATE_270}


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_photo_is_squashed_not_cropped_and_turned_as_its_exif_says(tmp_path, orientation):
    photo = Image.new("RGB", (200, 100), "red")
    photo.paste("blue", (100, 0, 200, 100))
    exif = Image.Exif()
    exif[0x0112] = orientation  # 6: to be turned a quarter clockwise, the left side to the top
    photo.save(tmp_path / "x.png", exif=exif)
    pixels = load_image(tmp_path / "x.png")
    assert pixels.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    if orientation == 6:
        pixels = pixels.transpose(1, 0, 2)
    assert (pixels[:, 0] == [255, 0, 0]).all()
    assert (pixels[:, -1] == [0, 0, 255]).all()


@pytest.mark.parametrize("form", ["JPEG", "MPO", "PNG", "WEBP"])
def test_every_orientation_is_undone_also_where_other_exif_is_odd(form, tmp_path):
    """A rational stands where a text belongs: Pillow can read such EXIF, but not write it."""
    upright = noise(8, 8).resize((64, 64), Image.Resampling.BICUBIC)
    for orientation in range(1, 9):
        exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2)  # a directory of two entries
        exif += struct.pack("<HHIHxx", 0x0112, 3, 1, orientation)
        exif += struct.pack("<HHIIIII", 0x0132, 5, 1, 38, 0, 7, 3)  # DateTime
        turned = upright.transpose(AGAINST[orientation]) if orientation > 1 else upright
        turned.save(tmp_path / "x", form, exif=exif, quality=95)
        difference = load_image(tmp_path / "x", 64).astype(int) - np.asarray(upright)
        assert np.abs(difference).mean() < 8, orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_parsed_turns_nothing(form, tmp_path):
    noise(9, 9).save(tmp_path / "x", form, exif=b"Exif\0\0" + b"x" * 30)
    plain = np.asarray(Image.open(tmp_path / "x").convert("RGB"))
    np.testing.assert_array_equal(load_image(tmp_path / "x", 9), plain)


def test_what_a_decoder_raises_is_the_photo_s_fault_and_our_own_bugs_are_not(tmp_path, monkeypatch):
    Image.new("I;16", (9, 9)).save(tmp_path / "x.png")
    for error in (AttributeError("no such"), AssertionError(), RecursionError(), MemoryError()):
        with monkeypatch.context() as patch:
            patch.setattr(Image.Image, "convert", mock.Mock(side_effect=error))
            with pytest.raises(InputError, match=r"x.png: not a readable image \([A-Za-z ]+"):
                load_image(tmp_path / "x.png")
    monkeypatch.setattr(images, "to_bytes", mock.Mock(side_effect=AttributeError("a bug")))
    with pytest.raises(AttributeError, match="a bug"):
        load_image(tmp_path / "x.png")


def test_an_image_of_the_right_size_is_untouched(tmp_path):
    image = noise(224, 224)
    image.save(tmp_path / "x.png")
    np.testing.assert_array_equal(load_image(tmp_path / "x.png"), np.asarray(image))


def test_reduction_is_antialiased():
    """One-pixel stripes become grey, not a beat of black and white."""
    stripes = np.zeros((1000, 1000, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = image_to_pixels(Image.fromarray(stripes)).astype(int)
    assert np.abs(pixels[8:-8, 8:-8] - 128).max() < 16


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("RGBA", (0, 0, 255, 0), (255, 255, 255)),  # transparent: white
        ("LA", (10, 255), (10, 10, 10)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("I;16", 32768, (127, 127, 127)),  # scaled, not clipped to white
        ("F", 64.0, (64, 64, 64)),
    ],
)
def test_any_mode_becomes_rgb(mode, colour, expected):
    assert (image_to_pixels(Image.new(mode, (9, 9), colour)) == expected).all()


GREY = np.linspace(20, 220, 40 * 40).reshape(40, 40)  # of 8 bits


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_deep_pixels_are_scaled_by_their_range(bits, tmp_path):
    """In files and arrays of 16 and 32 bits, grey and in colours: not black, not clipped."""
    values = np.round(GREY * (2**bits - 1) / 255).astype(np.uint16)
    colours = np.stack([values] * 3, axis=-1)
    opaque = np.full_like(values, 2**16 - 1)[..., None]
    for name, array in (
        ("grey.png", values[..., None]),
        ("grey_alpha.png", np.concatenate([values[..., None], opaque], axis=-1)),
        ("colours.png", colours),
        ("colours_alpha.png", np.concatenate([colours, opaque], axis=-1)),
    ):
        (tmp_path / name).write_bytes(tf.io.encode_png(array).numpy())
    Image.fromarray(values.astype(np.int32)).save(tmp_path / "grey.tif")
    read = [load_image(path) for path in tmp_path.iterdir()]
    read += [array_to_pixels(values), array_to_pixels(colours.astype(np.int64))]
    for pixels in read:
        assert pixels.mean() == pytest.approx(GREY.mean(), abs=1)


def test_floats_from_0_to_1_are_not_black(tmp_path):
    values = (GREY / 255).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    for pixels in (load_image(tmp_path / "x.tif"), array_to_pixels(values[..., None])):
        assert pixels.mean() == pytest.approx(GREY.mean(), abs=1)
    values[0, 0] = np.inf
    assert array_to_pixels(values).mean() == pytest.approx(GREY.mean(), abs=1)


def test_a_stated_range_goes_before_the_usual_one(tmp_path):
    """A dark photo of 12 bits stays dark."""
    dark = np.round(GREY / 8 * 4095 / 255).astype(np.uint16)
    content = tf.io.encode_png(dark[..., None]).numpy()
    chunk = b"sBIT\x0c"
    chunk = b"\0\0\0\x01" + chunk + zlib.crc32(chunk).to_bytes(4)
    (tmp_path / "x.png").write_bytes(content[:33] + chunk + content[33:])  # after the header
    Image.fromarray(dark.astype(np.int32)).save(tmp_path / "x.tif", tiffinfo={281: 4095})
    for name in ("x.png", "x.tif"):
        assert load_image(tmp_path / name).mean() == pytest.approx(GREY.mean() / 8, abs=1), name


def test_the_caller_s_own_photo_stays_as_it_was(tmp_path):
    Image.new("RGB", (2400, 1800)).save(tmp_path / "x.jpg")
    image = Image.open(tmp_path / "x.jpg")
    image_to_pixels(image)
    assert image.size == (2400, 1800)


def test_a_large_jpeg_is_decoded_small(tmp_path):
    """Decoding at a quarter, then resizing, shows what decoding in full does, but for rounding."""
    scene = noise(12, 16).resize((2400, 1800), Image.Resampling.BICUBIC)
    scene.save(tmp_path / "large.jpg", quality=95)
    full = Image.open(tmp_path / "large.jpg").convert("RGB")
    full = np.asarray(full.resize((224, 224), Image.Resampling.BICUBIC), float)
    difference = np.abs(load_image(tmp_path / "large.jpg") - full)
    assert 0 < difference.mean() < 1  # of 255; not 0, or it was decoded in full
    assert difference.max() < 16


def test_what_is_no_image_is_refused_in_a_sentence():
    for value in ([[1, 2], [3]], [], "x", None, 7, np.zeros((4, 4, 5)), np.zeros((2, 3, 4, 3))):
        with pytest.raises(InputError, match="an image is"):
            array_to_pixels(value)
    with pytest.raises(InputError, match=r"the image: not a readable image \(64000000 pixels"):
        image_to_pixels(Image.new("1", (8000, 8000)))
    assert array_to_pixels([[0, 255], [255, 0]], 2).tolist()[0] == [[0] * 3, [255] * 3]
