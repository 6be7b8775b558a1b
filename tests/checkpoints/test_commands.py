"""`fedfisher measure --model hf:…` and `merge --base …`: files and folders alone."""

import json

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers as tf
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers

from fedfisher_jax import payload
from fedfisher_jax.cli import main
from fedfisher_jax.torch import from_module, next_tokens, read, read_rows

WORDS = ["[PAD]", "[UNK]", *(f"w{n}" for n in range(tiny.VOCABULARY - 2))]


def folders(tmp_path, make, clients=2):
    """A base with a tokenizer, and fine-tuned ones."""
    inner = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")
    found = []
    for number in range(clients + 1):
        module = make()
        torch.manual_seed(20 + number)
        for parameter in module.parameters() if number else ():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        module.save_pretrained(folder := tmp_path / ("base" if not number else f"tuned{number - 1}"))
        tokenizer.save_pretrained(folder)
        found.append(folder)
    return found


def rows(tmp_path, number, labels=True):
    random = np.random.default_rng(number)
    file = tmp_path / f"data{number}.jsonl"
    texts = [" ".join(random.choice(WORDS[2:], random.integers(3, 7))) for _ in range(6)]
    lines = [{"text": text} | ({"label": n % tiny.CLASSES} if labels else {}) for n, text in enumerate(texts)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_measured_in_two_places_and_merged_into_a_folder(tmp_path, name, capsys):
    base, *tuned = folders(tmp_path, getattr(tiny, name))
    sent = []
    for number, folder in enumerate(tuned):
        file = rows(tmp_path, number, labels=name == "bert")
        sent.append(str(tmp_path / f"{number}.safetensors"))
        more = ["--kind", "monte_carlo"] if name == "gpt2" else []
        words = f"measure --data {file} --model hf:{folder} --start {base} --silo {number} --rule fisher-merge"
        main([*words.split(), "--out", sent[-1], *more])
    said = capsys.readouterr().out
    assert "layers hold 9" in said and "read by mul" in said and "6 examples" in said
    out = tmp_path / "merged"
    main(["merge", *sent, "--base", str(base), "--out", str(out)])
    kind = tf.AutoModelForCausalLM if name == "gpt2" else tf.AutoModelForSequenceClassification
    merged, tokenizer = kind.from_pretrained(out), tf.AutoTokenizer.from_pretrained(out)
    with torch.no_grad():
        assert merged(**tokenizer(["w1 w2"], return_tensors="pt")).logits.isfinite().all()
    card = (out / "README.md").read_text()
    assert "by `fisher-merge`" in card and "| 1 |  | 6 | 0.5000 |" in card and str(tmp_path) not in card
    first, second = (payload.read(file)[0] for file in sent)
    expected = {}
    for key, (a, f, b, g) in {
        key: (first.params[key], first.statistics.values[key], second.params[key], second.statistics.values[key])
        for key in first.params
    }.items():
        known = np.asarray(f + g) > 0
        expected[key] = np.where(known, (f * a + g * b) / np.where(known, f + g, 1), (a + b) / 2)
    found = from_module(merged).params
    for key, value in expected.items():
        np.testing.assert_allclose(found[key], value, atol=1e-4, err_msg=key)
    with pytest.raises(SystemExit):
        main(["merge", *sent, "--base", str(base), "--out", str(out)])
    assert "expected a new or empty folder" in capsys.readouterr().err


def commands(tmp_path, base, tuned, measure="", merge=""):
    """Measure each folder on data of its own, and merge; the folder."""
    sent = [str(tmp_path / f"{number}.safetensors") for number in range(len(tuned))]
    for number, (folder, out) in enumerate(zip(tuned, sent, strict=True)):
        words = f"--data {rows(tmp_path, number)} --model hf:{folder} --start {base} --silo {number} --out {out}"
        main(["measure", *words.split(), "--rule", "fedfisher-kfac", *measure.split()])
    out = tmp_path / f"merged of {len(tuned)}"
    main(["merge", *sent, "--base", str(base), "--out", str(out), *merge.split()])
    return out


@pytest.mark.slow
def test_adapters_are_measured_and_merged_to_an_adapter(tmp_path, capsys):
    base, *_ = folders(tmp_path, tiny.bert, 0)
    tuned = [tmp_path / "adapter0", tmp_path / "adapter1"]
    for number, folder in enumerate(tuned):
        module = tiny.adapted(number)
        module.peft_config["default"].base_model_name_or_path = "where/it/was"
        module.save_pretrained(folder, save_embedding_layers=False)  # else it looks for that name on the network
    merged = commands(tmp_path, base, tuned, merge=f"--adapter {tuned[0]}")
    assert "layers hold 100.00%" in capsys.readouterr().out
    assert (merged / "adapter_config.json").read_bytes() == (tuned[0] / "adapter_config.json").read_bytes()
    loaded = peft.PeftModel.from_pretrained(tf.BertForSequenceClassification.from_pretrained(base), merged).eval()
    with torch.no_grad():
        expected, found = (module(**tiny.text()).logits for module in (read(merged, base), loaded))
    torch.testing.assert_close(found, expected)
    first, second, both = (load_file(folder / "adapter_model.safetensors") for folder in (*tuned, merged))
    assert list(first) == list(both) and not any(torch.equal(both[key], first[key]) for key in both)
    assert all((both[key] - (first[key] + second[key]) / 2).abs().max() < 1 for key in both)
    alone = load_file(commands(tmp_path, base, tuned[:1], merge=f"--adapter {tuned[1]}") / "adapter_model.safetensors")
    assert list(alone) == list(first) and all(torch.equal(alone[key], first[key]) for key in alone)
    with pytest.raises(SystemExit):
        main(["merge", str(tmp_path / "0.safetensors"), "--base", str(base), "--out", str(tmp_path / "none")])
    assert "is no parameter of the base: is it an adapter's?" in capsys.readouterr().err


@pytest.mark.slow
def test_a_head_alone_is_measured_and_merged_and_the_rest_is_the_bases(tmp_path, capsys):
    base, whole = folders(tmp_path, tiny.bert, 1)
    tuned = [tmp_path / "head0", tmp_path / "head1"]
    for number, folder in enumerate(tuned):
        module = tiny.bert()
        module.classifier.weight.data.add_((number + 1) * torch.arange(tiny.CLASSES)[:, None])
        module.save_pretrained(folder)
    merged = commands(tmp_path, base, tuned, measure="--where ^classifier")
    before, after = (read(folder).state_dict() for folder in (base, merged))
    assert {key for key in before if not torch.equal(before[key], after[key])} == {
        "classifier.bias",  # K-FAC moves what is in a layer
        "classifier.weight",
    }
    sent, out = [str(tmp_path / f"{number}.safetensors") for number in range(2)], tmp_path / "damped"
    main(["merge", *sent, "--base", str(base), "--out", str(out), "--rule", "fedfisher-kfac,damping=1e6"])
    after = read(out).state_dict()  # the average, since one million times the mean curvature holds it there
    torch.testing.assert_close(after["classifier.weight"], before["classifier.weight"] + 1.5 * torch.arange(3)[:, None])
    assert "fedfisher-kfac,damping=1e6" in (out / "README.md").read_text()
    with pytest.raises(SystemExit):
        commands(tmp_path, base, [whole], measure="--where ^classifier")
    assert "is not the start's, and --where leaves it out" in capsys.readouterr().err


def test_rows_become_padded_inputs(tmp_path):
    base, *_ = folders(tmp_path, tiny.bert, 0)
    file = tmp_path / "data.jsonl"
    file.write_text('{"text": "w0 w1 w2", "label": 2}\n{"text": "w3", "label": 0}\n')
    x, y = read_rows(file, base)
    assert x["input_ids"].tolist() == [[2, 3, 4], [5, 0, 0]] and x["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert y.tolist() == [2, 0]
    assert next_tokens(x["input_ids"], x["attention_mask"]).tolist() == [[3, 4, -100], [-100] * 3]
    assert read_rows(file, base, length=2)[0]["input_ids"].shape == (2, 2)
    with pytest.raises(ValueError, match="got columns text, label, expected 'words'"):
        read_rows(file, base, "words")
    with pytest.raises(ValueError, match="expected a .npz, .jsonl or .parquet"):
        read_rows(tmp_path / "data.txt", base)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (({"text": "w0", "label": 1}, {"label": 1}), "text: got None in row 2, expected a text"),
        (({"text": "w0", "label": 1}, {"text": "", "label": 1}), "text: got '' in row 2"),
        (({"text": "w0", "label": 1}, {"text": "w1", "label": 0.7}), "label: got 0.7 in row 2, expected whole numbers"),
        (({"text": "w0"}, {"text": "w1", "label": 1}), "label: got None in row 1"),
        (({"text": "w0", "label": [1, 0]}, {"text": "w1", "label": [1]}), r"label: got \[1\] in row 2"),
        ((), "text"),
    ],
)
def test_rows_that_are_none_are_named(rows, words, tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=words):
        read_rows(file, tmp_path)


