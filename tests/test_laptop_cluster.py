"""docs/laptop_cluster.md is true: every command of it, in order, in one shell."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from polymodal.pipelines.run.directory import Run

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.mark.slow
@pytest.mark.timeout(660)
def test_the_walk_through(tmp_path: Path) -> None:
    """Shards over HTTP, four ranks, a rank killed, everything killed, two ranks: the curve of a run that nothing disturbed."""
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    page = (ROOT / "docs/laptop_cluster.md").read_text(encoding="utf-8")
    commands = "\n".join(re.findall(r"```sh\n(.*?)```", page, flags=re.S))
    # names of its own: `pkill -f` looks at all processes
    own = f"examples/gpt2_cluster_{os.getpid()}.yaml"
    (tmp_path / own).write_text((ROOT / "examples/gpt2_cluster.yaml").read_text())
    commands = commands.replace("8765", str(free_port())).replace("examples/gpt2_cluster.yaml", own)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    said = (tmp_path / "said.txt").open("w+")
    (tmp_path / "walk.sh").write_text(commands)
    shell = subprocess.Popen(["bash", "-e", "-x", "-m", "walk.sh"], cwd=tmp_path, env=environment, stdout=said, stderr=said,
                             start_new_session=True)
    try:
        code = shell.wait(600)
    finally:
        subprocess.run(["pkill", "-9", "-f", own], check=False)
        subprocess.run(["pkill", "-9", "-s", str(shell.pid)], check=False)
        shell.send_signal(signal.SIGKILL)
        said.seek(0)
        text = said.read()
    logs = "".join(f"\n--- {p.name}\n{p.read_text()[-3000:]}" for p in sorted((tmp_path / "work").glob("launch-*.log")))
    assert code == 0, text[-5000:] + logs
    found = re.search(r"80 updates in both runs.*\nlargest relative difference of the training loss: (\S+)", text)
    assert found is not None and float(found[1]) < 1e-5, text[-3000:]
    for name in ("calm", "run"):
        assert [row["update"] for row in Run(tmp_path / "work" / name).metrics("train")] == list(range(1, 81))
    assert "the contact with another rank broke" in logs and "internal error" not in logs
    assert "training finished at update 80" in logs.split("launch-2.log")[1], "the run was complete before it could be continued"
    assert (tmp_path / "work/model/config.json").is_file()
