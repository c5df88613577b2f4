"""The plan of a run: its tasks, the network's noise, and what happens when; drawn from one seed.

A plan is data, so that a failing one can be shrunk, printed and kept.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct, field, structs

SIDES = ("leader", "helper")
LEADER_PORT, HELPER_PORT, SECOND_HELPER_PORT = 1001, 1002, 1003
PRECISION = 60
EXPIRY = 2400
"""Seconds that a report lives; a job takes ten minutes at most (``_TIME_TO_COMMIT_MS``)."""

Do = Literal[
    "upload",
    "collect",
    "kill",
    "stop",
    "silence",
    "lose_answers",
    "slow_down",
    "forge",
    "set_clock",
    "outage",
    "disk_full",
    "back_up",
    "restore",
    "new_hpke_key",
    "new_sealing_key",
    "drain_task",
    "disable_task",
    "new_token",
]


def helper_port(second: bool) -> int:
    """Return the port of one of the Helper's two addresses."""
    return SECOND_HELPER_PORT if second else HELPER_PORT


class Noise(Struct, frozen=True):
    """How likely each fault of a request is, and that it takes seconds."""

    faults: dict[str, float] = field(default_factory=dict)
    slow: float = 0.0

    def draw(self, chance: random.Random) -> str | None:
        """Draw what happens to one request."""
        at = chance.random()
        for fault, likely in self.faults.items():
            at -= likely
            if at < 0:
                return fault
        return None


class TaskPlan(Struct, frozen=True):
    """One task. ``second_peer``: it reaches the Helper under its other address."""

    batch_mode: Literal["time-interval", "leader-selected"]
    helper_mode: Literal["sync", "async", "auto"]
    min_batch_size: int
    batch_target_size: int
    second_peer: bool


class Event(Struct, frozen=True, omit_defaults=True):
    """Something that happens ``at`` so many seconds after the start.

    ``n`` counts reports or time precisions, ``seconds`` is how long it lasts or how far it goes.
    """

    at: float
    do: Do
    side: str = ""
    task: int = 0
    n: int = 0
    seconds: float = 0.0


class Plan(Struct, frozen=True):
    """A whole run."""

    seed: int
    tasks: tuple[TaskPlan, ...]
    noise: Noise
    settings: dict[str, dict[str, int | float]]
    events: tuple[Event, ...]

    def without(self, events: set[int]) -> Plan:
        """Leave out the events at these places."""
        kept = tuple(each for place, each in enumerate(self.events) if place not in events)
        return structs.replace(self, events=kept)


def read_plan(path: Path) -> Plan:
    """Read a plan from a JSON file."""
    return msgspec.json.decode(path.read_bytes(), type=Plan)


