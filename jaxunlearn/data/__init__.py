"""Image sets with named instances, and what to forget of them.

>>> from jaxunlearn.data import open_source, parse_forget
>>> digits = open_source("digits")
>>> digits.images(parse_forget("3, 17", digits, seed=0)).shape
(2, 8, 8, 1)
"""

from jaxunlearn.data._source import Reading, Source, View
from jaxunlearn.data.forget import parse_forget, parse_targets
from jaxunlearn.data.joined import join
from jaxunlearn.data.labels import read_classes
from jaxunlearn.data.pictures import PictureError
from jaxunlearn.data.sources import KINDS, WITH_DIR, open_source, open_unlabelled

__all__ = [
    "KINDS",
    "PictureError",
    "Reading",
    "Source",
    "View",
    "WITH_DIR",
    "join",
    "open_source",
    "open_unlabelled",
    "parse_forget",
    "parse_targets",
    "read_classes",
]
