"""How the ranks of a run are: which one holds up the others, from what each last wrote. Real ranks that hang: test_heartbeat.py."""

from __future__ import annotations

import pytest
from polymodal.pipelines.inspection.diagnosis import Rank, diagnose


def rank(number=0, **more):
    said = {"world": 2, "update": 7, "phase": "counting", "part": 0, "seconds": 60.0, "silent": 1.0, "process": "unknown", "meeting": False}
    return Rank(rank=number, host=f"host{number}", pid=100 + number, every=10.0, **(said | more))


@pytest.mark.parametrize(("ranks", "state", "culprits", "says"), [
    ([rank(0, seconds=3.0), rank(1)], "running", [], "running, update 7"),
    # behind: in the phase, in the update, in the micro-batch, and by a whole update
    ([rank(0), rank(1, phase="reading")], "hanging", [1], "rank 1 (host1, process 101) waits for its data (reading, update 7, for 60 s); "
                                                          "rank 0 waits for it (counting, update 7)"),
    ([rank(0, phase="backward"), rank(1, phase="forward")], "hanging", [1], "computes the loss"),
    ([rank(0, phase="forward", part=1), rank(1, phase="backward", part=0)], "hanging", [1], "no rank has moved for 60 s: rank 1"),
    ([rank(0, phase="saving", update=6), rank(1, phase="reading")], "hanging", [0], "saves a checkpoint"),
    ([rank(0, world=3), rank(1, world=3, phase="reading"), rank(2, world=3, phase="reading")], "hanging", [1, 2], "rank 0 waits for it"),
    # none is behind: whoever is not in a call that waits for others
    ([rank(0, phase="saving"), rank(1, phase="saving", meeting=True)], "hanging", [0], "rank 1 waits for it (saving, update 7)"),
    ([rank(0, meeting=True), rank(1, meeting=True)], "hanging", [], "none is behind"),
    ([rank(0, world=1, phase="reading")], "hanging", [0], "waits for its data"),
    # no sign of life
    ([rank(0, meeting=True), rank(1, silent=40.0)], "hanging", [1], "has shown no sign of life for 40 s: its machine does not write"),
    ([rank(0, seconds=1.0), rank(1, silent=1.0, process="stopped")], "hanging", [1], "its process is stopped"),
    ([rank(0), rank(1, silent=1.0, process="gone")], "hanging", [1], "its process is gone"),
    ([rank(0, world=3), rank(1, world=3)], "hanging", [2], "rank 2 never showed a sign of life; ranks 0, 1 wait for it"),
    # over: neither an ended run nor a killed one hangs
    ([rank(0, phase="ended", silent=1e6), rank(1, phase="ended", silent=1e6)], "ended", [], "ended after update 7"),
    ([rank(0, silent=9000.0), rank(1, silent=9000.0)], "killed", [], "sign of life for 2.5 h: killed, or their machines"),
    ([rank(0, silent=3.0, process="gone"), rank(1, silent=3.0, process="gone")], "killed", [], "their processes are gone"),
    ([rank(0, process="stopped"), rank(1, process="stopped")], "hanging", [0, 1], "its process is stopped"),
    ([rank(0), rank(1, phase="failed", why="UserError: no")], "failed", [1],
     "rank 1 failed and rank 0 waits for it (counting, update 7): rank 1: UserError: no"),
    ([rank(0, phase="failed", seconds=4.0, why="lost rank 1"), rank(1, phase="failed", seconds=5.0, why="UserError: no")], "failed", [1],
     "failed 5 s ago; first rank 1: UserError: no"),
    ([], "unknown", [], "no signs of life"),
])  # fmt: skip
def test_who_holds_up_the_others(ranks, state, culprits, says):
    found = diagnose(ranks)
    assert (found.state, found.ranks) == (state, culprits) and says in found.says


def test_slow_updates_are_not_taken_for_a_hang():
    ranks = [rank(0, seconds=100.0), rank(1, phase="forward", seconds=100.0)]
    assert diagnose(ranks, update_seconds=20.0).state == "running" and diagnose(ranks, update_seconds=5.0).state == "hanging"
