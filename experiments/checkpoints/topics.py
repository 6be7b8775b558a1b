"""Fine-tuned BERTs merged by what people use, and by our rules: topics of Python's standard library, three a client.

A small BERT of transformers, seen as a function of JAX, learns on one half of the library's files which of twelve
topics (chapters of the library's reference) 32 successive words are about. Four clients each fine-tune it on three
topics of the other half, so that each unlearns what the other three know: their skills conflict. Every merged model
answers with any of the twelve topics, on every client's test windows; `methods` tells how models are merged, and which.

It needs the extra `torch`.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

import jax
import numpy as np

from experiments.checkpoints.methods import SCALES, Data, Part, Trained, fine_tuned, others, ours, trainer
from experiments.checkpoints.scoring import over_seeds, report, scored
from experiments.lib import common
from fedfisher_jax import data

LENGTH, CLIENTS, VOCABULARY = 32, 4, 2000
UNKNOWN = 1  # 0 is padding, which there is none of
TOPICS = {  # those whose text is spread over enough files for two halves
    "data types": "datetime _strptime calendar collections heapq bisect weakref _weakrefset types copy pprint reprlib"
    " enum graphlib zoneinfo _collections_abc",
    "files": "pathlib fileinput stat filecmp tempfile glob fnmatch linecache shutil posixpath ntpath genericpath",
    "archives": "gzip bz2 lzma zipfile tarfile _compression zipapp",
    "operating system": "os io _pyio argparse getopt optparse logging getpass curses platform ctypes",
    "concurrency": "threading multiprocessing concurrent subprocess sched queue contextvars _threading_local",
    "networking": "asyncio socket ssl selectors",
    "internet data": "email json mailbox mimetypes base64 quopri mailcap uu",
    "markup": "html xml",
    "internet protocols": "webbrowser wsgiref urllib http ftplib poplib imaplib smtplib uuid socketserver xmlrpc"
    " ipaddress nntplib telnetlib cgi cgitb",
    "development": "pydoc doctest unittest typing bdb pdb timeit trace tracemalloc cProfile profile pstats",
    "language": "ast symtable token keyword tokenize tabnanny pyclbr py_compile compileall dis pickletools opcode"
    " inspect",
    "importing": "importlib pkgutil modulefinder runpy zipimport distutils ensurepip venv",
}


@dataclasses.dataclass(frozen=True)
class Settings(common.Settings):
    """Flags.

    Attributes:
        windows: Training windows of each topic, of the pre-training and of its client; an eighth more validate.
        tested: Test windows of each topic.
        first_epochs: Epochs of the pre-training.
        epochs: Epochs of the clients.
        width: Width of BERT's stream.
        seeds: Each draws halves, topics of clients, start and training.
    """

    windows: int = 256
    tested: int = 64
    first_epochs: int = 8
    epochs: int = 4
    width: int = 64
    seeds: int = 3


QUICK = {"windows": 16, "tested": 8, "first_epochs": 1, "epochs": 1, "width": 16, "seeds": 1}


@cache
def words() -> dict[str, list[list[str]]]:
    """The words of every file, by topic."""
    found = data.standard_library(min_characters=1)
    by_topic = {
        name: [text for module in said.split() for text in found.get(module, ())] for name, said in TOPICS.items()
    }
    return {name: [re.findall("[a-z]+", text.lower()) for text in texts] for name, texts in by_topic.items()}


def halves(files: list[list[str]], random: np.random.Generator) -> tuple[list[list[str]], list[list[str]]]:
    """Two halves of a topic's files, each file in a random order to that half which has fewer words."""
    parts: tuple[list, list] = ([], [])
    for n in random.permutation(len(files)):
        min(parts, key=lambda part: sum(map(len, part))).append(files[n])
    return parts


