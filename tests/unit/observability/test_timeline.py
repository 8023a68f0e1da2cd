import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.observability.runs import searching
from zs_nemo.observability.timeline import Timeline, open_stages, read_timeline
from zs_nemo.observability.timer import StageTimer

ROOT = Path(__file__).parents[3]


def loaded(path: Path) -> list[dict[str, Any]]:
    """Return the events, read as strictly as any viewer could."""
    return list(json.loads(path.read_bytes()))


def nesting(events: list[dict[str, Any]], session: int = 1) -> list[str]:
    return [event["ph"] + event["name"] for event in events if event["pid"] == session and event["ph"] in "BE"]


def test_stages_nest_as_they_were_opened_also_when_one_raises(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timer = StageTimer(timeline=Timeline(path))
    with timer("evaluation"), timer("refit"):
        pass
    with pytest.raises(RuntimeError), timer("train"):
        raise RuntimeError
    events = loaded(path)
    assert nesting(events) == ["Bevaluation", "Brefit", "Erefit", "Eevaluation", "Btrain", "Etrain"]
    times = [event["ts"] for event in events if "ts" in event]
    assert times == sorted(times) and all(isinstance(moment, int) for moment in times)


def test_the_file_is_whole_json_after_every_event_and_shows_what_is_under_way(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path)
    assert open_stages(path) == []
    seen = []
    for act, name in [("begin", "rollout"), ("begin", "refit"), ("end", "refit"), ("end", "rollout")]:
        getattr(timeline, act)(name)
        loaded(path)
        seen.append([stage for stage, _ in open_stages(path)])
    assert seen == [["rollout"], ["rollout", "refit"], ["rollout"], []]


def test_a_step_is_a_mark_with_its_values_as_curves_and_no_value_that_json_lacks(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    Timeline(path).step("step 3", {"reward/mean": 0.25, "train/kl": float("nan")})
    kinds = [(event["ph"], event["name"], event.get("args")) for event in loaded(path) if event["ph"] in "iC"]
    assert kinds == [("i", "step 3", None), ("C", "reward/mean", {"value": 0.25})]


def test_episodes_lie_on_tracks_where_none_overlaps_with_their_turns_and_searches_inside(tmp_path: Path) -> None:
    def episode(member: int, began: float, elapsed: float) -> Any:
        item = searching(key=(7, 0, member))
        first = replace(item.turns[0], query="capital of France", began_s=0.1, generation_s=0.5, search_s=0.3)
        last = replace(item.turns[1], began_s=0.9, generation_s=0.4)
        return replace(item, began_s=began, elapsed_s=elapsed, turns=[first, last])

    path = tmp_path / "timeline.json"
    Timeline(path).episodes([episode(1, 101.0, 2.0), episode(0, 100.0, 1.5), episode(2, 101.5, 2.0)])
    spans = [event for event in loaded(path) if event["ph"] == "X"]
    whole = {event["name"].split()[-1]: event for event in spans if event["name"].startswith("step 7")}
    assert whole["0"]["tid"] == whole["2"]["tid"] != whole["1"]["tid"]
    assert whole["0"]["dur"] == pytest.approx(1_500_000, abs=1)
    assert whole["1"]["ts"] - whole["0"]["ts"] == pytest.approx(1_000_000, abs=1)
    inner = [event for event in spans if event["tid"] == whole["1"]["tid"] and event is not whole["1"]]
    assert [event["name"] for event in inner] == ["generate", "search", "generate"]
    assert inner[1]["ts"] == inner[0]["ts"] + inner[0]["dur"]
    assert inner[1]["ts"] - whole["1"]["ts"] == pytest.approx(600_000, abs=1)
    assert inner[1]["args"]["query"] == "capital of France" and inner[1]["args"]["source"] == "simulator"
    for event in inner:
        assert whole["1"]["ts"] <= event["ts"]
        assert event["ts"] + event["dur"] <= whole["1"]["ts"] + whole["1"]["dur"]


KILLED = """
import os, signal, sys
from pathlib import Path
from zs_nemo.observability.timeline import Timeline
timeline = Timeline(Path(sys.argv[1]))
timeline.begin("start")
timeline.end("start")
timeline.begin("evaluation")
timeline.begin("rollout")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_session_stays_readable_and_its_open_stages_end_where_it_was_broken_off(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)], cwd=ROOT, env=os.environ, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert nesting(loaded(path)) == ["Bstart", "Estart", "Bevaluation", "Brollout"]
    resumed = Timeline(path, session=2)
    resumed.begin("start")
    resumed.close()
    resumed.end("start")
    events = loaded(path)
    assert nesting(events) == ["Bstart", "Estart", "Bevaluation", "Brollout", "Erollout", "Eevaluation"]
    ends = [event["ts"] for event in events if event.get("args") == {"broken_off": True}]
    last = max(event["ts"] for event in events if event["pid"] == 1 and "ts" in event)
    assert ends == [last, last]
    assert nesting(events, session=2) == ["Bstart"] and open_stages(path)[0][0] == "start"
    names = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert names == ["run", "run, session 2"]


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_what_a_crash_tore_off_is_left_out_and_the_rest_goes_on(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "timeline.json"
    first = Timeline(path)
    first.begin("start")
    first.end("start")
    first.close()
    path.write_bytes(path.read_bytes()[:-cut])
    assert nesting(read_timeline(path))[0] == "Bstart"
    Timeline(path, session=2).begin("train")
    events = loaded(path)
    assert nesting(events) == ["Bstart", "Estart"]
    assert nesting(events, session=2) == ["Btrain"]


def test_an_empty_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    path.touch()
    Timeline(path).begin("start")
    assert nesting(loaded(path)) == ["Bstart"]


def test_a_timeline_that_cannot_be_written_is_given_up_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    timeline = Timeline(tmp_path / "missing" / "folder" / "timeline.json")
    (tmp_path / "missing").touch()
    for _ in range(3):
        timeline.begin("start")
    assert len(caplog.records) == 1 and "timeline.json ends here" in caplog.text


def test_threads_may_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "timeline.json"
    timeline = Timeline(path)
    threads = [
        threading.Thread(target=lambda: [timeline.step("step", {"reward/mean": 0.5}) for _ in range(50)])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(event["ph"] == "i" for event in loaded(path)) == 200
