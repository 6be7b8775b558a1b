"""Names of files from names of rules."""

import re


def file_name(name: str) -> str:
    """A rule's name as a name of files, whatever a user's own module is called."""
    return re.sub(r"[^\w.+@,-]", "_", name)[:150]
