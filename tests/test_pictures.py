"""Pictures of every kind, decoded, turned, resized and cropped: against formulas and a resampling written here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxunlearn._types import Preprocess
from jaxunlearn.data import pictures
from jaxunlearn.data.pictures import PictureError, decode

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (40, 60, 3), np.uint8)
GREY = RNG.integers(0, 256, (40, 60), np.uint8)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """Return a picture as the bytes of a file."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(rows: np.ndarray, bits: int, colour: int) -> bytes:
    """Return a PNG written by hand, for what Pillow reads and does not write."""
    height, width = rows.shape[:2]
    body = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in rows.reshape(height, -1))

    def chunk(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF"])
def test_what_is_stored_without_loss_comes_back(kind, tmp_path):
    whole = saved(Image.fromarray(COLOURS), kind, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(decode(whole, None, 3), COLOURS)
    (tmp_path / "a.bin").write_bytes(whole)
    np.testing.assert_array_equal(decode(tmp_path / "a.bin", None, None), COLOURS)


def test_a_jpeg_is_what_it_was_within_its_loss():
    smooth = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None] * 4, (40, 60, 3))
    found = decode(saved(Image.fromarray(smooth), "JPEG", quality=100), None, 3)
    np.testing.assert_allclose(found.astype(int), smooth, atol=4)


def test_grey_pictures_and_networks():
    grey, colours = saved(Image.fromarray(GREY)), saved(Image.fromarray(COLOURS))
    assert decode(grey, None, None).shape == (40, 60, 1)
    np.testing.assert_array_equal(decode(grey, None, 3), np.stack([GREY] * 3, -1))
    luma = COLOURS @ [0.299, 0.587, 0.114]  # ITU-R 601
    np.testing.assert_allclose(decode(colours, None, 1)[..., 0], luma, atol=1)
    bits = saved(Image.fromarray(GREY > 127))
    np.testing.assert_array_equal(decode(bits, None, 1)[..., 0], np.where(GREY > 127, 255, 0))


def test_palettes_become_their_colours():
    image = Image.fromarray(GREY % 4).convert("P")
    palette = [10, 20, 30, 200, 100, 0, 0, 255, 0, 1, 2, 3]
    image.putpalette(palette)
    expected = np.array(palette, np.uint8).reshape(4, 3)[np.asarray(image)]
    np.testing.assert_array_equal(decode(saved(image), None, 3), expected)
    np.testing.assert_array_equal(decode(saved(image, "GIF"), None, 3), expected)


def test_what_is_transparent_shows_white():
    alpha = RNG.integers(0, 256, (40, 60, 1), np.uint8)
    expected = (COLOURS * (alpha / 255.0) + 255 * (1 - alpha / 255.0)).round()
    whole = saved(Image.fromarray(np.concatenate([COLOURS, alpha], -1)))
    np.testing.assert_allclose(decode(whole, None, 3), expected, atol=1)
    share = alpha[..., 0] / 255.0
    grey = saved(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha[..., 0])]))
    np.testing.assert_allclose(decode(grey, None, 1)[..., 0], GREY * share + 255 * (1 - share), atol=1)
    keyed = saved(Image.fromarray(GREY), transparency=7)  # one grey value is transparent
    np.testing.assert_array_equal(decode(keyed, None, 1)[..., 0], np.where(GREY == 7, 255, GREY))


def test_sixteen_bits_become_eight():
    deep = RNG.integers(0, 65536, (40, 60), np.uint16)
    np.testing.assert_allclose(decode(png(deep, 16, 0), None, 1)[..., 0], deep / 257, atol=0.51)
    assert decode(png(deep, 16, 0), None, 3).shape == (40, 60, 3)
    colours = RNG.integers(0, 65536, (40, 60, 3), np.uint16)
    np.testing.assert_allclose(decode(png(colours, 16, 2), None, 3), colours / 257, atol=1.01)


def test_cmyk_becomes_rgb():
    ink = np.full((40, 60, 4), (30, 90, 200, 50), np.uint8)
    image = Image.frombytes("CMYK", (60, 40), ink.tobytes())
    expected = (255.0 - ink[..., :3]) * (255 - ink[..., 3:]) / 255
    for whole in (saved(image, "JPEG", quality=100), saved(image, "TIFF")):
        np.testing.assert_allclose(decode(whole, None, 3), expected, atol=3)


#: What a viewer must do to what is stored, by the orientation of the EXIF standard (row 0 and column 0 of the scene).
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_stand_upright_as_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        whole = saved(Image.fromarray(COLOURS), kind, exif=exif, **options)
        np.testing.assert_array_equal(decode(whole, None, 3), TURNED[orientation](COLOURS))
    flat = np.repeat(np.repeat(RNG.integers(0, 256, (4, 6, 1), np.uint8), 16, 0), 16, 1).repeat(3, 2)
    found = decode(saved(Image.fromarray(flat), "JPEG", quality=95, exif=exif), None, 3)
    np.testing.assert_allclose(found.astype(int), TURNED[orientation](flat), atol=6)


def test_damaged_exif_is_no_reason_to_refuse_a_picture():
    whole = saved(Image.fromarray(COLOURS), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(whole, None, 3), COLOURS)


