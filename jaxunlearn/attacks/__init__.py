"""Attacks on the input: adversarial examples and the labels they aim at."""

from jaxunlearn.attacks.adversarial import adversarial_set, published_order
from jaxunlearn.attacks.pgd import PGD, attack_batch, fgsm, pgd, pgd_start, pgd_step
from jaxunlearn.attacks.targets import random_targets

__all__ = [
    "PGD",
    "adversarial_set",
    "attack_batch",
    "fgsm",
    "pgd",
    "pgd_start",
    "pgd_step",
    "published_order",
    "random_targets",
]
