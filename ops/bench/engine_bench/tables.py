"""The tables for people. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engine_bench.contenders import CONTENDERS, OURS
from engine_bench.floor import Floor
from engine_bench.records import Absence, Machine, MachineRates, Record
from engine_bench.report import RIVALS, Comparison, Result
from engine_bench.workloads import TITLES


def report(records: Sequence[Record], comparisons: Sequence[Comparison]) -> str:
    """All tables, and in words what is missing from them."""
    blocks = [*_machines(records), *("\n".join(_comparison(one)) for one in comparisons)]
    if any(OURS in one.results for one in comparisons):
        blocks.append("\n".join(_targets(comparisons)))
    measured = {name for one in comparisons for name in one.results}
    absent = {one.contender: one.reason for one in records if isinstance(one, Absence)}
    blocks += [f"{name} took no part, {why}" for name, why in absent.items() if name not in measured]
    return "\n\n".join(blocks)


def _machines(records: Sequence[Record]) -> Iterator[str]:
    yield from dict.fromkeys(_machine(record) for record in records if isinstance(record, Machine))
    for record in records:
        if isinstance(record, MachineRates):
            yield "\n".join(_rates(record))


def _machine(machine: Machine) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"{machine.cpu}, {machine.cores} cores; {versions}"


def _rates(found: MachineRates) -> Iterator[str]:
    yield f"{found.model}: the best of {', '.join(found.libraries)}; {found.threads} threads"
    for product in found.products:
        shape = f"{product['inputs']} x {product['outputs']}"
        yield f"  {shape:>14} {product['flops'] / 1e9:7.0f} GFLOP/s  {product['library']}, {product['rows']} rows"
    yield f"  {'memory':>14} {found.bandwidth / 1e9:7.1f} GB/s"


def _comparison(one: Comparison) -> Iterator[str]:
    made, work = one.work.again(), one.work
    yield (
        f"{work.model} ({work.layers} layers), {TITLES.get(work.workload, work.workload)}: {work.requests} requests, "
        f"{made.prompt_tokens:,} tokens in, {made.output_tokens:,} out, {work.threads} threads"
    )
    columns = ("rows", "rounds", "tok/s", "slowest", "fastest", "inflight=1", "of floor", "peak MB", "growth MB")
    yield _row("", columns)
    for name, result in one.results.items():
        yield _row(name, _cells(one, name, result))
    for failure in one.failures:
        yield f"  {failure.contender} FAILED with {failure.rows} rows: {failure.message}"
    if one.floor is not None:
        yield _floor(one.floor, made.output_tokens)
    yield from _own_numbers(one)


def _cells(one: Comparison, name: str, result: Result) -> tuple[str, ...]:
    memory, ratio, share = result.memory, one.to_inflight(name), one.share_of_floor(name)
    return (
        str(result.rows),
        str(len(result.speeds)),
        f"{result.tokens_per_s:.1f}",
        f"{min(result.speeds):.1f}",
        f"{max(result.speeds):.1f}",
        "" if ratio is None else f"{ratio:.3f}",
        "" if share is None else f"{share:.1%}",
        "" if memory is None else f"{memory.peak_mb:.0f}",
        "" if memory is None else f"{memory.peak_mb - memory.idle_mb:.0f}",
    )


def _row(name: str, cells: Sequence[str]) -> str:
    return f"  {name:<26}" + "".join(f"{cell:>11}" for cell in cells)


def _floor(floor: Floor, tokens: int) -> str:
    return (
        f"  floor, in phases: {floor.in_phases:.2f} s, {tokens / floor.in_phases:.0f} tok/s (linear layers "
        f"{floor.linear:.2f} s, attention of prompts {floor.prefill_attention:.2f} s, of decoding "
        f"{floor.decode_attention:.2f} s); overlapped: {floor.overlapped:.2f} s, {tokens / floor.overlapped:.0f} tok/s"
    )


def _own_numbers(one: Comparison) -> Iterator[str]:
    for name in ("ours-padded", OURS):
        if name in one.results:
            stats = one.results[name].stats
            numbers = ", ".join(f"{key} {value:.4g}" for key, value in stats.items() if value)
            yield f"  {name} says, its warm-up included: {numbers}"


def _targets(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Over whom by how much, with the target beside it; of several contenders of a group the fastest counts."""
    yield f"{OURS} over:"
    yield f"  {'':<26}" + "".join(f"{rival:>30}" for rival in RIVALS)
    for one in comparisons:
        cells = [_against(one.over(names), one.target(rival)) for rival, names in RIVALS.items()]
        yield f"  {one.name:<26}" + "".join(f"{cell:>30}" for cell in cells)


def _against(ratio: float | None, target: float | None) -> str:
    if ratio is None:
        return "not measured"
    if target is None:
        return f"{ratio:.2f}x"
    return f"{ratio:.2f}x of {target:g}x ({'reached' if ratio >= target else 'not reached'})"


def contenders_text() -> str:
    """One line for each contender, for --help."""
    return "\n".join(f"  {contender.name:<26}{contender.title}" for contender in CONTENDERS.values())
