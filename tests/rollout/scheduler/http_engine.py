"""verl's HTTP client of an SGLang server, without HTTP: every request goes to SGLang's own handlers in this process."""

from __future__ import annotations

from typing import Any

from . import engine


class HttpError(Exception):
    """As aiohttp's ClientResponseError: the status and nothing of the body."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(f"400, message='Bad Request', url=/{endpoint}")
        self.status = 400


class HttpEngine:
    """What verl's ``ServerAdapter`` calls of its ``AsyncHttpServerAdapter``, in the order of the calls.

    Args:
        scheduler: of :func:`.engine.make_scheduler`.
        fail: endpoints that answer with status 400, and how often.
    """

    def __init__(self, scheduler: Any, fail: dict[str, int] | None = None) -> None:
        self.scheduler = scheduler
        self.fail = fail or {}
        self.calls: list[str] = []
        self.lora: list[str] = []

    async def _make_async_request(self, endpoint: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        payload = payload or {}
        self.calls.append(payload.get("action", endpoint))
        self._refuse(endpoint)
        request = {
            "weights_checker": "CheckWeightsReqInput",
            "begin_weight_update": "BeginWeightUpdateReqInput",
            "end_weight_update": "EndWeightUpdateReqInput",
        }[endpoint]
        method = "check_weights" if endpoint == "weights_checker" else endpoint
        output = getattr(self.scheduler, method)(engine.io(request)(**payload))
        if not output.success:
            raise HttpError(endpoint)
        return {"success": True, "message": output.message}

    async def update_weights_from_tensor(self, req: Any) -> dict[str, Any]:
        self.calls.append("update")
        self._refuse("update")
        output = self.scheduler.update_weights_from_tensor(req)
        if not output.success:
            raise HttpError("update_weights_from_tensor")
        return {"success": True, "message": output.message}

    async def flush_cache(self) -> dict[str, Any]:
        self.calls.append("flush")
        return {}

    async def available_models(self) -> dict[str, Any]:
        return {"data": []}

    async def load_lora_adapter_from_tensor(self, req: Any) -> dict[str, Any]:
        self.calls.append("lora")
        return {}

    def _refuse(self, endpoint: str) -> None:
        if self.fail.get(endpoint, 0) > 0:
            self.fail[endpoint] -= 1
            raise HttpError(endpoint)
