"""Two tiny networks as plain functions of the seam, and the second one in PyTorch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def linear(params: Any, model_state: Any, x: Any, *, train: bool = False, rngs: Any = None) -> tuple[Any, Any]:
    """z = W x + b on flattened inputs."""
    return x.reshape(x.shape[0], -1) @ params["w"] + params["b"][None], model_state


def linear_params(key: Any, features: int, classes: int) -> Any:
    for_w, for_b = jax.random.split(key)
    return {"w": jax.random.normal(for_w, (features, classes)), "b": jax.random.normal(for_b, (classes,))}


def convolutional(params: Any, model_state: Any, x: Any, *, train: bool = False, rngs: Any = None) -> tuple[Any, Any]:
    """Convolution, batch normalisation, ReLU, convolution, ReLU, mean, dense layer."""
    dims = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(x, params["conv1"], (1, 1), ((1, 1), (1, 1)), dimension_numbers=dims)
    mean, var = model_state["mean"], model_state["var"]
    if train:
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        model_state = {"mean": 0.9 * model_state["mean"] + 0.1 * mean, "var": 0.9 * model_state["var"] + 0.1 * var}
    x = (x - mean[None, None, None]) / jnp.sqrt(var + 1e-5)[None, None, None]
    x = jax.nn.relu(x * params["scale"][None, None, None] + params["shift"][None, None, None])
    x = jax.lax.conv_general_dilated(x, params["conv2"], (2, 2), ((1, 1), (1, 1)), dimension_numbers=dims)
    x = jnp.mean(jax.nn.relu(x), (1, 2))
    return x @ params["dense"] + params["bias"][None], model_state


def convolutional_variables(key: Any, classes: int = 4) -> tuple[Any, Any]:
    """Return (params, model_state) with statistics that are not trivial."""
    k = jax.random.split(key, 8)
    params = {
        "conv1": jax.random.normal(k[0], (3, 3, 2, 5)) * 0.4,
        "scale": jax.random.uniform(k[1], (5,), minval=0.5, maxval=1.5),
        "shift": jax.random.normal(k[2], (5,)) * 0.2,
        "conv2": jax.random.normal(k[3], (3, 3, 5, 6)) * 0.3,
        "dense": jax.random.normal(k[4], (6, classes)),
        "bias": jax.random.normal(k[5], (classes,)),
    }
    state = {"mean": jax.random.normal(k[6], (5,)) * 0.1, "var": jax.random.uniform(k[7], (5,), minval=0.5, maxval=2.0)}
    return params, state


def torch_convolutional(params: Any, model_state: Any) -> tuple[Any, dict[str, Any]]:
    """Return the same network in PyTorch: (forward(x NHWC, train), its leaf tensors by our names)."""
    import torch
    from torch.nn import functional as F

    leaves = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in params.items()}
    mean, var = (torch.tensor(np.array(model_state[name])) for name in ("mean", "var"))

    def forward(x: Any, train: bool = False) -> Any:
        z = F.conv2d(x.permute(0, 3, 1, 2), leaves["conv1"].permute(3, 2, 0, 1), padding=1)
        moving = (mean.clone(), var.clone())
        z = F.batch_norm(z, *moving, leaves["scale"], leaves["shift"], training=train, eps=1e-5)
        z = F.conv2d(F.relu(z), leaves["conv2"].permute(3, 2, 0, 1), padding=1, stride=2)
        return F.relu(z).mean((2, 3)) @ leaves["dense"] + leaves["bias"]

    return forward, leaves


class Counting:
    """A network that counts how often it is traced; hashes by identity."""

    def __init__(self, apply_fn: Any) -> None:
        self.apply_fn, self.traces = apply_fn, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.traces += 1
        return self.apply_fn(*args, **kwargs)
