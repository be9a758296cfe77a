"""Ways to serve a model on one offer of hardware: layouts and batches tried, the reason kept where none does.

Pure. A way is safe when it fits with the reserve of the memory arithmetic; it is tight when only the expected
figures let it fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from chutes.exception import DoesNotFit
from chutes.hardware import offers as market
from chutes.hardware import sglang
from chutes.hardware.choice import Choice, PerGpuBytes, Rejected, Request, layout_of, setting_of
from chutes.hardware.describing import (
    LEAST_SPARE,
    context_wanted,
    only_weights,
    room,
    selector,
    shortage,
    speed_of,
    spoken,
    warnings,
)
from chutes.hardware.engine_args import render
from chutes.hardware.memory import Estimate, Layout, Setting, estimate, violations, weights_per_gpu
from chutes.hardware.offers import Offer
from chutes.hardware.profiles import Profiles
from chutes.hardware.terms import Asked, gib
from chutes.hardware.versions import EngineBehaviour, behaviour
from chutes.model.facts import ModelFacts

LEAST_SHARE = 0.01  # of a GPU's memory: below it there is nothing to start an engine in

SHARES = 10_000  # a share of memory is told in so many parts

# Batches to fall back to when the release's own does not fit: (max_num_seqs, max_num_batched_tokens). The
# sampler's dummy run takes up to 7 GiB for 1024 sequences and a vocabulary of 200 000, on every GPU; sliding
# windows hold room for every token in flight. 2048 is the engines' own small batch.
SMALLER_BATCHES: tuple[tuple[int, int | None], ...] = (
    (256, None),
    (128, None),
    (64, None),
    (32, 2048),
    (16, 2048),
    (8, 2048),
)


def layouts(facts: ModelFacts, request: Request, count: int) -> list[Layout]:
    """Ways to spread one instance over `count` GPUs, the best first.

    Tensor parallelism shortens every token's way, a pipeline only makes room; experts on different GPUs are
    the way out where a matrix may not be cut so small.
    """
    if facts.attention == "none":  # a pipeline of several parts: one GPU does it all, the others idle
        return [Layout()] if (request.tensor_parallel or 1) * (request.pipeline_parallel or 1) == 1 else []
    found: list[Layout] = []
    for stages in range(1, count + 1):
        if count % stages:
            continue
        ranks = count // stages
        if request.tensor_parallel not in (None, ranks) or request.pipeline_parallel not in (None, stages):
            continue
        choices = (False, True) if facts.experts and ranks > 1 else (False,)
        if request.expert_parallel is not None:
            choices = (request.expert_parallel,)
        found += [
            Layout(tensor_parallel=ranks, pipeline_parallel=stages, expert_parallel=expert)
            for expert in choices
        ]
    return found


class Ways:
    """One request, worked out over offers. Holds what does not change between them."""

    def __init__(self, facts: ModelFacts, request: Request, profiles: Profiles) -> None:
        if request.engine not in profiles.engines:
            raise DoesNotFit(
                f"There is no engine {request.engine!r}.", f"Take one of {', '.join(profiles.engines)}."
            )
        version = request.engine_version or profiles.engines[request.engine]["cuda"].version
        self.facts = facts
        self.request = request
        self.profiles = profiles
        self.behaviour: EngineBehaviour = behaviour(request.engine, version, profiles)
        self.sparse = any(layer.sparse for layer in facts.layers_attention)
        self._weights: dict[Layout, int] = {}
        self._estimates: dict[tuple, Estimate] = {}

    def settings(self, offer: Offer) -> Setting:
        """What was asked for, on this offer; the rest is the release's own."""
        request = self.request
        share = request.gpu_memory_utilization
        if share is None and self.behaviour.default_utilization is not None:
            share = market.utilization(offer, self.behaviour.default_utilization)
        asked = {name: getattr(request, name) for name in Asked.model_fields} | {
            # As many digits as the engine is told, and never more than was asked for.
            "gpu_memory_utilization": None if share is None else floor(share * SHARES + 1e-6) / SHARES,
            # Without a language model there are no CUDA graphs to keep room for.
            "enforce_eager": request.enforce_eager or self.facts.attention == "none",
        }
        if self.behaviour.unasked_fp8(self.facts, offer.capability):
            asked["kv_cache_dtype"] = "fp8"
        if request.max_num_seqs is None and request.engine == "vllm":
            usual = self.behaviour.default_batch(offer.memory, offer.name)[1]
            if request.concurrency > usual:
                asked["max_num_seqs"] = request.concurrency
        return Setting(max_model_len=context_wanted(self.facts, request), **asked)

    def estimate(self, offer: Offer, layout: Layout, setting: Setting, *, longest: bool = False) -> Estimate:
        """Without the longest contexts unless asked: hundreds of estimates are made for one choice."""
        memory, batch = offer.memory, None
        if self.request.engine == "sglang":  # its share is one of what is free when it starts
            memory = offer.memory if offer.free is None else offer.free
        else:
            batch = self.behaviour.default_batch(memory, offer.name)
        # Of a GPU a release looks at its memory, for the default batch its name, and for sparse attention at
        # what it can.
        chip = offer.capability if self.sparse else (0, 0)
        key = (memory, batch, chip, layout, setting, longest)
        if key not in self._estimates:
            self._estimates[key] = estimate(
                self.facts,
                layout,
                setting,
                memory,
                self.behaviour,
                gpu_name=offer.name,
                capability=chip,
                longest=longest,
            )
        return self._estimates[key]

    def weights(self, layout: Layout) -> int:
        if layout not in self._weights:
            self._weights[layout] = weights_per_gpu(self.facts, layout)
        return self._weights[layout]

    def safe(self, found: Estimate) -> bool:
        spare = found.total - found.usable >= LEAST_SPARE
        at_once = min(found.max_concurrency_safe, found.max_num_seqs)
        return spare and found.fits and at_once >= self.request.concurrency

    def expected(self, found: Estimate) -> bool:
        at_once = min(found.max_concurrency, found.max_num_seqs)
        return found.fits_expected and at_once >= self.request.concurrency

    def consider(self, offer: Offer) -> Choice | Rejected:
        """The best way to use an offer: safe, else one that fits without the reserve, else why none does."""
        if (bound := self._too_dear(offer) or self._too_long(offer)) is not None:
            return bound
        setting = self.settings(offer)
        if (used := self._too_full(offer, setting)) is not None:
            return used
        refused: list[str] = []
        tight: Choice | None = None
        closest: tuple[Layout, Setting, Estimate] | None = None
        lightest: tuple[int, Layout] | None = None
        share = setting.gpu_memory_utilization
        usable = offer.memory * (1.0 if share is None else share)
        for layout in layouts(self.facts, self.request, offer.count):
            cut = violations(self.facts, layout, offer.capability, self.behaviour, setting)
            if cut.problems:
                refused.append(f"{spoken(layout)}: {cut.problems[0]}")
                continue
            if (weights := self.weights(layout)) >= usable:  # most end here, at no cost
                lightest = min(lightest or (weights, layout), (weights, layout), key=lambda one: one[0])
                continue
            # The most frugal first: where that does not fit nothing does, and most offers end here.
            variants = self._variants(offer, layout, setting)
            frugal = self.estimate(offer, layout, variants[-1])
            if not self.expected(frugal):
                if closest is None or frugal.kv_cache_expected > closest[2].kv_cache_expected:
                    closest = (layout, variants[-1], frugal)
                continue
            for variant in variants:
                if self.safe(self.estimate(offer, layout, variant)):
                    choice = self.choice(offer, layout, variant, [*cut.notes, *refused])
                    return self._too_slow(offer, choice) or choice
            tight = tight or self.choice(
                offer, layout, self._roomiest(offer, layout, variants), [*cut.notes, *refused]
            )
        if tight is not None:
            return self._too_slow(offer, tight) or tight
        if closest is None and lightest is not None:
            weights, layout = lightest
            return offer.reject(
                f"{gib(weights)} of weights on each GPU ({spoken(layout)}), {gib(usable)} usable: "
                f"{gib(weights - usable)} too little"
            )
        if closest is None:
            reason = "; ".join(dict.fromkeys(refused)) or "no layout was left to try"
            return offer.reject(reason, kind="layout")
        layout, setting, _ = closest
        found = self.estimate(offer, layout, setting, longest=True)
        return offer.reject(
            shortage(self.facts, self.request, layout, found),
            kind="memory" if found.estimated_max_model_len <= 0 else "context",
        )

    def exactly(self, offer: Offer) -> Choice:
        """This very hardware, used as well as it can be; where it will not do, how near it comes and why."""
        found = self.consider(offer)
        if isinstance(found, Choice):
            return found
        ways = layouts(self.facts, self.request, offer.count)
        if not ways:
            raise DoesNotFit(*self._no_layout(offer))
        if found.kind == "bound":
            free = self.request.model_copy(update={"max_price": None, "max_tpot_ms": None})
            unbound = Ways(self.facts, free, self.profiles).exactly(offer)
            return self._refused(unbound, found.reason if unbound.fits else unbound.reason)
        setting = self.settings(offer)
        allowed = [
            layout
            for layout in ways
            if not violations(self.facts, layout, offer.capability, self.behaviour, setting).problems
        ] or ways[:1]
        tried = [
            (layout, frugal, self.estimate(offer, layout, frugal))
            for layout in allowed
            for frugal in [self._roomiest(offer, layout, self._variants(offer, layout, setting))]
        ]
        layout, setting, _ = max(tried, key=lambda one: one[2].kv_cache_expected)
        nearest = self.choice(offer, layout, setting)
        # Of weights that are too large the rejection knows no more; the figures say how much all of it lacks.
        if found.kind == "layout":  # figures of something that cannot be
            nearest = nearest.model_copy(
                update={"estimated_max_model_len": 0, "estimated_max_model_len_safe": 0, "speed": None}
            )
        return self._refused(nearest, nearest.reason if found.kind == "memory" else found.reason)

    def longest(self, offer: Offer, choice: Choice, *, safe: bool) -> int:
        """The longest context of which `choice` holds as many requests at once as are wanted; 0: none."""
        most = choice.estimated_max_model_len_safe if safe else choice.estimated_max_model_len
        if self.request.concurrency == 1:
            return most
        layout, setting = layout_of(choice), setting_of(choice)
        does = self.safe if safe else self.expected

        def fits(length: int) -> bool:
            longer = setting.model_copy(update={"max_model_len": length})
            return does(self.estimate(offer, layout, longer))

        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
        return low

    def _refused(self, choice: Choice, reason: str) -> Choice:
        return choice.model_copy(update={"fits": False, "fits_safely": False, "reason": reason})

    def _no_layout(self, offer: Offer) -> tuple[str, str]:
        """Why no layout was left to try: what was asked for does not come to this number of GPUs."""
        asked = [
            f"{name} {size}"
            for name, size in (
                ("tensor parallel", self.request.tensor_parallel),
                ("pipeline parallel", self.request.pipeline_parallel),
            )
            if size is not None
        ]
        return (
            f"{offer.count} GPU{'s' if offer.count > 1 else ''} cannot be {' × '.join(asked)}.",
            "The number of GPUs must be their product, or a multiple of the one that is given.",
        )

    def choice(self, offer: Offer, layout: Layout, setting: Setting, notes: Sequence[str] = ()) -> Choice:
        found = self.estimate(offer, layout, setting, longest=True)
        # What the release would decide is written out: the engine is told what was counted.
        settled = setting.model_copy(
            update={
                "max_num_seqs": found.max_num_seqs,
                "max_num_batched_tokens": found.max_num_batched_tokens,
                "gpu_memory_utilization": found.gpu_memory_utilization,
            }
        )
        fits, safe = self.expected(found), self.safe(found)
        remarks = [*warnings(self.facts, found, fits, safe), *notes]
        remarks += sglang.notes(self.facts) if self.request.engine == "sglang" else []
        if self.facts.attention == "none":
            return only_weights(offer, found, fits, safe, remarks)
        return Choice(
            gpu=offer.gpu,
            gpu_name=offer.name,
            gpu_count=offer.count,
            capability=offer.capability,
            gpus=list(offer.indices),
            tensor_parallel_size=layout.tensor_parallel,
            pipeline_parallel_size=layout.pipeline_parallel,
            expert_parallel=layout.expert_parallel,
            fits=fits,
            fits_safely=safe,
            reason=room(self.facts, self.request, found)
            if fits
            else shortage(self.facts, self.request, layout, found),
            notes=remarks,
            price_per_hour=offer.hourly,
            price_date=offer.price_date,
            gpu_memory_utilization=found.gpu_memory_utilization,
            max_model_len=setting.max_model_len,
            max_num_seqs=found.max_num_seqs,
            max_num_batched_tokens=found.max_num_batched_tokens,
            kv_cache_dtype=setting.kv_cache_dtype,
            block_size=found.block_size,
            enforce_eager=setting.enforce_eager,
            kv_cache_tokens=found.kv_cache_tokens,
            max_concurrency=round(found.max_concurrency, 2),
            kv_cache_tokens_safe=found.kv_cache_tokens_safe,
            max_concurrency_safe=round(found.max_concurrency_safe, 2),
            engine_args=render(self.request.engine, layout, settled),
            node_selector=selector(offer),
            per_gpu_bytes=PerGpuBytes(**{name: getattr(found, name) for name in PerGpuBytes.model_fields}),
            kv_cache_needed_bytes_per_gpu=found.kv_cache_needed,
            estimated_max_model_len=found.estimated_max_model_len,
            estimated_max_model_len_safe=found.estimated_max_model_len_safe,
            speed=speed_of(self.facts, offer, layout, setting, found) if fits else None,
        )

    def _variants(self, offer: Offer, layout: Layout, setting: Setting) -> list[Setting]:
        """The setting and, where the batch was left open, smaller ones: largest first."""
        found = [setting]
        if setting.max_num_seqs is not None:
            return found
        if self.request.engine == "sglang":
            default_seqs = self.estimate(offer, layout, setting).max_num_seqs
        else:
            default_seqs = self.behaviour.batch(self.facts, setting, offer.memory, offer.name)[1]
        wanted, given = self.request.concurrency, setting.max_num_batched_tokens
        enough = [one for one in SMALLER_BATCHES if one[0] >= wanted] or [(wanted, None)]
        for seqs, tokens in enough:
            if seqs < default_seqs:
                update = {"max_num_seqs": seqs, "max_num_batched_tokens": tokens if given is None else given}
                found.append(setting.model_copy(update=update))
        return found

    def _roomiest(self, offer: Offer, layout: Layout, variants: Sequence[Setting]) -> Setting:
        """The variant that leaves most; of those that leave as much the one that runs most at once."""

        def spare(setting: Setting) -> int:
            found = self.estimate(offer, layout, setting)
            return found.kv_cache_expected - found.kv_cache_needed * self.request.concurrency

        return max(variants, key=spare)

    def _too_long(self, offer: Offer) -> Rejected | None:
        limit, length = self.facts.max_model_len, self.request.max_model_len
        if not limit or not length or length <= limit:
            return None
        return offer.reject(
            f"the model was made for {limit:,} tokens: the engine refuses --max-model-len {length} unless "
            "the model's config.json is changed",
            kind="context",
        )

    def _too_dear(self, offer: Offer) -> Rejected | None:
        limit = self.request.max_price
        # What stands here already costs nothing more.
        if limit is None or offer.indices or (offer.hourly is not None and offer.hourly <= limit):
            return None
        reason = "no price is known" if offer.hourly is None else f"${offer.hourly:.2f}/h"
        return offer.reject(f"{reason}, and at most ${limit:g}/h", kind="bound")

    def _too_full(self, offer: Offer, setting: Setting) -> Rejected | None:
        share = setting.gpu_memory_utilization
        if offer.free is None or share is None or self.request.engine == "sglang":
            return None
        if share >= LEAST_SHARE and share * offer.memory <= offer.free:
            return None
        taken = f", the engine is to take {share:.0%}" if share >= LEAST_SHARE else ": others use the rest"
        return offer.reject(f"{gib(offer.free)} of {gib(offer.memory)} are free{taken}", kind="used")

    def _too_slow(self, offer: Offer, choice: Choice) -> Rejected | None:
        limit = self.request.max_tpot_ms
        if limit is None or (choice.speed is not None and choice.speed.tpot_ms <= limit):
            return None
        found = f"{choice.speed.tpot_ms:.1f} ms" if choice.speed else "unknown time"
        return offer.reject(
            f"{found} per output token by the roofline estimate, and at most {limit:g} ms",
            kind="bound",
        )
