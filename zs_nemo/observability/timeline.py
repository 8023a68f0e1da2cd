"""``timeline.json``: where the time of a run goes, in the Trace Event Format that Perfetto and Chrome read.

One JSON array with an event a line, closed again by every write: it can be opened at any moment, and grows at its end.
Every session of a run is a process of the trace; the stages of the driver are one track, sampled episodes are others.
"""

import errno
import json
import logging
import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from zs_nemo.observability.files import json_line, write_text
from zs_nemo.types.trajectory import Trajectory

_LOGGER = logging.getLogger(__name__)
_TAIL = b"\n]\n"
_STAGES = 1
_FIRST_EPISODE_TRACK = 10

Event = dict[str, Any]


class Timeline:
    """Writes the file. A file that cannot be written is given up with a warning: no run ends for its timeline."""

    def __init__(self, path: Path, *, session: int = 1) -> None:
        """``session`` counts the starts of the run; nothing is written before the first event."""
        self._path = path
        self._session = session
        # One reading of the wall clock: a clock that is set meanwhile would tear the stages apart.
        self._origin_s = time.time() - time.monotonic()
        self._file: BinaryIO | None = None
        self._closed = False
        self._track_ends: list[float] = []
        self._lock = threading.Lock()

    def begin(self, stage: str) -> None:
        """Record that a stage of the driver begins, within those that are open."""
        self._write([self._event("B", stage, time.monotonic(), cat="stage")])

    def end(self, stage: str) -> None:
        """Record that the innermost open stage ends."""
        self._write([self._event("E", stage, time.monotonic(), cat="stage")])

    def step(self, name: str, values: Mapping[str, float]) -> None:
        """Mark the end of a step; ``values`` are drawn as curves over time."""
        now = time.monotonic()
        finite = {key: value for key, value in values.items() if math.isfinite(value)}
        curves = [self._event("C", key, now, args={"value": value}) for key, value in finite.items()]
        self._write([self._event("i", name, now, s="p"), *curves])

    def episodes(self, trajectories: Sequence[Trajectory]) -> None:
        """Draw episodes with their turns and searches, each on a track where it overlaps no other."""
        events = []
        for trajectory in sorted(trajectories, key=lambda item: item.began_s):
            if trajectory.began_s:
                track, named = self._free_track(trajectory.began_s, trajectory.began_s + trajectory.elapsed_s)
                events += [*named, *self._episode(trajectory, track)]
        self._write(events)

    def close(self) -> None:
        """Close the file; what comes later is not recorded."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def _episode(self, trajectory: Trajectory, track: int) -> list[Event]:
        key, began = trajectory.key, trajectory.began_s
        whole = self._span(
            f"step {key.step} prompt {key.prompt} member {key.member}",
            began,
            trajectory.elapsed_s,
            track,
            args={"question": trajectory.question.text, "status": trajectory.status.name, "reward": trajectory.reward},
        )
        parts = []
        for turn in trajectory.turns:
            start = began + turn.began_s
            tokens = {"tokens": turn.end - turn.start, "weight_version": turn.weight_version}
            parts.append(self._span("generate", start, turn.generation_s, track, args=tokens))
            if turn.query is not None:
                found = turn.result
                answer = {"source": found.source, "noisy": found.noisy} if found else {"failed": True}
                start += turn.generation_s
                parts.append(self._span("search", start, turn.search_s, track, args={"query": turn.query, **answer}))
        return [whole, *parts]

    def _free_track(self, began: float, ended: float) -> tuple[int, list[Event]]:
        for index, busy_until in enumerate(self._track_ends):
            if busy_until <= began:
                self._track_ends[index] = ended
                return _FIRST_EPISODE_TRACK + index, []
        self._track_ends.append(ended)
        track = _FIRST_EPISODE_TRACK + len(self._track_ends) - 1
        return track, [self._name("thread_name", f"sampled episodes {len(self._track_ends)}", track)]

    def _span(self, name: str, began: float, length_s: float, track: int, *, args: Event) -> Event:
        # A length that was rounded by itself could reach over the end of the span around it.
        length = self._moment(began + length_s) - self._moment(began)
        return self._event("X", name, began, track, dur=length, cat="episode", args=args)

    def _event(self, kind: str, name: str, at: float, track: int = _STAGES, **more: Any) -> Event:
        return {"name": name, "ph": kind, "ts": self._moment(at), "pid": self._session, "tid": track, **more}

    def _moment(self, at: float) -> int:
        """Return a reading of the monotonic clock as microseconds since 1970."""
        return round(1e6 * (self._origin_s + at))

    def _name(self, kind: str, name: str, track: int = _STAGES) -> Event:
        return {"name": kind, "ph": "M", "pid": self._session, "tid": track, "args": {"name": name}}

    def _write(self, events: Sequence[Event]) -> None:
        with self._lock:
            if self._closed or not events:
                return
            try:
                if self._file is None:
                    self._file = _open(self._path)
                    title = "run" if self._session == 1 else f"run, session {self._session}"
                    events = [self._name("process_name", title), self._name("thread_name", "stages"), *events]
                _append(self._file, events)
            except OSError as error:
                self._closed = True
                _LOGGER.warning("%s ends here: %s", self._path, error.strerror)


def read_timeline(path: Path) -> list[Event]:
    """Return the events of a timeline; what a crash left of a line, and an absent file, count as nothing."""
    if not path.exists():
        return []
    return _events(path.read_bytes())


def open_stages(path: Path, *, last_bytes: int = 1 << 16) -> list[tuple[str, float]]:
    """Return (stage, when it began) of what has begun and not ended in the newest session, the outermost first.

    Times are in seconds since 1970. Reads the end of the file alone: a stage that began before it is not seen.
    """
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
        events = _events(file.read())
    stages = [event for event in events if event["tid"] == _STAGES and event["ph"] in "BE"]
    newest = max((event["pid"] for event in events), default=0)
    under_way = _unended([event for event in stages if event["pid"] == newest])
    return [(event["name"], event["ts"] / 1e6) for event in under_way]


def _events(text: bytes) -> list[Event]:
    events = []
    for line in text.splitlines():
        try:
            event = json.loads(line.strip().rstrip(b","))
        except ValueError:
            # A bracket, or a part of a line at either end.
            continue
        if isinstance(event, dict):
            events.append(event)
    return events


def _unended(stages: Sequence[Event]) -> list[Event]:
    opened: list[Event] = []
    for event in stages:
        if event["ph"] == "B":
            opened.append(event)
        elif opened:
            opened.pop()
    return opened


def _open(path: Path) -> BinaryIO:
    """Open the file for appending; mend what an earlier session that was killed has left."""
    if path.exists():
        events = read_timeline(path)
        ends = [end for session in {event["pid"] for event in events} for end in _missing_ends(events, session)]
        if ends or not path.read_bytes().endswith(_TAIL):
            write_text(path, _array([*events, *ends]))
    else:
        write_text(path, _array([]))
    return path.open("r+b", buffering=0)


def _missing_ends(events: Sequence[Event], session: int) -> list[Event]:
    """Return the ends of stages in which a session was broken off, at the last moment that it recorded."""
    own = [event for event in events if event["pid"] == session and "ts" in event]
    last = max((event["ts"] + event.get("dur", 0) for event in own), default=0)
    opened = _unended([event for event in own if event["tid"] == _STAGES and event["ph"] in "BE"])
    return [{**event, "ph": "E", "ts": last, "args": {"broken_off": True}} for event in reversed(opened)]


def _array(events: Sequence[Event]) -> str:
    return "[\n" + ",\n".join(json_line(event).rstrip("\n") for event in events) + _TAIL.decode()


def _append(file: BinaryIO, events: Sequence[Event]) -> None:
    lines = ",\n".join(json_line(event).rstrip("\n") for event in events).encode()
    end = file.seek(-len(_TAIL), os.SEEK_END)
    # One write, from the old bracket on: a reader sees the array with the new events or without them.
    text = (b",\n" if end > len(b"[\n") else b"") + lines + _TAIL
    if file.write(text) != len(text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
