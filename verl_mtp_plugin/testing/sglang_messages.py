"""The messages between SGLang's tokenizer manager and a stand-in scheduler, in the form of the installed release."""

from __future__ import annotations

import array
import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, Final

IO: Final = "sglang.srt.managers.io_struct"


class Sockets:
    """The scheduler's two ends of SGLang's ZMQ channels: pickled objects, or msgpack where the release has it."""

    def __init__(self, port_args: Any) -> None:
        zmq = importlib.import_module("zmq")
        context = zmq.Context(2)
        self._incoming, self._outgoing = context.socket(zmq.PULL), context.socket(zmq.PUSH)
        self._incoming.connect(port_args.scheduler_input_ipc_name)
        self._outgoing.connect(port_args.tokenizer_ipc_name)
        self._io = importlib.import_module(IO)

    def receive(self, timeout_s: float) -> Any:
        """The next message; None when there is none within ``timeout_s`` seconds."""
        if not self._incoming.poll(timeout_s * 1000):
            return None
        if hasattr(self._io, "sock_recv"):
            return self._io.sock_recv(self._incoming)
        return self._incoming.recv_pyobj()

    def send(self, output: Any) -> None:
        if hasattr(self._io, "sock_send"):
            self._io.sock_send(self._outgoing, output)
        else:
            self._outgoing.send_pyobj(output)

    def refusal(self, message: Any) -> Any:
        """The answer to ``message`` that says that it failed.

        Raises:
            ValueError: SGLang knows no such answer to this message.
        """
        name = type(message).__name__.replace("Input", "Output")
        output = getattr(self._io, name, None)
        if output is None or "success" not in fields(output):
            raise ValueError(f"SGLang has no way to refuse a {type(message).__name__}; let it hang or die")
        return make(output, {"success": False, "message": "refused by the stand-in"})

    def internal_state(self, state: Mapping[str, Any]) -> Any:
        return make(self._io.GetInternalStateReqOutput, {"internal_state": dict(state)})


def fields(message: Any) -> dict[str, bool]:
    """Names of a message class's fields, and whether each must be given: dataclasses, or msgspec's structs."""
    if dataclasses.is_dataclass(message):
        return {
            field.name: field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            for field in dataclasses.fields(message)
        }
    structs = importlib.import_module("msgspec").structs
    return {field.name: field.required for field in structs.fields(message)}


def make(message: Any, values: Mapping[str, Any]) -> Any:
    """A message with those of ``values`` that this release knows; what else must be given is None."""
    known = fields(message)
    required = {name: None for name, needed in known.items() if needed}
    return message(**{**required, **{name: value for name, value in values.items() if name in known}})


#: Fields of BatchTokenIDOutput with one list per request, which SGLang indexes even when it does not use them.
_LISTS: Final = (
    "decoded_texts",
    "decode_ids",
    "read_offsets",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "no_stop_trim",
    "queue_time",
    "forward_entry_time",
    "prefill_launch_delay",
    "prefill_launch_latency",
    "prefill_finished_ts",
)


def batch_output(request: Any, *, verify_steps: int = 0, accepted: int = 0) -> Any:
    """The message that ends ``request``, with the numbers of its speculation."""
    io = importlib.import_module(IO)
    count = len(request.tokens)
    aborted = {"type": "abort", "message": "Aborted"}
    known = fields(io.BatchTokenIDOutput)
    tokens = array.array("q", request.tokens) if "weight_versions" in known else list(request.tokens)
    values: dict[str, Any] = {name: [None] for name in _LISTS if name in known}
    values |= {
        "rids": [request.rid],
        "http_worker_ipcs": [None],
        "finished_reasons": [aborted if request.to_finish is not None else {"type": "length", "length": count}],
        "output_ids": [tokens],
        "prompt_tokens": [len(request.message.input_ids)],
        "reasoning_tokens": [0],
        "completion_tokens": [count],
        "cached_tokens": [0],
        "retraction_counts": [request.retractions],
        "spec_verify_ct": [verify_steps],
        **{name: [accepted] for name in ("spec_accepted_tokens", "spec_accepted_drafts", "spec_num_correct_drafts")},
        **{name: [[]] for name in ("spec_acceptance_histogram", "spec_correct_drafts_histogram")},
    }
    return make(io.BatchTokenIDOutput, values)
