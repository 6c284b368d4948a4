"""Evidence on any two models: one file per kind; an audit never asks which method made them."""

from jaxunlearn.audits.accuracy import accuracy, accuracy_by_class, behaviour

__all__ = ["accuracy", "accuracy_by_class", "behaviour"]
