"""What a network's numbers come from besides its weights: the code of this package."""

import functools
import hashlib
from pathlib import Path

ROOT = Path(__file__).parent


@functools.cache
def source_hash() -> str:
    """SHA-256 (16 hex digits) of every Python file of this package, as they were when it was imported, which asks first.

    The operator in native/ is not among them: it takes part in training steps alone, and is held against torch's when it is loaded.
    """
    whole = hashlib.sha256()
    for path in sorted(ROOT.rglob("*.py"), key=lambda path: path.relative_to(ROOT).as_posix()):
        if not path.is_file():  # an editor's lock is a link to nothing
            continue
        content = path.read_bytes()
        whole.update(f"{path.relative_to(ROOT).as_posix()}|{len(content)}|".encode() + content)
    return whole.hexdigest()[:16]
