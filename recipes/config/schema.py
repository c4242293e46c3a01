"""The settings that recipes read: each declared once, with its type and its range.

A recipe names its class as `settings_class` and reads its settings with it::

    settings = SpeechSettings.read(hparams)

The YAML gives every value; the classes below give types, which a type checker knows,
ranges, and whether a resumed run may change the setting freely. A key that no recipe
reads, but that the YAML hands to an object, needs no line here: its type is that of the
object's argument (`recipes/config/overrides.py`).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, Self, get_args, get_type_hints

import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from speechbrain.utils.train_logger import FileTrainLogger
from torch import Tensor, nn

from modules.data.augmentation import Augmentation
from modules.losses.auxiliary import AuxiliaryLoss
from modules.losses.selection import Selector
from modules.runtime.errors import HparamsError
from modules.weights.checkpointer import AtomicCheckpointer
from recipes.config.kinds import Kind, Limits
from recipes.schedule import Phases, RateFactor, Scheduler

#: The SI-SNR of training lies within +- this many dB (modules/losses/si_snr.py).
LARGEST_SI_SNR = 100


def _of_each(names: str, **limits: float) -> dict[str, Limits]:
    return dict.fromkeys(names.split(), Limits(**limits))


#: Ranges of SpeechBrain's run options, and of keys that the YAML hands to an object.
LIMITS = {
    **_of_each("grad_accumulation_factor nonfinite_patience loss_memory", at_least=1),
    **_of_each("optimizer_step_limit debug_batches debug_epochs", at_least=1),
    **_of_each("profile_steps phase channels layers nfft", at_least=1),
    **_of_each("ckpt_interval_minutes ckpt_interval_steps valid_tracks", at_least=0),
    **_of_each("profile_warmup warmup_steps dont_halve_until_epoch", at_least=0),
    **_of_each("dropout t_dropout", at_least=0, below=1),
    **_of_each("max_grad_norm", other_than=0),
    **_of_each("threshold", below=LARGEST_SI_SNR),
}

#: Ranges of arguments of networks, optimizers, schedulers and data sets.
ARGUMENTS = {
    **LIMITS,
    **_of_each("t_layers bottom_channels weight_decay lr_min final_value", at_least=0),
    **_of_each("patience momentum eps", at_least=0),
    **_of_each("kernel_size chunk_size", at_least=2),
    **_of_each("depth growth heads t_heads intra_layers inter_layers", at_least=1),
    **_of_each("encoder_channels memory_channels ffn_channels", at_least=1),
    **_of_each("audio_channels dual_layers dconv_comp dconv_depth", at_least=1),
    **_of_each("epochs epoch_count memory", at_least=1),
    **_of_each("lr initial_value frame_seconds", above=0),
    **_of_each("quantile factor plateau_factor", above=0, at_most=1),
    **_of_each("betas", at_least=0, below=1),
    **_of_each("noise_probability", at_least=0, at_most=1),
    **_of_each("l1 mrstft spec_rmse snr log_wmse l1_snr", at_least=0),
}


def setting(
    *, free: bool = False, default: Any = dataclasses.MISSING, **limits: float
) -> Any:
    """Declare a number, a text or a list of the YAML; `limits` are those of `Limits`.

    What is `free` may change in a resumed run: it does not alter what is trained.
    Without a default the key must exist.
    """
    metadata = {"limits": Limits(**limits), "free": free}
    return dataclasses.field(default=default, metadata=metadata)


def built(*, free: bool = False, default: Any = dataclasses.MISSING) -> Any:
    """Declare an object that the YAML builds; see `setting`."""
    return dataclasses.field(default=default, metadata={"free": free})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What every recipe reads."""

    experiment_name: str = setting(free=True)
    seed: int = setting(at_least=0, at_most=2**32 - 1)
    output_folder: str = setting(free=True)
    save_folder: str = setting(free=True)
    data_folder: str = setting(free=True)
    test_folder: str | None = setting(free=True)
    pretrained: str | None = setting(free=True)
    pretrained_skip: list[str] = setting(free=True)
    allow_changes: bool = setting(free=True)
    checkpoint_minutes: float = setting(at_least=0, free=True)
    ddp_timeout: int = setting(at_least=1, at_most=10**8, free=True)
    check_sums: bool = setting(free=True)
    num_workers: int = setting(at_least=0, at_most=1024, free=True)
    prefetch_factor: int = setting(at_least=1, at_most=1024, free=True)
    pin_memory: bool | None = setting(free=True)
    persistent_workers: bool = setting(free=True)
    sample_rate: int = setting(above=0, at_most=10**6)

    N_epochs: int = setting(above=0, free=True)
    batch_size: int = setting(above=0)
    lr: float = setting(above=0)
    clip_grad_norm: float = setting(other_than=0)
    loss_upper_lim: float = setting()
    nonfinite_patience: int = setting(at_least=1, free=True)
    ema_decay: float | list[float] = setting(at_least=0, below=1)
    activation_checkpointing: bool = setting(free=True)
    profile_memory: bool = setting(free=True)

    valid_every: int = setting(at_least=0, free=True)
    eval_batch_size: int = setting(above=0, free=True)
    metrics: list[str] = setting(free=True)
    n_audio_to_save: int | None = setting(at_least=0, free=True)
    log_every: int = setting(above=0, free=True)
    tensorboard: bool = setting(free=True)
    stop_patience: int = setting(at_least=0, free=True)
    keep_checkpoints: int = setting(above=0, free=True)
    average_last: int = setting(at_least=0, free=True)
    average_best: int = setting(at_least=0, free=True)

    recipe: type[sb.Brain] = built(free=True)
    prepare: Callable[..., dict[str, str]] = built(free=True)
    load_pretrained: Callable[[nn.Module, str], Any] = built(free=True)
    modules: dict[str, nn.Module] = built(free=True)
    separator: nn.Module = built()
    optimizer: Callable[..., torch.optim.Optimizer] = built()
    select: Selector = built()
    lr_scheduler: Scheduler = built()
    rate_factor: RateFactor = built()
    epoch_counter: EpochCounter = built(free=True)
    train_logger: FileTrainLogger = built(free=True)
    checkpointer: AtomicCheckpointer = built(free=True)

    @classmethod
    def read(cls, hparams: Mapping[str, Any]) -> Self:
        """Return the settings among the values of a loaded YAML, each of them checked.

        Other keys are ignored. Raise an HparamsError if one is missing or wrong.
        """
        values = {}
        for field in dataclasses.fields(cls):
            value = hparams.get(field.name, field.default)
            if value is dataclasses.MISSING:
                raise HparamsError(f"the YAML file has no key {field.name}")
            if "limits" in field.metadata:
                value = cls.kinds()[field.name].fitted(field.name, value)
            values[field.name] = value
        return cls(**values)

    @classmethod
    @functools.cache
    def kinds(cls) -> dict[str, Kind]:
        """Return what each setting may be, by name."""
        kinds = {}
        for field in dataclasses.fields(cls):
            hint = get_type_hints(cls)[field.name]
            null = {NoneType} if NoneType in get_args(hint) else set()
            kind = Kind.of_annotation(hint, field.metadata.get("limits", Limits()))
            kinds[field.name] = kind or Kind(frozenset({dict, *null}))
        return kinds

    @classmethod
    def free(cls) -> frozenset[str]:
        """Return the names of the settings that a resumed run may change."""
        return frozenset(f.name for f in dataclasses.fields(cls) if f.metadata["free"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechSettings(RunSettings):
    """What the speech recipes read."""

    num_spks: int = setting(above=0)
    dynamic_mixing: bool = setting()
    base_folder_dm: str | None = setting(free=True)
    speaker_pattern: str | None = setting(free=True)
    loss_upper_lim: float = setting(above=-LARGEST_SI_SNR)
    loss_floor: float | None = setting(at_least=-LARGEST_SI_SNR, below=LARGEST_SI_SNR)
    auxiliary: AuxiliaryLoss | None = built(default=None)
    noise_snr_db: list[float] = setting(at_least=-100, at_most=100)
    room_pool: str | None = setting()
    targets: str = setting()
    examples_per_epoch: int | None = setting(above=0)
    segment_seconds: float | None = setting(at_least=0.01, at_most=3600)
    speed_changes: list[int] | None = setting(at_least=1, at_most=1000)
    eval_chunk_seconds: float | None = setting(at_least=0.1, at_most=1e6, free=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MusicSettings(RunSettings):
    """What the music recipes read."""

    sources: list[str] = setting()
    pretrained_sources: list[str] | None = setting(free=True)
    source_map: dict[str, str] | None = setting(free=True)
    loss_upper_lim: float = setting(above=0)
    segment_seconds: float = setting(at_least=0.01, at_most=3600)
    stride_seconds: float = setting(at_least=0.01, at_most=3600)
    independent: bool = setting()
    stem_balance: float = setting(at_least=0, at_most=1)
    own_mixture: bool = setting()
    examples_per_epoch: int | None = setting(above=0)
    augmentation: Augmentation | None = built()
    labels: str | list[str] | None = setting(free=True)  # what they say is compared
    label_action: str = setting(free=True)
    frame_seconds: float = setting(above=0, at_most=3600, free=True)  # as `select`'s
    weights: list[float] | None = setting(at_least=0)
    losses: Callable[[Tensor, Tensor, Tensor], Tensor] = built()
    lr_scheduler: Phases = built()
    relative_to_level: bool = setting()
    monitor: str = setting()
    shifts: int = setting(at_least=0, free=True)
    overlap: float = setting(at_least=0, below=1, free=True)
    segments_per_call: int = setting(at_least=1, free=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraSettings(RunSettings):
    """What the adapters of any recipe read."""

    lora_rank: int = setting(at_least=1)
    lora_alpha: float | None = setting(above=0)
    lora_dropout: float = setting(at_least=0, below=1)
    lora_mode: str = setting()
    lora_min_rank: int = setting(at_least=0)
    lora_max_rank: int | None = setting(at_least=1)
    lora_gradient_steps: int = setting(at_least=1)
    layer_ranks: dict[str, int] | None = setting()
    train_fully: list[str] = setting()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechLoraSettings(SpeechSettings, LoraSettings):
    """What the adapters of a speech separator read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MusicLoraSettings(MusicSettings, LoraSettings):
    """What the adapters of a music separator read."""
