"""Where a released verl does not fit a newer SGLang at all: its server cannot start, or its client cannot be made.

Nothing of it concerns MTP; without it there is no sync to look after. As data: light to import, since it is armed at
``import verl``. Where upstream's two fit, nothing is changed.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, Final, NamedTuple

from ...environment import Environment
from ...errors import UnsupportedError
from ...patching import Patch, PatchSet, Target, Verdict, applicable, not_needed, unsupported
from ..acceptance_hooks import SGLANG_SERVER
from ..coroutines import around_async
from .session import BEGIN, END

CLIENT: Final = "verl.workers.rollout.sglang_rollout.http_server_engine"
#: SGLang's switches, and the one for its server in Rust (0.5.20 and later; off by default).
ENVIRONMENT: Final = "sglang.srt.environ"
RUST: Final = "SGLANG_RUST_SERVER"
_ABSTRACT: Final = "__abstractmethods__"
#: What msgspec's structs have where dataclasses have their fields.
_STRUCT: Final = "__struct_fields__"


# -- the server: which arguments SGLang's ServerArgs takes -------------------------------------------------------------


class Field(NamedTuple):
    """As much of ``dataclasses.Field`` as verl reads."""

    name: str


def fields(record: Any) -> tuple[Any, ...]:
    """``dataclasses.fields``, also of a ``msgspec.Struct``, which SGLang's ``ServerArgs`` is from 0.5.20 on."""
    names = getattr(record, _STRUCT, None)
    return dataclasses.fields(record) if names is None else tuple(map(Field, names))


def _with_structs(original: ModuleType) -> ModuleType:
    """A module with the names of ``original``, whose ``fields`` is :func:`fields`. verl's server alone sees it."""
    module = ModuleType(original.__name__, original.__doc__)
    vars(module).update(vars(original))
    vars(module)["fields"] = fields
    return module


def decide_fields(environment: Environment, module: ModuleType) -> Verdict:
    """Whether verl asks for the dataclass fields of a class that has none."""
    launch = inspect.unwrap(module.SGLangHttpServer.launch_server)
    asks = _names(launch.__code__)
    if not {"dataclasses", "fields"} <= asks:
        return not_needed("verl's server does not ask SGLang's ServerArgs for dataclass fields")
    arguments = module.ServerArgs
    if dataclasses.is_dataclass(arguments):
        return not_needed("SGLang's ServerArgs is a dataclass")
    if not hasattr(arguments, _STRUCT):
        return unsupported(
            found=f"a ServerArgs that is neither a dataclass nor a msgspec.Struct ({arguments!r})",
            expected="SGLang up to 0.5.23",
            advice="verl cannot start this SGLang's server; use the release that verl pins",
        )
    return applicable()


def _names(code: Any) -> set[str]:
    """Global and attribute names of a function and of what is defined in it (before 3.12, comprehensions too)."""
    inner = (constant for constant in code.co_consts if inspect.iscode(constant))
    return set(code.co_names).union(*map(_names, inner))


async def launch_server(original: Callable[..., Awaitable[Any]], server: Any, *args: Any, **kwargs: Any) -> Any:
    """verl's, refused before a model is loaded for a server that verl cannot use.

    Raises:
        UnsupportedError: SGLang's Rust server is asked for, which has no tokenizer manager in Python.
    """
    flag = _rust_server()
    if flag is not None and flag.get():
        raise UnsupportedError(
            found=f"{RUST}, with which SGLang has no tokenizer manager in Python",
            expected="SGLang's server in Python, the only one that verl can talk to",
            advice=f"Unset {RUST}.",
        )
    return await original(server, *args, **kwargs)


def decide_launch(environment: Environment, module: ModuleType) -> Verdict:
    """Whether this SGLang has a server in Rust."""
    if _rust_server() is None:
        return not_needed("this SGLang has no server in Rust")
    if not inspect.iscoroutinefunction(inspect.unwrap(module.SGLangHttpServer.launch_server)):
        return unsupported(
            found="SGLangHttpServer.launch_server that is no coroutine function",
            expected="async def",
            advice=f"do not set {RUST}",
        )
    return applicable()


def _rust_server() -> Any:
    return getattr(getattr(sys.modules.get(ENVIRONMENT), "envs", None), RUST, None)


