"""The arithmetic of the benchmarks' report and of their timing, on rows written by hand.

Guards: an inverse or another ratio, bytes of the wrong columns, wrong units, a duration that goes
to another variant.
"""

from types import SimpleNamespace

import pytest

pytest.importorskip("pytest_benchmark")
from benchmarks import interleaved, report
from benchmarks.interleaved import Variant


def row(suite, name, role, median, **facts):
    """Return a row of results in the comparison that its suite has."""
    shared = {"suite": suite, "group": suite, "model": "one-50m", "optimizer": "AdamW"}
    shared |= {"format": "fp32", "clip": True, "threads": 2, "parameters": 1_000_000}
    shared |= {"tensors": 1, "groups": 1, "cut": "", "iqr": median / 20}
    return {**shared, "name": name, "role": role, "median": median, **facts}


ROOFLINE = ("copy", 20e6), ("triad", 16e6)


def rooflines(suite):
    return [row(suite, name, "roofline", 1e-3, bytes=size) for name, size in ROOFLINE]


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.0, "12 s"), (1.0, "1 s"), (0.25, "250 ms"), (1e-3, "1 ms"), (2.5e-4, "250 µs")],
)
def test_times_have_their_unit(value, text):
    assert report.seconds(value) == text


def test_steps_are_compared_with_the_fastest_other_and_the_best_roofline():
    rows = [
        row("step", "torch foreach", "other", 8e-3, bytes=40e6),
        row("step", "torch fused", "other", 4e-3, bytes=40e6),
        row("step", "fused_optim native", "ours", 2e-3, bytes=32e6),
        row("step", "fused_optim reference", "ours", 6e-3, bytes=32e6),
    ]
    lines = list(report.steps([*rooflines("step"), *rows]))
    assert lines[0] == "## AdamW, fp32, clipped: one-50m, 2 threads"
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| fused_optim native | 2 ms | 100 µs | 0.50 | 32.0 | 16.0 | 80% |",
        "| torch fused | 4 ms | 200 µs |  | 40.0 | 10.0 | 50% |",
        "| fused_optim reference | 6 ms | 300 µs | 1.50 | 32.0 | 5.3 | 27% |",
        "| torch foreach | 8 ms | 400 µs |  | 40.0 | 5.0 | 25% |",
        "| copy | 1 ms | 50 µs |  |  | 20.0 | 100% |",
        "| triad | 1 ms | 50 µs |  |  | 16.0 | 80% |",
    ]


def test_formats_show_what_is_kept_and_moved():
    sizes = {"bytes": 32e6, "weights_bytes": 4e6, "states_bytes": 8e6}
    small = {"bytes": 16e6, "weights_bytes": 2e6, "states_bytes": 3e6, "format": "split-int8"}
    rows = [
        row("formats", "native, fp32", "ours", 4e-3, **sizes),
        row("formats", "native, split-int8", "ours", 1e-3, **small),
        row("formats", "torch fused, fp32", "other", 8e-3, **sizes),
    ]
    lines = list(report.formats([*rooflines("formats"), *rows]))
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| native, split-int8 | 5.00 | 16.00 | 1 ms | 50 µs | 16.0 | 80% | 0.25 |",
        "| native, fp32 | 12.00 | 32.00 | 4 ms | 200 µs | 8.0 | 40% | 1.00 |",
        "| torch fused, fp32 | 12.00 | 32.00 | 8 ms | 400 µs | 4.0 | 20% | 2.00 |",
        "| copy |  |  | 1 ms | 50 µs | 20.0 | 100% |  |",
        "| triad |  |  | 1 ms | 50 µs | 16.0 | 80% |  |",
    ]


def test_the_host_costs_what_each_further_tensor_costs():
    """Guard against the time of an empty step in the time of each tensor."""
    counted = {"tensor_allocations": 4, "python_peak": 2_500_000}
    rows = [
        row("host", "ours", "ours", 1e-4 + 2e-7 * n, tensors=n, **counted | {"python_peak": 50 * n})
        for n in (10_000, 100, 1000)
    ]
    lines = list(report.host(rows))
    assert lines[2].startswith("|  | groups | 100 tensors | 1,000 tensors | 10,000 tensors |")
    assert lines[4] == "| ours | 1 | 120 µs | 300 µs | 2.1 ms | 0.2 µs | 4 | 0.50 MB |"


