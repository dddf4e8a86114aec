"""Python source behind definitions: loading a module file afresh, and the digest of a function in it.

The digest covers the function's own text, decorators included, so that serving refuses code that was changed
after it was applied. Helpers that the function calls are not covered.
"""

import ast
import hashlib
import importlib.util
import sys
from pathlib import Path
from textwrap import dedent
from types import FunctionType, ModuleType
from typing import Any

from treadle.core.errors import FailedPrecondition, InvalidInput
from treadle.core.imports import add_path


def digest_of(function: Any) -> str:
    """SHA-256 of the function's source text; InvalidInput when it has none (a notebook cell, a lambda in a shell)."""
    name = getattr(function, "__qualname__", repr(type(function)))
    if not isinstance(function, FunctionType):
        raise InvalidInput(f"{name} is not a plain Python function")
    path = Path(function.__code__.co_filename)
    if not path.is_file():
        raise InvalidInput(f"the source of {name} cannot be read; define it in a module file")
    return digest_in(path.read_text(encoding="utf-8"), function.__name__)


def digest_in(text: str, name: str) -> str:
    """SHA-256 of the last top-level function `name` in a module's text; InvalidInput when there is none."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise InvalidInput(f"{name} is not a plain function at the top level of its module")
    node = found[-1]
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return hashlib.sha256(dedent("\n".join(line.rstrip() for line in lines)).encode()).hexdigest()


def import_file(path: Path) -> ModuleType:
    """Runs a module file under the name by which a serving process imports it, and adds its folder to `sys.path`.

    The file is read anew each time. InvalidInput names the file and what is wrong with it.
    """
    path = path.resolve()
    if path.suffix != ".py" or not path.is_file():
        raise InvalidInput(f"{path} is not a Python file")
    folder, name = path.parent, path.stem
    while (folder / "__init__.py").is_file():
        folder, name = folder.parent, f"{folder.name}.{name}"
    present = sys.modules.get(name)
    if present is not None and Path(getattr(present, "__file__", None) or "").resolve() != path:
        raise InvalidInput(f"{path.name} clashes with the module {name!r} that is already imported; rename the file")
    add_path(folder)
    try:
        return _run(name, path)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error


def resolve(function: str) -> tuple[Any, str]:
    """The function "package.module:name", from its file as it is now, and its source digest.

    FailedPrecondition when it cannot be imported here.
    """
    module_name, _, name = function.partition(":")
    try:
        module = _fresh(module_name)
        found = getattr(module, name)
        return found, digest_of(found)
    except (InvalidInput, FailedPrecondition):
        raise
    except Exception as error:
        raise FailedPrecondition(
            f"transform {function!r} cannot be imported here: {type(error).__name__}: {error}; "
            "put its module where this process can import it"
        ) from error


def _fresh(name: str) -> ModuleType:
    """The module, run again when its file is not what was imported."""
    importlib.invalidate_caches()
    present = sys.modules.get(name)
    file = getattr(present, "__file__", None)
    if present is not None and (file is None or _text_digest(Path(file)) == getattr(present, _LOADED, None)):
        return present
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise FailedPrecondition(f"no Python module {name!r} can be imported here; put it on this process's path")
    return _run(name, Path(spec.origin))


_LOADED = "__treadle_source_sha256__"


def _text_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _run(name: str, path: Path) -> ModuleType:
    """Runs the file as module `name`. Compiled here: cached bytecode can be a second behind an edited file."""
    if "." in name:
        importlib.import_module(name.rpartition(".")[0])
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise InvalidInput(f"{path} is not a Python file")
    text = path.read_bytes()
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102  # running user definitions is the job
    except BaseException:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        raise
    setattr(module, _LOADED, hashlib.sha256(text).hexdigest())
    return module
