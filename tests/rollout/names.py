"""What verl's SGLang package asks of SGLang by name, and what of it the installed release does not have.

In the process with both. Names are read from verl's source, since most are imported or looked up when they are used.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verl_mtp_plugin.testing.sglang_messages import fields

#: verl's variables for the arguments of SGLang's server, and for two of SGLang's objects.
ARGUMENTS, SERVER_ARGS, MANAGER = "args", "server_args", "tokenizer_manager"
REQUESTS = ("_make_request", "_make_async_request")


def resolve(name: str) -> Any:
    """A dotted name: the module as far as there is one, then attributes."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError as error:
            if not ".".join(parts[:end]).startswith(str(error.name)):
                raise
            continue
        for part in parts[end:]:
            found = getattr(found, part)
        return found
    raise ImportError(name)


def missing() -> list[str]:
    """Each as ``file: what is not there``."""
    package = importlib.import_module("verl.workers.rollout.sglang_rollout")
    found = set()
    for path in sorted(Path(str(package.__file__)).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        found |= {f"{path.stem}: {what}" for look in (_imports, _keywords, _attributes, _routes) for what in look(tree)}
    return sorted(found)


def _imported(tree: ast.AST) -> list[tuple[str, str]]:
    """Names of SGLang's that are imported from its modules: as what, and what."""
    lines = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    ours = (node for node in lines if (node.module or "").partition(".")[0] == "sglang")
    return [(alias.asname or alias.name, f"{node.module}.{alias.name}") for node in ours for alias in node.names]


def _imports(tree: ast.AST) -> Iterator[str]:
    chains = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for name in {*(what for _, what in _imported(tree)), *(chain for chain in chains if chain.startswith("sglang."))}:
        try:
            resolve(name)
        except (ImportError, AttributeError):
            yield name


def _keywords(tree: ast.AST) -> Iterator[str]:
    """Keywords of calls of SGLang's classes and functions that they do not take."""
    imported = dict(_imported(tree))
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported):
            continue
        try:
            called = resolve(imported[node.func.id])
        except (ImportError, AttributeError):
            continue  # said already
        parameters = inspect.signature(called).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            taken = {parameter.name for parameter in parameters}
            yield from (f"{node.func.id}({k.arg})" for k in node.keywords if k.arg and k.arg not in taken)


def _attributes(tree: ast.AST) -> Iterator[str]:
    """Arguments of the server and attributes of its tokenizer manager."""
    arguments = resolve("sglang.srt.server_args.ServerArgs")
    manager = resolve("sglang.srt.managers.tokenizer_manager.TokenizerManager")
    known, written = set(_fields(arguments)), inspect.getsource(manager)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value).rpartition(".")[2]
            if owner == SERVER_ARGS and node.attr not in known and not hasattr(arguments, node.attr):
                yield f"{SERVER_ARGS}.{node.attr}"
            if owner == MANAGER and not hasattr(manager, node.attr) and f"self.{node.attr}" not in written:
                yield f"{MANAGER}.{node.attr}"
        yield from (f"ServerArgs({key})" for key in _keys(node) if key not in known)


def _fields(record: Any) -> list[str]:
    return list(getattr(record, "__struct_fields__", None) or fields(record))


def _keys(node: ast.AST) -> list[str]:
    """Names of arguments that a statement puts into verl's ``args``."""
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == ARGUMENTS and isinstance(node.value, ast.Dict):
        return [str(ast.literal_eval(key)) for key in node.value.keys if isinstance(key, ast.Constant)]
    target = node.targets[0] if isinstance(node, ast.Assign) else None
    if isinstance(target, ast.Subscript) and ast.unparse(target.value) == ARGUMENTS:
        return [str(ast.literal_eval(target.slice))]
    return []


def _routes(tree: ast.AST) -> Iterator[str]:
    """Endpoints that verl's client calls."""
    served = {getattr(route, "path", "") for route in resolve("sglang.srt.entrypoints.http_server.app").routes}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in REQUESTS:
            first = node.args[0] if node.args else None
            route = f"/{ast.literal_eval(first)}" if isinstance(first, ast.Constant) else ""
            if route and route not in served:
                yield route
