"""What other tools call a setting or a value: for the message about an unknown one."""

import difflib
from collections.abc import Collection

#: The setting here by a name of elsewhere: the first that a recipe has is meant.
#: `a.b` is the argument b of the object a; after `=` stands what to give.
KEYS: dict[str, tuple[str, ...]] = {
    "gradient_clip": ("clip_grad_norm",),
    "gradient_clip_val": ("clip_grad_norm",),
    "grad_clip": ("clip_grad_norm",),
    "learning_rate": ("lr",),
    "lr_decay_factor": ("lr_scheduler.factor", "lr_decay"),
    "epochs": ("lr_scheduler.epochs", "N_epochs"),
    "max_epochs": ("lr_scheduler.epochs", "N_epochs"),
    "save_audio": ("n_audio_to_save",),
    "segment": ("segment_seconds",),
    "segment_length": ("segment_seconds",),
    "samplerate": ("sample_rate",),
    "n_src": ("num_spks",),
    "num_speakers": ("num_spks",),
    "encoder_kernel_size": ("kernel_size", "separator.kernel_size"),
    "num_mossformer_layer": ("layers", "separator.layers"),
    "encoder_embedding_dim": ("channels", "separator.encoder_channels"),
    "enable_checkpointing": ("activation_checkpointing",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "trunc_ratio": ("lr_scheduler.quantile",),
    "loss": ("truncation",),
    "rank": ("lora_rank",),
    "min_rank": ("lora_min_rank",),
    "max_rank": ("lora_max_rank",),
    "rank_mode": ("lora_mode",),
    "mixed_precision": ("precision=bf16",),
    "use_amp": ("precision=bf16",),
    "continue_from": ("pretrained",),
    "hop_length": ("separator.nfft=4*hop_length", "separator.kernel_size=2*hop_length"),
}

#: What to say of a key that has no counterpart.
NOTES = {
    "config": "the YAML file comes first, without --config",
    "pretrained_seconds": "leave it out, the weights may be of any segment",
}

#: The value here by a key and a value of elsewhere.
VALUES: dict[tuple[str, str], str] = {
    ("precision", "float16"): "--precision=fp16",
    ("precision", "bfloat16"): "--precision=bf16",
    ("precision", "float32"): "--precision=fp32",
    ("truncation", "l1_trunc"): "--truncation=ccom",
    ("loss", "l1_trunc"): "--truncation=ccom",
    ("dataset", "wsj0-2mix"): "--dataset=wsj0mix --num_spks=2",
    ("dataset", "wsj0-3mix"): "--dataset=wsj0mix --num_spks=3",
    ("dataset", "libri2mix"): "--dataset=librimix --num_spks=2",
    ("dataset", "libri3mix"): "--dataset=librimix --num_spks=3",
}

#: From this likeness on a name is taken for a misspelt one.
LIKE = 0.7


def meant(key: str, names: Collection[str]) -> str:
    """Return which of the names was meant, and what to give it; or an empty text.

    >>> meant("PATIENSE", ["lr_scheduler.factor", "lr_scheduler.patience"])
    'lr_scheduler.patience'
    >>> meant("mixed_precision", ["lr", "precision"])
    'precision=bf16'
    >>> meant("q", ["factor", "patience"])
    ''
    """
    for other in KEYS.get(key.lower(), ()):
        if other.partition("=")[0] in names:
            return other

    def likeness(name: str) -> float:
        leaf = name.rpartition(".")[2].lower()
        return difflib.SequenceMatcher(None, key.lower(), leaf).ratio()

    best = max(sorted(names), key=likeness, default="")
    return best if likeness(best) >= LIKE else ""
