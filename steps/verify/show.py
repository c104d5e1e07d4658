"""What verifying a packed folder found, in lines for people. Torch-free."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from steps.verify.loading import BY_BLOCKS


def lines(found: Mapping[str, Any]) -> list[str]:
    """Of `sound` and, when they are there, `measured` and `tasks`."""
    said = [*_sound(found["sound"]), *(_measured(found["measured"]) if "measured" in found else ())]
    return [*said, *(line for name, facts in found.get("tasks", {}).items() for line in _task(name, facts))]


def _task(name: str, facts: Mapping[str, Any]) -> Iterator[str]:
    """A line per metric: the packed model's, and the original's if it was run, with standard errors."""
    for metric, value in facts["mixed"].items():
        original = f", original {_with_error(facts['original'][metric])}" if "original" in facts else ""
        yield f"{name}: {metric} {_with_error(value)}{original}, over {facts['samples']:,} samples"


def _with_error(value: Mapping[str, Any]) -> str:
    return f"{value['value']:.4f}" + ("" if value["stderr"] is None else f" ± {value['stderr']:.4f}")


def _sound(sound: Mapping[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count} x {name}" for name, count in sound["matrices"].items())
    origin = sound["origin"]
    said = [
        f"sound: {sound['tensors']} tensors in {sound['files']} file(s), {sound['bytes']:,} bytes, {sound['format']}",
        f"{sound['bpw_linear']:.4f} bits per weight in the matrices, {sound['bpw_total']:.4f} over the whole file",
        f"quantized: {kinds}",
    ]
    if "base_model" in origin:
        said.append(f"made from model {origin['base_model'][:12]}, plan {origin['plan'][:12]}")
    said += [f"licence of the base model: {each['file']} ({each['title']})" for each in origin.get("licence", ())]
    return said


def _measured(measured: Mapping[str, Any]) -> list[str]:
    mixed, original, speed = measured["mixed"], measured["original"], measured["speed"]
    kl, top1 = mixed["kl"], mixed["top1"]
    said = [
        f"KL {kl['value']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}] nats per token, "
        f"top-1 {top1['value']:.4f}, perplexity {mixed['ppl']['value']:.3f} (original {original['ppl']['value']:.3f}), "
        f"over {measured['tokens']:,} tokens of {measured['documents']} documents",
    ]
    if speed is not None:
        said.append(
            f"on {measured['device']}: {speed['prefill_tokens_per_second']:.1f} tokens/s prefill, "
            f"{speed['decode_tokens_per_second']:.1f} decode, peak memory {speed['peak_memory_bytes'] / 1e9:.2f} GB"
        )
        said += gpu_lines(speed)
    elif measured["loaded"] == "blocks":
        said.append(f"on {measured['device']}: speed was not measured, {BY_BLOCKS}")
    return said


def gpu_lines(speed: Mapping[str, Any]) -> list[str]:
    """What a Speed says beyond throughput: nothing where it was measured on a CPU."""
    said = []
    if original := speed.get("original_peak_memory_bytes"):
        times = speed["peak_memory_bytes"] / original
        said.append(f"peak memory is {times:.2f} of the original's {original / 1e9:.2f} GB")
    if matrices := speed.get("kernel_matrices"):
        copy, fraction = speed["copy_bytes_per_second"], speed["decode_bandwidth_fraction"]
        reach = "all fit its cache" if fraction is None else f"decoding reads at {fraction:.0%} of that"
        said.append(f"kernels serve {matrices} packed matrices; memory copies at {copy / 1e9:,.0f} GB/s, {reach}")
    return said
