"""Which hardware a model needs, out of what can be bought or what is here; the next best; what will not do.

Pure: functions of facts, request and what there is.
"""

from __future__ import annotations

from itertools import groupby

from chutes.exception import DoesNotFit, ModelError
from chutes.hardware import cpu, tiers
from chutes.hardware.choice import Choice, ContextRoom, PlanResult, Rejected, Request
from chutes.hardware.devices import Machine
from chutes.hardware.memory import Layout, Setting, estimate, kv_bytes_per_token
from chutes.hardware.offers import COUNTS, Offer, of_catalogue, of_machine
from chutes.hardware.profiles import Profiles
from chutes.hardware.versions import behaviour
from chutes.hardware.ways import Ways, context_wanted, rank
from chutes.model.facts import ModelFacts

ALTERNATIVES = 6  # more than a person compares

# Where the context is the model's own and not asked for: what most callers really send.
USUAL_CONTEXT = 32_768

# A context is cut in steps of a quarter of a power of two down to this; below nothing useful is said.
SHORTEST_CONTEXT = 1024


def plan_catalogue(model: str, facts: ModelFacts, request: Request, profiles: Profiles) -> PlanResult:
    """The hardware to buy or rent for a model.

    Raises:
        ModelError: its memory cannot be worked out; the message says why.
        InvalidSpec: a GPU type or engine that is not known.
        DoesNotFit: hardware was asked for on which no engine runs, or a layout that its count forbids.
    """
    _check(facts)
    gpu = profiles.find_gpu(request.gpu) if request.gpu is not None else None
    offers, rejected = of_catalogue(profiles, gpu, request.gpu_count)
    if not offers:
        raise DoesNotFit(f"Nothing can be planned on {gpu}: {rejected[0].reason}.", "Take another --gpu.")
    if gpu is not None and request.gpu_count is not None:
        return _pinned(model, facts, request, profiles, offers[0])
    result = _search(model, facts, request, profiles, offers, rejected)
    return result.model_copy(update={"reasons": [*result.reasons, *_hints(facts, request, profiles, result)]})


def plan_here(
    model: str, facts: ModelFacts, request: Request, machine: Machine, profiles: Profiles
) -> PlanResult:
    """How this machine serves a model, with what is already used on its devices.

    Raises:
        as `plan_catalogue`; DoesNotFit also when GPUs are asked for that are not here.
    """
    if not machine.gpus:
        return _on_processors(model, facts, request, machine, profiles)
    _check(facts)
    counts = COUNTS if request.gpu_count is None else (request.gpu_count,)
    offers = of_machine(machine, profiles, counts)
    if request.gpu is not None:
        gpu = profiles.find_gpu(request.gpu)
        offers = [offer for offer in offers if offer.gpu == gpu]
    if not offers:
        here = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in machine.gpus)
        raise DoesNotFit(
            f"This machine does not have {request.gpu_count or ''} {request.gpu or 'GPUs'}; it has {here}.",
            "Leave --here out to plan for hardware elsewhere.",
        )
    return _search(model, facts, request, profiles, offers, [])


def _search(
    model: str,
    facts: ModelFacts,
    request: Request,
    profiles: Profiles,
    offers: list[Offer],
    rejected: list[Rejected],
) -> PlanResult:
    """The best of `offers`; where nothing fits, and the context was not asked for, a shorter one."""
    reasons: list[str] = []
    choices, refused = choose(Ways(facts, request, profiles), offers)
    if request.max_model_len is None and not (choices and (_safe(choices) or not request.shorten)):
        length, shorter_ones = best_shorter(facts, request, profiles, offers)
        if shorter_ones and (_safe(shorter_ones) or not choices):
            choices = shorter_ones
            reasons.append(
                f"the model's own {context_wanted(facts, request):,} tokens fit nowhere here: "
                f"the context is cut to {length:,}"
            )
            request = request.model_copy(update={"max_model_len": length})
    rejected = rejected + refused
    ranked = rank(choices, request)
    if ranked:
        best = ranked[0]
        others = _distinct(ranked[1:], best)
    else:
        best = _nearest(Ways(facts, request, profiles), offers, rejected)
        others = []
    return _result(model, facts, request, profiles, best, others, rejected, reasons)


def _safe(choices: list[Choice]) -> bool:
    return any(choice.fits_safely for choice in choices)


def _nearest(ways: Ways, offers: list[Offer], rejected: list[Rejected]) -> Choice:
    """Where nothing will do: the most memory within the bounds, whose shortage is the smallest."""
    why = {(one.gpu, one.gpu_count): one for one in rejected}
    within = [offer for offer in offers if why[offer.gpu, offer.count].kind != "bound"] or offers
    largest = max(within, key=lambda offer: (offer.memory * offer.count, offer.memory))
    found = ways.exactly(largest)
    if not found.fits:
        return found
    reason = why[largest.gpu, largest.count].reason
    return found.model_copy(update={"fits": False, "fits_safely": False, "reason": reason})