def write_plan(plan: Plan, path: Path) -> None:
    """Write a plan into a JSON file."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(plan)) + b"\n")


def draw_plan(seed: int) -> Plan:
    """Draw a plan. Each allows a few kinds of faults only, so that runs differ in kind."""
    chance = random.Random(f"plan {seed}")
    tasks = tuple(_task(chance) for _ in range(chance.choice((1, 2, 2, 3))))
    span = chance.choice((120.0, 300.0, 600.0))
    events = [*_uploads(chance, tasks, span), *_collections(chance, tasks, span)]
    for draw in _FAULTS:
        if chance.random() < 0.3:
            events += draw(chance, tasks, span)
    noise, settings = _noise(chance), _settings(chance)
    rare = random.Random(f"situation {seed}")
    if rare.random() < 0.25:
        changed = list(tasks)
        situation = rare.choice(_SITUATIONS)(rare, changed, settings)
        tasks, apart = tuple(changed), {event.task for event in situation}
        events = [
            event
            for event in events
            if event.do in ("upload", "collect") and event.task not in apart
        ]
        events += situation
        noise = rare.choice((Noise(), noise))
    if any(event.do == "restore" for event in events):  # it would bring back a token
        events = [event for event in events if event.do != "new_token"]
    return Plan(
        seed,
        tasks,
        noise,
        settings,
        tuple(sorted(events, key=lambda event: event.at)),
    )


def _task(chance: random.Random) -> TaskPlan:
    minimum = chance.choice((1, 1, 2, 4))
    return TaskPlan(
        chance.choice(("time-interval", "leader-selected")),
        chance.choice(("sync", "async", "auto")),
        minimum,
        minimum + chance.choice((0, 0, 3, 8)),
        chance.random() < 0.3,
    )


_NOISES = (
    "lost_before",
    "lost_after",
    "hang_before",
    "hang_after",
    "twice",
    "cut_request",
    "cut_answer",
    "proxy",
    "bad_gateway",
)


def _noise(chance: random.Random) -> Noise:
    if chance.random() < 0.3:
        return Noise()
    kinds = chance.sample(_NOISES, chance.randint(1, 4))
    return Noise(
        {kind: chance.choice((0.01, 0.03, 0.1)) for kind in kinds}, chance.choice((0, 0, 0.05))
    )


def _settings(chance: random.Random) -> dict[str, dict[str, int | float]]:
    smallest = chance.choice((1, 2, 10))
    return {
        "leader": {
            "min_job_size": smallest,
            "max_job_size": smallest + chance.choice((0, 3, 20)),
            "max_wait": chance.choice((0.05, 2.0, 20.0)),
            "permits_per_peer": chance.choice((1, 2, 8)),
            "slots": 2,
            "request_timeout": chance.choice((5.0, 20.0)),
            "retry_min": 0.5,
            "retry_max": chance.choice((10.0, 60.0)),
            "poll_min": 0.1,
            "poll_max": 20.0,
            "upload_group_requests": chance.choice((1, 3, 1000)),
        },
        "helper": {
            "sync_wait": chance.choice((0.5, 10.0)),
            "poll_hold": chance.choice((0.0, 5.0)),
            "auto_sync_seconds": 0.01,
        },
        "collection": {
            "poll_hold": chance.choice((0.0, 5.0)),
            "retry_after": 2.0,
            "leader_selected_keep": 86_400.0,  # a result that was served and lost comes again
        },
        "reports": {"early_leeway": chance.choice((60.0, 300.0))},
        "clock": {"longest_stop": 3600},
        "gc": {"interval": chance.choice((20.0, 60.0))},
        "keys": {"pending": 600, "active": 3600},
        "shutdown": {"grace": chance.choice((0.0, 5.0))},
    }


def _uploads(chance: random.Random, tasks: tuple[TaskPlan, ...], span: float) -> list[Event]:
    def ago() -> float:
        return float(chance.choice((0, 0, 0, 60, 120, 600, -60, -240)))

    return [
        Event(chance.uniform(0, span), "upload", task=task, n=chance.randint(1, 6), seconds=ago())
        for task in range(len(tasks))
        for _ in range(chance.choice((4, 10, 20)))
    ]


def _collections(chance: random.Random, tasks: tuple[TaskPlan, ...], span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            "collect",
            task=task,
            n=chance.choice((1, 1, 3)),
            seconds=float(chance.choice((0, 60, 120, 300))),
        )
        for task in range(len(tasks))
        for _ in range(chance.choice((0, 2, 6)))
    ]


def _some(chance: random.Random, most: int) -> range:
    return range(chance.randint(1, most))


def _kills(chance: random.Random, _: object, span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            chance.choice(("kill", "kill", "stop")),
            side=chance.choice(SIDES),
            seconds=chance.choice((0.1, 2.0, 30.0, 120.0)),
        )
        for _ in _some(chance, 10)
    ]


def _silences(chance: random.Random, tasks: tuple[TaskPlan, ...], span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            "silence",
            task=chance.randrange(len(tasks)),
            seconds=chance.choice((10.0, 60.0, 240.0)),
        )
        for _ in _some(chance, 3)
    ]


def _clocks(chance: random.Random, _: object, span: float) -> list[Event]:
    far = (-3600.0, -200.0, 200.0, 90_000.0, 3e8)  # the longest legal stop is an hour
    events = []
    for _ in _some(chance, 2):
        at, side = chance.uniform(0, span), chance.choice(SIDES)
        events.append(Event(at, "set_clock", side=side, seconds=chance.choice(far)))
        events.append(Event(at + chance.uniform(1, span), "set_clock", side=side))
    return events


def _outages(chance: random.Random, _: object, span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            "outage",
            seconds=chance.choice((EXPIRY / 2, EXPIRY - 300, EXPIRY + 300, 3 * EXPIRY)),
        )
    ]


def _full_disks(chance: random.Random, _: object, span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            "disk_full",
            side=chance.choice(SIDES),
            seconds=chance.choice((5.0, 60.0)),
        )
        for _ in _some(chance, 3)
    ]


def _restores(chance: random.Random, _: object, span: float) -> list[Event]:
    side, at = chance.choice(SIDES), chance.uniform(0, span / 2)
    return [
        Event(at, "back_up", side=side),
        Event(chance.uniform(at, span), "restore", side=side, seconds=chance.choice((1.0, 60.0))),
    ]


def _keys(chance: random.Random, _: object, span: float) -> list[Event]:
    return [
        Event(
            chance.uniform(0, span),
            chance.choice(("new_hpke_key", "new_sealing_key")),
            side=chance.choice(SIDES),
            seconds=1.0,
        )
        for _ in _some(chance, 3)
    ]


def _task_changes(chance: random.Random, tasks: tuple[TaskPlan, ...], span: float) -> list[Event]:
    events = []
    for _ in _some(chance, 3):
        do: Do = chance.choice(("drain_task", "disable_task", "new_token"))
        side = "leader" if do == "drain_task" else chance.choice(SIDES)
        task, seconds = chance.randrange(len(tasks)), chance.choice((5.0, 60.0))
        events.append(Event(chance.uniform(0, span), do, side=side, task=task, seconds=seconds))
    return events


_FAULTS = (
    _kills,
    _silences,
    _clocks,
    _outages,
    _full_disks,
    _restores,
    _keys,
    _task_changes,
)

Settings = dict[str, dict[str, int | float]]


def _outage_in_flight(
    chance: random.Random, tasks: list[TaskPlan], settings: Settings
) -> list[Event]:
    """Older reports are aggregated; jobs of newer ones are under way when the older expire."""
    task, at = chance.randrange(len(tasks)), 80.0
    tasks[task] = structs.replace(tasks[task], batch_target_size=tasks[task].min_batch_size + 8)
    settings["leader"] |= {"min_job_size": 10, "max_job_size": 30, "max_wait": 2.0}
    mute: Do = chance.choice(("silence", "lose_answers"))

    def upload(when: float, do: Do, ago: float) -> Event:
        return Event(at + when, do, task=task, n=chance.randint(1, 3), seconds=ago)

    before = [upload(chance.uniform(-60, -40), "upload", 600) for _ in _some(chance, 2)]
    under_way = chance.uniform(-15, -5)
    kinds: tuple[tuple[Do, float], ...] = (("upload", 600), ("upload", -60), ("forge", -60))
    late = [
        upload(under_way + chance.random() / 10, *kind)
        for kind in chance.choice((kinds, kinds[::2], chance.choices(kinds, k=3)))
    ]
    return [
        upload(-65, "forge", 600),  # fetches keys, as the first of ``before`` does
        *before,
        Event(at - 20, mute, task=task, seconds=110.0),
        *late,
        Event(at, "outage", task=task, seconds=chance.choice((EXPIRY - 500, EXPIRY - 300))),
        Event(at + 150, "collect", task=task, n=1),
    ]


def _behind_a_cut(chance: random.Random, tasks: list[TaskPlan], _: Settings) -> list[Event]:
    """A collection waits for a silent Helper, and more reports of its batch come than one pass of
    the creator looks at; then some of another batch.
    """
    task = chance.randrange(len(tasks))
    tasks[task] = structs.replace(tasks[task], batch_mode="time-interval")
    at = 30.0 + chance.uniform(0, 120)

    def upload(when: float, ago: float) -> Event:
        return Event(at + when, "upload", task=task, n=tasks[task].min_batch_size, seconds=ago)

    return [
        upload(-20, 1200),  # so that the client has the Helper's key
        Event(at, "silence", task=task, seconds=240.0),
        upload(0.1, 0),
        Event(at + 1, "collect", task=task, n=3),
        *(upload(30 + each, 0) for each in range(12)),
        upload(50, 600),
    ]


def _crash_loop(chance: random.Random, tasks: list[TaskPlan], settings: Settings) -> list[Event]:
    """The Leader dies again and again in an exchange; another, slow Helper is kept busy."""
    suspect = chance.randrange(len(tasks))
    busy = (suspect + 1) % len(tasks)
    if busy == suspect:
        return []
    tasks[busy] = structs.replace(tasks[busy], second_peer=not tasks[suspect].second_peer)
    settings["leader"] |= {"request_timeout": 20.0, "permits_per_peer": 8, "max_wait": 0.05}
    at = chance.uniform(20, 80)
    return [
        *(Event(at - 15, "upload", task=each, n=1) for each in (suspect, busy)),  # fetches keys
        Event(at, "silence", task=suspect, seconds=9.5),
        Event(at + 0.5, "upload", task=suspect, n=2),
        *(Event(at + each, "kill", side="leader", task=busy, seconds=0.1) for each in (3, 6, 9)),
        Event(at, "slow_down", task=busy, seconds=170.0),
        *(Event(at + 7 + 4 * each, "upload", task=busy, n=1) for each in range(40)),
    ]


def _reports_of_a_wrong_clock(
    chance: random.Random, tasks: list[TaskPlan], _: Settings
) -> list[Event]:
    """The Leader's clock is far ahead for a while, as is that of some clients."""
    task, at, far = chance.randrange(len(tasks)), chance.uniform(20, 100), 3e8
    return [
        Event(at, "set_clock", side="leader", task=task, seconds=far),
        Event(at + 2, "upload", task=task, n=2, seconds=-far),
        Event(at + 20, "set_clock", side="leader", task=task),
        Event(at + 30, "upload", task=task, n=tasks[task].min_batch_size),
        Event(at + 40, "collect", task=task, n=1),
    ]


_SITUATIONS = (_outage_in_flight, _behind_a_cut, _crash_loop, _reports_of_a_wrong_clock)
"""Faults in an order that is seldom drawn by chance; other events of these tasks are left out."""
