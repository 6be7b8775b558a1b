"""The README's code runs as it stands, and its merges beat chance by far."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
def test_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 3
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    printed = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"merged ([\d.]+)", printed)]
    assert len(accuracies) == 2 and min(accuracies) > 0.5
    rounds = dict(re.findall(r"(fedavg|fedfish) ([\d.]+) barrier", printed))
    assert float(rounds["fedfish"]) > 0.5
