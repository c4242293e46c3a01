"""A data set that the packages do not know: a folder per mixture, into manifests.

DATA/{train,valid,test}/<name>/{mixture,talker1,talker2}.wav
"""

from pathlib import Path

import soundfile

from modules.data.manifest import Row, write_manifest


def prepare(data_folder: str, save_folder: str, num_spks: int) -> dict[str, str]:
    """Write the manifest of every split and return the paths."""
    manifests = {}
    for split in ("train", "valid", "test"):
        folders = sorted((Path(data_folder) / split).resolve().iterdir())
        rows = [row_of(folder, num_spks) for folder in folders]
        path = write_manifest(Path(save_folder) / f"{split}.csv", rows)
        manifests[split] = str(path)
    return manifests


def row_of(folder: Path, num_spks: int) -> Row:
    """Describe the mixture in a folder."""
    header = soundfile.info(folder / "mixture.wav")
    return Row(
        id=folder.name,
        duration=header.frames / header.samplerate,
        sample_rate=header.samplerate,
        mixture=str(folder / "mixture.wav"),
        sources=tuple(str(folder / f"talker{k + 1}.wav") for k in range(num_spks)),
    )