def best_shorter(
    facts: ModelFacts, request: Request, profiles: Profiles, offers: list[Offer]
) -> tuple[int, list[Choice]]:
    """The longest context below the model's own with which something fits safely, else at all."""
    tight: tuple[int, list[Choice]] = (0, [])
    for length in shorter(context_wanted(facts, request)):
        cut = request.model_copy(update={"max_model_len": length})
        choices, _ = choose(Ways(facts, cut, profiles), offers)
        if _safe(choices):
            return length, choices
        if choices and not tight[1]:
            tight = (length, choices)
    return tight


def choose(ways: Ways, offers: list[Offer]) -> tuple[list[Choice], list[Rejected]]:
    """What each offer would be; more GPUs of a kind are looked at only while fewer do not do, for a price."""
    choices: list[Choice] = []
    rejected: list[Rejected] = []
    for _, same in groupby(offers, key=lambda offer: offer.gpu):
        for offer in same:
            found = ways.consider(offer)
            if isinstance(found, Rejected):
                rejected.append(found)
                continue
            choices.append(found)
            if found.fits_safely and ways.request.optimize == "price":
                break
    return choices, rejected


def _pinned(model: str, facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer) -> PlanResult:
    """Exactly the hardware asked for, with the release's own defaults; what would help, beside it."""
    ways = Ways(facts, request, profiles)
    best = ways.exactly(offer)
    others: list[Choice] = []
    reasons: list[str] = []
    rejected: list[Rejected] = []
    if not best.fits_safely:
        rejected = [offer.reject(best.reason)] if not best.fits else []
        others = _levers(facts, request, profiles, offer, best)
        free = request.model_copy(update={"gpu": None, "gpu_count": None, "tensor_parallel": None,
                                          "pipeline_parallel": None, "expert_parallel": None})  # fmt: skip
        elsewhere, refused = choose(Ways(facts, free, profiles), of_catalogue(profiles)[0])
        others += _distinct(rank(elsewhere, free), best)[: ALTERNATIVES - len(others)]
        rejected += [one for one in refused if one.gpu != offer.gpu or one.gpu_count != offer.count]
    return _result(model, facts, request, profiles, best, others, rejected, reasons)


def _levers(
    facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer, best: Choice
) -> list[Choice]:
    """The same hardware used differently: a smaller batch, a cache in fp8, a shorter context."""
    found: list[Choice] = []
    length = context_wanted(facts, request)
    tries: list[tuple[str, dict]] = [("a smaller batch", {})]
    if request.kv_cache_dtype == "auto":
        tries.append(("the cache rounded to fp8", {"kv_cache_dtype": "fp8"}))
    tries += [("a shorter context", {"max_model_len": less}) for less in shorter(length)]
    for what, update in tries:
        choice = Ways(facts, request.model_copy(update=update), profiles).consider(offer)
        if isinstance(choice, Choice) and choice.fits_safely:
            smaller = choice.max_num_seqs < best.max_num_seqs
            words = what + (f", {choice.max_num_seqs} requests at once" if smaller else "")
            found.append(choice.model_copy(update={"notes": [f"with {words}", *choice.notes]}))
            if update.get("max_model_len"):
                break
    return found[:3]


def _on_processors(
    model: str, facts: ModelFacts, request: Request, machine: Machine, profiles: Profiles
) -> PlanResult:
    if request.gpu is not None or request.gpu_count is not None:
        why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
        raise DoesNotFit(f"This machine has no GPU{why}.", "Leave --here out to plan for hardware elsewhere.")
    defaults = profiles.engines.get(request.engine, {}).get("cpu")
    if defaults is None:
        raise DoesNotFit(
            f"There is no GPU here, and {request.engine} runs on GPUs only.", "Take --engine vllm."
        )
    best = cpu.choose(facts, request, machine, profiles)
    why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
    reasons = [f"no GPU here{why}: {request.engine} runs on {machine.cpus} CPU cores in float32"]
    return _result(model, facts, request, profiles, best, [], [], reasons, defaults.version)


