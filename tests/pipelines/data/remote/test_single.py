"""Single samples of a large shard, fetched alone."""

import io
import tarfile

import numpy as np
import pytest
from over_http import kept
from polymodal.pipelines.data.dataset import DataSet
from polymodal.pipelines.data.index import build_index


@pytest.fixture
def wide(folder, server):
    """A data set whose shard is worth reading by samples."""
    with tarfile.open(folder / "wide.tar", "w") as file:
        for i in range(200):
            info = tarfile.TarInfo(f"w{i:04d}.bin")
            info.size = 65_536
            file.addfile(info, io.BytesIO(np.random.default_rng(i).bytes(info.size)))
    for path in folder.glob("s *"):
        path.unlink()
    build_index(folder, force=True)
    return server


def test_a_few_samples_of_a_large_shard_come_alone(wide, cache):
    data = DataSet.open(wide.url, cache=cache)
    for i in (150, 3):
        assert data.read(i).fields["bin"] == np.random.default_rng(i).bytes(65_536)
    assert not kept(cache) and all(asked[1] for asked in wide.tars()) and data.read_costs()["fetch_bytes"] < 200_000
    for i in range(10):  # in the end the whole is cheaper
        assert data.read(i).fields["bin"] == np.random.default_rng(i).bytes(65_536)
    assert len(kept(cache)) == 1 and len(wide.tars()) == 4
    assert data.key_and_shard(9) == ("w0009", "wide.tar")


@pytest.mark.parametrize("fault", ["no ranges", "another range", "404", "damaged alone"])
def test_where_samples_do_not_come_alone_the_whole_is_read(wide, folder, cache, fault):
    """A sample that does not fit its checksum is settled by the whole shard, which a hash proves."""
    good = (folder / "wide.tar").read_bytes()

    def behave(path, number, start):
        if fault == "damaged alone":
            (folder / "wide.tar").write_bytes(good if number > 1 else bytes(len(good)))
            return ""
        return fault if path.endswith(".tar") and number <= (1 if fault == "404" else 100) and start else ""

    wide.fault = behave
    data = DataSet.open(wide.url, cache=cache)
    wide.asked.clear()
    assert data.read(150).fields["bin"] == np.random.default_rng(150).bytes(65_536)
    assert len(kept(cache)) == 1
