"""Pictures as people have them, of any kind and size, as arrays of one size."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from jaxunlearn import _progress
from jaxunlearn._ahead import count_cores
from jaxunlearn._types import Preprocess
from jaxunlearn.data._kept import Kept
from jaxunlearn.data._source import Reading

#: What is read, as Pillow names it; of several frames the first.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
#: How the names of such files end.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: A picture of more is refused before it is decoded (Pillow's own measure of a decompression bomb).
MAX_PIXELS = 89_478_485
#: Decoded pictures are kept up to this size; more of them are decoded each time they are read.
CACHE_BYTES = 512 << 20
#: Pictures that are decoded between two reports of progress.
_CHUNK = 256
_GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")
#: What a picture is read from: its bytes, its file, its pixels, or the reason why there is none of them.
Content = bytes | Path | np.ndarray | str


class PictureError(ValueError):
    """A picture that cannot be read; the message names it."""


def pillow() -> Any:
    """Return Pillow's ``Image`` module, or say what to install."""
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need pillow: pip install 'jaxunlearn[data]'") from error
    return Image


def decode(content: Content, preprocess: Preprocess | None, channels: int | None) -> np.ndarray:
    """Return a picture as an array, (height, width, channels) uint8.

    It is turned upright as its EXIF orientation says; 16-bit values become
    8-bit ones; what is transparent shows white; colours become grey by ITU-R
    601 for one channel, and grey, palette and CMYK become RGB for three. Then
    it is resized and cropped.

    Args:
      content: the bytes of the file, its path, or pixels, (height, width, 1 or 3) uint8; a reason is raised as it is.
      preprocess: resize and crop, or None: as large as it is.
      channels: 1, 3, or None: 1 where the picture is grey, else 3.

    Raises:
      PictureError: it cannot be read; the message is what follows the picture's name in a sentence.
    """
    if isinstance(content, str):
        raise PictureError(content)
    image_module = pillow()
    try:
        with _opened(content) as image:
            if image.width * image.height > MAX_PIXELS:
                raise image_module.DecompressionBombError
            upright = _upright(image)
            grey = channels == 1 or (channels is None and upright.mode in _GREY)
            return np.asarray(fit(_plain(upright, grey), preprocess)).reshape(*_size(preprocess, upright), -1)
    except PictureError:
        raise
    except image_module.UnidentifiedImageError as error:
        raise PictureError(_unidentified(content)) from error  # type: ignore[arg-type]  # pixels are never that
    except image_module.DecompressionBombError as error:
        raise PictureError(f"has more than {MAX_PIXELS / 1e6:.0f} million pixels") from error
    except MemoryError as error:
        raise PictureError("does not fit into memory when it is decoded") from error
    except OSError as error:
        if error.strerror is not None:
            raise PictureError(f"cannot be read: {error.strerror}") from error
        raise PictureError(f"is damaged or cut short ({error})") from error
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise PictureError(f"is damaged ({type(error).__name__}: {error})") from error


