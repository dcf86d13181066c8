"""Programs that write data folders in LLaVA's format. ``minillava`` reads those folders and never imports this."""

import signal
import sys

# In python -m data..., Ctrl-C ends quietly while modules are imported. run_program() takes over then.
if (
    sys.argv[:1] == ["-m"]
    and any(part.startswith("data.") for part in sys.orig_argv)
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
