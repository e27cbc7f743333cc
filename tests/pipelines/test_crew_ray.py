"""The same work on a Ray cluster of this machine: the same bytes, also where a worker is killed; and what stands in the way."""

from __future__ import annotations

import hashlib
import secrets

import pytest
from polymodal.pipelines.pack import pack

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of two cores on loopback; its secret dies with it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16),
                            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "OMP_NUM_THREADS": "1"}.items():
            patch.setenv(name, value)
        import ray

        here = ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 << 20, log_to_driver=False, logging_level="ERROR",
                        configure_logging=False, _node_ip_address="127.0.0.1", _temp_dir=str(tmp_path_factory.mktemp("ray")))
        yield here.address_info["gcs_address"]
        ray.shutdown()


def contents(folder):
    """Every file of a folder with its hash."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_packing_on_ray_gives_the_same_bytes(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("polymodal.pipelines.sources._UNIT_BYTES", 20_000)
    (tmp_path / "a.txt").write_text("\n\n".join(f"text {i} " + "x" * (i % 97) for i in range(2000)))
    for on in ("local", "ray"):
        pack(tmp_path / "a.txt", tmp_path / on / "train", holdout=0.1, holdout_out=tmp_path / on / "eval", shard_bytes=150_000, on=on)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")