def fit(image: Any, preprocess: Preprocess | None) -> Any:
    """Return a Pillow image resized, its middle cut out, as torchvision's ``Resize`` and ``CenterCrop`` do.

    Where a picture resized so would be smaller than the crop, it is made just large enough: nothing is padded.
    """
    if preprocess is None:
        return image
    width, height = image.size
    high, wide = preprocess.crop
    if isinstance(preprocess.resize, int):
        short = preprocess.resize
        new_wide, new_high = (
            (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        )
        if new_wide < wide or new_high < high:
            grow = max(wide / new_wide, high / new_high)
            new_wide, new_high = max(wide, round(new_wide * grow)), max(high, round(new_high * grow))
    else:
        new_high, new_wide = preprocess.resize
        if new_wide < wide or new_high < high:
            raise PictureError(
                f"is resized to {new_high}x{new_wide}, less than the {high}x{wide} that are cut out of it"
            )
    if new_wide * new_high > MAX_PIXELS:
        raise PictureError(f"is {width}x{height} pixels, too narrow to be resized to {min(new_wide, new_high)}")
    if (new_wide, new_high) != image.size:
        image = image.resize((new_wide, new_high), pillow().Resampling[preprocess.resample.upper()])
    left, top = round((new_wide - wide) / 2), round((new_high - high) / 2)
    return image.crop((left, top, left + wide, top + high))


def name_of(path: str) -> str:
    """Return a file name fit for one line: as it is, or with what cannot be printed escaped.

    >>> name_of("two words.jpg"), name_of("two\\nlines.jpg")
    ('two words.jpg', "'two\\\\nlines.jpg'")
    """
    return path if path.isprintable() else ascii(path)


class Pictures(Kept):
    """Read rows of pictures, decoded by several threads, keeping them while they fit into `CACHE_BYTES`."""

    def __init__(
        self,
        contents: Callable[[np.ndarray], Sequence[Content]],
        name: Callable[[int], str],
        total: int,
        reading: Reading,
    ) -> None:
        """Find the size of the pictures.

        Args:
          contents: ``contents(rows)``, what each is read from.
          name: ``name(row)``, what a message calls a picture.
          total: pictures there are.
          reading: how they are read.

        Raises:
          ValueError: the network takes neither 1 nor 3 channels, or no picture can be read.
        """
        if reading.channels not in (None, 1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, the network takes {reading.channels}")
        self._contents, self._name, self._reading = contents, name, reading
        self._channels = reading.channels
        super().__init__(total, self._shape_of(total), CACHE_BYTES)
        self._channels = self._shape[2]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every picture."""
        height, width, channels = self._shape
        return height, width, channels

    def faults(self, rows: np.ndarray, label: str = "checking pictures") -> dict[int, str]:
        """Look at some rows and return what is wrong with those that cannot be read; shows progress."""
        found: dict[int, str] = {}
        for start in range(0, len(rows), _CHUNK):
            part = rows[start : start + _CHUNK]
            pixels = self._read(part)
            found |= {int(row): str(p) for row, p in zip(part, pixels, strict=True) if isinstance(p, PictureError)}
            if self._kept is not None:
                with self._lock:
                    for row, p in zip(part, pixels, strict=True):
                        if not isinstance(p, PictureError):
                            self._kept[row], self._have[row] = p, True
            _progress.report(label, min(start + _CHUNK, len(rows)), len(rows))
        return found

    def error(self, found: dict[int, str]) -> PictureError:
        """Return the error that tells of pictures that cannot be read."""
        row, reason = next(iter(found.items()))
        more = f" (and {len(found) - 1} more such picture{'s' * (len(found) > 2)})" if len(found) > 1 else ""
        skip = "--on-bad-image skip" if self._reading.flags else 'data.Reading(on_bad_image="skip")'
        return PictureError(
            f"{self._name(row)} {reason}{more}: remove or replace it, or leave such pictures out with {skip}"
        )

    def _shape_of(self, total: int) -> tuple[int, int, int]:
        preprocess = self._reading.preprocess
        if preprocess is not None:
            return (*preprocess.crop, self._channels or 3)
        found: dict[int, str] = {}
        for row in range(total):
            (first,) = self._read(np.array([row]))
            if not isinstance(first, PictureError):
                height, width, channels = first.shape
                return height, width, channels
            found[row] = str(first)
            if self._reading.on_bad_image == "fail":
                break
        raise self.error(found)

    def _decode(self, rows: np.ndarray) -> np.ndarray:
        pixels = self._read(rows)
        found = {int(row): str(p) for row, p in zip(rows, pixels, strict=True) if isinstance(p, PictureError)}
        if found:
            raise self.error(found)
        return np.stack(pixels) if pixels else np.empty((0, *self._shape), np.uint8)

    def _read(self, rows: np.ndarray) -> list[Any]:
        """Return each picture's pixels, or its error."""
        contents = self._contents(rows)
        with warnings.catch_warnings():  # filters are the process's: this block serves the threads that decode
            warnings.simplefilter("ignore")  # what Pillow finds odd and reads nevertheless; bombs are ours to refuse
            return list(_threads(_cores()).map(self._one, contents))

    def _one(self, content: Content) -> Any:
        try:
            pixels = decode(content, self._reading.preprocess, self._channels)
        except PictureError as error:
            return error
        shape = getattr(self, "_shape", pixels.shape)
        if pixels.shape != shape:
            have, need = (f"{s[0]}x{s[1]}" for s in (pixels.shape, shape))
            return PictureError(
                f"is {have}, others are {need}, and this network of your own says no size to bring them to"
            )
        return pixels


@functools.cache
def _threads(count: int) -> ThreadPoolExecutor:
    """Return threads that live as long as the process: new ones for each read would leave memory behind each time."""
    return ThreadPoolExecutor(count, thread_name_prefix="jaxunlearn-decoding")


def _cores() -> int:
    return min(16, count_cores())


def _size(preprocess: Preprocess | None, image: Any) -> tuple[int, int]:
    return (image.height, image.width) if preprocess is None else preprocess.crop


def _opened(content: bytes | Path | np.ndarray) -> Any:
    if isinstance(content, np.ndarray):
        return pillow().fromarray(content[..., 0] if content.shape[2] == 1 else content)
    return pillow().open(io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS)


def _upright(image: Any) -> Any:
    from PIL import ImageOps

    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data raise all sorts of things, and the picture is none the worse
        return image


def _plain(image: Any, grey: bool) -> Any:
    """Return an opaque image of 8-bit values, grey or RGB."""
    module = pillow()
    if image.mode.startswith("I;16"):
        image = module.fromarray(np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise PictureError("has 32-bit values, of unknown range (8 and 16 bits are read)")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = module.alpha_composite(module.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("L" if grey else "RGB")


def _unidentified(content: bytes | Path) -> str:
    """Return what is in a file that is no picture."""
    if isinstance(content, Path):
        with content.open("rb") as file:
            start = file.read(16)
    else:
        start = content[:16]
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis"):
        return "is a HEIC or AVIF picture, which is not read (JPEG and PNG are)"
    return f"is not a picture, whatever its name says: it begins with {start[:12]!r}"
