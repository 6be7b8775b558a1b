"""Folders in, payloads, a merged folder out that `from_pretrained` loads and that gives the merged logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import fedfisher_jax as ff
from fedfisher_jax.merge import catalogue
from fedfisher_jax.torch import from_module, merge, read, state_dict, write
from fedfisher_jax.torch._merge import RULES


def fine_tuned(tmp_path, kind=torch.float32, clients=2, make=tiny.bert):
    """Folders of the same model with other numbers, as after training."""
    folders = []
    for number in range(clients):
        module = make().to(kind)
        torch.manual_seed(10 + number)
        for parameter in module.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        module.save_pretrained(folder := tmp_path / f"client{number}")
        folders.append(folder)
    return folders


def x_and_y(seed):
    x = jax.tree.map(lambda t: jnp.asarray(t.numpy()), tiny.text(seed=seed))
    return x, jnp.arange(len(x["input_ids"])) % tiny.CLASSES


def measured(folders, name, **options):
    """The rule, and the payload of each folder on data of its own."""
    models = [from_module(read(folder)) for folder in folders]
    rule = catalogue.named_rule(name, models[0].apply, ff.categorical(), **options)
    return rule, [
        rule.measure(ff.Update(model.params), ff.examples(*x_and_y(seed)), jax.random.key(seed))
        for seed, model in enumerate(models)
    ]


def test_the_merged_folder_loads_and_gives_the_merged_logits(tmp_path):
    folders = fine_tuned(tmp_path)
    (folders[0] / "vocab.txt").write_text("a tokenizer's\n")
    (folders[0] / "optimizer.pt").write_text("not for others")
    rule, payloads = measured(folders, "fisher-merge")
    merged = merge(rule, payloads)
    write(tmp_path / "merged", folders[0], merged.params, "what was merged how")
    loaded = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    x = tiny.text(seed=5)
    expected = from_module(read(folders[0])).apply(merged.params, jax.tree.map(lambda t: jnp.asarray(t.numpy()), x))
    with torch.no_grad():
        np.testing.assert_allclose(loaded(**x).logits, expected, atol=1e-6)
        apart = [(read(folder)(**x).logits - loaded(**x).logits).abs().max() for folder in folders]
    assert min(apart) > 1e-3
    files = {file.name for file in (tmp_path / "merged").iterdir()}
    assert files == {"README.md", "config.json", "model.safetensors", "vocab.txt"}
    f, g = (sent.statistics.values["classifier.weight"] for sent in payloads)
    a, b = (sent.params["classifier.weight"] for sent in payloads)
    np.testing.assert_allclose(merged.params["classifier.weight"], (f * a + g * b) / (f + g), atol=1e-5)


@pytest.mark.parametrize("make", [tiny.gpt2, tiny.llama, tiny.vit])
def test_folders_of_other_shapes_load_and_give_the_merged_logits(tmp_path, make):
    folders, x = fine_tuned(tmp_path, make=make), {"pixel_values": tiny.images(3)} if make is tiny.vit else tiny.text()
    model, other = (from_module(read(folder)) for folder in folders)
    average = {name: (value + other.params[name]) / 2 for name, value in model.params.items()}
    write(tmp_path / "merged", folders[0], average)
    expected = model.apply(average, jax.tree.map(lambda t: jnp.asarray(t.numpy()), x))
    with torch.no_grad():
        found = type(make()).from_pretrained(tmp_path / "merged").eval()(**x).logits
    seen = slice(None) if make is tiny.vit else x["attention_mask"].numpy().astype(bool)
    np.testing.assert_allclose(found.numpy()[seen], np.asarray(expected)[seen], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavg", "fisher-merge", "fedfisher-kfac", "regmean"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_one_clients_payload_merged_alone_is_its_checkpoint_bit_for_bit(tmp_path, name, kind):
    (folder,) = fine_tuned(tmp_path, getattr(torch, kind), 1)
    rule, (sent,) = measured([folder], name)
    back = ff.payload.dumps(sent, ff.payload.About(rule.name, "categorical", ff.payload.fingerprint(sent.params)))
    (again, _) = ff.payload.loads(back, sent.params)
    write(tmp_path / "merged", folder, merge(rule, [again]).params)
    first, second = (tf.AutoModel.from_pretrained(f, dtype="auto").state_dict() for f in (folder, tmp_path / "merged"))
    assert {value.dtype for value in first.values()} == {getattr(torch, kind)}
    assert list(first) == list(second) and all(torch.equal(first[key], second[key]) for key in first)


def test_factors_are_merged_layer_by_layer_as_all_at_once(tmp_path):
    solver = ff.conjugate_gradients(tolerance=1e-6)
    rule, payloads = measured(fine_tuned(tmp_path), "fedfisher-kfac", solver=solver)
    found, expected = merge(rule, payloads), ff.merge_payloads(rule, payloads)
    for key, value in expected.params.items():
        np.testing.assert_allclose(found.params[key], value, rtol=0, atol=1e-6, err_msg=key)
    assert found.diagnostics["converged"] and expected.diagnostics["converged"]
    for name in ("objective_start", "objective_end"):
        np.testing.assert_allclose(found.diagnostics[name], expected.diagnostics[name], rtol=1e-4)


def test_running_averages_are_averaged_by_examples():
    modules = [tiny.convolutional(), tiny.convolutional()]
    modules[1][1].running_mean.add_(1)
    modules[1][1].running_var.mul_(2)
    model = from_module(modules[0])
    rule = ff.fisher_merge(model.apply, ff.categorical())
    data = [ff.examples(jnp.asarray(tiny.images(2, n).numpy()), jnp.zeros(n, jnp.int32)) for n in (3, 1)]
    payloads = [
        rule.measure(ff.Update(from_module(module).params), one, jax.random.key(0))
        for module, one in zip(modules, data, strict=True)
    ]
    merged = merge(rule, payloads).params
    first, second = (module.state_dict() for module in modules)
    for name in ("1.running_mean", "1.running_var"):
        np.testing.assert_allclose(merged[name], 0.75 * first[name] + 0.25 * second[name], rtol=1e-5)
    modules[0].load_state_dict(state_dict(modules[0], merged))
    assert modules[0][1].num_batches_tracked == 0


def test_parts_alone_are_merged_and_the_rest_stays(tmp_path):
    folders = fine_tuned(tmp_path)
    base = from_module(read(folders[0]))
    head = ff.trainable(base.apply, base.params, lambda name: name.startswith("classifier"))
    assert list(head.params) == ["classifier.bias", "classifier.weight"]
    rule, data = ff.fedfisher(head.apply, ff.categorical()), ff.examples(*x_and_y(0))
    payloads = [
        rule.measure(ff.Update({name: scale * v for name, v in head.params.items()}), data, jax.random.key(0))
        for scale in (1, 3)
    ]
    whole = head.whole(merge(rule, payloads).params)
    assert all((whole[name] == base.params[name]).all() for name in whole if not name.startswith("classifier"))
    np.testing.assert_allclose(whole["classifier.weight"], 2 * base.params["classifier.weight"], atol=0.02)


def test_folders_that_do_not_work_are_refused(tmp_path):
    (folder,) = fine_tuned(tmp_path, clients=1)
    with pytest.raises(ValueError, match="expected one with a config.json"):
        read(tmp_path)
    model = from_module(read(folder))
    with pytest.raises(ValueError, match="expected a new or empty folder"):
        write(folder, folder, model.params)
    with pytest.raises(ValueError, match="params: got no classifier.bias"):
        write(tmp_path / "out", folder, {k: v for k, v in model.params.items() if k != "classifier.bias"})
    (folder / "config.json").write_text('{"architectures": ["os"]}')
    with pytest.raises(ValueError, match="architectures: got 'os', expected a model of transformers"):
        read(folder)


def test_weights_that_are_missing_are_named(tmp_path):
    (folder,) = fine_tuned(tmp_path, clients=1)
    state = read(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save({k: v for k, v in state.items() if k != "classifier.bias"}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="missing keys: classifier.bias"):
        read(folder)


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod."])
def test_a_wrappers_prefix_and_the_older_format_are_read(tmp_path, prefix):
    (folder,) = fine_tuned(tmp_path, clients=1)
    expected = read(folder).state_dict()
    (folder / "model.safetensors").unlink()
    torch.save({prefix + name: value for name, value in expected.items()}, folder / "pytorch_model.bin")
    found = read(folder).state_dict()
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])  # names that begin with "model."; a table that is the head
def test_shards_are_read_and_merged(tmp_path, make):
    module = make()
    module.save_pretrained(tmp_path / "shards", max_shard_size="6KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    model = from_module(read(tmp_path / "shards"))
    write(tmp_path / "merged", tmp_path / "shards", {name: 2 * value for name, value in model.params.items()})
    found, before = type(module).from_pretrained(tmp_path / "merged").state_dict(), module.state_dict()
    assert list(found) == list(before) and all(torch.equal(found[name], 2 * before[name]) for name in found)


def test_a_file_that_holds_more_than_tensors_is_refused(tmp_path):
    (folder,) = fine_tuned(tmp_path, clients=1)
    (folder / "model.safetensors").unlink()
    torch.save({"run": folder}, folder / "pytorch_model.bin")  # a path is an object: unpickling it runs code
    with pytest.raises(ValueError, match="hold more than tensors"):
        read(folder)


def test_an_adapter_needs_its_model_and_weights_that_fit(tmp_path):
    (base,) = fine_tuned(tmp_path, clients=1)
    tiny.adapted().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="expected the folder of the model that it adapts"):
        read(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    held = load_file(file)
    name = next(name for name in held if "lora_A" in name)
    save_file({key: value for key, value in held.items() if key != name}, file)
    with pytest.raises(ValueError, match=f"{name} is missing"):
        read(tmp_path / "adapter", base)
    file.unlink()
    with pytest.raises(ValueError, match="expected adapter_model.safetensors or"):
        read(tmp_path / "adapter", base)


def test_rules_that_do_not_keep_one_clients_model_are_refused():
    model = from_module(torch.nn.Linear(3, 2))
    rule = ff.merge.dense(model.apply, ff.categorical())
    with pytest.raises(ValueError, match="rule: got dense, expected one of fedavg"):
        merge(rule, [])
    assert set(RULES) <= set(catalogue.RULES)
