"""Image sets with named instances, and what to forget of them.

>>> from jaxunlearn.data import open_source, parse_forget
>>> digits = open_source("digits")
>>> digits.images(parse_forget("3, 17", digits, seed=0)).shape
(2, 8, 8, 1)
"""

from jaxunlearn.data._source import Reading, Source, View
from jaxunlearn.data.forget import parse_forget, parse_targets
from jaxunlearn.data.npz import open_images
from jaxunlearn.data.sources import open_source

__all__ = ["Reading", "Source", "View", "open_images", "open_source", "parse_forget", "parse_targets"]
