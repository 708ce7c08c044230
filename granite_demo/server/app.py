"""The application: health, then the page at the root. Knows the ``Backend`` only as a protocol."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI
from fastapi.responses import JSONResponse

from granite_demo import __version__
from granite_demo.backends import Backend
from granite_demo.server.guards import Guard, guard_files
from granite_demo.ui.blocks import build_ui
from granite_demo.ui.models import Access
from granite_demo.ui.theme import load_theme, logo_path, style_paths


def create_app(backend: Backend, access: Access | None = None) -> FastAPI:
    """An application over ``backend``: started with it, closed with it.

    ``access`` tells who may change the model; without it everybody may.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        backend.start()
        yield
        backend.close()

    app = FastAPI(title="granite-demo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.get("/health")
    async def health() -> JSONResponse:
        """Alive: the event loop answers. The model's state is told, but does not matter."""
        return JSONResponse({"status": "ok", "model": backend.status().stage})

    app.add_middleware(Guard)
    page = build_ui(backend, access or Access())
    guard_files(page)
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=load_theme(),
        css_paths=style_paths(),
        favicon_path=str(logo_path()),
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        max_file_size="10mb",
        allowed_paths=[],
    )
    # The page's own application, mounted last, whose open connections end with its stop_event.
    mount: Any = app.routes[-1]
    app.state.page = mount.app
    return mounted
