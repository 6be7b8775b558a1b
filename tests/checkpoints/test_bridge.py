"""PyTorch modules as functions of JAX: logits and Fishers equal PyTorch's, and layers are found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch

import fedfisher_jax as ff
from fedfisher_jax.torch import _torchax as bridge
from fedfisher_jax.torch import from_module, state_dict, to_jax, to_torch

NAMES = ("bert", "gpt2", "llama", "vit", "convolutional")
SEQUENCES = ("gpt2", "llama", "mixtral")
EMBEDDINGS = ("embed", "wte", "wpe", "cls_token")


def inputs(name, count=4):
    if name == "vit":
        return {"pixel_values": tiny.images(3, count)}
    return tiny.images(2, count) if name == "convolutional" else tiny.text(count)


def in_jax(x):
    return jax.tree.map(lambda tensor: jnp.asarray(tensor.numpy()), x)


def logits(module, x):
    found = module(**x) if isinstance(x, dict) else module(x)
    return getattr(found, "logits", found)


def targets(name, x):
    """Classes, or the next token at each position, -100 where there is none."""
    if name not in SEQUENCES:
        return torch.arange(len(next(iter(x.values())) if isinstance(x, dict) else x)) % tiny.CLASSES
    ids, mask = x["input_ids"], x["attention_mask"]
    following = torch.where(mask[:, 1:] == 1, ids[:, 1:], -100)
    return torch.cat([following, torch.full((len(ids), 1), -100)], 1)


@pytest.mark.parametrize("name", [*NAMES, "adapted", "mixtral"])
def test_logits_equal_pytorchs(name):
    module, x = getattr(tiny, name)(), inputs(name)
    model = from_module(module)
    found = np.asarray(model.apply(model.params, in_jax(x)))
    with torch.no_grad():
        expected = logits(module, x).numpy()
    assert found.dtype == expected.dtype and found.shape == expected.shape
    seen = x["attention_mask"].numpy().astype(bool) if name in SEQUENCES else slice(None)
    np.testing.assert_allclose(found[seen], expected[seen], rtol=0, atol=1e-5)
    assert np.abs(expected).max() > 0.1


def pytorchs_diagonal(module, x, y):
    """Σ over examples, counted positions and classes of (∂ √p_c (e_c − p)ᵀ z)², by autograd, one backward each."""
    named = dict(module.named_parameters())
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in named.items()}
    for n in range(len(y)):
        one = {key: value[n : n + 1] for key, value in x.items()} if isinstance(x, dict) else x[n : n + 1]
        outputs = logits(module, one)[0]
        rows = outputs if outputs.ndim == 2 else outputs[None]
        for row, target in zip(rows, y[n].reshape(-1), strict=True):
            if target == -100:
                continue
            p = torch.softmax(row, -1).detach()
            for c in range(len(p)):
                column = p[c].sqrt() * (torch.eye(len(p))[c] - p)
                found = torch.autograd.grad(row @ column, named.values(), retain_graph=True, allow_unused=True)
                for key, gradient in zip(named, found, strict=True):
                    if gradient is not None:
                        total[key] += gradient.double() ** 2
    return {key: value.numpy() / len(y) for key, value in total.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "mixtral"])
def test_the_diagonal_fisher_equals_pytorchs(name):
    module, x = getattr(tiny, name)(), inputs(name, 2)
    y = targets(name, x)
    model = from_module(module)
    likelihood = ff.categorical(ignore=-100) if name in SEQUENCES else ff.categorical()
    data = ff.examples(in_jax(x), jnp.asarray(y.numpy()))
    found = ff.fisher(model.apply, likelihood, model.params, data).diagonal()
    expected = pytorchs_diagonal(module, x, y)
    rounding = 1e-11 * max(value.max() for value in expected.values())  # squared: keys' biases have no gradient at all
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-3, atol=rounding, err_msg=key)
    for key in set(found) - set(expected):  # running averages
        assert not np.asarray(found[key]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, "mixtral"])
def test_layers_hold_nearly_all_parameters_outside_of_embeddings(name):
    module, x = getattr(tiny, name)(), inputs(name)
    model = from_module(module)
    found = ff.capture(model.apply, model.params, in_jax(x))
    paths = sorted(model.params)  # the order of a dictionary's leaves
    captured = {paths[leaf] for layer in found.layers for leaf in layer.leaves}
    trained = {key: value.numel() for key, value in module.named_parameters()}
    outside = {key: size for key, size in trained.items() if not any(word in key for word in EMBEDDINGS)}
    share = sum(size for key, size in outside.items() if key in captured) / sum(outside.values())
    assert share >= 0.95
    tables = {key for key in trained if key.endswith(("wte.weight", "embed_tokens.weight"))}
    assert tables <= captured  # GPT-2's is the head, too
    if name == "mixtral":
        assert module.config._experts_implementation == "grouped_mm"  # its own stays
    scales = {path for path, part in module.named_modules() if "Norm" in type(part).__name__}
    assert {key.rpartition(".")[0] for key in set(outside) - captured} <= scales


def test_the_row_of_padding_gets_no_fisher_where_it_is_read():
    """PyTorch's rule for `padding_idx`, in a model that does read it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Embedding(5, 3, padding_idx=0), torch.nn.Flatten(), torch.nn.Linear(6, 2))
    module[0].weight.data.normal_()
    x = torch.tensor([[0, 1], [2, 0]])
    model = from_module(module)
    with torch.no_grad():
        np.testing.assert_allclose(model.apply(model.params, in_jax(x)), module(x), atol=1e-6)
    assert ff.capture(model.apply, model.params, in_jax(x)).fallback == {}
    found = ff.fisher(model.apply, ff.categorical(), model.params, ff.examples(in_jax(x))).diagonal()
    expected = pytorchs_diagonal(module, x, torch.tensor([0, 1]))
    np.testing.assert_allclose(found["0.weight"], expected["0.weight"], rtol=1e-4)
    assert not expected["0.weight"][0].any() and expected["0.weight"][1].all()