def resampled(image: np.ndarray, size: tuple[int, int], kernel: str) -> np.ndarray:
    """Resize (height, width, channels): along rows, then columns, the kernel as wide as a step; 8 bits between."""

    def lanczos(x):
        return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)

    def cubic(x, a=-0.5):  # Keys 1981
        x = np.abs(x)
        inner, outer = ((a + 2) * x - (a + 3)) * x * x + 1, (((x - 5) * x + 8) * x - 4) * a
        return np.where(x < 1, inner, np.where(x < 2, outer, 0))

    weight, reach = {
        "bilinear": (lambda x: np.maximum(1 - np.abs(x), 0), 1),
        "bicubic": (cubic, 2),
        "lanczos": (lanczos, 3),
    }[kernel]

    def along(values, n):
        old = values.shape[0]
        step = old / n
        wide = max(step, 1)
        out = []
        for i in range(n):
            centre = (i + 0.5) * step
            lo, hi = max(int(centre - reach * wide + 0.5), 0), min(int(centre + reach * wide + 0.5), old)
            w = weight((np.arange(lo, hi) + 0.5 - centre) / wide)
            out.append(np.tensordot(w / w.sum(), values[lo:hi], 1))
        return np.clip(np.floor(np.array(out) + 0.5), 0, 255)

    rows = along(image.astype(float).swapaxes(0, 1), size[1]).swapaxes(0, 1)
    return along(rows, size[0])


@pytest.mark.parametrize("kernel", ["bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize(("resize", "size"), [(16, (16, 24)), ((20, 33), (20, 33)), (80, (80, 120))])
def test_resizing_is_antialiased(kernel, resize, size):
    whole = saved(Image.fromarray(COLOURS))
    found = decode(whole, Preprocess(resize=resize, crop=size, resample=kernel), 3)
    np.testing.assert_allclose(found, resampled(COLOURS, size, kernel), atol=1)


def test_the_middle_is_cut_out():
    for shape, resize, crop, (top, left) in [
        ((40, 60), 40, (20, 20), (10, 20)),
        ((40, 60), 40, (21, 21), (10, 20)),  # 9.5 and 19.5, to even numbers, as torchvision has it
        ((60, 40), 40, (40, 40), (10, 0)),
    ]:
        stored = COLOURS if shape == (40, 60) else COLOURS.swapaxes(0, 1)
        found = decode(saved(Image.fromarray(stored)), Preprocess(resize=resize, crop=crop), 3)
        np.testing.assert_array_equal(found, stored[top : top + crop[0], left : left + crop[1]])


def test_the_longer_side_is_rounded_down_as_torchvision_does():
    odd = saved(Image.fromarray(RNG.integers(0, 256, (50, 77, 3), np.uint8)))  # 256 * 77 / 50 = 394.24
    whole = decode(odd, Preprocess(resize=256, crop=(256, 394)), 3)
    assert whole.shape == (256, 394, 3)
    np.testing.assert_array_equal(decode(odd, Preprocess(resize=256, crop=(256, 200)), 3), whole[:, 97:297])


def test_a_crop_larger_than_the_resized_picture_is_filled_and_not_padded():
    found = decode(saved(Image.fromarray(COLOURS)), Preprocess(resize=20, crop=(20, 50)), 3)
    np.testing.assert_allclose(found, resampled(COLOURS, (33, 50), "bilinear")[6:26], atol=1)


def test_pictures_that_are_refused():
    narrow = saved(Image.fromarray(np.zeros((1, 20_000, 3), np.uint8)))
    with pytest.raises(PictureError, match=r"is 20000x1 pixels, too narrow to be resized to 224"):
        decode(narrow, Preprocess(resize=224, crop=(224, 224)), 3)
    with pytest.raises(PictureError, match="has 32-bit values"):
        decode(saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), None, 1)
    with pytest.raises(PictureError, match="HEIC or AVIF picture"):
        decode(b"\0\0\0\x18ftypheic" + b"\0" * 40, None, 3)
    with pytest.raises(PictureError, match="is resized to 10x10, less than the 20x20"):
        decode(saved(Image.fromarray(COLOURS)), Preprocess(resize=(10, 10), crop=(20, 20)), 3)


def refusal(content: bytes) -> str:
    """Return why a picture is refused, or nothing; any other exception is a bug."""
    try:
        decode(content, Preprocess(resize=8, crop=(8, 8)), 3)
    except PictureError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_cut_anywhere_it_is_read_or_refused_in_one_line(kind):
    whole = saved(Image.fromarray(COLOURS), kind)
    said = [refusal(whole[:size]) for size in range(0, len(whole), max(1, len(whole) // 60))]
    assert not any("\n" in line for line in said)
    assert sum(map(bool, said)) > 50


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_with_bytes_changed_it_is_read_or_refused_in_one_line(kind):
    whole = bytearray(saved(Image.fromarray(COLOURS[:12, :12]), kind))
    rng = np.random.default_rng(1)
    for _ in range(150):
        bent = whole.copy()
        for at in rng.integers(0, min(len(bent), 400), 3):
            bent[at] = rng.integers(256)
        assert "\n" not in refusal(bytes(bent))


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("decoded")

    from PIL import ImageFile

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    body = zlib.compress(b"\0" * 1000)
    for side in (10_000, 60_000):  # where Pillow would warn, and where it would raise
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
        whole = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks
        )
        reader = pictures.Pictures.__new__(pictures.Pictures)
        reader._contents, reader._channels = (lambda rows, whole=whole: [whole]), 3
        reader._reading, reader._shape = pictures.Reading(), (8, 8, 3)
        (found,) = reader._read(np.array([0]))
        assert str(found) == "has more than 89 million pixels"
