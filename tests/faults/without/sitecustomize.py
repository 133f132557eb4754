"""Takes a defence out of the node's source as it is imported; see ``tests/faults/defences.py``.

Python imports this at its start when its folder stands on the path, in every process of a test. It
does nothing unless ``WITHOUT`` names a file of alterations: ``[[module, old text, new text], …]``.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType


class _Altered(SourceFileLoader):
    """Compiles a module anew, with texts replaced."""

    changes: list[tuple[str, str]]

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        source = self.get_data(path).decode()
        for old, new in self.changes:
            if source.count(old) != 1:
                sys.exit(f"{fullname}: the text to be taken out is not there once: {old!r}")
            source = source.replace(old, new)
        return compile(source, path, "exec", dont_inherit=True)


class _Finder:
    def __init__(self, alterations: list[list[str]]) -> None:
        self._alterations = alterations

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        changes = [(old, new) for module, old, new in self._alterations if module == fullname]
        spec = PathFinder.find_spec(fullname, path, target) if changes else None
        if spec is None or spec.origin is None:
            return None
        loader = _Altered(fullname, spec.origin)
        loader.changes = changes
        spec.loader = loader
        return spec


if _file := os.environ.get("WITHOUT"):
    sys.meta_path.insert(0, _Finder(json.loads(Path(_file).read_text())))
