"""What other tools call a setting or a value: for the message about an unknown one."""

import difflib
from collections.abc import Collection

#: Names of elsewhere by what they are here: the first that a recipe has is meant.
#: `a.b` is the argument b of the object a; after `=` stands what to give.
KEYS = {
    "clip_grad_norm": "gradient_clip gradient_clip_val grad_clip",
    "lr": "learning_rate",
    "lr_scheduler.factor lr_decay": "lr_decay_factor",
    "lr_scheduler.epochs N_epochs": "epochs max_epochs",
    "n_audio_to_save": "save_audio",
    "segment_seconds": "segment segment_length",
    "sample_rate": "samplerate",
    "num_spks": "n_src num_speakers",
    "kernel_size separator.kernel_size": "encoder_kernel_size",
    "layers separator.layers": "num_mossformer_layer",
    "channels separator.encoder_channels": "encoder_embedding_dim",
    "activation_checkpointing": "enable_checkpointing gradient_checkpointing",
    "lr_scheduler.quantile": "trunc_ratio",
    "truncation": "loss",
    "lora_rank": "rank",
    "lora_min_rank": "min_rank",
    "lora_max_rank": "max_rank",
    "lora_mode": "rank_mode",
    "precision=bf16": "mixed_precision use_amp",
    "pretrained": "continue_from",
    "separator.nfft=4*hop_length separator.kernel_size=2*hop_length": "hop_length",
}

#: What to say of a key that has no counterpart.
NOTES = {
    "config": "the YAML file comes first, without --config",
    "pretrained_seconds": "leave it out, the weights may be of any segment",
}

#: What to give here instead of `--key=value` of elsewhere.
VALUES = {
    "precision=float16": "--precision=fp16",
    "precision=bfloat16": "--precision=bf16",
    "precision=float32": "--precision=fp32",
    "truncation=l1_trunc": "--truncation=ccom",
    "loss=l1_trunc": "--truncation=ccom",
    "dataset=wsj0-2mix": "--dataset=wsj0mix --num_spks=2",
    "dataset=wsj0-3mix": "--dataset=wsj0mix --num_spks=3",
    "dataset=libri2mix": "--dataset=librimix --num_spks=2",
    "dataset=libri3mix": "--dataset=librimix --num_spks=3",
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
    for here, elsewhere in KEYS.items():
        for other in here.split() if key.lower() in elsewhere.split() else ():
            if other.partition("=")[0] in names:
                return other

    def likeness(name: str) -> float:
        leaf = name.rpartition(".")[2].lower()
        return difflib.SequenceMatcher(None, key.lower(), leaf).ratio()

    best = max(sorted(names), key=likeness, default="")
    return best if likeness(best) >= LIKE else ""
