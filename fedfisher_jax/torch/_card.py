"""What a merged folder's model card says: what was merged, and how."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._files import plain
from ..report import versions


def card(rule: str, kind: str | None, contributors: Sequence[Mapping[str, Any]], diagnostics: Mapping[str, Any]) -> str:
    """Write the model card, README.md, of a merged model.

    Args:
        rule: the merge rule's name.
        kind: the kind of the statistics that were merged.
        contributors: a dictionary for each payload with its "silo", "name", "examples" and "weight".
        diagnostics: scalars that tell how the solve went.
    """
    rows = [f"| {c['silo']} | {c['name']} | {c['examples']} | {c['weight']:.4f} |" for c in contributors]
    solved = ", ".join(f"{name} {value}" for name, value in plain(dict(diagnostics)).items()) or "nothing to solve"
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "tags: [merge]",
            "---",
            "",
            f"Made by merging {len(rows)} fine-tuned models of this architecture by `{rule}`"
            + (f", whose statistics were measured as: {kind}." if kind else "."),
            "",
            "| silo | name | examples | weight |",
            "|---|---|---|---|",
            *rows,
            "",
            f"Solve: {solved}. Made with {made}.",
            "",
        ]
    )