def windows_of(files: list[list[str]], numbers: dict[str, int], random: np.random.Generator) -> np.ndarray:
    """Windows [n, LENGTH] of successive words' numbers, none of two files, in a random order."""
    starts = [(text, at) for text in files for at in range(0, len(text) - LENGTH + 1, LENGTH)]
    found = [[numbers.get(word, UNKNOWN) for word in text[at : at + LENGTH]] for text, at in starts]
    return random.permutation(np.asarray(found, np.int32))


def split(seed: int, windows: int, tested: int) -> tuple[Data, list[Part]]:
    """What pre-trains, and the clients' parts.

    Raises:
        ValueError: a topic has too little text, as where a Python comes without some of its modules.
    """
    random = np.random.default_rng(seed)
    first, second = zip(*[halves(files, random) for files in words().values()], strict=True)
    counts = Counter(word for files in first for text in files for word in text)
    known = sorted(counts, key=lambda word: (-counts[word], word))[: VOCABULARY - UNKNOWN - 1]
    numbers = {word: n for n, word in enumerate(known, UNKNOWN + 1)}
    begin, other = ([windows_of(files, numbers, random) for files in half] for half in (first, second))
    ends = np.cumsum([windows, windows // 8, tested])
    for name, one, two in zip(TOPICS, begin, other, strict=True):
        if min(len(one) - windows, len(two) - ends[-1]) < 0:
            raise ValueError(
                f"topics: {name}: got {len(one)} and {len(two)} windows, expected {windows} and {ends[-1]}"
            )
    parts = []
    for own in random.permutation(len(TOPICS)).reshape(CLIENTS, -1):
        train, validate, test, _ = zip(*[np.split(other[topic], ends) for topic in own], strict=True)
        name = ", ".join(list(TOPICS)[topic] for topic in own)
        parts.append(Part(name, *(labelled(some, own) for some in (train, validate, test))))
    return labelled([some[:windows] for some in begin], range(len(TOPICS))), parts


def labelled(by_topic: Sequence[np.ndarray], topics: Any) -> Data:
    """Arguments of BERT, and topics' numbers."""
    ids = np.concatenate(by_topic)
    y = np.repeat(np.asarray(topics, np.int32), [len(some) for some in by_topic])
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}, y


def module_of(width: int, seed: int) -> Any:
    """A BERT with random weights."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers  # pyright: ignore[reportMissingImports]

    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4, "num_hidden_layers": 2}
    texts = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "num_labels": len(TOPICS)}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **texts)).eval()


@cache
def apply_of(width: int) -> Any:
    """One function per setting, so that it is traced once."""
    from fedfisher_jax import torch as bridge

    return bridge.from_module(module_of(width, 0)).apply


def trained(
    seed: int, windows: int, tested: int, first_epochs: int, epochs: int, width: int
) -> tuple[Trained, jax.Array]:
    """The start, four clients, and a key."""
    from fedfisher_jax import torch as bridge

    common_text, parts = split(seed, windows, tested)
    key, *keys = jax.random.split(jax.random.key(seed), CLIENTS + 2)
    apply, random = apply_of(width), bridge.from_module(module_of(width, seed)).params
    start = trainer(apply, first_epochs, 1e-3)(random, common_text, key)
    return fine_tuned(apply, start, parts, epochs, keys), key


def run(windows: int, **settings: Any) -> dict[str, Any]:
    """All merges of a seed; a client measures on all that it trained on."""
    found, key = trained(windows=windows, **settings)
    measured = windows * len(TOPICS) // CLIENTS
    updates = others(found, settings["seed"], scales=(0.1, *SCALES))  # the average is too far
    return scored(found, chain(updates, ours(found, measured, "exact", key)))


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__, quick=QUICK)
    topics = f"{len(TOPICS)} topics apart, {CLIENTS} clients of {len(TOPICS) // CLIENTS} each"
    report(settings.out, over_seeds(settings, run), f"Accuracy in % of telling {topics}")


if __name__ == "__main__":
    main()
