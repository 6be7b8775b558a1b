"""Folders of peft (adapter_model.safetensors and adapter_config.json), read onto the model that they adapt."""

import contextlib
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")


@contextlib.contextmanager
def refusing(folder: str | Path) -> Iterator[None]:
    """Turn what loaders raise for a folder that does not work into a ValueError of one line."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"folder: {folder}: its weights hold more than tensors, which is not unpickled") from error
    except (OSError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"folder: {folder}: {' '.join(str(error).split())[:300]}") from error


def is_adapter(folder: str | Path) -> bool:
    """Tell whether a folder holds an adapter."""
    return (Path(folder) / CONFIG).is_file()


def read_adapter(folder: str | Path, module: Any) -> Any:
    """Put the adapter that a folder holds onto the model that it adapts, which is changed; nothing is downloaded.

    Raises:
        ImportError: peft is not installed.
        ValueError: a config or weights that are missing or do not fit the model.
    """
    try:
        import peft  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("folders of adapters need peft: pip install peft") from error
    if not any((Path(folder) / name).is_file() for name in WEIGHTS):
        raise ValueError(f"folder: got {folder}, expected {' or '.join(WEIGHTS)} in it")
    with refusing(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")  # refused below
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers 5 by an older name
        given = peft.utils.load_peft_weights(str(folder), device="cpu")
        adapted = peft.PeftModel.from_pretrained(  # trainable, so that its parameters are known from the model's
            module, str(folder), is_trainable=True, autocast_adapter_dtype=False, torch_device="cpu"
        )
    expected = adapter_weights(adapted)
    for name in sorted(set(expected) ^ set(given)):
        wrong = "is missing" if name in expected else "is nothing that its config asks for"
        raise ValueError(f"folder: {folder}: {name} {wrong}")
    return adapted.eval()


def adapter_weights(adapted: Any) -> dict[str, Any]:
    """Give an adapter's tensors by the names that its file has."""
    import peft  # pyright: ignore[reportMissingImports]

    return peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)


def adapter_names(adapted: Any) -> set[str]:
    """Name the parameters of a model that are its adapter's, heads that were trained with it among them."""
    return {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}


def write_adapter(folder: Path, adapted: Any) -> None:
    """Write a model's adapter into a folder, without its config."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in adapter_weights(adapted).items()}, folder / WEIGHTS[0])
