"""What the planner said beside what came true, and what a token costs. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from benchmarks.harness.measures import Measures
from benchmarks.harness.result import Prediction, Samples
from chutes.hardware.cpu import ENGINE_BYTES
from chutes.hardware.plan import Plan

SECONDS_PER_HOUR = 3600


class Truth(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction."""

    what: str
    unit: str
    predicted: float | None
    measured: float | None
    remark: str = ""
    """How far the two are of the same thing, or why one is missing."""

    @property
    def ratio(self) -> float | None:
        """Measured over predicted."""
        return self.measured / self.predicted if self.measured is not None and self.predicted else None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """At the price of the hardware, all of its time paid for."""

    usd_per_hour: float
    output_tokens_per_usd: float
    usd_per_million_output_tokens: float
    usd_per_million_tokens: float
    """Input and output together."""
    price_date: str = ""


def prediction(plan: dict[str, Any]) -> Prediction:
    """From a deployment's plan as the control API gives it (`draft.plan` of an answer to a deploy)."""
    known = Plan.model_validate(plan)
    choice = known.choice
    if choice is None:
        return Prediction(hardware=known.accelerator)
    speed = choice.speed
    parts = choice.per_gpu_bytes
    memory = parts.weights + max(0, parts.kv_cache_expected) + parts.peak_activation + parts.non_torch
    if not choice.gpu_count:
        memory = parts.weights + (known.kv_cache_bytes or 0) + ENGINE_BYTES
    return Prediction(
        hardware=choice.label if choice.gpu_count else choice.gpu_name,
        context=speed.context if speed else None,
        tokens_per_second=speed.tokens_per_second if speed else None,
        batch=speed.batch if speed else None,
        tokens_per_second_batch=speed.tokens_per_second_batch if speed else None,
        prefill_tokens_per_second=speed.prefill_tokens_per_second if speed else None,
        memory_bytes=memory + parts.cuda_graph if choice.gpu_count else memory,
        kv_cache_tokens=choice.kv_cache_tokens or None,
        usd_per_hour=choice.price_per_hour,
        price_date=str(choice.price_date or ""),
    )


def truths(predicted: Prediction, measured: list[Measures], samples: list[Samples]) -> list[Truth]:
    """Every prediction beside its measurement; one without the other is shown too, with the reason.

    Args:
        measured: of every load of the run: the lightest is set beside what the planner says of one request
            alone, the heaviest beside what it says of a batch.
    """
    none = "" if predicted.tokens_per_second else f"no rates are known of {predicted.hardware}"
    found: list[Truth] = []
    timed = [m for m in measured if "tpot" in m.latencies]
    light = min(
        timed, key=lambda m: (m.peak_in_flight, m.latencies["tpot"].percentiles[50].value), default=None
    )
    most = max(timed, key=lambda m: m.rates["output_tokens"].value, default=None)
    # One load says one of the two, and not both.
    if light is not None and (light.peak_in_flight == 1 or light is not most):
        at_once = light.peak_in_flight
        found.append(
            Truth(
                what="one request alone",
                unit="tokens/s",
                predicted=predicted.tokens_per_second,
                measured=1 / tpot if (tpot := light.latencies["tpot"].percentiles[50].value) else None,
                remark=none or ("" if at_once == 1 else f"measured with up to {at_once} at once"),
            )
        )
    if most is not None and most.peak_in_flight > 1:
        batch = f"predicted for {predicted.batch} at once, measured with up to {most.peak_in_flight}"
        found.append(
            Truth(
                what="all together",
                unit="tokens/s",
                predicted=predicted.tokens_per_second_batch,
                measured=most.rates["output_tokens"].value,
                remark=none or batch,
            )
        )
    used, source = memory_used(samples)
    found.append(
        Truth(what="memory", unit="bytes", predicted=predicted.memory_bytes, measured=used, remark=source)
    )
    return found


def memory_used(samples: list[Samples]) -> tuple[float | None, str]:
    """The most that was seen in bytes, and of what: of the fullest GPU, or else of the engine's processes."""
    most: dict[str, float] = {}
    for one in samples:
        for name, values in one.series.items():
            seen = [value for value in values if value is not None]
            if name.endswith("_memory_bytes") and seen:
                kind = "gpu" if name.startswith("gpu") else "processes"
                most[kind] = max(most.get(kind, 0.0), *seen)
    if "gpu" in most:
        return most["gpu"], "of the fullest GPU, whoever used it"
    if "processes" in most:
        return most["processes"], "resident; pages that processes share are counted in each"
    return None, "nobody looked"


def cost(predicted: Prediction | None, measures: Measures) -> Cost | None:
    """None where the hardware has no price or no token came."""
    output = measures.rates.get("output_tokens")
    total = measures.rates.get("total_tokens")
    if predicted is None or not predicted.usd_per_hour or output is None or total is None or not output.value:
        return None
    hourly = predicted.usd_per_hour
    return Cost(
        usd_per_hour=hourly,
        output_tokens_per_usd=output.value * SECONDS_PER_HOUR / hourly,
        usd_per_million_output_tokens=hourly / (output.value * SECONDS_PER_HOUR) * 1e6,
        usd_per_million_tokens=hourly / (total.value * SECONDS_PER_HOUR) * 1e6,
        price_date=predicted.price_date,
    )
