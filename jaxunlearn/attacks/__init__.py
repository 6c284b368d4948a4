"""Attacks on the input: adversarial examples and the labels they aim at."""

from jaxunlearn.attacks.adversarial import adversarial_set, published_order
from jaxunlearn.attacks.batch import attack_batch
from jaxunlearn.attacks.pgd import PGD, Limits, fgsm, pgd
from jaxunlearn.attacks.targets import random_targets

__all__ = [
    "Limits",
    "PGD",
    "adversarial_set",
    "attack_batch",
    "fgsm",
    "pgd",
    "published_order",
    "random_targets",
]
