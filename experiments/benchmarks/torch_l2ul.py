"""The published L2UL procedure (Cha et al., AAAI 2024) in eager PyTorch: oracle for parity, baseline for speed.

Written from a description of the method and of its released code. Every random
number (start images ``u``, target labels ``t``) can be given, so that another
implementation can be fed the same ones. Two ways through the same arithmetic:

* ``tuned=False``, as published: one draw at a time over the forget batch, with
  parameter gradients on in the attack; the penalty through autograd.
* ``tuned=True``, the same results (up to rounding) as fast as we know how in
  eager PyTorch: no parameter gradients in the attack, BatchNorm folded into the
  convolutions there, channels-last, larger batches, fused SGD, `inference_mode`.

Images are NCHW in [0, 1]; normalisation is the network's first layer.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    """Two 3x3 convolutions and an option-A shortcut: every second pixel, zero channels on both sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.added = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.added:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """CIFAR ResNet of depth 6 n + 2 (He et al. 2015, section 4.2), parameters named as in akamaster's weights."""

    def __init__(self, blocks: int = 3, classes: int = 10, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float64).view(1, 3, 1, 1), persistent=False)
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = [Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean.to(x.dtype)) / self.std.to(x.dtype)
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(path: str | Path) -> CifarResNet:
    """Return the network of an akamaster checkpoint (depth and classes read from its tensors), in eval mode."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    state = {name.removeprefix("module."): value for name, value in state.items()}
    blocks = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("layer1."))
    model = CifarResNet(blocks, len(state["linear.bias"]))
    model.load_state_dict(state)
    return model.eval()


def draw_targets(y: Tensor, draws: int, classes: int, generator: torch.Generator, *, published: bool = True) -> Tensor:
    """Return target labels, (draws, k): uniform over the other classes, or as released.

    As released a draw over all classes that hits the true label becomes C // 2
    (which is the true label again for instances of that class).
    """
    shape = (draws, len(y))
    if published:
        t = torch.randint(0, classes, shape, generator=generator)
        return torch.where(t == y, classes // 2, t)
    return (y + 1 + torch.randint(0, classes - 1, shape, generator=generator)) % classes


def _norms(d: Tensor) -> Tensor:
    return d.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def _into_ball(d: Tensor, eps: float) -> Tensor:
    return d * (eps / _norms(d).clamp_min(1e-12)).clamp_max(1.0)


def perturb(
    model: nn.Module, x: Tensor, target: Tensor, start: Tensor, *, eps: float, step: float, iterations: int, grads: bool
) -> Tensor:
    """Return x moved towards the target labels by L2 PGD: the last iterate, box [0, 1] before ball.

    ``grads``: fill the parameters' ``.grad`` on the way, which nobody reads (as published).
    """
    model.eval()
    d = (x + _into_ball(start - x, eps)).clamp(0, 1) - x
    for _ in range(iterations):
        d.requires_grad_()
        gain = -F.cross_entropy(model(x + d), target, reduction="sum")
        if grads:
            gain.backward()
            g = d.grad
        else:
            (g,) = torch.autograd.grad(gain, d)
        d = d.detach() + step * g / _norms(g).clamp_min(1e-6)
        d = _into_ball((x + d).clamp(0, 1) - x, eps)
    return (x + d).clamp(0, 1)


def folded(model: nn.Module) -> nn.Module:
    """Return an eval-mode copy with every BatchNorm folded into the convolution before it, without gradients."""
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    for module in list(twin.modules()):
        for i in (1, 2):
            if hasattr(module, f"bn{i}"):
                conv, norm = getattr(module, f"conv{i}"), getattr(module, f"bn{i}")
                setattr(module, f"conv{i}", fuse_conv_bn_eval(conv, norm).requires_grad_(False))
                setattr(module, f"bn{i}", nn.Identity())
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            module[0], module[1] = fuse_conv_bn_eval(*module).requires_grad_(False), nn.Identity()
    return twin.to(memory_format=torch.channels_last)


def attack(
    model: nn.Module,
    x: Tensor,
    targets: Tensor,
    starts: Tensor,
    *,
    eps: float = 4.0,
    step: float = 0.1,
    iterations: int = 100,
    forget_batch: int = 32,
    tuned: bool = False,
    tuned_batch: int = 64,
) -> tuple[Tensor, Tensor]:
    """Return all adversarial images, (k * draws, 3, H, W), and their labels, in the released loader's order.

    That order is forget batches outer, draws inner.

    Args:
      x: forget images, (k, 3, H, W).
      targets: (draws, k).
      starts: points of the box, (draws, k, 3, H, W).
      tuned_batch: images a pass when tuned.
    """
    settings = {"eps": eps, "step": step, "iterations": iterations, "grads": not tuned}
    blocks = [
        (x[rows], targets[i, rows], starts[i, rows])
        for rows in torch.arange(len(x)).split(forget_batch)
        for i in range(len(targets))
    ]
    if tuned:
        model = folded(model)
        joined = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        blocks = list(zip(*(part.split(tuned_batch) for part in joined), strict=True))
        channels_last = {"memory_format": torch.channels_last}
        blocks = [(a.contiguous(**channels_last), t, u.contiguous(**channels_last)) for a, t, u in blocks]
    images = torch.cat([perturb(model, *block, **settings) for block in blocks])
    model.zero_grad()
    return images, torch.cat([block[1] for block in blocks])


def importance(model: nn.Module, x: Tensor, *, batch: int = 32) -> dict[str, Tensor]:
    """Return MAS as released: train-mode BatchNorm on a copy, |gradient of the batch mean|, gradients never zeroed."""
    twin = copy.deepcopy(model).train().requires_grad_(True)
    twin.zero_grad()
    omega = {name: torch.zeros_like(p) for name, p in twin.named_parameters()}
    for part in x.split(batch):
        twin(part).norm(dim=1).mean().backward()
        for name, p in twin.named_parameters():
            omega[name] += len(part) * p.grad.abs() / len(x)
    return omega


def importance_per_example(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the mean over images of |d ||logits||_2 / d theta|, eval mode, one image after another."""
    model.eval()
    names, params = zip(*model.named_parameters(), strict=True)
    omega = [torch.zeros_like(p) for p in params]
    for image in x.split(1):
        for total, g in zip(omega, torch.autograd.grad(model(image).norm(), params), strict=True):
            total += g.abs() / len(x)
    return dict(zip(names, omega, strict=True))


