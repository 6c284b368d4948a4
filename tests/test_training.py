"""Functional training against hand-written PyTorch, lanes against single runs, left-out instances against none."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxunlearn import _progress, inference, losses, models, training
from jaxunlearn._types import Model, ModelSpec
from jaxunlearn.data import open_source

D, H, C, N = 5, 6, 3, 12


def mlp(params, model_state, x, *, train=False, rngs=None):
    return jnp.tanh(x @ params["a"] + params["b"][None]) @ params["c"], model_state


def init(key):
    a, c = jax.random.split(key)
    weights = {"a": jax.random.normal(a, (D, H)), "b": jnp.zeros(H), "c": jax.random.normal(c, (H, C))}
    return weights, {}


def centring(params, model_state, x, *, train=False, rngs=None):
    """A network with batch statistics: inputs are centred by the batch mean, a running mean is kept."""
    mean = jnp.mean(x, axis=0) if train else model_state["mean"]
    new = {"mean": 0.9 * model_state["mean"] + 0.1 * mean} if train else model_state
    return (x - mean[None]) @ params["w"], new


def noisy(params, model_state, x, *, train=False, rngs=None):
    scale = jax.random.bernoulli(rngs["dropout"], 0.5, x.shape) * 2.0 if train else 1.0
    return (x * scale) @ params["w"], model_state


SPEC = ModelSpec(num_classes=C, input_shape=(D,), init_fn=init)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.uniform(size=(N, D)).astype(np.float32), rng.integers(0, C, N)


@pytest.fixture
def model():
    params, state = init(jax.random.key(7))
    return Model(params=params, model_state=state, apply_fn=mlp, spec=SPEC)


def linear(apply_fn=centring):
    state = {"mean": jnp.zeros(D)} if apply_fn is centring else {}
    return Model(params={"w": jnp.arange(D * C).reshape(D, C) * 0.02}, model_state=state, apply_fn=apply_fn, spec=SPEC)


def close(a, b, tolerance=1e-6):
    jax.tree.map(partial(np.testing.assert_allclose, atol=tolerance, rtol=0), a, b)


SETTINGS = dict(epochs=3, batch_size=5, learning_rate=0.3)


@pytest.mark.parametrize("loop", ["host", "device"])
def test_three_epochs_equal_pytorch(model, data, loop):
    x, y = data
    weight = np.array([1.0, 2.0, 0.0, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0, 3.0, 1.0, 1.0], np.float32)
    key = jax.random.key(3)
    done = training.train(model, key, x, y, sample_weight=weight, weight_decay=0.01, loop=loop, **SETTINGS)

    params = [torch.nn.Parameter(torch.tensor(np.asarray(model.params[name]))) for name in "abc"]
    optimiser = torch.optim.SGD(params, lr=0.3, momentum=0.9, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=6)
    expected = []
    for epoch in range(3):
        order = np.asarray(training.epoch_order(key, epoch, jnp.asarray(weight)))[:10]
        for rows in (order[:5], order[5:]):
            a, b, c = params
            logits = torch.tanh(torch.tensor(x[rows]) @ a + b) @ c
            each = torch.nn.functional.cross_entropy(logits, torch.tensor(y[rows]), reduction="none")
            w = torch.tensor(weight[rows])
            loss = (w * each).sum() / w.sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            expected.append(loss.item())
    np.testing.assert_allclose(done.history["loss"], expected, atol=1e-5)
    for name, value in zip("abc", params, strict=True):
        np.testing.assert_allclose(done.model.params[name], value.detach().numpy(), atol=1e-5)


def test_order_holds_each_member_once_and_ends_with_those_left_out():
    weight = jnp.asarray([1.0, 0.0, 2.0, 0.5, 0.0])
    orders = [np.asarray(training.epoch_order(jax.random.key(0), epoch, weight)) for epoch in range(20)]
    assert all(sorted(order[:3]) == [0, 2, 3] for order in orders)
    assert len({tuple(order[:3]) for order in orders}) > 3


@pytest.mark.parametrize("loop", ["host", "device"])
@pytest.mark.parametrize("fresh", [True, False])
def test_vmapped_lanes_equal_single_runs(model, data, loop, fresh):
    x, y = data
    weight = np.ones((3, N), np.float32)
    weight[1, :4] = 0  # 8 members: two steps an epoch where the others have three
    weight[2, 5] = 2.5
    keys = jax.random.split(jax.random.key(1), 3)
    run = partial(training.train_many, model, keys, x, y, sample_weight=weight, fresh=fresh, loop=loop, **SETTINGS)
    side_by_side, in_turn = run(vmapped=True), run(vmapped=False)
    close(side_by_side.model, in_turn.model)
    close(dict(side_by_side.history), dict(in_turn.history))
    assert side_by_side.history["learning_rate"].shape == (3, 9)
    for lane in (0, 2):
        start = training.initialise(model, keys[lane]) if fresh else model
        single = training.train(start, keys[lane], x, y, sample_weight=weight[lane], loop=loop, **SETTINGS)
        close(jax.tree.map(lambda a, lane=lane: a[lane], side_by_side.model), single.model)
        np.testing.assert_allclose(side_by_side.history["loss"][lane], single.history["loss"], atol=1e-6)


def test_one_row_of_weights_serves_all_lanes_and_lanes_differ(model, data):
    x, y = data
    keys = jax.random.split(jax.random.key(1), 2)
    row = np.arange(N) % 2
    many = training.train_many(model, keys, x, y, sample_weight=row, vmapped=True, **SETTINGS)
    each = training.train_many(model, keys, x, y, sample_weight=np.stack([row, row]), vmapped=True, **SETTINGS)
    close(many.model, each.model, 0)
    assert not np.allclose(many.model.params["a"][0], many.model.params["a"][1])


def test_host_and_device_loops_agree(data):
    x, y = data
    runs = [training.train(linear(), jax.random.key(0), x, y, loop=loop, **SETTINGS) for loop in ("host", "device")]
    close(runs[0].model, runs[1].model)
    close(dict(runs[0].history), dict(runs[1].history))


def test_an_instance_of_weight_zero_leaves_no_trace(data):
    x, y = data
    weight = np.ones(N)
    weight[[2, 9]] = 0
    other_x, other_y = x.copy(), y.copy()
    other_x[[2, 9]], other_y[[2, 9]] = 1.0, 0
    key = jax.random.key(0)
    seen = training.train(linear(), key, x, y, sample_weight=weight, **SETTINGS)
    unseen = training.train(linear(), key, other_x, other_y, sample_weight=weight, **SETTINGS)
    close(seen.model, unseen.model, 0)
    assert np.abs(np.asarray(seen.model.model_state["mean"])).sum() > 0


def test_running_statistics_follow_the_recursion(data):
    x, y = data
    done = training.train(linear(), jax.random.key(0), x, y, epochs=4, batch_size=N, learning_rate=0.1)
    np.testing.assert_allclose(done.model.model_state["mean"], x.mean(0) * (1 - 0.9**4), atol=1e-6)


def test_deterministic_in_the_key_and_different_for_another(model, data):
    x, y = data
    run = partial(training.train, model, x=x, y=y, **SETTINGS)
    close(run(key=jax.random.key(0)).model, run(key=jax.random.key(0)).model, 0)
    assert not np.allclose(run(key=jax.random.key(0)).model.params["a"], run(key=jax.random.key(1)).model.params["a"])


def test_dropout_and_augmentation_draw_anew_each_step(data):
    x, y = (np.repeat(a[:1], N, axis=0) for a in data)  # whatever the order, the rows are the same
    still = training.train(linear(noisy), jax.random.key(0), x, y, batch_size=N, epochs=6, learning_rate=0.0)
    assert len(set(still.history["loss"].tolist())) == 6

    def shift(key, batch):
        return batch + jax.random.normal(key, (1, 1))

    moved = training.train(linear(), jax.random.key(0), x, y, batch_size=N, epochs=3, learning_rate=0.0, augment=shift)
    plain = training.train(linear(), jax.random.key(0), x, y, batch_size=N, epochs=3, learning_rate=0.0)
    assert not np.allclose(moved.model.model_state["mean"], plain.model.model_state["mean"])


def test_callers_weights_survive_donation(model, data):
    before = jax.tree.map(np.array, model)
    training.train(model, jax.random.key(0), *data, **SETTINGS)
    close(before, model, 0)


def test_one_compilation_serves_runs_of_one_shape(data):
    traces = []

    def counted(params, model_state, x, *, train=False, rngs=None):
        traces.append(x.shape)
        return x @ params["w"], model_state

    for seed, rate in ((0, 0.1), (1, 0.2)):
        training.train(
            linear(counted), jax.random.key(seed), *data, epochs=2, batch_size=4, learning_rate=rate, momentum=rate
        )
    assert len(traces) == 1


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_schedule(model, data, schedule):
    done = training.train(model, jax.random.key(0), *data, epochs=2, batch_size=6, learning_rate=0.5, schedule=schedule)
    expected = 0.25 * (1 + np.cos(np.pi * np.arange(4) / 4)) if schedule == "cosine" else [0.5] * 4
    np.testing.assert_allclose(done.history["learning_rate"], expected, atol=1e-6)


def test_history_is_the_loss_and_accuracy_of_the_step_batch(model, data):
    x, y = data
    done = training.train(model, jax.random.key(0), x, y, epochs=1, batch_size=N, learning_rate=0.1)
    logits = model(jnp.asarray(x))
    np.testing.assert_allclose(done.history["loss"], [np.mean(losses.cross_entropy(logits, jnp.asarray(y)))], atol=1e-6)
    np.testing.assert_allclose(done.history["accuracy"], [np.mean(np.argmax(logits, 1) == y)])


@pytest.mark.parametrize(("loop", "told"), [("host", range(1, 10)), ("device", (3, 6, 9))])
def test_progress_is_reported(model, data, loop, told):
    seen = []
    with _progress.listening(lambda *event: seen.append(event)):
        training.train(model, jax.random.key(0), *data, loop=loop, **SETTINGS)
    assert seen == [("training", step, 9) for step in told]


# --- codes -------------------------------------------------------------------


CODES = np.random.default_rng(8).uniform(size=(C, D)).astype(np.float32)


@pytest.mark.parametrize("loop", ["host", "device"])
def test_without_a_share_of_codes_it_is_plain_training(model, data, loop):
    plain = training.train(model, jax.random.key(0), *data, loop=loop, **SETTINGS)
    none = training.train(model, jax.random.key(0), *data, codes=CODES, mix=0.0, loop=loop, **SETTINGS)
    close(plain.model.params, none.model.params, 0)
    close(plain.history, none.history, 0)


def test_with_a_share_of_one_only_codes_are_seen(model, data):
    x, y = data
    coded = training.train(model, jax.random.key(0), x, y, codes=CODES, mix=1.0, **SETTINGS)
    plain = training.train(model, jax.random.key(0), CODES[y], y, **SETTINGS)
    close(coded.model.params, plain.model.params)


def test_which_instances_give_way_depends_on_epoch_and_instance_alone(model, data):
    x, y = data
    key, seen = jax.random.key(4), []

    def watched(params, model_state, x, *, train=False, rngs=None):
        jax.debug.callback(lambda x: seen.append(np.array(x)), x)
        return mlp(params, model_state, x)

    spy = model.replace(apply_fn=watched)
    training.train(spy, key, x, y, codes=CODES, mix=0.4, epochs=2, batch_size=N, learning_rate=0.0, loop="host")
    jax.effects_barrier()
    for epoch in range(2):
        order = np.asarray(training.epoch_order(key, epoch, jnp.ones(N)))
        gone = np.asarray(training.replaced(key, epoch, jnp.arange(N), 0.4))
        shown = np.where(gone[:, None], CODES[y], x)[order]
        np.testing.assert_array_equal(seen[epoch], shown)
        assert 0 < gone.sum() < N
    assert not np.array_equal(*(training.replaced(key, epoch, jnp.arange(N), 0.4) for epoch in range(2)))


def test_the_share_that_gives_way_is_binomial():
    counts = [int(training.replaced(jax.random.key(0), epoch, jnp.arange(400), 0.3).sum()) for epoch in range(50)]
    assert abs(np.mean(counts) - 120) < 4 * np.sqrt(400 * 0.21 / 50)
    assert 0.6 < np.std(counts) / np.sqrt(400 * 0.21) < 1.4


def test_codes_come_after_augmentation_and_are_learned():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(size=(60, D)).astype(np.float32), rng.integers(0, C, 60)
    params, state = init(jax.random.key(1))
    fresh = Model(params=params, model_state=state, apply_fn=mlp, spec=SPEC)
    done = training.train(
        fresh,
        jax.random.key(0),
        x,
        y,
        augment=no_image,
        codes=CODES,
        mix=0.5,
        epochs=80,
        batch_size=20,
        learning_rate=0.5,
    )
    assert (np.argmax(inference.logits(done.model, CODES), axis=1) == np.arange(C)).all()


def no_image(key, x):
    return jnp.zeros_like(x)


def test_codes_that_do_not_fit_are_refused(model, data):
    for settings, message in (
        (dict(codes=CODES), "codes and mix go together; got no mix"),
        (dict(mix=0.5), "codes and mix go together; got no codes"),
        (dict(codes=CODES[:2], mix=0.5), "codes must be one a class, 3; got 2"),
        (dict(codes=CODES[:, :2], mix=0.5), r"codes must have shape \(batch, 5\)"),
        (dict(codes=CODES, mix=1.5), r"mix must be in \[0, 1\]; got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            training.train(model, jax.random.key(0), *data, **settings, **SETTINGS)


def test_divergence_names_the_step_and_the_lane(data):
    x, y = data
    settings = dict(epochs=5, batch_size=N, learning_rate=1e38, momentum=0.0, weight_decay=5e-4)
    with pytest.raises(FloatingPointError, match=r"training diverged: the loss is nan at step \d of 5; lower learning"):
        training.train(linear(), jax.random.key(0), x, y, **settings)

    def fragile(params, model_state, inputs, *, train=False, rngs=None):
        return jnp.log(jnp.min(inputs)) + inputs @ params["w"], model_state

    bad = x.copy()
    bad[3, 0] = 0.0
    weight = np.ones((2, N))
    weight[0, 3] = 0
    with pytest.raises(FloatingPointError, match="diverged in lane 1: the loss is nan at step 1 of 5"):
        training.train_many(
            linear(fragile), jax.random.split(jax.random.key(0), 2), bad, y,
            sample_weight=weight, fresh=False, vmapped=True, **settings,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(epochs=0), ValueError, "epochs must be at least 1; got 0"),
        (dict(batch_size=2.5), TypeError, "batch_size must be an integer; got 2.5"),
        (dict(learning_rate=-1.0), ValueError, "learning_rate must be at least 0; got -1.0"),
        (dict(momentum=1.5), ValueError, r"momentum must be in \[0, 1\]; got 1.5"),
        (dict(weight_decay=float("nan")), ValueError, "weight_decay must be at least 0; got nan"),
        (dict(schedule="step"), ValueError, "schedule must be one of 'cosine', 'constant'; got 'step'"),
        (dict(loop="tpu"), ValueError, "loop must be one of 'auto', 'device', 'host'; got 'tpu'"),
        (dict(sample_weight=np.ones(3)), ValueError, r"sample_weight must have shape \(12,\); got \(3,\)"),
        (dict(sample_weight=-np.ones(N)), ValueError, "sample_weight must be at least 0"),
        (dict(sample_weight=np.zeros(N)), ValueError, "sample_weight is 0 for every instance: there is nothing"),
        (dict(y=np.full(N, 3)), ValueError, "y must be labels from 0 to 2; got 3 in row 0"),
        (dict(y=np.zeros(4, int)), ValueError, "training data must have fields of one length"),
        (dict(x=np.zeros((N, 4))), ValueError, r"x must have shape \(batch, 5\); got \(12, 4\)"),
        (dict(x=np.zeros((0, D)), y=np.zeros(0, int)), ValueError, "x is empty"),
    ],
)
def test_wrong_arguments(model, data, changes, error, message):
    arguments = dict(x=data[0], y=data[1], **SETTINGS) | changes
    with pytest.raises(error, match=message):
        training.train(model, jax.random.key(0), **arguments)


def test_wrong_lanes(model, data):
    x, y = data
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=r"keys must be a \(lanes,\) array of typed keys; got shape \(\)"):
        training.train_many(model, jax.random.key(0), x, y, **SETTINGS)
    weight = np.ones((2, N))
    weight[1] = 0
    with pytest.raises(ValueError, match="sample_weight is 0 for every instance in lane 1"):
        training.train_many(model, keys, x, y, sample_weight=weight, **SETTINGS)
    with pytest.raises(ValueError, match="init_fn is None"):
        training.train_many(model.replace(spec=ModelSpec(num_classes=C, input_shape=(D,))), keys, x, y, **SETTINGS)


def test_the_digits_network_learns_the_digits():
    source = open_source("digits")
    train, test = source.splits["train"], source.splits["test"]
    fresh = models.from_recipe(models.recipe("digits_cnn"), key=jax.random.key(0))
    x, y = source.images(train), source.labels[train]
    done = training.train(fresh, jax.random.key(1), x, y, epochs=4, batch_size=64, learning_rate=0.05)
    logits = inference.logits(done.model, source.images(test))
    assert np.mean(logits.argmax(1) == source.labels[test]) > 0.96
