"""The endpoint plugin `dynin`: vLLM loads it where `VLLM_PLUGINS` names it.

The server calls `attach_router` while it builds its application and `init_state` when the engine
is up. vLLM's own limits, API keys, CORS rules and error answers hold for these routes as well.
"""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.datastructures import State

from vllm_dynin.entrypoints.http import (
    chat,
    edits,
    images,
    operating,
    speech,
    text_routes,
    transcriptions,
)
from vllm_dynin.entrypoints.http.image_store import ImageStore
from vllm_dynin.entrypoints.http.service import MediaService

if TYPE_CHECKING:
    from vllm.engine.protocol import EngineClient

logger = logging.getLogger(__name__)

ROUTERS = (
    chat.router,
    text_routes.router,
    images.router,
    edits.router,
    speech.router,
    transcriptions.router,
)


class DyninEndpoints:
    """What vLLM asks of an endpoint plugin (`vllm.plugins.endpoint_plugins.interface`)."""

    name = "dynin"
    required_tasks: Any = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        """Add the routes; those that vLLM has too take its place."""
        for router in ROUTERS:
            app.include_router(router)
        operating.attach(app)

    async def init_state(
        self, engine_client: EngineClient | None, state: State, args: Namespace
    ) -> None:
        """Make the service behind the routes, if the served checkpoint is of this family."""
        state.dynin = None
        state.dynin_images = ImageStore.of_environment()
        if engine_client is None:
            return
        try:
            state.dynin = MediaService(engine_client, state.openai_serving_models)
        except ValueError as error:  # another model: vLLM's own routes work as ever
            logger.warning("the routes of vllm-dynin answer nothing here: %s", error)
            return
        operating.start(engine_client, state)