def holding_weights(omega: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return 1 - importance scaled to [0, 1] in each tensor; 1 in a constant tensor (released: NaN)."""
    weights = {}
    for name, value in omega.items():
        low, high = value.min(), value.max()
        weights[name] = 1 - (value - low) / (high - low) if high > low else torch.ones_like(value)
    return weights


class Outcome(NamedTuple):
    """What a run did: optimisation steps, passes begun, and why it ended."""

    steps: int
    passes: int
    reason: str


def remembered(model: nn.Module, x: Tensor, y: Tensor, *, tuned: bool = False, batch: int = 1024) -> int:
    """Return how many images are still classified as their label (eval mode)."""
    model.eval()
    with torch.inference_mode() if tuned else torch.no_grad():
        return sum(int((model(a).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))


def unlearn(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    adversarial: tuple[Tensor, Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
    *,
    strength: float = 1.0,
    lr: float = 1e-3,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    forget_batch: int = 32,
    adversarial_batch: int = 256,
    max_passes: int = 1000,
    max_steps: int | None = None,
    tuned: bool = False,
    look_first: bool = True,
    stop: bool = True,
) -> Outcome:
    """Train the model in place until no forget image is classified as its label.

    Without ``adversarial`` this is NegGrad (checked after each pass over D_f),
    with it ADV (checked after each step), with ``weights`` too ADV+IMP.
    BatchNorm is in train mode; the adversarial batch goes first, then the
    forget batch, each with its own statistics.

    Args:
      adversarial: images and labels, as from `attack`.
      weights: holding weight of every named parameter, 0 free and 1 held.
      strength: lambda of the penalty ``lambda / 2 * sum W (theta - theta0)^2``.
      max_steps: stop after so many steps, whatever the passes.
      look_first: whether D_f is measured before the first step.
      stop: whether to stop when D_f is forgotten; False takes all steps, and looks all the same.
    """
    if tuned:
        model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    params = dict(model.named_parameters())
    held = [params[name] for name in weights or ()]
    pull = [strength * w for w in (weights or {}).values()]
    anchor = [p.detach().clone() for p in held]
    optimizer = torch.optim.SGD(params.values(), lr, momentum, weight_decay=weight_decay, fused=tuned)
    forget = list(zip(x.split(forget_batch), y.split(forget_batch), strict=True))
    # One pass is over the adversarial set, or over D_f where there is none.
    passing = [None] * len(forget)
    if adversarial is not None:
        passing = list(zip(*(part.split(adversarial_batch) for part in adversarial), strict=True))

    def step(forget_part: tuple[Tensor, Tensor], adversarial_part: tuple[Tensor, Tensor] | None) -> None:
        model.train()
        (x_f, y_f), (x_a, y_a) = forget_part, adversarial_part or ((), ())
        loss, total = 0.0, len(x_f) + len(x_a)
        if adversarial_part is not None:
            loss = F.cross_entropy(model(x_a), y_a, reduction="sum") / total
        loss = loss - F.cross_entropy(model(x_f), y_f, reduction="sum") / total
        if held and not tuned:
            loss = loss + sum((w * (p - a).square()).sum() for w, p, a in zip(pull, held, anchor, strict=True)) / 2
        optimizer.zero_grad()
        loss.backward()
        if held and tuned:
            with torch.no_grad():
                torch._foreach_addcmul_([p.grad for p in held], pull, torch._foreach_sub(held, anchor))
        optimizer.step()

    if look_first and not remembered(model, x, y, tuned=tuned):
        return Outcome(0, 0, "forgotten")
    steps = passes = 0
    while passes <= max_passes:  # as released: one pass more than the name says
        passes += 1
        for i, part in enumerate(passing):
            # The released cycle over D_f keeps its phase between passes.
            step(forget[steps % len(forget)], part)
            steps += 1
            look = part is not None or i == len(passing) - 1
            if look and not remembered(model, x, y, tuned=tuned) and stop:
                return Outcome(steps, passes, "forgotten")
            if steps == max_steps:
                return Outcome(steps, passes, "max_steps")
    return Outcome(steps, passes, "max_steps")
