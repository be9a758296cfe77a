"""The memory arithmetic against published measurements, term by term.

python -m benchmarks.memory_calibration [--data FILE] [--output FILE]

Each row of data/memory-calibration.csv is one number that somebody measured and published, with the page
it is from. The constants of chutes/hardware that are marked [fit] were fitted to these rows: agreement
here is a check of the code, not evidence of accuracy on others. --data does the same for rows of one's own.

Errors are predicted - published. Of a KV cache, positive is optimistic: more was promised than there was.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from chutes.hardware.memory import GIB, Estimate, Layout, Setting, estimate
from chutes.hardware.versions import behaviour
from chutes.model import catalogue
from chutes.model.facts import ModelFacts

HERE = Path(__file__).parent

# quantity: (what the estimate says, what it says with the reserve)
TERMS = {
    "weights_gib_per_gpu": ("weights", None),
    "activation_peak_gib_per_gpu": ("peak_activation", None),
    "non_torch_gib_per_gpu": ("non_torch", None),
    "cudagraph_gib_per_gpu": ("cuda_graph", None),
    "kv_gib_per_gpu": ("kv_cache_expected", "kv_cache_safe"),
}
COUNTS = {
    "kv_tokens": ("kv_cache_tokens", "kv_cache_tokens_safe"),
    "max_concurrency": ("max_concurrency", "max_concurrency_safe"),
}


def facts_of(model: str) -> ModelFacts:
    """From the catalogue, or from the configs kept beside the measurements."""
    found = catalogue.find(model)
    if found is not None:
        return found
    return ModelFacts.from_config(json.loads((HERE / "data" / "memory-models.json").read_text())[model])


def predict(row: dict[str, str]) -> Estimate:
    setting = Setting(
        max_model_len=int(row["max_model_len"]),
        gpu_memory_utilization=float(row["utilization"]) if row["utilization"] else None,
        block_size=int(row["block_size"]) if row["block_size"] else None,
    )
    return estimate(
        facts_of(row["model"]),
        Layout(tensor_parallel=int(row["tensor_parallel"]), pipeline_parallel=int(row["pipeline_parallel"])),
        setting,
        int(float(row["cuda_gib"]) * GIB),
        behaviour(row["engine"], row["version"]),
        gpu_name=row["gpu"],
    )


def compare(row: dict[str, str]) -> dict[str, Any]:
    """One row with what is predicted of it."""
    found, quantity = predict(row), row["quantity"]
    result: dict[str, Any] = {"id": row["id"], "model": row["model"], "tp": row["tensor_parallel"]}
    result |= {"quantity": quantity, "published": row["value"], "source": row["source"]}
    if quantity == "fits":
        said = row["value"] == "yes"
        result |= {"expected": found.fits_expected, "safe": found.fits, "agrees": said == found.fits_expected}
        result["reason"] = found.reason
        return result
    unit = GIB if quantity in TERMS else 1
    names = (TERMS | COUNTS)[quantity]
    published = float(row["value"])
    for label, name in zip(("expected", "safe"), names, strict=True):
        if name is not None:
            value = getattr(found, name) / unit
            result[label] = round(value, 3)
            result[f"{label}_error"] = round(value - published, 3)
    return result


def spread(errors: list[float]) -> dict[str, float | int]:
    return {
        "rows": len(errors),
        "mean": round(statistics.mean(errors), 3),
        "median_absolute": round(statistics.median(abs(e) for e in errors), 3),
        "lowest": round(min(errors), 3),
        "highest": round(max(errors), 3),
    }


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    errors: dict[str, list[float]] = defaultdict(list)
    for one in results:
        for label in ("expected", "safe"):
            if f"{label}_error" in one:
                errors[f"{one['quantity']} {label}"].append(one[f"{label}_error"])
    summary: dict[str, Any] = {name: spread(found) for name, found in errors.items()}
    verdicts = [one for one in results if one["quantity"] == "fits"]
    summary["fits"] = {"rows": len(verdicts), "agree": sum(one["agrees"] for one in verdicts)}
    return summary


def show(results: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    numbers = f"{'published':>11}{'expected':>11}{'error':>9}"
    print(f"{'row':<6}{'model':<34}{'TP':>3}  {'quantity':<28}{numbers}  safe")
    for one in results:
        error = f"{one['expected_error']:+.2f}" if "expected_error" in one else ""
        safe = (
            f"{one['safe']} ({one['safe_error']:+.2f})" if "safe_error" in one else str(one.get("safe", ""))
        )
        expected = f"{one['expected']}"
        print(
            f"{one['id']:<6}{one['model'].split('/')[1][:32]:<34}{one['tp']:>3}  {one['quantity']:<28}"
            f"{one['published']:>11}{expected:>11}{error:>9}  {safe}"
        )
    print(f"\n{'quantity':<42}{'rows':>5}{'mean':>12}{'median abs':>12}{'lowest':>12}{'highest':>12}")
    for name, found in summary.items():
        if name != "fits":
            numbers = "".join(f"{found[k]:>12}" for k in ("mean", "median_absolute", "lowest", "highest"))
            print(f"{name:<42}{found['rows']:>5}{numbers}")
    print(f"whether it fits: {summary['fits']['agree']} of {summary['fits']['rows']} agree")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=HERE / "data" / "memory-calibration.csv")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "memory-calibration.json")
    options = parser.parse_args()
    with options.data.open() as file:
        results = [compare(row) for row in csv.DictReader(file)]
    summary = summarise(results)
    show(results, summary)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(
        json.dumps(
            {"command": "python -m benchmarks.memory_calibration", "summary": summary, "rows": results},
            indent=1,
        )
        + "\n"
    )
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
