"""The geometry under patches: linear pieces, polytopes, affine patches, rounding, what a certificate promises."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.spatial import HalfspaceIntersection

from jaxunlearn import patches, wrappers
from jaxunlearn._types import Model, ModelSpec
from jaxunlearn.adapters import from_linen
from jaxunlearn.patches import Polytope, Region


def dense(params, model_state, x, *, train=False, rngs=None):
    """Fully connected layers with ReLU between them."""
    x = x.reshape(len(x), -1)
    for i, layer in enumerate(params["layers"]):
        x = x @ layer["w"] + layer["b"][None]
        x = jax.nn.relu(x) if i + 1 < len(params["layers"]) else x
    return x, model_state


def fully_connected(seed, *sizes, box=(0.0, 1.0)) -> Model:
    rng = np.random.RandomState(seed)
    pairs = itertools.pairwise(sizes)
    layers = [{"w": np.float32(rng.randn(a, b)), "b": np.float32(rng.randn(b) * 0.5)} for a, b in pairs]
    spec = ModelSpec(num_classes=sizes[-1], input_shape=(sizes[0],), box=box)
    return Model(params={"layers": layers}, model_state={}, apply_fn=dense, spec=spec)


def exact(model: Model, x) -> np.ndarray:
    """Return logits in float64."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (model.params, model.model_state))
        return np.asarray(jax.jit(model.apply_fn)(*wide, np.asarray(x, np.float64))[0])


def region_of(model: Model, x) -> Region:
    piece = patches.linear_piece(model, x)
    n = len(np.ravel(x))
    low, high = model.spec.box
    return Region(Polytope(piece.normals, piece.offsets, np.full(n, low), np.full(n, high)), piece.slope, piece.shift)


class Everything(nn.Module):
    """Convolution, BatchNorm, pooling of both kinds, ReLU6, leaky ReLU, absolute values, clipping."""

    @nn.compact
    def __call__(self, x, *, train: bool = False):
        x = nn.Conv(3, (3, 3), name="conv1")(x)
        x = nn.BatchNorm(use_running_average=not train, name="bn")(x)
        x = nn.max_pool(nn.relu(x), (3, 3), (2, 2), ((1, 1), (1, 1)))
        x = nn.leaky_relu(nn.Conv(4, (2, 2), padding="VALID", name="conv2")(x))
        x = nn.avg_pool(nn.relu6(6 * x), (2, 2), (1, 1))
        x = jnp.concatenate([jnp.abs(x), jnp.clip(x, -0.2, 0.3), jnp.max(x, axis=(1, 2), keepdims=True)], axis=-1)
        return nn.Dense(3, name="head")(x.reshape(x.shape[0], -1))


@pytest.fixture(scope="module")
def everything() -> Model:
    net = Everything()
    variables = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 5, 5, 1)))
    stats = {"bn": {"mean": jnp.array([0.1, -0.2, 0.0]), "var": jnp.array([0.5, 2.0, 1.0])}}
    variables = {"params": variables["params"], "batch_stats": stats}
    return from_linen(net, variables, input_shape=(5, 5, 1), num_classes=3, mean=(0.4,), std=(0.3,), head=("head",))


def test_a_piece_of_a_dense_network_is_what_its_layers_say():
    model = fully_connected(0, 4, 12, 10, 4)
    x = np.random.RandomState(1).rand(4)
    piece = patches.linear_piece(model, x)
    w, b = ([np.asarray(layer[name], np.float64) for layer in model.params["layers"]] for name in "wb")
    first = x @ w[0] + b[0]
    on = first > 0
    slope2 = (w[0] * on) @ w[1]
    second = np.maximum(first, 0) @ w[1] + b[1]
    values, slopes = np.r_[first, second], np.c_[w[0], slope2].T
    signs, size = np.sign(values), np.linalg.norm(slopes, axis=1)
    np.testing.assert_allclose(piece.normals, -signs[:, None] * slopes / size[:, None], atol=1e-12)
    np.testing.assert_allclose(piece.offsets - piece.normals @ x, np.abs(values) / size, atol=1e-12)
    np.testing.assert_allclose(piece.slope, ((slope2 * (second > 0)) @ w[2]).T, atol=1e-12)
    assert piece.nearest == pytest.approx((np.abs(values) / size).min())
    assert patches.count_conditions(model) == 22