def test_the_module_stays_as_it_is_and_dropout_is_off():
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.BatchNorm1d(4)).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = from_module(module)
    x = jnp.ones((2, 3))
    assert (model.apply(model.params, x) == model.apply(model.params, x)).all()
    assert module.training and torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert set(model.params) | set(model.buffers) == set(before)


def test_what_cannot_be_expressed_is_named():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.special.airy_ai(x)

    model = from_module(Odd())
    with pytest.raises(NotImplementedError, match="airy_ai"):
        model.apply(model.params, jnp.ones((2, 3)))


def test_several_outputs_need_a_name():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Linear(3, 2)

        def forward(self, x):
            return {"a": self.inner(x), "b": 2 * self.inner(x)}

    x = jnp.ones((4, 3))
    with pytest.raises(ValueError, match=r"output: got None, expected one of a, b"):
        model = from_module(Two())
        model.apply(model.params, x)
    first, second = (from_module(Two(), output=name) for name in "ab")
    np.testing.assert_allclose(2 * first.apply(first.params, x), second.apply(first.params, x), rtol=1e-6)


def test_only_overloads_on_named_tensors_are_made_up():
    with bridge.named_tensors():
        assert torch.ops.aten.all.dimname_out is not None
        with pytest.raises(AttributeError):
            torch.ops.aten.all.no_such_overload  # noqa: B018
    with pytest.raises(AttributeError):
        torch.ops.aten.all.no_such_names  # noqa: B018


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64", "int64", "bool"])
def test_tensors_go_to_jax_and_back_bit_for_bit(kind):
    torch.manual_seed(0)
    tensor = (10 * torch.randn(3, 4)).to(getattr(torch, kind)).T
    back = to_torch(to_jax(tensor))
    assert back.dtype == tensor.dtype and torch.equal(back, tensor)


def test_a_state_dict_has_the_modules_names_and_tied_weights():
    module = tiny.gpt2()
    model = from_module(module)
    changed = {name: 2 * value for name, value in model.params.items()}
    state = state_dict(module, changed)
    assert list(state) == list(module.state_dict())
    assert torch.equal(state["lm_head.weight"], 2 * module.transformer.wte.weight)
    with pytest.raises(ValueError, match=r"params: got no transformer.wte.weight"):
        state_dict(module, {name: value for name, value in changed.items() if "wte" not in name})
    with pytest.raises(ValueError, match=r"transformer.wpe.weight: got torch.float16"):
        state_dict(module, changed | {"transformer.wpe.weight": jnp.zeros((16, 16), jnp.float16)})
