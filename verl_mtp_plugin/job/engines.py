"""Training engines that train no MTP, asked to: refused before their weights load.

verl's FSDP, VeOmni, TorchTitan and AutoModel engines never look at ``mtp``: they build, train and export the trunk
alone, and with ``enable_rollout`` the drafter keeps what it started with while the policy moves away from it. Which
engine it is, is asked of its class, so that the answer also holds for one that is registered later.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final

from ..environment import Environment
from ..errors import UnsupportedError
from ..patching import Patch, PatchSet, Target, Verdict, applicable, around, unsupported

BASE: Final = "verl.workers.engine.base"
#: verl's own engines; those of Megatron and MindSpeed train MTP, and FSDP-Turbo's and VeOmni's are FSDP's.
ENGINES: Final = (
    ("fsdp", "FSDPEngine"),
    ("veomni", "VeOmniEngine"),
    ("torchtitan", "TorchTitanEngine"),
    ("automodel", "AutomodelEngine"),
)
#: The attribute by which a class says for itself whether it trains MTP.
ANSWER: Final = "trains_mtp"
_MTP: Final = re.compile(r"(?:^|_)mtp(?:_|$)")
_GUARDED: Final = "_verl_mtp_guarded"


def trains_mtp(engine_class: type) -> bool:
    """Whether an engine class can train MTP.

    Its attribute ``trains_mtp`` says so. Without one, an engine that trains MTP must ask for ``model_config.mtp`` in
    its own code or in its module's, as Megatron's does; one that never does cannot know that it was asked.
    """
    answer = getattr(engine_class, ANSWER, None)
    if answer is not None:
        return bool(answer)
    return any(_MTP.search(name) for function in _functions(engine_class) for name in _words(function))


def _functions(engine_class: type) -> Iterator[FunctionType]:
    """The functions of a class and its bases, the abstract one left out, and those of their modules that they call."""
    known: set[FunctionType] = set()
    own = [cls for cls in engine_class.__mro__ if cls.__module__ not in (BASE, "builtins", "abc", "typing")]
    found = [function for cls in own for value in vars(cls).values() for function in _as_functions(value)]
    while found:
        function = found.pop()
        if function in known:
            continue
        known.add(function)
        yield function
        module = function.__module__ or ""  # None, for one that was made by exec
        home = module.rpartition(".")[0] or module
        called = (function.__globals__.get(name) for name in _words(function) if home)
        found += [f for f in called if isinstance(f, FunctionType) and (f.__module__ or "").startswith(home)]


def _as_functions(value: Any) -> list[FunctionType]:
    if isinstance(value, property):
        parts = [value.fget, value.fset]
    else:
        parts = [getattr(value, "__func__", getattr(value, "func", value))]  # class and static methods, cached ones
    return [inspect.unwrap(part) for part in parts if isinstance(part, FunctionType)]


def _words(function: FunctionType) -> Iterator[str]:
    return _identifiers(inspect.unwrap(function).__code__)


def _identifiers(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _identifiers(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant  # getattr(config, "mtp"), config["mtp"]
        elif isinstance(constant, tuple):
            yield from (name for name in constant if isinstance(name, str))  # names of keyword arguments


def refuse_untrained(engine_class: type, model_config: Any, engine_config: Any, model_type: str | None = None) -> None:
    """Check that an engine trains the MTP that its config asks it to train.

    Args:
        model_config: verl's ``HFModelConfig``.
        engine_config: of the engine; one for forward passes alone trains nothing.
        model_type: ``value_model`` for a critic, which has no labels to train MTP on.

    Raises:
        UnsupportedError: it does not.
    """
    mtp = getattr(model_config, "mtp", None)
    if not (getattr(mtp, "enable", False) and getattr(mtp, "enable_train", False)):
        return
    if getattr(engine_config, "forward_only", False) or "value_model" in (
        model_type,
        getattr(model_config, "model_type", None),
    ):
        return
    if trains_mtp(engine_class):
        return
    strategy = getattr(engine_config, "strategy", None)
    raise UnsupportedError(
        found=f"mtp.enable=True and mtp.enable_train=True with {engine_class.__name__}"
        + (f" (strategy {strategy})" if strategy else "")
        + ", which neither trains nor exports MTP",
        expected="an engine that trains MTP, which is Megatron's",
        advice="Train with model_engine=megatron (actor_rollout_ref.actor.strategy=megatron), or set "
        "actor_rollout_ref.model.mtp.enable_train=False: with enable_rollout=True the checkpoint's own MTP head then "
        "drafts as it is, loaded with actor_rollout_ref.rollout.load_format=auto. Without MTP: mtp.enable=False. "
        f"A class of your own that does train MTP says so by a class attribute, {ANSWER} = True.",
    )


# -- where engines are made ------------------------------------------------------------------------------------------


def initialize(original: Callable[..., Any], engine: Any, *args: Any, **kwargs: Any) -> Any:
    """An engine's ``initialize``, which loads the weights.

    Raises:
        UnsupportedError: it is asked to train MTP, and cannot.
    """
    is_value = "ValueHead" in type(engine).__name__ or getattr(engine, "is_value_model", False)
    model_type = "value_model" if is_value else None
    refuse_untrained(
        type(engine), getattr(engine, "model_config", None), getattr(engine, "engine_config", None), model_type
    )
    return original(engine, *args, **kwargs)


def _build_new(original: Any) -> Any:
    upstream = original.__func__

    @functools.wraps(upstream)
    def new(cls: Any, model_type: str, backend: str, *args: Any, **kwargs: Any) -> Any:
        if "model_config" in kwargs:  # as all of verl calls it; what comes by position is asked in initialize
            engine_class = cls.get_engine_cls(model_type, backend)
            refuse_untrained(engine_class, kwargs["model_config"], kwargs.get("engine_config"), model_type)
        return upstream(cls, model_type, backend, *args, **kwargs)

    return classmethod(new)


def _build_register(original: Any) -> Any:
    upstream = original.__func__
    for engine_class in _registered(sys.modules[BASE].EngineRegistry):  # before the plugin was there
        guard(engine_class)

    @functools.wraps(upstream)
    def register(cls: Any, *args: Any, **kwargs: Any) -> Any:
        decorator = upstream(cls, *args, **kwargs)

        @functools.wraps(decorator)
        def decorate(engine_class: type) -> type:
            return guard(decorator(engine_class))

        return decorate

    return classmethod(register)


def _registered(registry: Any) -> set[type]:
    by_backend = [backends for models in getattr(registry, "_engines", {}).values() for backends in models.values()]
    return {engine_class for classes in by_backend for engine_class in classes.values()}


def guard(engine_class: type) -> type:
    """Let a class of another package ask before it loads weights, also where nobody makes it by the registry.

    The class stays so when the plugin is turned off, and asks nothing then.
    """
    method = engine_class.__dict__.get("initialize")
    if method is None or engine_class.__module__.startswith("verl.") or hasattr(method, _GUARDED):
        return engine_class

    @functools.wraps(method)
    def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
        from .. import runtime

        call = functools.partial(initialize, method) if runtime.report().active else method
        return call(self, *args, **kwargs)

    setattr(guarded, _GUARDED, True)
    engine_class.initialize = guarded  # type: ignore[attr-defined]
    return engine_class


def _decide_registry(environment: Environment, module: ModuleType) -> Verdict:
    for name in ("new", "register"):
        if not isinstance(inspect.getattr_static(module.EngineRegistry, name, None), classmethod):
            return unsupported(
                found=f"EngineRegistry.{name} that is no class method",
                expected="a class method",
                advice="an engine that trains no MTP is noticed at its initialize() or at the first weight sync",
            )
    if not callable(getattr(module.EngineRegistry, "get_engine_cls", None)):
        return unsupported(
            found="EngineRegistry without get_engine_cls",
            expected="the registry's own choice of a class",
            advice="an engine that trains no MTP is noticed at its initialize() or at the first weight sync",
        )
    return applicable()


_REASON: Final = (
    "an engine that trains no MTP (FSDP, VeOmni, TorchTitan, AutoModel) builds with mtp.enable and enable_train and "
    "says nothing: MTP is not trained, and the drafter grows old"
)
_UPSTREAM: Final = "no release; delete when verl refuses mtp.enable_train for engines that do not train MTP"

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (
    PatchSet(
        "job.engines",
        tuple(
            Patch(
                id=f"job.engines.{name}",
                target=Target(BASE, f"EngineRegistry.{name}"),
                reason=_REASON,
                upstream=_UPSTREAM,
                decide=_decide_registry,
                build=build,
            )
            for name, build in (("new", _build_new), ("register", _build_register))
        ),
    ),
    *(
        Patch(
            id=f"job.engines.{name}",
            target=Target(f"verl.workers.engine.{name}.transformer_impl", f"{owner}.initialize"),
            reason=_REASON,
            upstream=_UPSTREAM,
            build=around(initialize),
            absent_ok=True,
        )
        for name, owner in ENGINES
    ),
)
