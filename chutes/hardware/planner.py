"""Which hardware a model needs, out of what can be bought or what is here; the next best; what will not do.

Pure: functions of facts, request and what there is.
"""

from __future__ import annotations

from dataclasses import replace

from chutes.exception import DoesNotFit, ModelError
from chutes.hardware import bounds, cpu, gpu_names, levers, remarks, tiers
from chutes.hardware.choice import Choice, ContextRoom, PlanResult, Rejected, Request, layout_of, setting_of
from chutes.hardware.describing import context_wanted
from chutes.hardware.devices import Machine
from chutes.hardware.memory import Layout, estimate, kv_bytes_per_token
from chutes.hardware.offers import COUNTS, Offer, of_catalogue, of_machine
from chutes.hardware.profiles import Profiles
from chutes.hardware.ranking import rank
from chutes.hardware.searching import best_shorter, choose, safe
from chutes.hardware.versions import behaviour
from chutes.hardware.ways import Ways
from chutes.model.facts import ModelFacts

ALTERNATIVES = 6  # more than a person compares

# Where the context is the model's own and not asked for: what most callers really send.
USUAL_CONTEXT = 32_768


def plan_catalogue(model: str, facts: ModelFacts, request: Request, profiles: Profiles) -> PlanResult:
    """The hardware to buy or rent for a model.

    Raises:
        ModelError: its memory cannot be worked out; the message says why.
        InvalidSpec: a GPU type or engine that is not known.
        DoesNotFit: hardware was asked for on which no engine runs, or a layout that its count forbids.
    """
    _check(facts)
    gpus = gpu_names.asked(request, profiles)
    offers, rejected = of_catalogue(profiles, gpus, _counts(request))
    if not offers:
        raise DoesNotFit(
            f"Nothing can be planned on {', '.join(gpus)}: {rejected[0].reason}.", "Take another --gpu."
        )
    if len(gpus) == 1 and request.gpu_count is not None:
        return _pinned(model, facts, request, profiles, offers[0])
    result = _search(model, facts, request, profiles, offers, rejected)
    return result.model_copy(
        update={"reasons": [*result.reasons, *_hints(facts, request, offers, profiles, result)]}
    )


def plan_here(
    model: str, facts: ModelFacts, request: Request, machine: Machine, profiles: Profiles
) -> PlanResult:
    """How this machine serves a model, with what is already used on its devices.

    Raises:
        as `plan_catalogue`; DoesNotFit also when GPUs are asked for that are not here.
    """
    gpus = gpu_names.asked(request, profiles)
    if not machine.gpus:
        return _on_processors(model, facts, request, machine, profiles)
    _check(facts)
    counts = COUNTS if request.gpu_count is None else (request.gpu_count,)
    offers = of_machine(machine, profiles, counts)
    offers = [offer for offer in offers if not gpus or offer.gpu in gpus]
    if not offers:
        here = ", ".join(f"{gpu.index}: {gpu.name}" for gpu in machine.gpus)
        wanted = f"{request.gpu_count or ''} {' or '.join(gpus) or 'GPUs'}".strip()
        raise DoesNotFit(
            f"This machine does not have {wanted}; it has {here}.",
            "Leave --here out to plan for hardware elsewhere.",
        )
    return _search(model, facts, request, profiles, offers, [])


