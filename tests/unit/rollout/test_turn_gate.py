"""Slots by priority, and the gate between the turns of an episode."""

import asyncio

import pytest

from zs_nemo.rollout.turn_gate import PrioritySlots, TurnGate


async def test_a_free_slot_goes_to_the_smallest_priority_that_waits() -> None:
    slots, order = PrioritySlots(1), []

    async def hold(priority: int) -> None:
        async with slots.slot((priority, 0)):
            order.append(priority)
            await asyncio.sleep(0)

    await asyncio.gather(*(hold(priority) for priority in (5, 3, 4, 1, 2)))
    assert order == [5, 1, 2, 3, 4]


async def test_no_more_hold_a_slot_than_there_are() -> None:
    slots, holding, most = PrioritySlots(3), 0, 0

    async def hold(number: int) -> None:
        nonlocal holding, most
        async with slots.slot((number,)):
            holding += 1
            most = max(most, holding)
            await asyncio.sleep(0.001)
            holding -= 1

    await asyncio.gather(*(hold(number) for number in range(20)))
    assert most == 3


@pytest.mark.parametrize("granted_meanwhile", [False, True])
async def test_who_is_cancelled_while_waiting_costs_no_slot(granted_meanwhile: bool) -> None:
    slots, release = PrioritySlots(1), asyncio.Event()

    async def hold(priority: int) -> None:
        async with slots.slot((priority,)):
            await release.wait()

    first = asyncio.create_task(hold(0))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(hold(1))
    await asyncio.sleep(0)
    release.set()
    if granted_meanwhile:
        await first
    waiting.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)
    async with asyncio.timeout(1), slots.slot((2,)):
        pass


async def test_a_gate_is_closed_when_all_have_come_to_it_and_opens_for_all() -> None:
    gate, turns = TurnGate(), []

    async def episode(name: str, turn_s: float) -> None:
        with gate.moving():
            for turn in range(2):
                await gate.passed()
                turns.append((name, turn, "began"))
                await asyncio.sleep(turn_s)
                turns.append((name, turn, "ended"))

    tasks = [asyncio.create_task(episode("short", 0.001)), asyncio.create_task(episode("long", 0.02))]
    await asyncio.sleep(0)
    await gate.close()
    assert sorted(turns) == [(name, 0, moment) for name in ("long", "short") for moment in ("began", "ended")]
    late = asyncio.create_task(episode("late", 0))
    await asyncio.sleep(0.01)
    assert len(turns) == 4
    await gate.open()
    await asyncio.gather(*tasks, late)
    assert len(turns) == 12


async def test_a_gate_closes_at_once_when_nothing_moves() -> None:
    gate = TurnGate()
    async with asyncio.timeout(1):
        await gate.close()