@pytest.mark.parametrize("which", ["dense", "everything"])
def test_a_piece_is_linear_up_to_its_faces_and_not_beyond(which, everything):
    model = fully_connected(3, 6, 16, 12, 4) if which == "dense" else everything
    rng = np.random.RandomState(0)
    beyond = 0
    for _ in range(4):
        x = rng.rand(*model.spec.input_shape)
        region = region_of(model, x)
        np.testing.assert_allclose(region.slope @ x.ravel() + region.shift, exact(model, x[None])[0], atol=1e-10)
        np.testing.assert_allclose(np.linalg.norm(region.polytope.normals, axis=1), 1, atol=1e-12)
        points = region.polytope.sample(rng, x.ravel(), 60, thin=4)
        assert region.polytope.contains(points, 1e-12).all()
        there = exact(model, points.reshape(-1, *model.spec.input_shape))
        np.testing.assert_allclose(there, points @ region.slope.T + region.shift, atol=1e-10)
        for point in points[:8]:  # out through a face that is not the box's: the slope is another one
            d = rng.randn(point.size)
            slack = region.polytope.offsets - region.polytope.normals @ point
            out = (slack / np.maximum(region.polytope.normals @ d, 1e-300)).min() * (1 + 1e-6) + 1e-9
            moved = (point + out * d).reshape(model.spec.input_shape)
            beyond += not np.allclose(patches.linear_piece(model, moved).slope, region.slope, atol=1e-9)
    # Of 32. A ReLU that nothing listens to, as of a pixel that loses in its pool, changes no slope.
    assert beyond >= (30 if which == "dense" else 4)


def test_weights_that_float32_rounds_are_taken_as_they_are_served():
    model = fully_connected(5, 3, 5, 2)
    piece = patches.linear_piece(model, np.full(3, 0.3))
    served = np.asarray(model(jnp.full((1, 3), 0.3, jnp.float32)))[0]
    np.testing.assert_allclose(piece.slope @ np.full(3, 0.3) + piece.shift, served, atol=1e-5)


def test_a_point_on_a_face_gets_a_piece_that_touches_it():
    params = {"layers": [{"w": np.eye(2, dtype=np.float32), "b": np.zeros(2, np.float32)}] * 2}
    spec = ModelSpec(num_classes=2, input_shape=(2,), box=(-1.0, 1.0))
    model = Model(params=params, model_state={}, apply_fn=dense, spec=spec)
    piece = patches.linear_piece(model, [0.0, 0.5])
    assert piece.nearest == 0
    x = np.array([0.0, 0.5])
    assert (piece.normals @ x <= piece.offsets + 1e-12).all()
    np.testing.assert_allclose(piece.slope @ x + piece.shift, [0.0, 0.5], atol=1e-12)
    assert piece.slope[1, 1] == 1


def of(fn, classes=3):
    def apply_fn(params, model_state, x, *, train=False, rngs=None):
        return fn(x @ params["w"]), model_state

    spec = ModelSpec(num_classes=classes, input_shape=(4,))
    return Model(params={"w": jnp.ones((4, classes))}, model_state={}, apply_fn=apply_fn, spec=spec)


@pytest.mark.parametrize(
    ("fn", "operation"),
    [
        (jnp.tanh, "tanh"),
        (jax.nn.gelu, "integer_pow"),
        (jnp.exp, "exp"),
        (lambda z: z + jax.lax.stop_gradient(z), "stop_gradient"),  # its slope would be lost
        (lambda z: z * z, "mul"),
        (lambda z: z / (1 + jnp.abs(z)), "div"),
        (lambda z: jnp.round(z), "round"),
        (lambda z: jnp.sort(z, axis=-1), "sort"),
        (lambda z: jax.lax.fori_loop(0, 2, lambda i, z: z + 1, z), "(scan|while)"),
        (lambda z: z * jnp.argmax(z, axis=-1, keepdims=True), "argmax"),
    ],
)
def test_what_is_not_piecewise_linear_is_named(fn, operation):
    message = f"not piecewise linear: it has the operation '{operation}"
    with pytest.raises(patches.NotPiecewiseLinearError, match=message):
        patches.count_conditions(of(fn))