def _counts(request: Request) -> tuple[int, ...]:
    """Numbers of GPUs to look at: those sold, and of a layout that was asked for the ones it can fill."""
    if request.gpu_count is not None:
        return (request.gpu_count,)
    ranks = (request.tensor_parallel or 1) * (request.pipeline_parallel or 1)
    sold = tuple(count for count in COUNTS if count % ranks == 0)
    return sold or (ranks,)


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
    wanted = request
    choices, refused = choose(Ways(facts, request, profiles), offers)
    # A shorter context makes no card quicker: where only the time is wrong none is looked for.
    slow = request.max_tpot_ms is not None and any(one.kind == "bound" for one in refused)
    if request.max_model_len is None and not (choices and (safe(choices) or not request.shorten or slow)):
        length, shorter_ones = (0, []) if slow else best_shorter(facts, request, profiles, offers)
        if shorter_ones and (safe(shorter_ones) or not choices):
            choices = shorter_ones
            reasons.append(
                f"the model's own {context_wanted(facts, request):,} tokens fit nowhere "
                f"{'here' if request.shorten else 'that was asked for'}: the context is cut to {length:,}"
            )
            request = request.model_copy(update={"max_model_len": length})
    rejected = rejected + refused
    ranked = rank(choices, request)
    ways = Ways(facts, request, profiles)
    if ranked:
        best = ranked[0]
        less = levers.on_less(facts, request, profiles, offers, best)
        others = [*_distinct(ranked[1:], best)[: ALTERNATIVES - len(less)], *less]
        return _result(model, facts, request, profiles, best, others, rejected, reasons)
    unmet, best, others = bounds.nearest(facts, wanted, profiles, offers)
    if best is None:
        largest = max(offers, key=lambda offer: (offer.memory * offer.count, offer.memory))
        best = ways.exactly(largest)
        rejected = [
            largest.reject(best.reason, one.kind)
            if (one.gpu, one.gpu_count) == (best.gpu, best.gpu_count)
            else one
            for one in rejected
        ]
        others, fix = levers.on_the_same(facts, request, profiles, largest, best)
    else:
        fix = ""
    found = _result(model, facts, request, profiles, best, others, rejected, reasons)
    return found.model_copy(update={"unmet": unmet, "fix": fix})


def _pinned(model: str, facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer) -> PlanResult:
    """Exactly the hardware asked for, with a smaller batch if need be; what would help, beside it."""
    best = Ways(facts, request, profiles).exactly(offer)
    others: list[Choice] = []
    reasons: list[str] = []
    rejected: list[Rejected] = []
    fix = ""
    if best.fits_safely:
        reasons += _more_than_needed(facts, request, profiles, offer)
    else:
        rejected = [offer.reject(best.reason)] if not best.fits else []
        others, fix = levers.on_the_same(facts, request, profiles, offer, best)
        free = request.model_copy(update={"gpu": None, "gpu_count": None, "tensor_parallel": None,
                                          "pipeline_parallel": None, "expert_parallel": None})  # fmt: skip
        elsewhere, _ = choose(Ways(facts, free, profiles), of_catalogue(profiles)[0])
        # More of the GPU that was asked for comes first: it may stand in the same room.
        ranked = sorted(rank(elsewhere, free), key=lambda one: one.gpu != offer.gpu)
        others += _distinct(ranked, best)[: ALTERNATIVES - len(others)]
    found = _result(model, facts, request, profiles, best, others, rejected, reasons)
    return found.model_copy(update={"fix": fix})


def _more_than_needed(facts: ModelFacts, request: Request, profiles: Profiles, offer: Offer) -> list[str]:
    if offer.count == 1 or request.tensor_parallel or request.pipeline_parallel:
        return []
    one = replace(offer, count=1, indices=offer.indices[:1])
    found = Ways(facts, request, profiles).consider(one)
    if not isinstance(found, Choice) or not found.fits_safely:
        return []
    return [f"1 × {offer.gpu} is enough; {offer.count} of them serve {offer.count} instances"]


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
    if facts.problem:
        _check(facts)
    best = cpu.choose(facts, request, machine, profiles)
    why = f" ({machine.gpu_problem})" if machine.gpu_problem else ""
    reasons = [f"no GPU here{why}: {request.engine} runs on {machine.cpus} CPU cores in float32"]
    reasons += cpu.remarks(facts, request, machine, defaults, best)
    found = _result(model, facts, request, profiles, best, [], [], reasons, defaults.version)
    return found.model_copy(update={"fix": cpu.fix(facts, best) if not best.fits else ""})


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
    said += remarks.on(facts, request, profiles, best, version)
    safe, expected = _longest(facts, request, profiles, best)
    return PlanResult(
        model=model,
        parameters=facts.parameters,
        active_parameters=facts.active_parameters,
        weights_bytes=facts.weights_bytes,
        loaded_weights_bytes=facts.loaded_bytes or facts.weights_bytes,
        dtype=facts.dtype,
        quantization=facts.quantization.method if facts.quantization else None,
        kv_bytes_per_token=kv_bytes_per_token(
            facts,
            Layout(),
            setting_of(best).kv_cache_dtype,
            behaviour=behaviour(request.engine, version, profiles),
            capability=best.capability,
        ),
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
        optimize=request.optimize,
        longest_context=safe,
        longest_context_expected=expected,
    )