# -- the client: methods that SGLang's EngineBase demands --------------------------------------------------------------


class _Blocking:
    """Methods for ``HttpServerAdapter``."""

    _make_request: Any

    def begin_weight_update(self, selector: str = "all") -> Any:
        """Open a session for weights; ``selector`` is SGLang's: all, target or draft."""
        return self._make_request(BEGIN, {"selector": selector})

    def end_weight_update(self) -> Any:
        """End it."""
        return self._make_request(END, {})


class _Asynchronous:
    """Methods for ``AsyncHttpServerAdapter``."""

    _make_async_request: Any

    async def begin_weight_update(self, selector: str = "all") -> Any:
        """Open a session for weights; ``selector`` is SGLang's: all, target or draft."""
        return await self._make_async_request(BEGIN, {"selector": selector})

    async def end_weight_update(self) -> Any:
        """End it."""
        return await self._make_async_request(END, {})


#: verl's two clients, the method by which each sends a request, and what is added.
CLIENTS: Final[dict[str, tuple[str, type]]] = {
    "HttpServerAdapter": ("_make_request", _Blocking),
    "AsyncHttpServerAdapter": ("_make_async_request", _Asynchronous),
}
ADDED: Final = frozenset({BEGIN, END})


def _decide_client(owner: str, name: str) -> Callable[[Environment, ModuleType], Verdict]:
    """A probe: of one abstract method, or of the list of them."""
    request, _ = CLIENTS[owner]

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        client = getattr(module, owner)
        missing = set(getattr(client, _ABSTRACT, ()))
        if not missing or (name != _ABSTRACT and name not in missing):
            return not_needed(f"verl's {owner} has all that SGLang's EngineBase demands")
        lacks = missing - ADDED if hasattr(client, request) else {request}
        if lacks:
            return unsupported(
                found=f"verl's {owner} without {', '.join(sorted(lacks))}",
                expected=f"no more to be missing than {BEGIN} and {END} (SGLang 0.5.21 to 0.5.23)",
                advice="verl cannot send weights to this SGLang; use the release that verl pins",
            )
        return applicable()

    return decide


def _method(owner: str, name: str) -> Patch:
    _, methods = CLIENTS[owner]
    return Patch(
        id=f"rollout.sglang.compat.{owner}.{name}",
        target=Target(CLIENT, f"{owner}.{name}"),
        reason=f"no weights can be sent to SGLang >= 0.5.21: TypeError, Can't instantiate abstract class {owner}",
        upstream="no verl up to 0.9.1 has these methods; delete when the oldest supported one has",
        decide=_decide_client(owner, name),
        build=lambda original: getattr(methods, name),
        creates=True,
    )


def _abstract(owner: str) -> Patch:
    """Python notes at a class's creation what is abstract in it, and looks at no method that comes later."""
    return Patch(
        id=f"rollout.sglang.compat.{owner}.complete",
        target=Target(CLIENT, f"{owner}.{_ABSTRACT}"),
        reason=f"as rollout.sglang.compat.{owner}.{BEGIN}",
        upstream=f"as rollout.sglang.compat.{owner}.{BEGIN}",
        decide=_decide_client(owner, _ABSTRACT),
        build=lambda original: frozenset(original) - ADDED,
    )


PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    Patch(
        id="rollout.sglang.compat.server_args",
        target=Target(SGLANG_SERVER, "dataclasses"),
        reason="verl's server does not start on SGLang >= 0.5.20: TypeError, must be called with a dataclass type",
        upstream="no verl up to 0.9.1 asks otherwise; delete when the oldest supported one does",
        decide=decide_fields,
        build=_with_structs,
        absent_ok=True,
    ),
    Patch(
        id="rollout.sglang.compat.launch",
        target=Target(SGLANG_SERVER, "SGLangHttpServer.launch_server"),
        reason=f"with {RUST} verl's server ends in AttributeError: 'NoneType' object has no attribute 'server_status', "
        "after the model was loaded",
        upstream="no verl up to 0.9.1 knows the switch; delete when verl refuses it",
        decide=decide_launch,
        build=around_async(launch_server),
        absent_ok=True,
    ),
    PatchSet(
        "rollout.sglang.compat.client",
        tuple(patch for owner in CLIENTS for patch in (_method(owner, BEGIN), _method(owner, END), _abstract(owner))),
    ),
)
