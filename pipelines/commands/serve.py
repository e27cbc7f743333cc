"""`polymodal serve`: models over HTTP, for clients of OpenAI's API."""

from __future__ import annotations

from typing import Annotated

import typer

from ..base.options import Device, IgnoreGenerationConfig, Quantize

ORDER = 55


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(
    model: Annotated[list[str], typer.Option(
        metavar="[NAME=]MODEL", help="Model directory, run, checkpoint, or hub id; several may be given. Its name is the last part of the "
                                     "path, unless another one is given.")],
    host: Annotated[str, typer.Option(help="Address to listen at. Others than this machine's own need a key in the environment variable "
                                           "POLYMODAL_API_KEY.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts that run together.")] = 16,
    max_waiting: Annotated[int, typer.Option(min=1, help="Requests that wait for their turn; more are answered with 429.")] = 64,
    max_body: Annotated[int, typer.Option(min=1, metavar="BYTES", help="Size of a request.")] = 1 << 20,
    max_texts: Annotated[int, typer.Option(min=1, help="Texts that one request for completions may ask for.")] = 128,
    max_model_len: Annotated[int | None, typer.Option(
        min=2, help="Tokens of a prompt and its text together, at most. Default: what the model has room for; 4096 where it has no "
                    "limit.")] = None,
    device: Device = None,
    quantize: Quantize = None,
    ignore_generation_config: IgnoreGenerationConfig = False,
) -> None:
    """Serve models over HTTP as OpenAI's API does: completions of decoders, embeddings of encoders."""
    from ...shared.errors import UserError
    from ..base.console import Console
    from ..base.install import install_line

    try:
        from ..serving.app import Limits
        from ..serving.server import check_host
        from ..serving.server import serve as run
    except ImportError as error:
        needed = (error.name or "").partition(".")[0]
        if needed not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"serving needs {needed}: {install_line('serve')}") from None
    from ..serving.served import open_served

    check_host(host)
    console = Console()
    models = open_served(model, device, quantize, batch_size, max_model_len=max_model_len,
                         ignore_generation_config=ignore_generation_config)
    told = "; ".join(f"{name} ({', '.join(served.abilities)})" for name, served in models.items())
    run(models, host=host, port=port, batch_size=batch_size, most_waiting=max_waiting, limits=Limits(max_body, max_texts),
        ready=lambda address: console.say(f"serving {told} at {address}/v1; Ctrl-C ends"))