def test_constants_may_go_through_anything():
    model = of(lambda z: z * jnp.tanh(jnp.arange(3.0))[None] + jnp.exp(jnp.sort(jnp.ones(3)))[None])
    assert patches.count_conditions(model) == 0
    assert patches.linear_piece(model, np.zeros(4)).nearest == np.inf


def test_a_network_that_computes_in_float32_is_refused():
    model = of(lambda z: jax.nn.relu(z.astype(jnp.float32)))
    with pytest.raises(ValueError, match="computes in float32 whatever its weights are"):
        patches.linear_piece(model, np.zeros(4))


def toy_region() -> tuple[Model, np.ndarray, Region]:
    model = fully_connected(2, 2, 6, 3)
    x = np.array([0.4, 0.55])
    return model, x, region_of(model, x)


def vertices(polytope: Polytope, inside) -> np.ndarray:
    n = len(polytope.low)
    normals = np.vstack([polytope.normals, np.eye(n), -np.eye(n)])
    offsets = np.r_[polytope.offsets, polytope.high, -polytope.low]
    return HalfspaceIntersection(np.c_[normals, -offsets], np.asarray(inside, float)).intersections


def smallest_by_vertices(regions, points, spec) -> float:
    """Solve the primal programme: an affine function is largest at a vertex."""
    classes, n = regions[0].slope.shape
    rows, to = [], []
    for region, corners in zip(regions, points, strict=True):
        for v in corners:
            for k, sign in itertools.product(range(classes), (1, -1)):
                row = np.zeros(classes * n + classes + 1)
                row[k * n : (k + 1) * n], row[classes * n + k], row[-1] = sign * v, sign, -1
                rows.append(row)
                to.append(0)
            for p, q in zip(spec.rows, spec.high, strict=True):
                row = np.r_[np.outer(p, v).ravel(), p, 0]
                rows.append(row)
                to.append(q - p @ (region.slope @ v + region.shift))
    cost = np.r_[np.zeros(classes * n + classes), 1]
    return linprog(cost, np.array(rows), np.array(to), bounds=[(None, None)] * len(cost)).fun


def test_the_smallest_patch_equals_the_primal_programme_over_vertices():
    model, x, region = toy_region()
    target = int(exact(model, x[None])[0].argmin())
    spec = patches.label_is(target, 3, 0.1)
    assert (2 * 3 + 2) * region.polytope.size + 3 * 2 + 3 + 1 == 8 * 10 + 10  # 90 variables, as the toy of the paper
    found = patches.smallest([region], spec)
    corners = vertices(region.polytope, region.polytope.centre()[0])
    assert found.tau == pytest.approx(smallest_by_vertices([region], [corners], spec), rel=1e-7)
    points = region.polytope.sample(np.random.RandomState(0), x, 2000)
    patch = np.r_[points, corners] @ found.slope.T + found.shift
    logits = np.r_[points, corners] @ region.slope.T + region.shift
    assert (spec.rows @ (logits + patch).T <= -0.1 + 1e-9).all()
    assert np.abs(patch).max() <= found.tau + 1e-9
    assert np.abs(patch[len(points) :]).max() == pytest.approx(found.tau, rel=1e-6)  # the bound is attained
    assert patches.size_of(found.slope, found.shift, [region.polytope]) == pytest.approx(found.tau, rel=1e-6)


