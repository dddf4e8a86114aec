"""Python modules of definitions: fresh imports of a module file, and source digests of its functions.

The digest covers the text of the function with its decorators, so that serving refuses code that was changed after it
was applied. Functions that it calls are not covered.
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


def function_digest(function: Any) -> str:
    """SHA-256 of the function's source text; InvalidInput when it has none (a notebook cell, a lambda in a shell)."""
    name = getattr(function, "__qualname__", repr(type(function)))
    if not isinstance(function, FunctionType):
        raise InvalidInput(f"{name} is not a plain Python function")
    path = Path(function.__code__.co_filename)
    if not path.is_file():
        raise InvalidInput(f"the source of {name} cannot be read; define it in a module file")
    return function_digest_in(path.read_text(encoding="utf-8"), function.__name__)


def function_digest_in(text: str, name: str) -> str:
    """SHA-256 of the last top-level function `name` in a module's text; InvalidInput when there is none."""
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise InvalidInput(f"{name} is not a plain function at the top level of its module")
    node = found[-1]
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    lines = text.splitlines()[first - 1 : node.end_lineno]
    return hashlib.sha256(dedent("\n".join(line.rstrip() for line in lines)).encode()).hexdigest()


def import_file(path: Path) -> ModuleType:
    """Executes a module file under the name by which a serving process imports it; adds its folder to `sys.path`.

    The file is read again on each call. InvalidInput names the file and its error.
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
        return _execute_module(name, path)
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(f"{path} failed while it was loaded: {type(error).__name__}: {error}") from error


def import_function(function: str) -> tuple[Any, str]:
    """The function "package.module:name" from the present content of its file, and its source digest.

    FailedPrecondition when this process cannot import it.
    """
    module_name, _, name = function.partition(":")
    try:
        module = _import_current(module_name)
        found = getattr(module, name)
        return found, function_digest(found)
    except (InvalidInput, FailedPrecondition):
        raise
    except Exception as error:
        raise FailedPrecondition(
            f"transform {function!r} cannot be imported here: {type(error).__name__}: {error}; "
            "put its module where this process can import it"
        ) from error


def _import_current(name: str) -> ModuleType:
    """The module; executed again if its file has changed since the import."""
    importlib.invalidate_caches()
    present = sys.modules.get(name)
    file = getattr(present, "__file__", None)
    if present is not None and (file is None or _text_digest(Path(file)) == getattr(present, _DIGEST_ATTRIBUTE, None)):
        return present
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise FailedPrecondition(f"no Python module {name!r} can be imported here; put it on this process's path")
    return _execute_module(name, Path(spec.origin))


_DIGEST_ATTRIBUTE = "__treadle_source_sha256__"


def _text_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _execute_module(name: str, path: Path) -> ModuleType:
    """Executes the file as module `name`, compiled from its text: bytecode caches miss edits within one second."""
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
    setattr(module, _DIGEST_ATTRIBUTE, hashlib.sha256(text).hexdigest())
    return module
