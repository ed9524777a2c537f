"""A model class, described as data, in which MTP can be trained although it is not ``GPTModel`` itself."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from enum import Enum
from types import ModuleType
from typing import Any, Final

from ..definitions import Fields
from ..environment import Environment
from ..patching import Patch, PatchSet, Target, Verdict, applicable, not_needed, unsupported
from ..training.needs import MODEL


class Seam(str, Enum):
    """Where a model class runs MTP, and so where the plugin takes over."""

    #: In a method ``_postprocess`` with the parameters of ``GPTModel``'s, called by its ``forward`` by keyword.
    POSTPROCESS = "_postprocess"
    #: In ``forward``, in one body with ``self.decoder(...)`` before it and the head after it, as in ``HybridModel``:
    #: MTP runs where ``self.mtp_process`` is true, and ``self.decoder`` returns hidden states [s, b, h].
    FORWARD = "forward"


#: The parameters that the plugin must be able to hand over or withhold.
NEEDED: Final = {
    Seam.POSTPROCESS: frozenset({"hidden_states", "labels", "loss_mask", "mtp_in_postprocess"}),
    Seam.FORWARD: frozenset({"input_ids", "position_ids", "labels", "loss_mask"}),
}


@dataclass(frozen=True, slots=True)
class ModelClass:
    """One class. It has ``.mtp`` (a MultiTokenPredictionBlock), ``.embedding``, ``.output_layer`` and ``.config``.

    A subclass of ``GPTModel`` that overrides neither method needs no such entry.
    """

    module: str  # the leaf module that defines it: "my_lab.models.my_gpt"
    name: str  # "MyGPT"
    seam: Seam = Seam.POSTPROCESS

    def __post_init__(self) -> None:
        fields = Fields(self, "name")
        fields.dotted("module", "my_lab.models.my_gpt")
        fields.dotted("name", "MyGPT")
        fields.instance("seam", Seam, " or ".join(f"Seam.{seam.name}" for seam in Seam))

    @property
    def id(self) -> str:
        """The patch set's id."""
        return f"model_class.{self.module}.{self.name}"

    def patches(self) -> PatchSet:
        """What a package returns from ``verl_mtp_patches`` to have the class served."""
        method = Patch(
            id=f"{self.id}.{self.seam.value}",
            target=Target(self.module, f"{self.name}.{self.seam.value}"),
            reason=f"{self.name} is not served: MTP would not be trained, or by a body copied from another class",
            upstream="needed as long as verl asks for MTP by replacing methods of instances",
            decide=self._decide,
            build=_build_postprocess if self.seam is Seam.POSTPROCESS else _build_forward,
            absent_ok=True,
            needs=MODEL,
        )
        if self.seam is Seam.POSTPROCESS:
            return PatchSet(self.id, (method,))
        request = Patch(
            id=f"{self.id}.request",
            target=Target(self.module, f"{self.name}._postprocess"),
            reason=f"verl's request to train MTP would find nothing on {self.name} to be put on",
            upstream=method.upstream,
            decide=self._decide,
            build=_build_request,
            creates=True,
            absent_ok=True,
        )
        return PatchSet(self.id, (method, request))

    def _decide(self, environment: Environment, module: ModuleType) -> Verdict:
        cls = getattr(module, self.name)
        if self.seam.value not in vars(cls):
            return not_needed(f"{self.name} inherits {self.seam.value}")
        if self.seam is Seam.FORWARD and "mtp_process" not in inspect.unwrap(cls.__init__).__code__.co_names:
            return not_needed(f"{self.name} has no MTP in {environment.label('megatron-core')}")
        parameters = inspect.signature(getattr(cls, self.seam.value)).parameters
        if any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters.values()):
            return unsupported(
                found=f"{self.name}.{self.seam.value} with *args",
                expected="parameters that can be handed over by name",
                advice="name them, or take them as **kwargs",
            )
        missing = NEEDED[self.seam] - parameters.keys()
        if missing:
            return unsupported(
                found=f"{self.name}.{self.seam.value} without {', '.join(sorted(missing))}",
                expected=f"the parameters {', '.join(sorted(NEEDED[self.seam]))}",
                advice="give it a patch of its own in place of a ModelClass",
            )
        return applicable()


def _build_postprocess(original: Any) -> Any:
    from ..training.model_classes import build_postprocess

    return build_postprocess(original)


def _build_forward(original: Any) -> Any:
    from ..training.model_classes import build_forward

    return build_forward(original)


def _build_request(original: Any) -> Any:
    from ..training.model_classes import request_slot

    return request_slot()
