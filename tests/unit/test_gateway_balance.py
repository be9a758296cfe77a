"""The choice of an instance: prefixes keep their instance, nobody is overrun, a new one is eased in."""

from __future__ import annotations

import heapq
import json
import random
import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chutes.gateway import limits
from chutes.gateway.balance import choose, least_loaded, prefix_key, seed, weight

SEEDS = [seed(f"instance-{number}") for number in range(12)]
LOADS = st.lists(st.integers(0, 50), min_size=1, max_size=12)
PREFIXES = st.one_of(st.none(), st.integers(0, 2**32 - 1))


def message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def raw(messages: list[dict[str, Any]], **style: Any) -> bytes:
    return json.dumps(messages, **style).encode()


# Choice


@given(LOADS, PREFIXES, st.integers(0, 99), st.one_of(st.none(), st.integers(1, 50)), st.data())
def test_it_chooses_one_with_a_free_place_whenever_there_is_one(
    loads: list[int], prefix: int | None, turn: int, capacity: int | None, data: st.DataObject
) -> None:
    weights = data.draw(
        st.one_of(
            st.none(),
            st.lists(st.floats(limits.RAMP_LEAST, 1), min_size=len(loads), max_size=len(loads)),
        )
    )
    index = choose(loads, SEEDS[: len(loads)], prefix, turn, capacity, weights)
    if capacity is not None and min(loads) >= capacity:
        assert index is None
    else:
        assert index is not None
        assert capacity is None or loads[index] < capacity


@given(LOADS, st.integers(0, 2**32 - 1), st.integers(0, 99))
def test_none_gets_a_request_that_is_busier_than_the_bound(loads: list[int], prefix: int, turn: int) -> None:
    index = choose(loads, SEEDS[: len(loads)], prefix, turn)
    assert index is not None
    mean = (sum(loads) + 1) / len(loads)
    assert len(loads) == 1 or loads[index] + 1 <= limits.BOUND_FACTOR * mean + limits.BOUND_SLACK


@given(LOADS, st.integers(0, 99))
def test_without_a_prefix_the_least_loaded_is_chosen(loads: list[int], turn: int) -> None:
    assert choose(loads, SEEDS[: len(loads)], None, turn) == least_loaded(loads, turn)


def test_an_idle_chute_keeps_each_prefix_on_one_instance_and_spreads_them_evenly() -> None:
    owners = Counter(
        choose([0, 0, 0, 0], SEEDS[:4], prefix_key(b'[{"role":"user","content":"%d"}]' % n), n)
        for n in range(4000)
    )
    assert all(850 < owners[index] < 1150 for index in range(4)), owners


def test_when_an_instance_goes_only_its_own_prefixes_move() -> None:
    for prefix in range(1000):
        before = choose([0] * 4, SEEDS[:4], prefix)
        after = choose([0] * 3, SEEDS[:3], prefix)
        assert before == 3 or after == before


def test_a_busy_owner_passes_a_prefix_on_to_the_same_second_instance_each_time() -> None:
    owner = choose([0] * 4, SEEDS[:4], 7)
    assert owner is not None
    seconds = set()
    for turn in range(20):
        loads = [3] * 4
        loads[owner] = 30
        seconds.add(choose(loads, SEEDS[:4], 7, turn))
    assert len(seconds) == 1
    assert owner not in seconds


def test_every_worker_chooses_alike() -> None:
    code = (
        "from chutes.gateway.balance import *;"
        "s=[seed(f'instance-{n}') for n in range(4)];"
        "print([choose([0]*4, s, prefix_key(b'[%d' % n)) for n in range(50)])"
    )
    outputs = {
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": salt}, capture_output=True).stdout
        for salt in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs != {b""}


# New instances


def test_a_new_instance_counts_as_a_part_of_one_until_its_ramp_is_over() -> None:
    ages = (0.0, 1.0, 15.0, 30.0, 3600.0)
    assert [weight(age) for age in ages] == [0.1, 0.1, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("conversations", [True, False])
def test_a_new_instance_is_not_overrun(conversations: bool) -> None:
    """Three with 30 each get a fourth, and 60 requests arrive at once."""

    def arrivals(age: float) -> int:
        loads = [30, 30, 30, 0]
        weights = None if age >= limits.RAMP_SECONDS else [1.0, 1.0, 1.0, weight(age)]
        for number in range(60):
            index = choose(loads, SEEDS[:4], number if conversations else None, number, None, weights)
            assert index is not None
            loads[index] += 1
        return loads[3]

    herd = [arrivals(age) for age in (0, 5, 10, 20, 30)]
    print(f"of 60 requests, a new instance gets after 0, 5, 10, 20, 30 s: {herd}")
    assert herd[0] <= 8
    assert herd == sorted(herd)
    assert herd[-1] >= 15


def test_a_chute_of_new_instances_only_is_shared_evenly() -> None:
    loads = [0, 0, 0]
    for turn in range(30):
        index = choose(loads, SEEDS[:3], None, turn, None, [0.1, 0.1, 0.1])
        assert index is not None
        loads[index] += 1
    assert loads == [10, 10, 10]


# Prefixes

TEXTS = st.text(max_size=60)


@given(
    TEXTS,
    st.text(min_size=1, max_size=900),
    st.lists(TEXTS, max_size=4),
    st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 2}]),
)
def test_every_turn_of_a_conversation_has_the_same_key(
    system: str, question: str, more: list[str], style: dict[str, Any]
) -> None:
    messages = [message("system", system), message("user", question)]
    first = prefix_key(raw(messages, **style))
    for text in more:
        messages += [message("assistant", text), message("user", text)]
        assert prefix_key(raw(messages, **style)) == first


