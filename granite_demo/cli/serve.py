"""The command ``serve``: connects settings, backend, limits and server. Imports heavy packages when it starts."""

from typing import TYPE_CHECKING

from rich.console import Console

from granite_demo.access import Access
from granite_demo.backend import ManagedBackend
from granite_demo.backends.limited import LimitedBackend
from granite_demo.backends.open_model import follow
from granite_demo.backends.side_by_side import SideBySideBackend
from granite_demo.cli.composition import backend_beside, opened_backend
from granite_demo.cli.terminal import set_up_logging
from granite_demo.hub import download
from granite_demo.loading import gc as garbage
from granite_demo.loading.source import check_cache_folders, check_torch
from granite_demo.loading.tensor_parallel import Group
from granite_demo.settings import Settings, take_secrets

if TYPE_CHECKING:
    from fastapi import FastAPI


def run_server(settings: Settings, console: Console) -> None:
    """Serve the page until a signal. Raises GraniteDemoError."""
    set_up_logging(settings.log_level, console, settings.secrets, strangers=True)
    download.keep_token(take_secrets())
    group = Group(settings.processes, settings.rank, settings.local_rank)
    if not group.leads:
        return follow(settings.cache_dir, settings.threads, settings.load_options(), group)
    with group.together():  # the other processes wait for this one, even if it fails
        _serve(settings, console, group)
    group.leave()


def _serve(settings: Settings, console: Console, group: Group) -> None:
    from granite_demo.server.run import address, bind, serve

    # Before the imports, which take seconds: an error about the port appears at once.
    listener = bind(settings.host, settings.port)
    if not settings.backend:
        check_torch(settings.load_options())
        check_cache_folders(settings.cache_dir, settings.load_options())
    link = _share(settings, listener.getsockname()[1])
    kind = settings.load_options().engine_kind
    lent = kind is not None and kind.borrows_gpu and not settings.backend
    if lent:
        from granite_demo.engine import zerogpu

        zerogpu.load_spaces()
    backend = opened_backend(settings, console, group)
    console.print("granite-demo is starting.", highlight=False)
    try:
        backend.start()  # the model loads during the imports
        if group.size > 1:
            backend.wait_until_ready()
        if lent and (ready := backend.wait_until_ready()):
            zerogpu.start_space(ready.loaded)
        with garbage.paused():
            app, limited = _application(settings, backend, listener.getsockname()[1] if lent else None)
    except BaseException:
        backend.close()
        listener.close()
        raise

    def announce() -> None:
        console.print(f"granite-demo is at {address(listener)} (Ctrl-C stops it).", highlight=False, markup=False)
        if link:
            console.print(f"Anyone who has this link can use the page: {link}", highlight=False, markup=False)

    serve(app, limited, listener, announce)


def _application(settings: Settings, backend: ManagedBackend, port: int | None) -> tuple["FastAPI", LimitedBackend]:
    """The page and the API over ``backend``, and the backend that they use. ``port``: for ZeroGPU."""
    from granite_demo.ui.gradio_patches.stubs import skip_type_stubs

    skip_type_stubs()
    from granite_demo.server.app import create_app
    from granite_demo.server.policy import limits_of, policy_of
    from granite_demo.ui.gradio_patches.blocks import set_port

    whole = SideBySideBackend(backend, backend_beside(settings)) if settings.beside else backend
    limited = LimitedBackend(whole, limits_of(settings))
    app = create_app(limited, Access(settings.public, settings.admin_token), policy_of(settings))
    if port:
        set_port(app.state.page, port)
    return app, limited


def _share(settings: Settings, port: int) -> str:
    """The public link, or "". Called early, because it fails without a network. Raises ConfigurationError."""
    if settings.share != "yes":
        return ""
    from granite_demo.ui.gradio_patches.share import share_link

    return share_link(port, settings.cache_dir)
