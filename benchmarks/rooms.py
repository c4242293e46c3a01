"""Rooms of WHAMR! beside the form they were made in: time, difference, decay.

    PRA_NUM_THREADS=1 python -m benchmarks.rooms [--rooms=60] [--table=ROOMS.csv]

The straightforward form is that of the original's `WhamRoom`, written for
pyroomacoustics 0.10: a ShoeBox with two sources and two microphones, its responses
computed with max_order 0 and again with the order that fills T60. Ours computes what is
written, the left microphone. The two take turns, room by room; figures are processor
seconds of one thread. The table also gives the T60 of our responses (by Schroeder's
integral, from -5 to -35 dB) over the nominal one. It is measured above 80 Hz, where
speech is: reflections of positive amplitude alone add up to a slow rumble near 0 Hz.
"""

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyroomacoustics
from pyroomacoustics.experimental import measure_rt60
from scipy.signal import butter, sosfiltfilt

from data_prep.common.cli import as_command
from data_prep.whamr.rooms import Placed, draw_room, read_rooms
from modules.audio.rooms import impulse_responses

RATE = 16000
DECAY_DB = 30
LOWEST_HZ = 80


def straightforward(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """Anechoic and reverberant responses at the left microphone, each [S, T]."""
    room = placed.room
    absorbed = min(1 - (1 - room.absorption) ** 2, 1.0)
    frames = math.ceil(room.rt60 * RATE)
    responses = []
    for order in (0, room.max_order):
        box = pyroomacoustics.ShoeBox(
            room.size,
            fs=RATE,
            materials=pyroomacoustics.Material(energy_absorption=absorbed),
            max_order=order,
        )
        for source in room.sources:
            box.add_source(source)
        box.add_microphone_array(np.array([room.microphone, placed.right]).T)
        box.compute_rir()
        padded = [np.append(wave_T, np.zeros(frames)) for wave_T in box.rir[0]]
        responses.append(np.stack([wave_T[:frames] for wave_T in padded]))
    return responses[0], responses[1]


def ours(placed: Placed) -> tuple[np.ndarray, np.ndarray]:
    """The same by `modules.audio.rooms`."""
    return (
        impulse_responses(placed.room, RATE, max_order=0),
        impulse_responses(placed.room, RATE),
    )


def timed(make: Callable[[Placed], tuple], placed: Placed) -> tuple[float, np.ndarray]:
    """Processor seconds, and the reverberant responses."""
    start = time.process_time()
    _, response_ST = make(placed)
    return time.process_time() - start, response_ST


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rooms", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args(arguments)
    if options.rooms < 1:
        parser.error("--rooms must be 1 or more")
    if options.table:
        with open(options.table, newline="") as file:
            names = [row["utterance_id"] for row in csv.DictReader(file)]
        names = [name.removesuffix(".wav") for name in names[: options.rooms]]
        rooms = read_rooms(options.table, names)
    else:
        rooms = [draw_room("tt", f"{n}", options.seed) for n in range(options.rooms)]
    pyroomacoustics.constants.set("rir_hpf_enable", False)  # 0.3 had no high-pass
    ours(rooms[0]), straightforward(rooms[0])  # tables and pages that wait for a call
    high_pass = butter(2, LOWEST_HZ, "high", fs=RATE, output="sos")
    seconds, errors, decays = [], [], []
    for placed in rooms:
        reference_s, reference_ST = timed(straightforward, placed)
        our_s, response_ST = timed(ours, placed)
        seconds.append((reference_s, our_s))
        if placed.room.absorption <= 1:
            difference = np.linalg.norm(response_ST - reference_ST)
            errors.append(difference / np.linalg.norm(reference_ST))
        decays += [
            measure_rt60(wave_T, RATE, decay_db=DECAY_DB) / placed.room.rt60
            for wave_T in sosfiltfilt(high_pass, response_ST)
        ]
    totals = np.sum(seconds, axis=0)
    times = [placed.room.rt60 for placed in rooms]
    low, middle, high = np.quantile(decays, [0.1, 0.5, 0.9])
    print(
        f"{len(rooms)} rooms, nominal T60 {min(times):.2f} to {max(times):.2f} s "
        f"(median {np.median(times):.2f})\n"
        "| | straightforward | ours | ratio |\n|---|---|---|---|\n"
        f"| processor s a room, mean | {totals[0] / len(rooms):.3f} "
        f"| {totals[1] / len(rooms):.4f} | {totals[0] / totals[1]:.0f} |\n"
        f"| the slowest room, s | {max(s for s, _ in seconds):.2f} "
        f"| {max(s for _, s in seconds):.3f} | |\n\n"
        f"largest difference: {max(errors, default=math.nan):.1e} of the response "
        f"(of {len(errors)} rooms with absorption up to 1)\n"
        f"T60 of ours over nominal: {middle:.2f}, 80 % within {low:.2f} to {high:.2f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(as_command(main))
