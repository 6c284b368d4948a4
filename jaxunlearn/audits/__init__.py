"""Evidence on any two models: one file per kind; an audit never asks which method made them."""

from jaxunlearn.audits.accuracy import accuracy, accuracy_by_class, behaviour
from jaxunlearn.audits.agreement import agreement
from jaxunlearn.audits.change import change
from jaxunlearn.audits.depth import depth, relearn, restoring_perturbation
from jaxunlearn.audits.variants import versions

__all__ = [
    "accuracy",
    "accuracy_by_class",
    "agreement",
    "behaviour",
    "change",
    "depth",
    "relearn",
    "restoring_perturbation",
    "versions",
]
