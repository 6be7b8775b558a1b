"""Where the time of an exact K-FAC goes: the same pass with and without the Grams of inputs and of output gradients.

In `fisher.py`'s setting each variant is a structure of its own whose sums leave a part out; processor time of one
process, the least of several runs that alternate, so that other programs disturb it little.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks import fisher
from experiments.lib import common
from fedfisher_jax import Kronecker, curvature


@dataclasses.dataclass(frozen=True)
class Settings(fisher.Settings):
    """Flags.

    Attributes:
        rounds: Alternating runs of every variant.
        examples: Per client, of four clients.
    """

    rounds: int = 9
    examples: int = 256


class _NoOutputs(Kronecker):
    """Output gradients are added up, and no more: the reverse pass stays."""

    name = "without Grams of outputs"

    @classmethod
    def sums(cls, pulled: Any) -> Any:
        return super().sums(pulled) | {"outputs": [_one_number(g) for g in pulled.gradients]}


class _NoInputs(Kronecker):
    """Activations, which for convolutions are patches, are added up, and no more."""

    name = "without Grams of inputs"

    @classmethod
    def input_sums(cls, activations: Sequence[Any]) -> Any:
        return [_one_number(a) for a in activations]


class _Neither(_NoOutputs):
    """Forward and reverse pass, and patches."""

    name = "without both"
    input_sums = _NoInputs.__dict__["input_sums"]


VARIANTS = (Kronecker, _NoInputs, _NoOutputs, _Neither)


def _one_number(values: Any) -> jax.Array:
    return jnp.broadcast_to(jnp.sum(values), (values.shape[-1], values.shape[-1]))


def prepared(variant: type[Kronecker], examples: int) -> Callable[[], Any]:
    """One variant, compiled."""
    if variant is not Kronecker:
        curvature.register(jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(variant)))
    fisher.STRUCTURES[variant.name] = (variant.name,)
    run = fisher.ours(variant.name, examples, 0.0)
    run()
    return run


def run(rounds: int, examples: int) -> dict[str, float]:
    """Milliseconds of processor time for each example, by variant."""
    programs = {variant.name: prepared(variant, examples) for variant in VARIANTS}
    spent: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            began = time.process_time()
            program()
            spent[name].append(time.process_time() - began)
    return {name: 1e3 * min(times) / (fisher.CLIENTS * examples) for name, times in spent.items()}


def main() -> None:
    """Runs what is missing and reports."""
    settings = common.command_line(Settings, __doc__)
    rounds, examples = (2, 8) if settings.quick else (settings.rounds, settings.examples)
    found = common.run_all(settings.out, [{"rounds": rounds, "examples": examples}], run)[0]["result"]
    whole = found[Kronecker.name]
    rows = [[name, f"{value:.3f}", f"{100 * value / whole:.0f} %"] for name, value in found.items()]
    text = "Exact K-FAC of LeNet, milliseconds of processor time for each example.\n\n"
    text += common.markdown_table(["", "ms", "of the whole"], rows)
    common.report(settings.out, text, {"milliseconds": found})


if __name__ == "__main__":
    main()
