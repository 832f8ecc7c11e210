"""How long the command line takes to answer, against what cannot be avoided.

The light commands are compared with a bare interpreter (difference in seconds), ``zoo fit --help`` with importing the
libraries it stands on (ratio). Commands take turns, so that a busy moment of the machine hits all of them.

    python benchmarks/startup.py --repeats 10
"""

import argparse
import statistics
import subprocess
import sys
import time

BARE = ("-c", "pass")
LIBRARIES = ("-c", "import lightning.pytorch, timm, torchvision")
LIGHT = {
    "zoo --help": ("-m", "zoo", "--help"),
    "zoo --version": ("-m", "zoo", "--version"),
    "zoo list": ("-m", "zoo", "list"),
    "zoo reproduce": ("-m", "zoo", "reproduce"),
}
HEAVY = {"zoo fit --help": ("-m", "zoo", "fit", "--help")}
SECONDS, RATIO = 0.5, 1.3  # what each kind may cost at most


def seconds(words):
    """Return the time of one process from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(commands, repeats):
    """Return the times of every command, taken in turns; the first turn only fills the disk's cache."""
    times = {name: [] for name in commands}
    for turn in range(repeats + 1):
        for name, words in commands.items():
            elapsed = seconds(words)
            if turn:
                times[name].append(elapsed)
    return times


def show(name, values, unit, limit):
    """Print median and range of a comparison, and return whether the median keeps the limit."""
    median = statistics.median(values)
    kept = median <= limit
    spread = f"{min(values):.3f} to {max(values):.3f}"
    print(f"{name:16} {median:7.3f} {unit}  ({spread}, n = {len(values)})  limit {limit}  {'ok' if kept else 'MISSED'}")
    return kept


def main():
    """Measure, print, and end with code 1 if a limit is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10, help="turns of the light commands; 10 by default")
    parser.add_argument("--heavy_repeats", type=int, default=5, help="turns of zoo fit --help; 5 by default")
    options = parser.parse_args()

    times = measure({"bare": BARE, **LIGHT}, options.repeats)
    print(f"python -c pass: {statistics.median(times['bare']):.3f} s; above it:")
    kept = [
        show(name, [own - bare for own, bare in zip(times[name], times["bare"], strict=True)], "s", SECONDS)
        for name in LIGHT
    ]
    times = measure({"libraries": LIBRARIES, **HEAVY}, options.heavy_repeats)
    print(f"\nimport lightning, timm, torchvision: {statistics.median(times['libraries']):.3f} s; ratio to it:")
    kept += [
        show(name, [own / base for own, base in zip(times[name], times["libraries"], strict=True)], "x", RATIO)
        for name in HEAVY
    ]
    sys.exit(not all(kept))


if __name__ == "__main__":
    main()
