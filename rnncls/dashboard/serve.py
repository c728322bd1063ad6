"""Start TensorBoard in this process, on a view that shows what matters.

Importing this does not import torch.
"""

import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboard import default, program

from rnncls.errors import MachineError, Problem


def serve(folder: Path, host: str | None, port: int | None, begin: Callable[[str], object]) -> None:
    """Serve TensorBoard for a folder until a signal ends it.

    `begin` is called with its address once there is one. Without `port`, it is the first free one
    from 6006 on. Raises: MachineError if the port or the host cannot be had.
    """
    board = program.TensorBoard(
        default.get_plugins(), server_class=lambda app, flags: _server(app, flags, begin)
    )
    words = ["tensorboard", "--logdir", str(folder.resolve()), "--reload_multifile", "true"]
    if port is not None:
        words += ["--port", str(port)]
    if host is not None:
        words += ["--host", host]
    board.configure(words)

    # Ctrl-C is how a server is ended, and no error. TensorBoard takes its traces away then, which
    # it would not if the process ended at once.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(KeyboardInterrupt):
        board.main()


def _server(app: Any, flags: Any, begin: Callable[[str], object]) -> Any:
    """Return TensorBoard's own server, which says our address instead of its own."""
    make = program.WerkzeugServer
    if flags.port is None:
        make = program.create_port_scanning_werkzeug_server
    try:
        server = make(app, flags)
    except program.TensorBoardServerException as error:
        what = "TensorBoard cannot be started"
        remedy = "another --port, or none: the first free one is taken"
        raise MachineError(Problem(what, found=error.msg, remedy=remedy, id="R37")) from None
    server.print_serving_message = lambda: begin(server.get_url())
    return server
