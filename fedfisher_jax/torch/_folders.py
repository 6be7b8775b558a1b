"""Folders that `from_pretrained` of transformers loads: read as modules, and written with merged parameters."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._adapters import is_adapter, read_adapter, refusing, write_adapter
from ._bridge import state_dict

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".onnx", ".gguf", ".index.json")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of wrappers: DataParallel, torch.compile, trainers
OF_TRAINING = ("training_args.bin", "trainer_state.json", "optimizer.pt", "scheduler.pt")


def read(folder: str | Path, base: str | Path | None = None) -> Any:
    """Read the module that a folder holds, in its own type: shards, tied weights and all, as `from_pretrained` does.

    Nothing is downloaded, and no code of the folder runs; weights of PyTorch's own format are read as tensors alone. A
    prefix that a wrapper put before all names ("module.", "_orig_mod.", "model.") is taken off.

    Args:
        folder: with config.json, whose first entry of "architectures" is the class, and weights; or of an adapter, as
            peft saves it.
        base: the folder of the model that the adapter adapts.

    Raises:
        ImportError: transformers is not installed, or peft where it is needed.
        ValueError: no such folder or config, an unknown class, or weights that are missing or have other shapes; an
            adapter without base.
    """
    if is_adapter(folder):
        if base is None:
            raise ValueError(f"base: {folder} holds an adapter, expected the folder of the model that it adapts")
        return read_adapter(folder, read(base))
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
    module, said = _loaded(kind, folder)
    for prefix in PREFIXES:
        if said["missing_keys"] and {prefix + name for name in said["missing_keys"]} <= set(said["unexpected_keys"]):
            module, said = _loaded(kind, folder, key_mapping={f"^{re.escape(prefix)}": ""})
    for what in ("missing_keys", "mismatched_keys"):
        if said[what]:
            raise ValueError(f"folder: {folder}: {what.replace('_', ' ')}: {sorted(map(str, said[what]))[0]}")
    return module.eval()


def _loaded(kind: Any, folder: str | Path, **more: Any) -> tuple[Any, Mapping[str, Any]]:
    with refusing(folder):
        return kind.from_pretrained(
            str(folder), local_files_only=True, dtype="auto", output_loading_info=True, trust_remote_code=False, **more
        )


def write(
    folder: str | Path,
    base: str | Path,
    params: Mapping[str, Any],
    card: str = "",
    *,
    adapter: str | Path | None = None,
) -> None:
    """Write merged parameters as a folder that `from_pretrained` loads, of an adapter as one that peft loads.

    Args:
        folder: must not exist, or be empty.
        base: folder of the same model, whose config, tokenizer and whatever else is no weight is copied.
        params: merged parameters by name, as of `from_module`: all that the module has.
        card: text of the model card, README.md; the base's own card is not copied.
        adapter: folder of an adapter of the same shapes, whose config is copied: the adapter alone is written.

    Raises:
        ValueError: the folder holds something, or parameters are not those of the base.
    """
    out = Path(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"folder: got {out}, expected a new or empty folder")
    copied = base if adapter is None else adapter
    module = read(copied, base)
    module.load_state_dict(state_dict(module, params))
    if adapter is None:
        module.save_pretrained(out)
    else:
        write_adapter(out, module)
    for file in sorted(Path(copied).iterdir()):
        kept = file.is_file() and not file.name.endswith(WEIGHTS) and file.name not in (*OF_TRAINING, "README.md")
        if kept and not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
    if card:
        (out / "README.md").write_text(card)
