"""Which code a process has loaded, so that two machines can tell whether theirs is the same."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from importlib.metadata import version
from pathlib import Path


def code_digest(module: str) -> str:
    """A digest of the package that a module belongs to, as it lies on the disk now.

    Of all its Python files, and of the versions of Python and Dagster, which must agree too.

    Args:
        module: `package.module`; the package is what stands before the first dot.

    Raises:
        ModuleNotFoundError: there is no such package.
    """
    package = module.partition(".")[0]
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(f"there is no package {package!r}", name=package)
    digest = hashlib.sha256(f"{sys.version_info[:2]} {version('dagster')}\n".encode())
    folder = Path(found.origin).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]
