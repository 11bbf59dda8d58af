"""Serve a model by HTTP: photos at once, slides as jobs, and a page for people.

    python -m bach.serve --model-dir runs/part_a
    python -m bach.serve --model-dir runs/final --slides-root slides --port 8080
    python -m bach.serve --host 0.0.0.0 --token-file token.txt

Reads    the models of a run; slides below --slides-root
Writes   --jobs-dir: the jobs (jobs.sqlite), their results and what is uploaded
Serves   /                       a page: drop a photo, choose a slide, see the result
         /docs                   every address, to be tried out
         /model/predict          a photo, as IBM's Model Asset eXchange has it
         /v2/models/NAME/infer   patches, by the Open Inference Protocol
         /slides, /jobs          slides as jobs, which survive a restart
         /metrics                figures for Prometheus

Needs    pip install "bach-histology[serve]"

It prints its address once it can be asked. Ctrl-C or SIGTERM: photos that wait are answered,
and the slide at work begins again at the next start.
"""

import ipaddress
import os
import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bach import tasks
from bach.core.errors import InputError, exit_with
from bach.core.log import log
from bach.core.run import locked
from bach.serve.settings import Options, read_token


def parse_args(argv: Sequence[str] | None = None) -> Options:
    return tasks.parse(Options, argv, __doc__, "python -m bach.serve")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    token = read_token(args)
    try:
        import uvicorn

        from bach.serve.app import make_app
    except ModuleNotFoundError as error:
        raise InputError(
            "A service needs packages of its own.\n"
            f"Received: {error}.\n"
            'Install them: pip install "bach-histology[serve]" (from a checkout: ".[serve]").'
        ) from error
    from bach.serve.service import Service

    with listening(args) as place, locked(Path(args.jobs_dir), "this command"):
        service = Service(args)
        config = uvicorn.Config(
            make_app(service, token),
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=round(args.time_limit_s) + 1,
        )

        class Server(uvicorn.Server):
            """Says at once where it can be asked, and that it ends."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                print(address(place), flush=True)

            def handle_exit(self, sig: int, frame: Any) -> None:
                service.interrupt()
                super().handle_exit(sig, frame)

        server = Server(config)
        service.start()
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            signal.signal(signal.SIGHUP, server.handle_exit)
        try:
            server.run([place])
        finally:
            service.stop()
            log.info("ended")
    return 0


def listening(args: Options) -> socket.socket:
    """A socket at the address, so that one that is taken is told before models are loaded.

    Raises:
        InputError: If it cannot be had.
    """
    host = "127.0.0.1" if args.host == "localhost" else args.host
    # asyncio sends without delay (TCP_NODELAY) only where it is told that this is TCP.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    place = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":  # elsewhere it would let two listen at one port
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, args.port))
    except OSError as error:
        place.close()
        raise InputError(
            "A service must have an address and a port of its own.\n"
            f"Received: --host={args.host} --port={args.port}: {error.strerror or error}.\n"
            "Name another --port, or 0 for any; end what listens there."
        ) from error
    return place


def address(place: socket.socket) -> str:
    """Where a browser finds a socket: http://127.0.0.1:8000/."""
    host, port = place.getsockname()[:2]
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = False
    host = socket.gethostname() if anywhere else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


if __name__ == "__main__":
    exit_with(main)
