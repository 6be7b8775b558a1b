"""Small payloads of every structure, and the hostile things one can do to their files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

import fedfisher_jax as ff
from fedfisher_jax import payload as files
from fedfisher_jax.curvature import Diagonal, Full, Gram, Kronecker, Layer, LowRank
from fedfisher_jax.curvature.structures._class_moments import ClassMoments
from fedfisher_jax.curvature.structures._gradient import Gradient, Quadratic
from fedfisher_jax.payload import _container as container

SHAPES = {"conv": {"kernel": (2, 3, 4)}, "fc": {"bias": (3,), "kernel": (4, 3)}, "scale": (5,)}
LAYERS = (
    Layer(0, None, (2, 3, 4), (), (("transpose", (1, 0, 2)), ("reshape", (6, 4)))),
    Layer(2, 1, (4, 3), (3,), (("reshape", (4, 3)),)),
)
STRUCTURES = (None, "diagonal", "full", "kronecker", "gram", "low_rank")


def normal(seed, *shape):
    return np.random.default_rng([11, *np.atleast_1d(seed)]).normal(size=shape)


def psd(seed, n, dtype=jnp.float32, rank=None):
    rows = normal(seed, rank or n + 2, n)
    return jnp.asarray(rows.T @ rows / len(rows), dtype)


def params(seed=0, dtype=jnp.float32):
    leaf = lambda n, shape: jnp.asarray(normal([seed, n], *shape), dtype)  # noqa: E731
    conv, fc = SHAPES["conv"]["kernel"], SHAPES["fc"]
    return {
        "conv": {"kernel": leaf(0, conv)},
        "fc": {"bias": leaf(1, fc["bias"]), "kernel": leaf(2, fc["kernel"])},
        "scale": leaf(3, SHAPES["scale"]),
    }


def payload(structure, seed=0, dtype=jnp.float32):
    tree = params(seed, dtype)
    treedef, shapes = jax.tree.structure(tree), tuple(leaf.shape for leaf in jax.tree.leaves(tree))
    inputs = (psd([seed, 0], 6, dtype), psd([seed, 1], 5, dtype))
    fisher = {
        None: lambda: None,
        "diagonal": lambda: Diagonal(jax.tree.map(jnp.square, params(seed + 50, dtype))),
        "full": lambda: Full(psd([seed, 9], sum(int(np.prod(s)) for s in shapes), dtype), shapes, treedef),
        "kronecker": lambda: Kronecker(
            inputs,
            (psd([seed, 2], 4, dtype), psd([seed, 3], 3, dtype)),
            {3: jnp.square(jnp.asarray(normal([seed, 4], 5), dtype))},
            LAYERS,
            treedef,
        ),
        "gram": lambda: Gram(inputs, LAYERS, shapes, treedef),
        "low_rank": lambda: LowRank(
            jnp.asarray([3.0, 1.0], dtype),
            {n: jnp.asarray(normal([seed, 5, n], 2, *shapes[n]), dtype) for n in (0, 2)},
            shapes,
            treedef,
        ),
    }[structure]()
    return ff.Payload(jnp.asarray(12.0 + seed, jnp.result_type(float)), tree, fisher)


def beside_factors(seed=0):
    """Payloads of what rules of several exchanges, and training on draws, send beside or in the place of parameters."""
    sent = payload("kronecker", seed)
    leaves, draw = files.leaves(sent.params), np.random.default_rng(seed)
    single = lambda *shape: jnp.asarray(draw.normal(size=shape), jnp.float32)  # noqa: E731
    moments = single(3), single(3, 4), jnp.stack([psd([seed, n], 4) for n in range(3)]), single(2)
    inputs = ClassMoments(sent.statistics, jnp.abs(moments[0]), *moments[1:], ((4,), "float32"))
    steps = [Gradient(single(), params(seed), sent.statistics, leaves), Quadratic(single(5), psd([seed, 5], 5), leaves)]
    return [sent._replace(statistics=inputs), *(sent._replace(params=None, statistics=one) for one in steps)]


RULES = {None: "fedavg", "diagonal": "fisher-merge", "full": "fedfisher-full", "kronecker": "fedfisher-kfac"}
START = params(99)


def about(structure, silo=0, **changes):
    values = {"rule": RULES.get(structure, "regmean"), "likelihood": "categorical", "silo": silo}
    return files.About(**(values | {"start": files.fingerprint(START)} | changes))


def same(first, second):
    """Bit for bit."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert a.dtype == b.dtype and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return True


def opened(data):
    """Header and arrays of a file's bytes, without any of the library's checks."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["fedfisher"])
    arrays = {
        name: np.frombuffer(entry["data"], container._DTYPES[entry["dtype"]]).reshape(entry["shape"]).copy()
        for name, entry in safetensors.deserialize(data)
    }
    return header, arrays


def resealed(data, change):
    """The file after `change(header, arrays)`, sealed again, as a malicious writer would."""
    header, arrays = opened(data)
    header.pop("sha256")
    change(header, arrays)
    return container.pack(header, arrays)


def entry(name, change):
    """For `resealed`: one array changed."""
    return lambda header, arrays: arrays.update({name: change(arrays[name])})
