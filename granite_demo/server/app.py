"""The application: health, the API, then the page at the root. Knows backends only by their protocols."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, JSONServerSentEvent
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from granite_demo import __version__
from granite_demo.access import Access
from granite_demo.backend import Backend, ManagedBackend, ModelControl
from granite_demo.server.credentials import Credentials
from granite_demo.server.guard import Guard
from granite_demo.server.metrics import Metrics, RequestCounter, WatchedBackend
from granite_demo.server.openai.errors import error_response
from granite_demo.server.openai.routes import create_api
from granite_demo.server.openai.transformers_chat import load_progress
from granite_demo.server.policy import Policy
from granite_demo.server.route_table import API
from granite_demo.ui.app import build_ui
from granite_demo.ui.gradio_patches.document import LookFiles
from granite_demo.ui.gradio_patches.errors import answer_failures, log_errors, mark_rejected_values
from granite_demo.ui.gradio_patches.files import guard_files, refuse_unknown_events, uploads_of
from granite_demo.ui.gradio_patches.queue import limit_queue
from granite_demo.ui.gradio_patches.sessions import LOGOUT, keep_values_only, log_out_by_post
from granite_demo.ui.languages import translations, words_dir
from granite_demo.ui.theme import load_theme, logo_path, look_files

KEYED = (API, "/metrics", "/load_model")
"""The paths that need the API key. Health checks have no key, and learn only that the server is alive."""
COUNTED = frozenset({f"{API}/models", f"{API}/chat/completions", f"{API}/completions"})

CORS_METHODS, CORS_HEADERS = ("GET", "POST"), ("authorization", "content-type")

LOGOUT_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>granite-demo</title>
<form method="post"><button autofocus>Log out</button></form></html>"""
"""What ``/logout`` shows. To end a session takes a POST."""


def create_app(backend: ManagedBackend, access: Access | None = None, policy: Policy | None = None) -> FastAPI:
    """An application over ``backend``, which it starts and closes.

    ``access`` decides who may change the model, ``policy`` who may reach the server; by default everybody may.
    """
    access, policy = access or Access(), policy or Policy()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        backend.start()
        yield
        backend.close()

    app = FastAPI(title="granite-demo", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    metrics = Metrics(backend.status)
    _add_health(app, backend, backend, metrics)
    app.mount(API, create_api(WatchedBackend(backend, metrics, "api")))
    if policy.logins:
        app.get(LOGOUT, include_in_schema=False)(lambda: HTMLResponse(LOGOUT_PAGE))
    page = build_ui(WatchedBackend(backend, metrics, "page"), backend, access, policy.unread)
    app.mount("/words", StaticFiles(directory=words_dir()))
    # Gradio allows every origin, unless its parent has this middleware.
    app.add_middleware(
        CORSMiddleware, allow_origins=policy.origins, allow_methods=CORS_METHODS, allow_headers=CORS_HEADERS
    )
    # If the page has a login, the API must not be a way around it.
    credentials = Credentials(policy.api_key, KEYED, closed=bool(policy.logins and not policy.api_key))
    folder, uploaded = uploads_of(page)
    app.add_middleware(LookFiles, files=look_files())
    app.add_middleware(Guard, policy=policy, credentials=credentials, folder=folder, uploaded=uploaded)
    app.add_middleware(RequestCounter, metrics=metrics, prefix=f"{API}/", routes=COUNTED)
    app.state.policy = policy
    mark_rejected_values()
    guard_files(page)
    log_errors()
    mounted: FastAPI = gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=list(policy.logins) or None,
        theme=load_theme(),
        favicon_path=str(logo_path()),
        footer_links=[],
        run_history=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        i18n=translations(page),
        max_file_size="10mb",
        allowed_paths=[],
    )
    # The application of the page, mounted last. Its stop_event ends its open connections.
    mount: Any = app.routes[-1]
    app.state.page = page.app = mount.app
    _change_page(mount.app, page, policy)
    return mounted


def _change_page(app: FastAPI, page: gr.Blocks, policy: Policy) -> None:
    refuse_unknown_events(app)
    answer_failures(app)
    log_out_by_post(app)
    keep_values_only(app, page)
    limit_queue(page, policy.queued, policy.unread)


class WantedModel(BaseModel):
    """The body of ``/load_model``."""

    model: str = ""


def _add_health(app: FastAPI, backend: Backend, control: ModelControl, metrics: Metrics) -> None:
    @app.get("/health", responses={503: {"description": "The engine has failed and cannot answer."}})
    async def health() -> JSONResponse:
        """Alive: the event loop runs and the engine has not failed. The state of the model does not matter."""
        status = backend.status()
        if status.engine and status.engine.failure:
            return JSONResponse({"status": "dead", "model": status.stage, "cause": status.engine.failure}, 503)
        return JSONResponse({"status": "ok", "model": status.stage})

    @app.get("/ready", responses={503: {"description": "No model is ready."}})
    async def ready() -> JSONResponse:
        """Ready: the model can answer now."""
        status = backend.status()
        able = status.stage == "ready" and not (status.engine and status.engine.failure)
        return JSONResponse({"ready": able, "model": status.stage}, 200 if able else 503)

    @app.get("/metrics", response_class=Response)
    async def scrape() -> Response:
        """The metrics, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        """The error as one of the API. FastAPI would repeat the values, and cannot write all of them as JSON."""
        return error_response(error)

    @app.post("/load_model", response_class=Response)
    async def load_model(body: WantedModel) -> EventSourceResponse:
        """Wait for the model. ``transformers chat`` calls this first."""
        events = (JSONServerSentEvent(event, sep="\n") async for event in load_progress(backend, control, body.model))
        return EventSourceResponse(events, sep="\n")
