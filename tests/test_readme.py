"""The README's code runs as it stands, and its merges beat chance by far."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_examples_run(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    accuracies = [float(value) for value in re.findall(r"merged ([\d.]+)", capsys.readouterr().out)]
    assert len(accuracies) == 2 and min(accuracies) > 0.5