def _result(
    model: str,
    facts: ModelFacts,
    request: Request,
    profiles: Profiles,
    best: Choice,
    others: list[Choice],
    rejected: list[Rejected],
    reasons: list[str],
    version: str = "",
) -> PlanResult:
    version = request.engine_version or version or profiles.engines[request.engine]["cuda"].version
    tier = tiers.view(facts, request, profiles, best)
    said = [*reasons]
    if tier is not None and not tier.agrees:
        said.append(f"arithmetic overrides the tier: {tier.verdict}")
    if request.max_model_len is None and best.max_model_len == facts.max_model_len:
        said.append(f"context {best.max_model_len:,} is the model's own, because none was asked for")
    if note := behaviour(request.engine, version, profiles).note:
        said.append(note)
    return PlanResult(
        model=model,
        parameters=facts.parameters,
        active_parameters=facts.active_parameters,
        weights_bytes=facts.weights_bytes,
        loaded_weights_bytes=facts.loaded_bytes or facts.weights_bytes,
        dtype=facts.dtype,
        quantization=facts.quantization.method if facts.quantization else None,
        kv_bytes_per_token=kv_bytes_per_token(facts, Layout(), request.kv_cache_dtype),
        attention=facts.attention,
        layers=facts.layers,
        context_of_model=facts.max_model_len,
        tier=tier,
        engine=request.engine,
        engine_version=version,
        choice=best,
        kv_cache_needed_bytes_per_gpu=best.kv_cache_needed_bytes_per_gpu,
        estimated_max_model_len=best.estimated_max_model_len,
        alternatives=others[:ALTERNATIVES],
        rejected=rejected,
        reasons=said,
        fits_at=_room(facts, request, version, best, profiles),
    )


def _room(
    facts: ModelFacts, request: Request, version: str, best: Choice, profiles: Profiles
) -> list[ContextRoom]:
    """Requests that the choice holds at once, for a few lengths up to its context."""
    if not best.gpu_count:
        return [
            ContextRoom(context=length, requests=best.kv_cache_tokens / length,
                        requests_safe=best.kv_cache_tokens_safe / length)
            for length in _lengths(best.max_model_len)
        ]  # fmt: skip
    known = behaviour(request.engine, version, profiles)
    rooms = []
    for length in _lengths(best.max_model_len):
        setting = setting_of(best).model_copy(update={"max_model_len": length})
        found = estimate(
            facts, layout_of(best), setting, best.per_gpu_bytes.total, known, gpu_name=best.gpu_name
        )
        rooms.append(
            ContextRoom(
                context=length, requests=found.max_concurrency, requests_safe=found.max_concurrency_safe
            )
        )
    return rooms


def layout_of(choice: Choice) -> Layout:
    return Layout(
        tensor_parallel=choice.tensor_parallel_size,
        pipeline_parallel=choice.pipeline_parallel_size,
        expert_parallel=choice.expert_parallel,
    )


def setting_of(choice: Choice) -> Setting:
    """The setting that gives this choice again."""
    names = set(Setting.model_fields) - {"kv_cache_dtype"}
    fields = {name: getattr(choice, name) for name in names}
    return Setting(**fields, kv_cache_dtype="fp8" if choice.kv_cache_dtype == "fp8" else "auto")


def _check(facts: ModelFacts) -> None:
    if facts.problem:
        said = f" Its weights alone are {facts.weights_bytes / 1e9:.1f} GB." if facts.weights_bytes else ""
        raise ModelError(f"This model cannot be planned: {facts.problem}.{said}".replace("..", "."))


def _distinct(ranked: list[Choice], best: Choice) -> list[Choice]:
    """The best of each GPU type but the chosen one's very hardware."""
    seen: set[str] = {best.gpu} if best.fits else set()
    found: list[Choice] = []
    for choice in ranked:
        if choice.gpu not in seen:
            seen.add(choice.gpu)
            found.append(choice)
    return found


def shorter(length: int) -> list[int]:
    """Contexts below `length`, 3/4 and 1/2 of each power of two, down to the shortest."""
    power = 1 << (length.bit_length())
    steps: list[int] = []
    while power >= SHORTEST_CONTEXT:
        steps += [power, power * 3 // 4]
        power //= 2
    return [step for step in steps if SHORTEST_CONTEXT <= step < length]


def _lengths(longest: int) -> list[int]:
    """Two or three usual lengths, and the longest."""
    usual = [length for length in (2048, 8192, 32_768, 131_072) if length < longest]
    return [*usual[-3:], longest]


def _hints(facts: ModelFacts, request: Request, profiles: Profiles, result: PlanResult) -> list[str]:
    """What giving up a little would save, where much would be."""
    best, hints = result.choice, []
    if best is None or best.price_per_hour is None or request.max_model_len is not None:
        return hints
    if best.max_model_len > USUAL_CONTEXT:
        usual = request.model_copy(update={"max_model_len": USUAL_CONTEXT})
        offers = of_catalogue(profiles, request.gpu and profiles.find_gpu(request.gpu), request.gpu_count)[0]
        # A tenth is within what prices vary from week to week.
        limit = 0.9 * best.price_per_hour
        offers = [offer for offer in offers if offer.hourly is not None and offer.hourly < limit]
        cheaper = rank(choose(Ways(facts, usual, profiles), offers)[0], usual)
        if cheaper and cheaper[0].fits_safely and cheaper[0].price_per_hour is not None:
            hints.append(
                f"with --max-model-len {USUAL_CONTEXT} {cheaper[0].label} would do: "
                f"${cheaper[0].price_per_hour:.2f}/h instead of ${best.price_per_hour:.2f}/h"
            )
    return hints
