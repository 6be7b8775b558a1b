"""Examples for transformers' models from files: arrays by the names of the model's arguments, or texts with labels."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

IGNORED = -100  # the target of a position that does not count, as in PyTorch and transformers


def next_tokens(input_ids: np.ndarray, attention_mask: np.ndarray | None = None) -> np.ndarray:
    """Give each position the token that follows as its target, and `IGNORED` where none does.

    Args:
        input_ids: [n, T] integers.
        attention_mask: [n, T], 0 where there is padding; None where there is none.

    Returns:
        [n, T] integers.

    Example:
        >>> import numpy as np
        >>> from fedfisher_jax.torch import next_tokens
        >>> next_tokens(np.asarray([[5, 6, 7, 0]]), np.asarray([[1, 1, 1, 0]])).tolist()
        [[6, 7, -100, -100]]
    """
    y = np.full(input_ids.shape, IGNORED, np.int32)
    y[:, :-1] = input_ids[:, 1:]
    if attention_mask is not None:
        y[:, :-1][attention_mask[:, 1:] == 0] = IGNORED
        y[attention_mask == 0] = IGNORED
    return y


def read_rows(
    file: str | Path,
    folder: str | Path,
    text_column: str = "text",
    label_column: str = "label",
    length: int = 128,
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Read examples of a model from a file.

    Args:
        file: .npz with the model's arguments by name, and "labels"; or .jsonl or .parquet (where pyarrow is installed)
            with a column of texts and one of labels, which may be missing.
        folder: the model's, for its tokenizer.
        text_column: name of the texts' column.
        label_column: name of the labels', integers.
        length: tokens of a text at most.

    Returns:
        The model's inputs [n, ...] by name, and targets [n, ...], or None where there are no labels.

    Raises:
        ValueError: another kind of file, no such column, or rows without text.
    """
    path = Path(file)
    if path.suffix == ".npz":
        with np.load(path) as held:
            arrays = {name: held[name] for name in held.files}
        y = arrays.pop("labels", None)
        if not arrays:
            raise ValueError(f"data: {path}: got no arrays, expected the model's inputs by name, and labels")
        return arrays, y
    table = _columns(path)
    if text_column not in table:
        raise ValueError(f"data: {path}: got columns {', '.join(table)}, expected {text_column!r} (--text-column)")
    texts = table[text_column]
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str) or not text:
            raise ValueError(
                f"data: {path}: {text_column}: got {text!r:.40} in row {row}, expected a text in every row"
            )
    if not texts:
        raise ValueError(f"data: {path}: got no rows, expected some")
    labels = None if label_column not in table else _labels(path, label_column, table[label_column])
    import transformers  # pyright: ignore[reportMissingImports]

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    found = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="np")
    x = {name: np.asarray(value, np.int32) for name, value in found.items()}
    return x, labels


def _labels(path: Path, column: str, values: list[Any]) -> np.ndarray:
    """Whole numbers, one a row, or a list of as many in each.

    Raises:
        ValueError: something else, by its row.
    """
    wide = len(values[0]) if values and isinstance(values[0], list) else None
    for row, value in enumerate(values, start=1):
        several = value if isinstance(value, list) else [value]
        fits = (len(value) if isinstance(value, list) else None) == wide
        if not fits or not all(type(one) in (int, bool) and -(2**31) <= one < 2**31 for one in several):
            raise ValueError(
                f"data: {path}: {column}: got {value!r:.40} in row {row}, expected whole numbers in every row"
            )
    return np.asarray(values, np.int32)


def _columns(path: Path) -> Mapping[str, list[Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet  # pyright: ignore[reportMissingImports]

        return pyarrow.parquet.read_table(path).to_pydict()
    if path.suffix != ".jsonl":
        raise ValueError(f"data: got {path.name}, expected a .npz, .jsonl or .parquet file")
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}