def test_keys_tell_conversations_apart_but_not_what_follows_in_one() -> None:
    system = message("system", "You are an assistant. " * 200)
    keys = {prefix_key(raw([system, message("user", f"question {n}")])) for n in range(5000)}
    assert len(keys) == 5000
    tricky = message("user", 'he said "role":"assistant" and {"role":"assistant"}')
    tools = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    opened = prefix_key(raw([system, tricky]))
    assert prefix_key(raw([system, tricky, tools, {"role": "tool", "content": "3"}])) == opened
    assert prefix_key(raw([system, message("user", "other")])) != opened


def test_messages_longer_than_what_is_looked_through_keep_their_start_as_key() -> None:
    long = [message("user", "word " * 20_000)]
    assert prefix_key(raw(long)) == prefix_key(raw([*long, message("assistant", "x"), message("user", "y")]))


def test_a_prompt_is_known_by_its_start() -> None:
    start = b'"' + b"once upon a time " * 40
    assert prefix_key(start + b'"') == prefix_key(start + b'and then some more"')
    assert prefix_key(b'"a"') != prefix_key(b'"b"')


@given(st.binary(max_size=200))
def test_any_bytes_have_a_key(data: bytes) -> None:
    assert 0 <= prefix_key(data) < 2**32


# The policy as a whole


class Outcome(NamedTuple):
    hit_rate: float
    most: float
    """Requests in flight at once on the busiest instance."""
    spread: float
    """Mean difference between the busiest and the idlest."""


Policy = Callable[[list[int], int, int], int | None]


def simulate(policy: Policy, rate: float, zipf: float, *, instances: int = 4, seconds: int = 40) -> Outcome:
    """Requests with Zipf-distributed prefixes; each instance keeps the last 60 of 200 in its cache, and takes
    0.5 to 1 s for an answer and 1 s more for a prefix that it has not."""
    chance = random.Random(1)
    popularity = [1 / (rank + 1) ** zipf for rank in range(200)]
    keys = [prefix_key(b'[{"role":"user","content":"%d"}]' % chance.getrandbits(99)) for _ in range(200)]
    caches: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(instances)]
    loads, ends, spreads = [0] * instances, [], []
    now, turn, count, hits, most = 0.0, 0, 0, 0, 0
    while now < seconds:
        now += chance.expovariate(rate)
        while ends and ends[0][0] <= now:
            loads[heapq.heappop(ends)[1]] -= 1
        key = chance.choices(keys, popularity)[0]
        index = policy(loads, key, turn := turn + 1)
        assert index is not None
        cache = caches[index]
        hit = key in cache
        cache[key] = None
        cache.move_to_end(key)
        if len(cache) > 60:
            cache.popitem(last=False)
        loads[index] += 1
        heapq.heappush(ends, (now + chance.uniform(0.5, 1) + (not hit), index))
        if now < 10:  # all caches are cold
            continue
        count, hits = count + 1, hits + hit
        most = max(most, *loads)
        spreads.append(max(loads) - min(loads))
    return Outcome(hits / count, most, sum(spreads) / len(spreads))


def mean(outcomes: list[Outcome]) -> Outcome:
    return Outcome(*(sum(column) / len(outcomes) for column in zip(*outcomes, strict=True)))


@pytest.mark.parametrize("zipf", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("rate", [40.0, 120.0])
def test_prefixes_stay_warm_and_nobody_is_overrun(rate: float, zipf: float) -> None:
    fleets = [[seed(f"fleet-{fleet}-{number}") for number in range(4)] for fleet in range(5)]
    """Several: how badly a plain hash does depends on the luck of the names."""

    def by_hash(seeds: list[int]) -> Policy:
        return lambda loads, prefix, turn: choose([0] * len(loads), seeds, prefix, turn)

    def bounded(seeds: list[int]) -> Policy:
        return lambda loads, prefix, turn: choose(loads, seeds, prefix, turn)

    least = simulate(lambda loads, prefix, turn: least_loaded(loads, turn), rate, zipf)
    hashed = mean([simulate(by_hash(seeds), rate, zipf) for seeds in fleets])
    ours = mean([simulate(bounded(seeds), rate, zipf) for seeds in fleets])
    print(f"\n{rate:.0f} requests/s, Zipf {zipf}: cache hits, most in flight on one, mean spread")
    for name, outcome in (("least loaded", least), ("hash only", hashed), ("bounded", ours)):
        print(f"  {name:14} {outcome.hit_rate:6.1%} {outcome.most:8.1f} {outcome.spread:8.1f}")
    gained = (ours.hit_rate - least.hit_rate) / (hashed.hit_rate - least.hit_rate)
    assert gained >= 0.75, "most of what affinity can win is won"
    assert ours.most <= 1.25 * least.most, "at nearly the load of the least loaded"
    assert ours.most <= 0.85 * hashed.most
    assert ours.spread <= 0.8 * hashed.spread
