"""Names of files from names of rules."""

import hashlib
import re

LONGEST = 180  # bytes; systems take 255, and seeds and endings follow


def file_name(name: str) -> str:
    """A rule's name, or a cell's, as a name of files, whatever a user's own module or file is called.

    Where it cannot be itself, it ends with a hash, so that no two names are one file's.
    """
    tidied = re.sub(r"[^\w.+@,=-]", "_", name)
    if tidied == name and len(name.encode()) <= LONGEST:
        return name
    cut = tidied.encode()[: LONGEST - 13].decode(errors="ignore")
    return f"{cut},{hashlib.sha256(name.encode()).hexdigest()[:12]}"
