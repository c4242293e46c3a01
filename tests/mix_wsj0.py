"""Mix the WSJ0-2mix/3mix lists, for the experiments in `benchmarks/RESULTS.md`.

    python /work/shared/corpora/materialise.py dev OUT --what wsj0   # in that folder
    python tests/mix_wsj0.py --wsj0=OUT --lists=OUT/wsj0_metadata --out=OUT/wsj0mix

`--wsj0` is the folder that holds `wsj0/`, which the paths in the lists begin with;
the utterances are WAV or FLAC at any rate. The recipe is that of WSJ0-mix: resample,
bring each utterance to power 1 and then to the list's level in dB, cut to the shorter
(min) or pad (max), add, scale everything by 0.9 / peak, round to 16 bit. One part
differs: the original measures the power by ITU-T P.56, this script by the gated mean
square of `modules.levels`, so levels agree with the original's to about 1 dB only.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
from scipy.signal import resample_poly

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from modules.levels import active_power  # noqa: E402

SPLITS = ("tr", "cv", "tt")


def read_list(path: Path, num_spks: int) -> list[list[tuple[str, str]]]:
    """The (utterance, level in dB) pairs of each line of a mixing list."""
    lines = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        fields = line.split()
        if len(fields) != 2 * num_spks:
            sys.exit(f"{path}, line {number}: {len(fields)} fields, not {2 * num_spks}")
        lines.append(list(zip(fields[::2], fields[1::2], strict=True)))
    return lines


def load(path: Path, sample_rate: int) -> np.ndarray:
    """A mono utterance at the wanted rate, float64 of shape [T]."""
    wave_T, rate = soundfile.read(path)
    if rate != sample_rate:
        wave_T = resample_poly(wave_T, sample_rate, rate)
    return wave_T


def mix(
    waves: list[np.ndarray], levels_db: list[float], rate: int, mode: str
) -> tuple[np.ndarray, np.ndarray]:
    """The mixture [T] and its sources [S, T], peak 0.9."""
    length = (min if mode == "min" else max)(len(wave_T) for wave_T in waves)
    src_ST = np.zeros((len(waves), length))
    for row_T, wave_T, level_db in zip(src_ST, waves, levels_db, strict=True):
        gain = 10 ** (level_db / 20) / np.sqrt(active_power(wave_T, rate))
        row_T[: min(length, len(wave_T))] = gain * wave_T[:length]
    mix_T = src_ST.sum(0)
    scale = 0.9 / max(np.abs(mix_T).max(), np.abs(src_ST).max())
    return scale * mix_T, scale * src_ST


def main() -> None:
    """Read the command line, write `{N}speakers/wav{8,16}k/{mode}/{split}/...`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wsj0", type=Path, required=True)
    parser.add_argument("--lists", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_spks", type=int, default=2, choices=(2, 3))
    parser.add_argument("--sample_rate", type=int, default=8000, choices=(8000, 16000))
    parser.add_argument("--mode", default="min", choices=("min", "max"))
    args = parser.parse_args()
    rate, rate_name = args.sample_rate, f"wav{args.sample_rate // 1000}k"
    for split in SPLITS:
        lines = read_list(
            args.lists / f"mix_{args.num_spks}_spk_{split}.txt", args.num_spks
        )
        folder = args.out / f"{args.num_spks}speakers" / rate_name / args.mode / split
        for pairs in lines:
            waves = [load(args.wsj0 / path, rate) for path, _ in pairs]
            levels = [float(level) for _, level in pairs]
            mix_T, src_ST = mix(waves, levels, rate, args.mode)
            # Matlab's num2str, which named the original files: 5 significant digits.
            name = "_".join(f"{Path(p).stem}_{float(db):.5g}" for p, db in pairs)
            named = {"mix": mix_T} | {f"s{k + 1}": s for k, s in enumerate(src_ST)}
            for part, wave_T in named.items():
                path = folder / part / f"{name}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                pcm_T = np.round(wave_T * 2**15).astype(np.int16)
                soundfile.write(path, pcm_T, rate, subtype="PCM_16")
        print(f"{folder}: {len(lines)} mixtures")


if __name__ == "__main__":
    main()
