"""Runs programs as ``python PROGRAM ...`` does, but in forks of one process that has imported PyTorch, which saves
seconds of imports per run. Modules of this repository are imported only after the fork."""

import atexit
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parent.parent
SECONDS = 300  # after which a run is killed
SERVER = """
import json, os, runpy, signal, sys
import numpy, PIL.Image, regex, safetensors.torch, tiktoken, torch, tqdm
import torch.distributed.checkpoint.state_dict, torch.distributed.fsdp, torch.utils.data

for line in sys.stdin:
    arguments, folder, seconds, cwd = json.loads(line)
    if not os.fork():
        os.chdir(cwd)
        signal.alarm(seconds)
        for number, (name, flags) in enumerate((("in", os.O_RDONLY), ("out", 577), ("err", 577))):
            os.dup2(os.open(os.path.join(folder, name), flags, 0o600), number)
        sys.stdin, sys.stdout, sys.stderr = (open(number, "rw"[number > 0], closefd=False) for number in range(3))
        if arguments[0] == "-m":
            sys.path[0], sys.argv = os.getcwd(), arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = os.path.dirname(os.path.abspath(arguments[0])), arguments
            runpy.run_path(arguments[0], run_name="__main__")
        break
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@functools.cache
def _server() -> subprocess.Popen:
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
    atexit.register(server.kill)
    return server


def run(*arguments: str | Path, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess:
    """Output and exit code of ``python ARGUMENTS``; ``arguments`` begin with a file, or with "-m" and a module."""
    with TemporaryDirectory() as folder:
        Path(folder, "in").write_text(stdin, encoding="utf-8")
        print(
            json.dumps([list(map(os.fspath, arguments)), folder, SECONDS, os.fspath(cwd)]),
            file=_server().stdin,
            flush=True,
        )
        code = int(_server().stdout.readline())
        out, err = (Path(folder, name).read_text(encoding="utf-8") for name in ("out", "err"))
    return subprocess.CompletedProcess(arguments, code, out, err)