def test_a_parquet_file_is_read_as_the_same_rows_of_jsonl(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    base, *_ = folders(tmp_path, tiny.bert, 0)
    lines = [json.loads(line) for line in rows(tmp_path, 0).read_text().splitlines()]
    columns = {"words": [line["text"] for line in lines], "topic": [line["label"] for line in lines]}
    parquet.write_table(pytest.importorskip("pyarrow").table(columns), tmp_path / "data.parquet")
    x, y = read_rows(tmp_path / "data.parquet", base, "words", "topic")
    expected, labels = read_rows(tmp_path / "data0.jsonl", base)
    assert all((x[name] == value).all() for name, value in expected.items()) and (y == labels).all()


def test_settings_and_files_that_do_not_fit_are_refused(tmp_path, capsys):
    base, tuned = folders(tmp_path, tiny.bert, 1)
    data = rows(tmp_path, 0, labels=False)
    for more, words in (
        (["--epochs", "3"], "tuned0 is only measured, and has no use for it"),
        ([], "got no labels, expected them"),
        (["--rule", "dense"], "got no labels"),
    ):
        with pytest.raises(SystemExit):
            main(["measure", "--data", str(data), "--model", f"hf:{tuned}", "--start", str(base), *more])
        assert words in capsys.readouterr().err
    other = tmp_path / "other"
    tiny.gpt2().save_pretrained(other)
    with pytest.raises(SystemExit):
        main(["measure", "--data", str(data), "--model", f"hf:{tuned}", "--start", str(other)])
    assert "other names, shapes or types than the start's" in capsys.readouterr().err
    for words, reason in (
        (["measure", "--data", str(data), "--where", "x"], "where: expected it with --model hf:FOLDER or torch:"),
        (["measure", "--data", str(data), "--where", "(", "--model", f"hf:{tuned}"], "expected a regular expression"),
        (["merge", str(data), "--adapter", str(tuned)], "adapter: expected it with --base FOLDER alone"),
    ):
        with pytest.raises(SystemExit):
            main(words)
        assert reason in capsys.readouterr().err
