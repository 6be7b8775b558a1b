"""Folders that `from_pretrained` of transformers loads: read as modules, and written with merged parameters."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._bridge import state_dict

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
OF_TRAINING = ("training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt")


def read(folder: str | Path) -> Any:
    """Read the module that a folder holds, in its own type: shards, tied weights and all, as `from_pretrained` does.

    Nothing is downloaded, and no code of the folder runs; weights of PyTorch's own format are read as tensors alone.

    Args:
        folder: with config.json, whose first entry of "architectures" is the class, and weights.

    Raises:
        ImportError: transformers is not installed.
        ValueError: no such folder or config, an unknown class, or weights that are missing or have other shapes.
    """
    try:
        import transformers  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("fedfisher_jax.torch.read needs transformers: pip install transformers") from error
    file = Path(folder) / "config.json"
    if not file.is_file():
        raise ValueError(f"folder: got {folder}, expected one with a config.json")
    names = json.loads(file.read_text()).get("architectures") or [None]
    kind = getattr(transformers, str(names[0]), None)
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"folder: {file}: architectures: got {names[0]!r}, expected a model of transformers")
    try:
        module, said = kind.from_pretrained(
            str(folder), local_files_only=True, dtype="auto", output_loading_info=True, trust_remote_code=False
        )
    except (OSError, RuntimeError) as error:
        raise ValueError(f"folder: {folder}: {' '.join(str(error).split())[:300]}") from error
    for what in ("missing_keys", "mismatched_keys"):
        if said[what]:
            raise ValueError(f"folder: {folder}: {what.replace('_', ' ')}: {sorted(map(str, said[what]))[0]}")
    return module.eval()


def write(folder: str | Path, base: str | Path, params: Mapping[str, Any], card: str = "") -> None:
    """Write merged parameters as a folder that `from_pretrained` loads.

    Args:
        folder: must not exist, or be empty.
        base: folder of the same model, whose config, tokenizer and whatever else is no weight is copied.
        params: merged parameters by name, as of `from_module`.
        card: text of the model card, README.md; the base's own card is not copied.

    Raises:
        ValueError: the folder holds something, or parameters are not those of the base.
    """
    out = Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"folder: got {out}, expected a new or empty folder")
    module = read(base)
    module.load_state_dict(state_dict(module, params))
    module.save_pretrained(out)
    for file in sorted(Path(base).iterdir()):
        kept = file.is_file() and not file.name.endswith(WEIGHTS) and file.name not in (*OF_TRAINING, "README.md")
        if kept and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    if card:
        (out / "README.md").write_text(card)
