"""What benchmarks/mtp_loss.py measures: one model, its ``_postprocess`` twice, and the loss functions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import MethodType
from typing import Any, Final

import gpu_models
import torch
import torch.nn.functional as F
from gpu_timing import Contender, say

from verl_mtp_plugin.training.loss import Objective, chunked_loss
from verl_mtp_plugin.training.request import request

SEGMENT: Final = 1024  # tokens of a prompt, then as many of a response, and so on


class ReadyBlock(torch.nn.Module):
    """Stands for the MTP block: gives hidden states that lie ready, [2 * s, b, h], the policy's first."""

    layers: Iterable[Any] = ()

    def __init__(self) -> None:
        super().__init__()
        self.states: torch.Tensor | None = None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
        return self.states


class Bench:
    """A model with one cheap layer, whose MTP block is replaced.

    Args:
        device: where it lies.
        size: hidden size and vocabulary are those of the head.
    """

    def __init__(self, device: torch.device, size: gpu_models.Size) -> None:
        self.device = device
        self.size = size
        self.model = gpu_models.build(device, size, mtp=1).requires_grad_(False)
        self.model.mtp = ReadyBlock()
        self.weight = self.model.output_layer.weight
        self.dtype = self.weight.dtype
        self.cuts = 0
        self.model.output_layer.register_forward_pre_hook(self._cut)
        try:
            self.upstream: Any = gpu_models.verl_patch()._megatron_gptmodel_postprocess
        except Exception as error:  # then there is nothing to compare with, and the result says so
            self.upstream = error
            say(f"verl's patch cannot be loaded: {error}")
        self._main: set[int] = set()

    def _cut(self, module: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
        """Of the policy's logits, which are no part of the MTP loss, only the first row is computed."""
        states = arguments[0]
        if states.data_ptr() not in self._main:
            return None
        self.cuts += 1
        return (states[:1], *arguments[1:])

    def inputs(self, tokens: int, fraction: float) -> dict[str, torch.Tensor]:
        """Labels and mask [1, s]. ``fraction`` of each segment pair is trained: the responses, or everything."""
        generator = torch.Generator().manual_seed(tokens)
        labels = torch.randint(self.size.vocabulary, (1, tokens), generator=generator)
        position = torch.arange(tokens) % (2 * min(SEGMENT, tokens // 2))
        mask = (position >= (1 - fraction) * 2 * min(SEGMENT, tokens // 2)).float()[None]
        return {"labels": labels.to(self.device), "mask": mask.to(self.device)}

    def states(self, rows: int) -> torch.Tensor:
        return torch.randn(rows, 1, self.size.hidden, device=self.device, dtype=self.dtype).requires_grad_()

    def forget(self) -> None:
        self.model.mtp.states, self._main = None, set()

    def contenders(self, tokens: int, fraction: float, names: Iterable[str]) -> dict[str, Contender]:
        given = self.inputs(tokens, fraction)
        makers: dict[str, Callable[[], Contender]] = {
            "plugin": lambda: self._in_model(tokens, given, self._ask_plugin),
            "verl": lambda: self._in_model(tokens, given, self._ask_verl),
            "plugin_alone": lambda: self._alone(tokens, given, self.chunked),
            "plain_alone": lambda: self._alone(tokens, given, self.plain),
        }
        return {name: makers[name]() for name in names}

    def variants(self, tokens: int, chunks: list[int]) -> dict[str, Contender]:
        """The other objectives (whose targets cost a second projection), and other chunk sizes."""
        given = self.inputs(tokens, 1.0)
        target = self.states(tokens).detach()
        soft = {
            objective.value: self._alone(tokens, given, self.chunked, objective=objective, target_hidden=target)
            for objective in Objective
        }
        sizes = {f"chunk {n}": self._alone(tokens, given, self.chunked, chunk_tokens=n) for n in chunks}
        return {**soft, **sizes}

    # -- in the model --------------------------------------------------------------------------------------------------

    def _ask_plugin(self) -> None:
        request(self.model)

    def _ask_verl(self) -> None:
        if isinstance(self.upstream, Exception):
            raise self.upstream
        self.model._postprocess = MethodType(self.upstream, self.model)

    def _in_model(self, tokens: int, given: dict[str, torch.Tensor], ask: Callable[[], None]) -> Contender:
        if self.model.mtp.states is None or len(self.model.mtp.states) != 2 * tokens:
            self.model.mtp.states = self.states(2 * tokens)
            self._hidden = self.model.mtp.states.detach()[:tokens].clone().requires_grad_()
        joined, hidden = self.model.mtp.states, self._hidden
        self._main = {joined.data_ptr(), hidden.data_ptr()}
        call = {
            "hidden_states": hidden, "input_ids": given["labels"], "position_ids": given["labels"],
            "labels": given["labels"], "loss_mask": given["mask"], "mtp_in_postprocess": True,
            "rotary_pos_emb": None, "rotary_pos_cos": None, "rotary_pos_sin": None,
        }  # fmt: skip

        def before() -> None:
            joined.grad = hidden.grad = None
            ask()

        def run() -> None:
            cuts = self.cuts
            (self.model._postprocess(**call).sum() * 0).backward()
            assert self.cuts == cuts + 1, "the policy's own logits were not recognized"
            assert joined.grad is not None, "no MTP loss was attached"

        return Contender(run, before)

    # -- alone ---------------------------------------------------------------------------------------------------------

    def chunked(self, hidden: torch.Tensor, given: dict[str, torch.Tensor], **options: Any) -> torch.Tensor:
        return chunked_loss(hidden, self.weight.detach(), given["labels"], given["mask"], **options)[0]

    def plain(self, hidden: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
        """bf16 logits of all tokens, cross entropy in fp32."""
        logits = (hidden.squeeze(1) @ self.weight.detach().t()).float()
        return (F.cross_entropy(logits, given["labels"][0], reduction="none") * given["mask"][0]).sum()

    def _alone(self, tokens: int, given: dict[str, torch.Tensor], loss: Callable[..., Any], **more: Any) -> Contender:
        hidden = self.states(tokens)

        def before() -> None:
            hidden.grad = None

        return Contender(lambda: loss(hidden, given, **more).backward(), before)

    # -- are they the same? --------------------------------------------------------------------------------------------

    def agreement(self, tokens: int = 512) -> dict[str, float]:
        """Relative differences of MTP gradients and losses at a small size, and of the loss from its fp64 oracle."""
        from tests.stack.loss_oracle import OBJECTIVES, differences, random_case
        from tests.stack.loss_oracle import call as call_loss

        found: dict[str, float] = {}
        gradients = {}
        for name, contender in self.contenders(tokens, 0.5, ("plugin", "verl")).items():
            contender.before()
            contender.run()
            gradients[name] = self.model.mtp.states.grad.double()
        found["gradient, plugin and verl"] = distance(gradients["plugin"], gradients["verl"])
        given, gradients = self.inputs(tokens, 0.5), {}
        hidden = self.states(tokens)
        for name, loss in (("plugin", self.chunked), ("plain", self.plain)):
            (gradients[name],) = torch.autograd.grad(loss(hidden, given), hidden)
        found["gradient, plugin and plain"] = distance(gradients["plugin"].double(), gradients["plain"].double())
        self.forget()
        for objective in OBJECTIVES:  # sizes that are no multiple of any block
            for vocabulary in (37, 2049, 9000):
                case = random_case(3, 50, 2, 24, vocabulary, mask="fractions", dtype=torch.float32, logit_scale=0.7)
                case = case.changed(objective=objective, chunk_tokens=17)
                tensors = ("hidden", "weight", "labels", "mask", "target_hidden")
                there = case.changed(**{name: getattr(case, name).to(self.device) for name in tensors})
                states = there.hidden.requires_grad_()
                value, totals = call_loss(there, states)
                (gradient,) = torch.autograd.grad(value, states)
                apart = differences(case, value.detach(), gradient.cpu(), totals)
                key = f"fp32 {objective} and its fp64 oracle"
                found[key] = max(found.get(key, 0.0), *apart.values())
        say(f"  agreement: {found}")
        return found


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Norm of the difference over the norm."""
    return float((found - wanted).norm() / wanted.norm())