def test_one_patch_for_two_regions_with_logits_of_their_own():
    model = fully_connected(2, 2, 6, 3)
    xs = np.array([[0.4, 0.55], [0.9, 0.1]])
    regions = [region_of(model, x) for x in xs]
    assert not np.allclose(regions[0].slope, regions[1].slope)
    spec = patches.label_is(int(exact(model, xs)[0].argmin()), 3, 0.1)
    corners = [vertices(region.polytope, region.polytope.centre()[0]) for region in regions]
    found = patches.smallest(regions, spec)
    assert found.tau == pytest.approx(smallest_by_vertices(regions, corners, spec), rel=1e-7)


def boxes(seed, count, n=5, classes=4, rows=0) -> list[Region]:
    rng = np.random.RandomState(seed)
    slope, shift = rng.randn(classes, n), rng.randn(classes)
    out = []
    for _ in range(count):
        low = rng.rand(n) - 0.5
        high = low + rng.rand(n)
        normals = rng.randn(rows, n)
        out.append(Region(Polytope(normals, normals @ (low + high) / 2 + 0.1, low, high), slope, shift))
    return out


def test_boxes_share_multipliers_without_loss():
    regions = boxes(0, 4)
    spec = patches.label_is(2, 4, 0.2)
    whole, shared = patches.smallest(regions, spec), patches.smallest_on_boxes(regions, spec)
    assert shared.tau == pytest.approx(whole.tau, rel=1e-7)
    assert patches.size_of(shared.slope, shared.shift, [r.polytope for r in regions]) == pytest.approx(shared.tau)


def test_a_specification_that_holds_already_needs_no_patch():
    (region,) = boxes(1, 1)
    region = Region(region.polytope, region.slope, region.shift + np.array([0, 100, 0, 0]))
    for make in (patches.smallest, patches.smallest_on_boxes):
        found = make([region], patches.label_is(1, 4, 0.5))
        assert found.tau == pytest.approx(0, abs=1e-9)
        assert patches.size_of(found.slope, found.shift, [region.polytope]) == pytest.approx(0, abs=1e-9)
    kept = patches.interval_rule([region], patches.label_is(1, 4, 0.5, depth=1000))
    assert kept.tau == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("depth", [100.0, 3.0])  # 3: the rows must shrink, and the published shift would be wrong
def test_the_interval_rule_moves_every_row_into_its_interval(depth):
    regions = boxes(2, 2, rows=3)
    spec = patches.label_is(0, 4, 0.3, depth)
    found = patches.interval_rule(regions, spec)
    rng = np.random.RandomState(0)
    points = np.concatenate([r.polytope.sample(rng, (r.polytope.low + r.polytope.high) / 2, 400) for r in regions])
    before = (points @ regions[0].slope.T + regions[0].shift) @ spec.rows.T
    after = ((points @ (regions[0].slope + found.slope).T) + regions[0].shift + found.shift) @ spec.rows.T
    assert ((after <= -0.3 + 1e-9) & (after >= -depth - 1e-9)).all()
    for row in range(3):
        alpha, beta = np.polyfit(before[:, row], after[:, row], 1)
        np.testing.assert_allclose(after[:, row], alpha * before[:, row] + beta, atol=1e-9)
        assert alpha <= 1 + 1e-9
    null = np.linalg.svd(spec.rows)[2][len(spec.rows) :]
    change = points @ found.slope.T + found.shift
    np.testing.assert_allclose(change @ null.T, 0, atol=1e-9)  # what the specification does not name stays
    assert patches.smallest(regions, spec).tau <= found.tau + 1e-9


def test_polytopes():
    polytope = toy_region()[2].polytope
    centre, radius = polytope.centre()
    assert radius > 0
    slacks = polytope.slacks(centre[None])[0] / np.r_[np.linalg.norm(polytope.normals, axis=1), np.ones(4)]
    assert slacks.min() == pytest.approx(radius)
    corners = vertices(polytope, centre)
    for direction in np.random.RandomState(0).randn(5, 2):
        value, where = polytope.largest(direction)
        assert value == pytest.approx((corners @ direction).max())
        assert where @ direction == pytest.approx(value)
        assert polytope.over_box(direction[None])[0] >= value - 1e-12
        assert value <= polytope.at_most(direction, np.inf) + 1e-12
        assert polytope.at_most(direction, -np.inf) == pytest.approx(value)
    loose = Polytope(np.r_[polytope.normals, [[1.0, 1.0]]], np.r_[polytope.offsets, 5.0], polytope.low, polytope.high)
    assert len(loose.trimmed().offsets) <= len(polytope.offsets)
    empty = Polytope(np.array([[1.0, 0.0]]), np.array([-1.0]), np.zeros(2), np.ones(2))
    with pytest.raises(ValueError, match="the polytope is empty"):
        empty.centre()
    with pytest.raises(ValueError, match="no largest value"):
        empty.largest(np.array([1.0, 0.0]))


