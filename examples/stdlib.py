"""The functions of Python's standard library and the package that each is from, as examples/stdlib.yaml's JSONL.

Real text that every machine with Python has: some 4,000 functions of eight packages, a quarter of them from one.
"""

import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")


def functions() -> Iterator[dict[str, str]]:
    """Source and package of each function, the names of its module and class left out."""
    for package in PACKAGES:
        for path in sorted(Path(sysconfig.get_path("stdlib"), package).rglob("*.py")):
            if "test" in path.parts:
                continue
            source = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield {"text": ast.get_source_segment(source, node) or "", "label": package}


if __name__ == "__main__":
    with Path(sys.argv[1]).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(function) + "\n" for function in functions())