def test_first_steps_show_the_compilation():
    times = {"min": 0.4, "max": 0.6, "first": [0.9, 0.7, 0.8], "imported": "triton"}
    rows = [row("first step", "cold cache", "ours", 0.5, backend="native", **times)]
    lines = list(report.first_step(rows))
    assert lines[-2] == "| cold cache, native | 500 ms | 400 ms | 600 ms | 800 ms | triton |"


def test_training_is_in_tokens_a_second():
    rows = [
        row("training", "fused_optim native", "ours", 0.05, tokens=1000, memory=3e6),
        row("training", "torch fused", "other", 0.1, tokens=1000, memory=2e6),
    ]
    assert list(report.training(rows))[-3:-1] == [
        "| fused_optim native | 20,000 | 50 ms | 2.5 ms | 0.50 | 3.0 MB |",
        "| torch fused | 10,000 | 100 ms | 5 ms |  | 2.0 MB |",
    ]


def test_the_summary_compares_equal_numbers_of_threads():
    times = {"fused_optim native": 0.5, "fused_optim reference": 3.0, "DeepSpeed": 1.5}
    times |= {"bitsandbytes": 2.0, "torch fused": 1.0}
    rows = [
        row("step", name, "other", k * threads * time, model=model, threads=threads)
        for name, time in times.items()
        for threads in (1, 2)
        for k, model in enumerate(report.MODELS, 1)
    ]
    rows.append(row("step", "fused_optim native", "ours", 9.0, clip=False))
    for one in rows:
        if (one["threads"], one["name"]) == (1, "fused_optim native"):
            one["median"] *= 1.5
    content = {"machine_info": {"versions": {"deepspeed": "1.2", "bitsandbytes": "0.5"}}}
    assert list(report.summary(content, rows))[2:-1] == [
        '| `backend="native"`, 2 threads | 0.50 | 0.50 | 0.50 | 0.50 |',
        '| `backend="reference"`, 2 threads | 3.00 | 3.00 | 3.00 | 3.00 |',
        "| DeepSpeed 1.2, 2 threads | 1.50 | 1.50 | 1.50 | 1.50 |",
        "| bitsandbytes 0.5, 2 threads | 2.00 | 2.00 | 2.00 | 2.00 |",
        '| `backend="native"`, 1 thread | 0.75 | 0.75 | 0.75 | 0.75 |',
    ]


class Pedantic:
    """A fixture of pytest-benchmark whose durations are what the function returns."""

    disabled = False

    def __init__(self):
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=[]))
        self.extra_info = {"suite": "step"}

    def pedantic(self, function, setup, rounds):
        """Run each round after its setup."""
        for _ in range(rounds):
            arguments, options = setup()
            self.stats.stats.data.append(function(*arguments, **options))


def test_a_duration_is_that_of_its_variant():
    """Guard against durations that go by the order of the runs, and caches that are not filled."""
    events = []
    variants = [
        Variant(name, "ours", lambda s=s: s, {"bytes": 4}, lambda n=name: events.append(n))
        for name, s in (("fast", 1e-9), ("slow", 2e-9), ("third", 3e-9))
    ]
    benchmark = Pedantic()
    interleaved.compare(benchmark, variants, lambda: events.append("evict"), 1.0)
    entry = {"name": "test", "fullname": "file::test", "extra_info": benchmark.extra_info}
    found = {one["name"]: one for one in interleaved.rows_of({**entry, "stats": {}})}
    for name, seconds in (("fast", 1e-9), ("slow", 2e-9), ("third", 3e-9)):
        stats = found[name]["stats"]
        assert (stats["median"], stats["rounds"]) == (seconds, interleaved.MAX_RUNS)
        assert found[name]["extra_info"] == {"suite": "step", "role": "ours", "bytes": 4}
    # each was estimated once; then caches are filled after what the run prepares
    assert events[:3] == ["fast", "slow", "third"]
    assert set(events[4::2]) == {"evict"}
    assert len(events) == 3 + 2 * 3 * interleaved.MAX_RUNS


def test_the_roofline_counts_reads_and_writes():
    found = {v.name: v for v in interleaved.Roofline(smoke=True).variants()}
    size = 4 << 10
    assert {name: one.facts["bytes"] for name, one in found.items()} == {
        "copy": 2 * size,  # one read, one written
        "triad": 3 * size,  # two read, one of them written
    }