def test_a_walk_reaches_all_of_a_polytope_evenly():
    triangle = Polytope(np.array([[1.0, 1.0]]), np.array([1.0]), np.zeros(2), np.ones(2))
    points = triangle.sample(np.random.RandomState(0), np.array([0.1, 0.1]), 4000, thin=4)
    np.testing.assert_allclose(points.mean(axis=0), [1 / 3, 1 / 3], atol=0.02)
    assert (points.sum(axis=1) <= 1).all()


def test_no_patch_at_all_is_an_error_that_says_why():
    (region,) = boxes(3, 1)
    never = patches.Specification(
        np.array([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]), np.full(2, -100.0), np.array([-1.0, -1.0])
    )
    with pytest.raises(ValueError, match="no affine patch was found"):
        patches.smallest([region], never)


def test_touching_regions_are_right_only_outside_the_later_tube():
    """Trap 1: A_1 = [0, 1] with +1, A_2 = [1, 2] with -1, gamma 10, K 3."""
    wrapper = wrappers.Patch(space="input", dim=1, num_classes=1, members=(1, 1), rows=2, boxed=False)
    own = {
        "normals": np.tile(np.array([[[1.0], [-1.0]]], np.float32), (2, 1, 1)),
        "offsets": np.array([[1.0, 0.0], [2.0, -1.0]], np.float32),
        "maps": np.zeros((2, 1, 1), np.float32),
        "shifts": np.array([[1.0], [-1.0]], np.float32),
        "bounds": np.array([3.0, 3.0], np.float32),
        "sharpness": np.float32(10),
    }
    x = np.array([[0.5], [0.89], [0.95], [0.99], [1.5], [2.2], [-0.2]], np.float32)
    h = np.asarray(wrapper.patched(own, jnp.zeros((7, 1)), x))[:, 0]
    np.testing.assert_allclose(h, [1, 1, 0.5, -0.7, -1, 0, 0], atol=1e-5)


def test_a_bound_holds_whatever_the_solver_returns(monkeypatch):
    """Its tolerance is 1e-7, and it may stop before it is there."""
    polytope, rng = toy_region()[2].polytope, np.random.RandomState(0)
    middle = polytope.centre()[0]
    corners = vertices(polytope, middle)

    def stops_early(*args, **kwargs):
        found = linprog(*args, **kwargs)
        found.x = middle
        found.ineqlin.marginals = found.ineqlin.marginals + 0.1 * rng.randn(len(polytope.offsets))
        return found

    monkeypatch.setattr("jaxunlearn.patches.polytope.linprog", stops_early)
    for direction in rng.randn(20, 2):
        assert polytope.at_most(direction, -np.inf) >= (corners @ direction).max() - 1e-9


def test_a_layer_of_a_small_scale_bounds_its_pieces_too():
    def apply_fn(params, model_state, x, *, train=False, rngs=None):
        late = 1e9 * (1e9 * jax.nn.relu(params["w"] * (x - 0.999)))
        return late + jax.nn.relu(x - 0.25), model_state

    spec = ModelSpec(num_classes=1, input_shape=(1,))
    model = Model(params={"w": np.float32(1e-13)}, model_state={}, apply_fn=apply_fn, spec=spec)
    region = region_of(model, np.array([0.5])).polytope
    assert region.largest(np.ones(1))[0] == pytest.approx(0.999)
    assert -region.largest(-np.ones(1))[0] == pytest.approx(0.25)