def _room(
    facts: ModelFacts, request: Request, version: str, best: Choice, profiles: Profiles
) -> list[ContextRoom]:
    """Requests that the choice holds at once, for a few lengths up to its context."""
    if not best.max_model_len or facts.attention in ("encoder", "none"):
        return []
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
            facts,
            layout_of(best),
            setting,
            best.per_gpu_bytes.total,
            known,
            gpu_name=best.gpu_name,
            capability=best.capability,
        )
        rooms.append(
            ContextRoom(
                context=length, requests=found.max_concurrency, requests_safe=found.max_concurrency_safe
            )
        )
    return rooms


def _longest(
    facts: ModelFacts, request: Request, profiles: Profiles, best: Choice
) -> tuple[int | None, int | None]:
    """(safe, expected) longest context for as many requests at once as were asked for."""
    if not best.max_model_len or facts.attention in ("encoder", "none"):
        return None, None
    most = facts.max_model_len or best.estimated_max_model_len
    if not best.gpu_count or request.concurrency == 1:
        safe, expected = best.estimated_max_model_len_safe, best.estimated_max_model_len
    else:
        offer = Offer(best.gpu, best.gpu_name, best.gpu_count, best.per_gpu_bytes.total, best.capability)
        ways = Ways(facts, request, profiles)
        safe, expected = ways.longest(offer, best, safe=True), ways.longest(offer, best, safe=False)
    return min(safe, most), min(expected, most)


def _check(facts: ModelFacts) -> None:
    if facts.problem:
        said = f" Its weights alone are {facts.weights_bytes / 1e9:.1f} GB." if facts.weights_bytes else ""
        raise ModelError(
            f"This model cannot be planned: {facts.problem}.{said}".replace("..", "."),
            "`chutes plan --compare` lists models that can; of this one its maker's page names the hardware.",
        )


def _distinct(ranked: list[Choice], best: Choice) -> list[Choice]:
    """The best of each GPU type but the chosen one's very hardware."""
    seen: set[str] = {best.gpu} if best.fits else set()
    found: list[Choice] = []
    for choice in ranked:
        if choice.gpu not in seen:
            seen.add(choice.gpu)
            found.append(choice)
    return found


def _lengths(longest: int) -> list[int]:
    """Two or three usual lengths, and the longest."""
    usual = [length for length in (2048, 8192, 32_768, 131_072) if length < longest]
    return [*usual[-3:], longest]


def _hints(
    facts: ModelFacts, request: Request, offers: list[Offer], profiles: Profiles, result: PlanResult
) -> list[str]:
    """What giving up a little would save, where much would be."""
    best = result.choice
    if best is None or not best.fits or best.price_per_hour is None or request.max_model_len is not None:
        return []
    if best.max_model_len <= USUAL_CONTEXT:
        return []
    usual = request.model_copy(update={"max_model_len": USUAL_CONTEXT})
    # A tenth is within what prices vary from week to week.
    limit = 0.9 * best.price_per_hour
    offers = [offer for offer in offers if offer.hourly is not None and offer.hourly < limit]
    cheaper = rank(choose(Ways(facts, usual, profiles), offers)[0], usual)
    if not cheaper or not cheaper[0].fits_safely or cheaper[0].price_per_hour is None:
        return []
    return [
        f"with --max-model-len {USUAL_CONTEXT} {cheaper[0].label} would do: "
        f"${cheaper[0].price_per_hour:.2f}/h instead of ${best.price_per_hour:.2f}/h"
    ]
